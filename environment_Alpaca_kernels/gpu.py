# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Step of `environment_Alpaca_vectorized.py` as one Triton kernel (one source for NVIDIA and AMD GPUs).

VectorizedCryptoEnvAlpacaOptimized imports this file lazily. Without triton that class runs the plain torch step. The
kernel is in gpu_step.py, and the phases of a bar are in gpu_rules.py. The kernel modifies the account arrays in place
and writes observation, reward and flags directly into the caller's storage. A step allocates nothing and does not
synchronize with the host, so it can be captured in a CUDA or HIP graph.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime.errors import TritonError

from . import drop_in, first_use, trial
from .buffers import Accounts
from .gpu_rules import COINS, COUNTS, MONEY, SWITCHES, Choices, Market, Numbers, Whole
from .gpu_step import Memory, Outputs, step
from .tables import COUNT, REPORT, SEGMENT, TERM, segments_of

BLOCK = 16  # environments per program; small, because copying observations fills a GPU only with many programs
N_WARPS = 4
TILE_WIDTH = 32  # features copied at a time; a wider tile needs more registers, and the kernel uses about 150
# Below this number, a launch should take longer than the kernel (about 10 us of memory traffic). Not measured yet.
GRAPH_UP_TO_N_ENVS = 16_384
# A fused multiply-add rounds differently from the plain step.
OPTIONS = {"num_warps": N_WARPS, "enable_fp_fusion": False}
IS_INTERPRETED = not isinstance(step, triton.JITFunction)
COMPILE_ERRORS = (*first_use.LAUNCH_ERRORS, TritonError)
WARM_UPS = 3  # plain launches before a graph is captured: the first one compiles

Launch = Callable[[torch.Tensor], None]  # takes the action (N, A)


class Rules:
    """Float settings by name, on the device; an assignment takes effect in the next step."""

    def __init__(self, values: dict[str, float], device: torch.device) -> None:
        """Store the values in the order of `Numbers`."""
        self.values = torch.tensor([values[name] for name in Numbers._fields], dtype=torch.float64, device=device)

    def __setitem__(self, name: str, value: float) -> None:
        """Change one setting. Phases that were compiled out stay disabled."""
        self.values[Numbers._fields.index(name)].fill_(value)


