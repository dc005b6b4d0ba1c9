# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""What the native step works on: settings as a record of numbers, accounts in blocks of lanes, and memory by address.

Accounts lie in blocks of LANES: a field of a block is LANES numbers in a row, and one pass of a loop over lanes becomes
two or four vector instructions. The lanes beyond the last account hold nothing, own nothing and never trade.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import from_dtype, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from . import drop_in

LANES = 16

# Choices of `EnvParams` are compiled as their place in these tuples.
ORDER_SIZINGS = ("price_magnitude", "price_digits", "initial_capital", "equity")
REWARDS = ("benchmark_difference", "profit", "cappuccino", "weighted_terms")
STARTS = ("first", "random", "stratified")


def columns(kind: str, names: str) -> list[tuple[str, str]]:
    """Fields of one kind of an array of records."""
    return [(name, kind) for name in names.split()]


def lanes(kind: str, names: str) -> list[tuple[str, str, tuple[int]]]:
    """The same for records of blocks: every field is LANES numbers."""
    return [(name, kind, (LANES,)) for name in names.split()]


# `EnvParams` as numbers, which is what a compiled function takes: choices are indices into the tuples above, and
# episode_bars 0 means to the end of the segment.
RULES = np.dtype(
    columns(
        "f8",
        "initial_capital buy_fee_rate sell_fee_rate benchmark_fee_rate gamma slippage_rate min_order_notional "
        "stale_fraction cash_haircut "
        "terminal_equity_fraction norm_cash norm_stocks norm_reward norm_action min_cash_reserve max_position_weight "
        "trailing_stop_pct time_decay_floor growth_weight benchmark_weight drawdown_penalty volatility_penalty "
        "concentration_penalty turnover_penalty action_limit target_weight held_bars_scale equity_floor "
        "increment_slack",
    )
    + columns("i8", "lookback stale_bars order_sizing reward start seed episode_bars n_envs n_starts n_usable")
    + columns("i8", "n_assets n_segments n_bars state_dim feature_bytes window_bytes")
    + columns("i8", "features assets segments accounts positions")  # addresses
    + columns("?", "always_allow_close release_unpriced buys_sequentially reserve_of_equity truncates restarts")
    + columns("?", "discounts_final_reward observes_absolute benchmark_of_episode observe_account")
    + columns("?", "compact whole_coins"),
    align=True,
)
ASSET = np.dtype(columns("f8", "min_qty qty_increment"))
SEGMENT = np.dtype(columns("i8", "first end limit first_start starts_before usable"))
# `Portfolio` by account and by position; what follows the integers is room for the step's own intermediate results.
ACCOUNTS = np.dtype(
    lanes("f8", "cash equity benchmark peak max_drawdown discounted_return fees slippage turnover")
    + lanes("i8", "bar first_bar last_bar segment trades")
    + lanes("f8", "final_cash final_equity") + lanes("i8", "final_bar")  # of the last episode that ended
    + lanes("f8", "equity_at_fill equity_before benchmark_before drawdown_before budget cost decay largest_weight")
    + lanes("f8", "reward")
    + lanes("f4", "shown_cash")
    + lanes("u1", "is_over is_truncated was_over"),
    align=True,
)
POSITIONS = np.dtype(
    lanes("f8", "qty high order_scale benchmark_qty") + lanes("i8", "held_bars") + lanes("f8", "price order_qty filled")
    + lanes("f4", "shown") + lanes("f8", "final_qty final_filled"),
    align=True,
)
POSITION_BYTES = POSITIONS.itemsize
Record = Any  # one element of an array of records, its fields as attributes
Array = np.ndarray

# _nrt=False: nothing is allocated, so nothing is reference-counted. forceinline: each phase becomes part of the one
# loop over blocks, where the compiler sees which fields lie apart and turns a loop over lanes into vector instructions.
# It would rather unroll a loop of 16 rounds into scalar code, before it looks for vectors; the option forbids that.
llvmlite.binding.set_option("environment_Alpaca_kernels", "-unroll-full-max-count=8")
native: Any = njit(_nrt=False, error_model="numpy", forceinline=True)  # pyright: ignore[reportCallIssue]


