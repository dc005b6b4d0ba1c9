# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Data layout of the numba step: settings as a record of numbers, accounts in blocks of lanes, memory by address.

Accounts are stored in blocks of LANES. A field of a block is LANES consecutive numbers, so a loop over lanes compiles
to two or four vector instructions. Lanes after the last account are empty and never trade.

All files of the step use these names. `book` is the record of a block's accounts. `coins` is the address of its
positions, of which `coin` is one. `orders` is the address of this bar's orders per coin, of which `order` is one. `w`
is a lane, `i + w` its environment, `n` the number of lanes with an account, `a` an asset, and `p` the RULES record.
"""

from __future__ import annotations

import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import from_dtype, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from . import drop_in
from .tables import SEGMENT

LANES = 16
EPISODE, REJECTED = range(2)  # rows of `counts`: episode number, number of rejected actions


def columns(kind: str, names: str) -> list[tuple[str, str]]:
    """Return the fields of one kind for an array of records."""
    return [(name, kind) for name in names.split()]


def lanes(kind: str, names: str) -> list[tuple[str, str, tuple[int]]]:
    """Return the fields of one kind for records of blocks, in which every field has LANES numbers."""
    return [(name, kind, (LANES,)) for name in names.split()]


# `EnvParams` by name, with choices as indices into CHOICES; the costs of the next step; then options and sizes of the
# environment (episode_bars 0 means to the end of the segment), and the addresses of its memory.
KINDS = {"float": "f8", "int": "i8", "bool": "?", "str": "i8"}
SETTINGS = [(f.name, KINDS[str(f.type)]) for f in fields(drop_in.EnvParams) if f.name != "rules"]
RULES = np.dtype(
    [
        *SETTINGS, ("costs", np.dtype([(name, "f8") for name in drop_in.Costs._fields])),
        *columns("?", "restarts compact"),
        *columns("i8", "seed episode_bars n_envs n_starts n_usable n_assets n_segments n_bars"),
        *columns("i8", "state_dim feature_bytes window_bytes"),
        *columns("i8", "features assets segments accounts positions"),
    ],
    align=True,
)  # fmt: skip
ASSET = np.dtype(columns("f8", "min_qty qty_increment"))
SEGMENTS = np.dtype([(name, "i8") for name in SEGMENT._fields])
# `Portfolio` by account, and the stored results of the last finished episode. is_over is 1 if the last step ended an
# episode; without autoreset it stays 1. The other fields are recomputed in every step:
#   before          account value at the previous bar
#   equity_at_fill  quote, at this bar's close, after stops and before orders
#   cost            quote, cost of all the coins wanted
#   budget          quote, available for the next buys
#   affordable      coins of one asset that the budget can buy
#   scale           0 to 1, affordable fraction of the wanted coins
#   growth          logarithm of equity over previous equity
#   decay           0 to 1, factor of the Cappuccino reward
#   largest_weight  fraction of equity
#   shown_cash      as in the observation
#   newly_over      1 if this step ended a running episode
ACCOUNTS = np.dtype(
    [
        *lanes("f8", "cash equity benchmark peak max_drawdown discounted_return fees slippage turnover"),
        *lanes("i8", "bar first_bar last_bar segment trades final_bar"), *lanes("f8", "final_cash final_equity"),
        ("before", np.dtype(lanes("f8", "equity benchmark max_drawdown"))),
        *lanes("f8", "equity_at_fill cost budget affordable scale growth decay largest_weight reward"),
        *lanes("f4", "shown_cash"), *lanes("u1", "is_over newly_over truncated"),
    ],
    align=True,
)  # fmt: skip
# `Portfolio` by account and coin, and the stored results of the last finished episode. Recomputed in every step:
#   shown   as in the observation
#   weight  fraction of equity; only if concentration is penalized
POSITIONS = np.dtype(
    [
        *lanes("f8", "qty high order_scale benchmark_qty filled weight final_qty final_filled"),
        *lanes("i8", "held_bars"), *lanes("f4", "shown"),
    ],
    align=True,
)  # fmt: skip
# Orders of a bar for one coin. They are on the stack of a call and are reused for each block, so they stay in the
# fastest cache.
#   price      quote, this bar's close
#   order_qty  ordered coins, negative to sell
#   wanted     coins of a buy that the venue accepts, otherwise 0
#   action     as received; 0 if the account holds
ORDERS = np.dtype([*lanes("f8", "price order_qty wanted"), *lanes("f4", "action")], align=True)
POSITION_BYTES, ORDER_BYTES = POSITIONS.itemsize, ORDERS.itemsize
Record = Any  # one element of an array of records, its fields as attributes
Array = np.ndarray

# _nrt=False: nothing is allocated, so reference counting is unnecessary. forceinline: each phase becomes part of the
# loop over blocks, where the compiler can prove that fields do not overlap and vectorize the loops over lanes. Without
# the option the compiler would first unroll a loop of 16 iterations into scalar code.
llvmlite.binding.set_option("environment_Alpaca_kernels", "-unroll-full-max-count=8")
native: Any = njit(_nrt=False, error_model="numpy", forceinline=True)  # pyright: ignore[reportCallIssue]


def sources() -> int:
    """Return a number that changes whenever the text of this folder or of the drop-in file changes.

    numba's own disk cache checks only the file of the function.
    """
    paths = [*sorted(Path(__file__).parent.glob("*.py")), Path(str(drop_in.__file__))]
    return zlib.crc32(b"".join(path.read_bytes() for path in paths))


def cached(function: Any, **options: Any) -> Any:
    """Compile `function` on first use and cache it on disk. If no folder is writable, compile it once per process."""
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba: no locator available
        return njit(**options)(function)


def _record_at(dtype: np.dtype) -> Any:
    """Return a function of (address of an array of records, index) that returns that record.

    Passing an address takes a tenth of the time of passing an array.
    """
    kind: Any = from_dtype(dtype)

    @intrinsic
    def record_at(_typing: Any, _address: Any, _index: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            offset = builder.mul(args[1], context.get_constant(types.int64, dtype.itemsize))
            return builder.inttoptr(builder.add(args[0], offset), context.get_value_type(kind))

        return kind(types.int64, types.int64), codegen

    return record_at


def _pointer(context: Any, builder: Any, kind: Any, args: Any) -> Any:
    return builder.gep(builder.inttoptr(args[0], context.get_data_type(kind).as_pointer()), [args[1]])


@intrinsic
def _load_f4(_typing: Any, _address: Any, _index: Any) -> Any:
    """Load the float32 at (address, index)."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, types.float32, args))

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def _store(_typing: Any, _address: Any, _index: Any, value: Any) -> Any:
    """Store a number at (address, index), with its own type."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, value, args))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, value), codegen


@intrinsic
def _copy_bytes(_typing: Any, _target: Any, _source: Any, _n_bytes: Any) -> Any:
    """Copy memory between two addresses."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        target, source = (builder.inttoptr(address, cgutils.voidptr_t) for address in args[:2])
        cgutils.raw_memcpy(builder, target, source, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def _room_on_stack(_typing: Any, _n_bytes: Any) -> Any:
    """Return the address of uninitialized stack memory of the running call."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        room = builder.alloca(ir.IntType(8), args[0])
        room.align = 64
        return builder.ptrtoint(room, ir.IntType(64))

    return types.int64(types.int64), codegen


@intrinsic
def _prefetch(_typing: Any, _address: Any) -> Any:
    """Prefetch the cache line at an address without waiting."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        pointer = builder.inttoptr(args[0], cgutils.voidptr_t)
        builder.call(function, [pointer, ir.Constant(i32, 0), ir.Constant(i32, 3), ir.Constant(i32, 1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# The first parameter of an intrinsic is numba's typing context.
load_f4: Any = _load_f4
store: Any = _store
copy_bytes: Any = _copy_bytes
prefetch: Any = _prefetch
room_on_stack: Any = _room_on_stack
rules_at, account_at, position_at = _record_at(RULES), _record_at(ACCOUNTS), _record_at(POSITIONS)
order_at, asset_at, segment_at = _record_at(ORDERS), _record_at(ASSET), _record_at(SEGMENTS)


@native
def where(mask: Any, x: Any, y: Any) -> Any:
    """Return `a` or `b` like torch.where, for single numbers. Both are computed, and a select replaces the branch."""
    return x if mask else y


def rules_of(env: drop_in.VectorizedCryptoEnvAlpacaOptimized) -> Array:
    """Return a (1,) record of `EnvParams`, costs, options and sizes; its addresses are 0."""
    p, market, choices = vars(env.params) | {"start": env.start}, env.market, drop_in.CHOICES
    values = {name: choices[name].index(p[name]) if name in choices else p[name] for name, _ in SETTINGS} | {
        "costs": tuple(env.params.costs(env.cost_factor)), "restarts": env.autoreset, "compact": env.compact,
        "seed": env.seed, "episode_bars": env.episode_bars or 0, "n_envs": env.n_envs,
        "n_starts": int(market.start_offset[-1]), "n_usable": len(market.usable_segment), "n_assets": env.action_dim,
        "n_segments": len(market.segment_first), "n_bars": len(market.price), "state_dim": env.state_dim,
    }  # fmt: skip
    rules = np.zeros(1, RULES)
    for name, value in values.items():
        rules[name] = value
    return rules