class NativeStep(Accounts):
    """Kernel bound to one environment's memory; a call advances that environment in place."""

    name = "triton"

    def __init__(self, env: drop_in.VectorizedCryptoEnvAlpacaOptimized, checked: bool | None = None) -> None:
        """Allocate the account state on the device of `env` and view its market, which is not copied.

        Args:
            env: the environment to step.
            checked: True to compare the kernel with the plain step on its first use on a device; None means True,
                except in Triton's interpreter, which is a testing tool.

        Raises:
            NoNativeStep: If the kernel does not support this device.
        """
        n, n_assets, self.device, self.restarts = env.n_envs, env.action_dim, env.device, env.autoreset
        self.width = n  # width of an output row

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=env.device)

        self.market, self.whole = market_of(env)
        self.memory = Memory(
            zeros(len(COUNTS), n, dtype=torch.int64), zeros(len(MONEY), n), zeros(len(COINS), n, n_assets),
            zeros(n, n_assets, dtype=torch.int64),
        )  # fmt: skip
        self.episode, self.rejected = self.field("episode"), self.field("rejected")
        self.field("final_equity").fill_(torch.nan)
        self.rules = rules_of(env)
        self.choices = choices_of(env)
        self.n_envs, self.n_assets = n, n_assets
        self.is_graphed = env.device.type == "cuda" and n <= GRAPH_UP_TO_N_ENVS
        if checked or (checked is None and not IS_INTERPRETED):
            self.check(env)
        # A step uses only device memory, so an agent may record a rollout as a graph.
        env.is_capturable = env.device.type == "cuda"

    def check(self, env: drop_in.VectorizedCryptoEnvAlpacaOptimized) -> None:
        """Raise NoNativeStep unless the kernel compiles and was correct and fast on its first use on this device."""

        def unchecked(other: Any) -> NativeStep:
            kernel = type(self)(other, checked=False)
            kernel.choices = kernel.choices._replace(offset_type=self.choices.offset_type)  # int64 for a large market
            return kernel

        key = {"triton": triton.__version__, "choices": repr(self.choices)}
        wait = functools.partial(torch.cuda.synchronize, self.device) if self.device.type == "cuda" else lambda: None
        is_asked_for = env._asked["native_step"] == "always"
        device = device_name(self.device)
        with self.on_device():
            build = functools.partial(trial.like, env, unchecked)
            first_use.admit(self.name, device, key, [build], wait, is_asked_for, COMPILE_ERRORS)
            said: list[str] = []
            try:
                with first_use.quiet_compiler(said):
                    self.compile()
            except COMPILE_ERRORS as error:
                reason = first_use.reason_of(error, said)
                raise drop_in.NoNativeStep(first_use.failed(self.name, device, reason)) from error

    def compile(self) -> None:
        """Compile the kernel for these choices without a launch, or load it from Triton's cache."""

        def one(dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(1, dtype=dtype, device=self.device)

        number, flag = one(torch.float32), one(torch.bool)
        out = Outputs(number, number, flag, number, flag, one(torch.int64), one(torch.float64))
        step.warmup(*self.arguments(out, number), grid=self.grid(), **OPTIONS)

    def on_device(self) -> contextlib.AbstractContextManager[Any]:
        """Make the environment's device the current one."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def read(self, name: str) -> torch.Tensor:
        """Return a copy of one field of `Portfolio`, (N,) or (N, A).

        "last_return" is the return of the last finished episode, or NaN.
        """
        if name == "last_return":
            return self.field("final_equity") / self.rules.values[Numbers._fields.index("initial_capital")]
        return self.field(name).clone()

    def write(self, name: str, values: torch.Tensor) -> None:
        """Set one field, (N,) or (N, A)."""
        self.field(name).copy_(values)

    def adopt(self, seed: int, rates: Mapping[str, float]) -> None:
        """Use this seed for the starts of future episodes, and these `drop_in.Costs` from the next step on."""
        self.whole[Whole._fields.index("seed")].fill_(seed)
        for name, rate in rates.items():
            self.rules[name] = rate

    def load(self, book: drop_in.Portfolio) -> None:
        """Load a portfolio."""
        self.field("is_over").zero_()
        for field in fields(book):
            self.write(field.name, getattr(book, field.name))

    def field(self, name: str) -> torch.Tensor:
        """Return the memory of one field of `Portfolio`."""
        memory: Any = self.memory
        if name == "held_bars":
            return memory.held_bars
        rows, names = next(pair for pair in zip(memory[:3], (COUNTS, MONEY, COINS), strict=True) if name in pair[1])
        return rows[names.index(name)]

    def bind(self, slots: dict[str, torch.Tensor], is_own: bool = False) -> Callable[[torch.Tensor], None]:
        """Return a function of the action (N, A) that advances one bar and writes into `slots`.

        is_own: True if bound once for many steps, so that a graph can be captured.
        """
        out = Outputs(*(slots[name] for name in Outputs._fields))
        launch = functools.partial(self.launch, out)
        if not (is_own and self.is_graphed):
            return functools.partial(self.advance, launch, launch)
        buffer = torch.zeros((self.n_envs, self.n_assets), dtype=torch.float32, device=self.device)
        return functools.partial(self.advance, launch, GraphedStep(launch, buffer, capture_on_gpu, warm_up_on_gpu))

    def advance(self, launch: Launch, graph: Launch, action: torch.Tensor) -> None:
        """Advance one bar; action (N, A) float32 on the device."""
        with self.on_device():
            # While a caller captures a graph, use a plain launch.
            is_captured = self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
            (launch if is_captured else graph)(action)

    def launch(self, out: Outputs, action: torch.Tensor) -> None:
        """Launch one step on the current stream."""
        step[self.grid()](*self.arguments(out, action.contiguous()), **OPTIONS)

    def arguments(self, out: Outputs, action: torch.Tensor) -> tuple[Any, ...]:
        """Return the arguments of the kernel."""
        return (action, self.market, self.memory, out, self.rules.values, self.whole, self.n_envs, self.choices)

    def grid(self) -> tuple[int]:
        """Return the number of programs per launch."""
        return (triton.cdiv(self.n_envs, self.choices.block),)


def device_name(device: torch.device) -> str:
    """Return name and architecture of a device, as used in the key of an outcome."""
    if device.type != "cuda":
        return "the CPU, interpreted"
    known = torch.cuda.get_device_properties(device)
    return f"{known.name} ({getattr(known, 'gcnArchName', '') or f'sm_{known.major}{known.minor}'})"


def market_of(env: drop_in.VectorizedCryptoEnvAlpacaOptimized) -> tuple[Market, torch.Tensor]:
    """Return the kernel's view of the market, and the integer settings (8,) int64 in the order of `Whole`."""
    m, n_segments = env.market, len(env.market.segment_first)
    assets = torch.stack((m.min_qty, m.qty_increment))
    whole = Whole(
        lookback=env.params.lookback, stale_bars=env.params.stale_bars, seed=env.seed,
        episode_bars=env.episode_bars or 0, n_starts=int(m.start_offset[-1]), n_usable=len(m.usable_segment),
        n_segments=n_segments, n_bars=len(m.price),
    )  # fmt: skip
    view = Market(m.price, m.windows, assets, segments_of(m), m.order_scale)
    return view, torch.tensor(whole, dtype=torch.int64, device=env.device)


def rules_of(env: drop_in.VectorizedCryptoEnvAlpacaOptimized) -> Rules:
    """Return the float settings of `env`, with the costs of its steps and the full entry fee of the benchmark."""
    p = env.params
    own = {"benchmark_fee_rate": p.buy_fee_rate * p.benchmark_pays_fee, **p.costs(env.cost_factor)._asdict()}
    return Rules({**vars(p), **own}, env.device)


def choices_of(env: drop_in.VectorizedCryptoEnvAlpacaOptimized) -> Choices:
    """Return the compile-time choices of the kernel."""
    p, n_assets, window = env.params, env.action_dim, env.market.windows.shape[1]
    chosen = {name: getattr(p, name) for name in SWITCHES} | {"start": env.start}
    switches = {name: value if name in drop_in.CHOICES else bool(value) for name, value in chosen.items()}
    return Choices(
        **switches, compact=bool(env.compact), restarts=bool(env.autoreset),
        limits_actions=p.action_limit < float("inf"),
        stops=p.trailing_stop_pct > 0, caps_positions=p.max_position_weight > 0, releases_stale=p.stale_bars > 0,
        has_increments=bool((env.market.qty_increment > 0).any()), penalizes_concentration=p.concentration_penalty > 0,
        term=getattr(TERM, p.reward), report=REPORT, count=COUNT, segment=SEGMENT,
        n_assets=n_assets, n_columns=triton.next_power_of_2(n_assets), n_features=window // p.lookback, window=window,
        state_dim=env.state_dim, block=BLOCK, tile=min(TILE_WIDTH, triton.next_power_of_2(max(window, 1))),
        offset_type=tl.int32 if len(env.market.price) * (window // p.lookback) < 2**31 else tl.int64,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- CUDA and HIP graphs
class GraphedStep:
    """Replays a captured launch, because for small N launching the kernel takes longer than running it.

    The graph reads its action from its own buffer and writes to one set of the environment's buffers. The first
    WARM_UPS calls are plain launches on a side stream, as torch requires, and each is a real step. Then one launch is
    captured without running it, and every later call replays it. If no graph can be captured, every call is a plain
    launch.
    """

    def __init__(
        self, launch: Launch, action: torch.Tensor, capture: Callable[[Callable[[], None]], Callable[[], None]],
        warm_up: Callable[[Callable[[], None]], None],
    ) -> None:  # fmt: skip
        """Store the plain launch, the action buffer, and the functions for capture and warm-up.

        `capture` records a closure and returns its replay, or raises RuntimeError; `warm_up` runs a closure.
        """
        self.launch, self.action, self.capture, self.warm_up = launch, action, capture, warm_up
        self.n_warm_ups = 0
        self.replay: Callable[[], None] | None = None

    def __call__(self, action: torch.Tensor) -> None:
        """Advance one bar; action (N, A) float32 is copied."""
        self.action.copy_(action.detach())
        if self.n_warm_ups < WARM_UPS:
            self.n_warm_ups += 1
            self.warm_up(self.plain)
            return
        if self.replay is None:
            try:
                self.replay = self.capture(self.plain)
            except RuntimeError:  # raised if the driver or the caller's own capture prevents the capture
                self.replay = self.plain
        self.replay()

    def plain(self) -> None:
        """Launch one step on the buffer's action."""
        self.launch(self.action)


def capture_on_gpu(launch: Callable[[], None]) -> Callable[[], None]:
    """Record a launch in a CUDA or HIP graph, synchronizing with the GPU once."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):  # torch's default may be on a different GPU
        launch()
    return graph.replay


def warm_up_on_gpu(launch: Callable[[], None]) -> None:
    """Run a launch on a side stream, ordered with the current stream."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        launch()
    current.wait_stream(side)