def cached(function: Any, **options: Any) -> Any:
    """`function` compiled on first use and kept on disk; compiled once a process where nothing can be written."""
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba: no locator available
        return njit(**options)(function)


def _record_at(dtype: np.dtype) -> Any:
    """Function of (address of an array of records, index): that record. An address is a tenth of an array's call."""
    kind: Any = from_dtype(dtype)

    @intrinsic
    def record_at(_typing: Any, _address: Any, _index: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            offset = builder.mul(args[1], context.get_constant(types.int64, dtype.itemsize))
            return builder.inttoptr(builder.add(args[0], offset), context.get_value_type(kind))

        return kind(types.int64, types.int64), codegen

    return record_at


def _number_at(kind: Any) -> Any:
    """Functions that read and write the number at (address, index)."""

    def pointer(context: Any, builder: Any, args: Any) -> Any:
        return builder.gep(builder.inttoptr(args[0], context.get_data_type(kind).as_pointer()), [args[1]])

    @intrinsic
    def load(_typing: Any, _address: Any, _index: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.load(pointer(context, builder, args))

        return kind(types.int64, types.int64), codegen

    @intrinsic
    def store(_typing: Any, _address: Any, _index: Any, _value: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            builder.store(args[2], pointer(context, builder, args))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, kind), codegen

    return load, store


@intrinsic
def _copy_bytes(_typing: Any, _target: Any, _source: Any, _n_bytes: Any) -> Any:
    """memcpy between two addresses."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        target, source = (builder.inttoptr(address, cgutils.voidptr_t) for address in args[:2])
        cgutils.raw_memcpy(builder, target, source, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def _prefetch(_typing: Any, _address: Any) -> Any:
    """Ask for the cache line at an address; nothing waits for it."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        pointer = builder.inttoptr(args[0], cgutils.voidptr_t)
        builder.call(function, [pointer, ir.Constant(i32, 0), ir.Constant(i32, 3), ir.Constant(i32, 1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# An intrinsic's own signature has numba's typing context in front.
copy_bytes: Any = _copy_bytes
prefetch: Any = _prefetch
rules_at, account_at, position_at = _record_at(RULES), _record_at(ACCOUNTS), _record_at(POSITIONS)
asset_at, segment_at = _record_at(ASSET), _record_at(SEGMENT)
load_f4, store_f4 = _number_at(types.float32)
_, store_u1 = _number_at(types.uint8)
_, store_i8 = _number_at(types.int64)


@native
def where(mask: bool, x: float, y: float) -> float:
    """torch.where for one number, both sides computed: a select, not a branch."""
    return x if mask else y


def rules_of(env: drop_in.VectorizedCryptoEnvAlpacaOptimized) -> Array:
    """(1,) record of `EnvParams`, sizes and the options of starts; the addresses are 0."""
    p = env.params
    own = {
        "order_sizing": ORDER_SIZINGS.index(p.order_sizing), "reward": REWARDS.index(p.reward),
        "buys_sequentially": p.buys == "sequential", "reserve_of_equity": p.reserve_base == "equity",
        "discounts_final_reward": p.final_reward == "discounted_return", "start": STARTS.index(env.start),
        "observes_absolute": p.observation == "absolute", "benchmark_of_episode": p.benchmark_base == "episode",
        "benchmark_fee_rate": p.buy_fee_rate * p.benchmark_pays_fee, **p.costs(env.cost_factor)._asdict(),
        "target_weight": drop_in.TARGET_WEIGHT, "held_bars_scale": drop_in.HELD_BARS_SCALE,
        "equity_floor": drop_in.EQUITY_FLOOR, "increment_slack": drop_in.INCREMENT_SLACK, "seed": env.seed,
        "episode_bars": env.episode_bars or 0, "restarts": env.autoreset, "n_envs": env.n_envs,
        "n_starts": int(env.market.start_offset[-1]), "n_usable": len(env.market.usable_segment),
        "compact": env.compact, "state_dim": env.state_dim, "n_assets": env.action_dim,
        "n_segments": len(env.market.segment_first), "n_bars": len(env.market.price),
    }  # fmt: skip
    rules = np.zeros(1, RULES)
    for name in RULES.names or ():
        rules[name] = own[name] if name in own else getattr(p, name, 0)
    return rules
