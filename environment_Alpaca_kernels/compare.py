# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Compare the vectorized simulator with a host's scalar class (`environment_Alpaca_vectorized.py --compare`).

Eight accounts of the host's class and eight vectorized accounts take the same actions, bar by bar. Before every bar,
the vectorized accounts are set to the host's cash and coins. Each bar is therefore compared on its own, without
rounding errors from earlier bars. Hosts store coins and orders in float32. In one bar, the quantity of a coin that
trades is rounded at most four times, each time by at most half a unit in the last place. The tolerance is twice this
error for coins, and the value of those coins for cash (`tolerances`). Rewards, account values and observations are
compared exactly, after the effect of rounded quantities has been computed and removed.

If rounding decides whether an order fills, both results are correct. The comparison finds such actions by shifting
every order by two float32 units in both directions, and changes them slightly until the result is unambiguous.

The host's lines are traced. Cases are generated until every line of its `step`, and of the methods that `step` calls,
has run, or until the time limit.
"""

from __future__ import annotations

import argparse
import ast
import copy
import itertools
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import drop_in
from .compare_cases import KINDS, LARGEST_ACTION, Case, Cases, View
from .compare_host import (
    HOST_FAULTS,
    SETTINGS,
    HostClass,
    Line,
    LineWatch,
    UsageError,
    find_class,
    load_module,
    source_lines,
)

Array = np.ndarray

EQUAL, DIFFERENT, USAGE, NOT_REACHED = 0, 1, 2, 3  # exit codes
COMPARED = ("stocks", "cash", "total_asset", "reward", "reward in float64", "done", "state")

FLOAT32_ULP = 2.0**-23  # relative to the value
COIN_ROUNDING = 4.0 * FLOAT32_ULP  # one unit each for order, sale, release and purchase of a coin in a bar
FLOAT64_ROUNDING = 2.0**-44  # relative error of a sum of a few hundred float64 terms
ORDER_SHIFT = 2  # float32 units by which orders are shifted to find those that rounding decides
NUDGES = 6  # changes to an action that are tried before its account holds instead


@dataclass(frozen=True)
class Difference:
    """First difference between the vectorized class and the host's class."""

    step: int
    env: int
    field: str
    scalar: Any
    vectorized: Any
    kind: str = ""  # kind of actions of the account
    case: str = ""  # market and settings
    lines: tuple[Line, ...] = ()  # lines of the host's step that ran in this bar but not in the previous bar

    def __str__(self) -> str:
        """Format the difference in a few lines for a terminal."""
        where = f"step {self.step}, environment {self.env}, field {self.field}"
        text = [f"differs first at {where}: host {self.scalar}, batched {self.vectorized}"]
        text += [f"  actions: {self.kind}; case: {self.case}"] if self.case else []
        text += ["  lines that ran in this step and not in the step before:"] if self.lines else []
        return "\n".join([*text, *(f"    {line}" for line in source_lines(self.lines))])


# ---------------------------------------------------------------------------------------------- tolerances
def tolerances(before: Any, after: Any, qty: Tensor, price: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest differences that float32 rounding can cause in one bar: coins (N, A) and cash (N,).

    before, after: vectorized accounts before and after the bar; qty (N, A): coins to compare with the coins of `after`.
    """
    is_traded = (after.qty != before.qty) | (qty != before.qty)
    is_bought = (after.qty > before.qty) | (qty > before.qty)
    coins = torch.maximum(torch.maximum(before.qty, after.qty), qty).abs() * is_traded * COIN_ROUNDING
    money = (coins * price).sum(-1)  # cash value of the rounding error, which affects later purchases
    coins = coins + torch.where(is_bought & (price > 0), money[:, None] / torch.where(price > 0, price, 1.0), 0.0)
    return coins, 2.0 * money + FLOAT64_ROUNDING * (before.equity.abs() + after.equity.abs())


def rows_of(book: Any, first: int, end: int) -> Any:
    """Return accounts first .. end - 1 of a portfolio as views."""
    return type(book)(**{name: value[first:end] for name, value in vars(book).items()})


# ---------------------------------------------------------------------------------------------- side by side
class SideBySide:
    """N episodes of a host's class and of a vectorized environment that take the same actions.

    The vectorized environment has 3 N accounts: N to compare, N with slightly larger orders, N with slightly smaller
    ones.

    Args:
        hosts: N new objects of the host's class.
        batch: a vectorized environment with 3 N accounts, `autoreset=False` and a start at the first bar.
        watch: tracer of the host's step.
        seed: seed of the actions.
        case: market and settings, for the report.
        low_cash: initial cash of some accounts, below the cash reserve; None for the default cash.
    """

    def __init__(
        self, hosts: Sequence[Any], batch: Any, watch: LineWatch, seed: int, case: str = "",
        low_cash: float | None = None,
    ) -> None:  # fmt: skip
        self.hosts, self.batch, self.watch, self.case, self.low_cash = hosts, batch, watch, case, low_cash
        self.n = len(hosts)
        self.tiled = torch.arange(self.n).repeat(3)
        shift = torch.tensor([0.0, FLOAT32_ULP, -FLOAT32_ULP], dtype=torch.float64)
        self.high_factor = 1.0 + shift.repeat_interleave(self.n)[:, None]
        kinds = list(itertools.islice(itertools.cycle(KINDS), self.n))
        self.kinds = [kind.__name__.replace("_", " ") for kind in kinds]
        self.behaviours = [kind(np.random.default_rng([seed, i])) for i, kind in enumerate(kinds)]
        for behaviour in self.behaviours:
            next(behaviour)
        self.is_running = np.ones(self.n, dtype=bool)
        self.steps, self.left_out = 0, 0
        self.lines: list[set[Line]] = [set() for _ in hosts]
        self.new_lines: list[tuple[Line, ...]] = [() for _ in hosts]
        self.discounted = np.zeros(self.n)

    def run(self, n_steps: int, until: float = float("inf")) -> Difference | None:
        """Step until the episodes end, `n_steps` are done or the time reaches `until`. Return the first difference."""
        try:
            state = np.stack([_first(host.reset()) for host in self.hosts])
        except HOST_FAULTS as error:
            return self._difference(0, "exception", f"{type(error).__name__}: {error}", "none")
        self.last = [(row, 0.0, False) for row in state]
        found = self._first_difference(0, self._opening(state, self.batch.reset()))
        self._lower_cash()
        while not found and self.is_running.any() and self.steps < n_steps and time.monotonic() < until:
            self.steps += 1
            found = self._bar()
        return found

    def _opening(self, state: Array, ours: Tensor) -> dict[str, tuple[Any, Any, Any]]:
        """Return the values of `_fields` for new accounts."""
        self._read_hosts()
        book, exact = rows_of(self.batch.book, 0, self.n), np.zeros(self.n)
        return {
            "stocks": (self.qty, book.qty, exact[:, None]), "cash": (self.cash, book.cash, exact),
            "total_asset": (self.equity, book.equity, exact), "state": (state, *self._with_room(ours)),
        }  # fmt: skip

    def _lower_cash(self) -> None:
        """Set the cash of some accounts below the reserve. Trading cannot do so: purchases stop at the reserve."""
        for host in self.hosts[1::5] if self.low_cash is not None else ():
            if {"cash", "total_asset"} <= vars(host).keys():
                host.cash = host.total_asset = self.low_cash

    def _bar(self) -> Difference | None:
        self._read_hosts()
        before, after, action, returned = self._advance(self._actions())
        results: list[tuple[Any, ...]] = []
        for i, host in enumerate(self.hosts):
            if not self.is_running[i]:
                results.append(self.last[i])
                continue
            try:
                result, lines = self.watch.run(host.step, action[i].copy())
            except HOST_FAULTS as error:
                return self._difference(i, "exception", f"{type(error).__name__}: {error}", "none")
            self.new_lines[i] = tuple(sorted(lines - self.lines[i]))
            self.lines[i] = lines
            done = bool(result[2]) if len(result) == 4 else bool(result[2] or result[3])
            results.append((np.asarray(result[0]), float(result[1]), done))
        self.last = results
        self._read_hosts()
        found = self._first_difference(self.steps, self._fields(before, after, returned))
        reward, done = (np.array([result[k] for result in results]) for k in (1, 2))
        self.discounted = self.batch.params.gamma * self.discounted + reward
        self.is_running &= ~done
        return found

    def _read_hosts(self) -> None:
        self.cash = torch.tensor([float(host.cash) for host in self.hosts], dtype=torch.float64)
        self.qty = torch.from_numpy(np.stack([np.asarray(host.stocks, dtype=np.float64) for host in self.hosts]))
        self.equity = torch.tensor([float(host.total_asset) for host in self.hosts], dtype=torch.float64)

    # ------------------------------------------------------------------------------------------ actions
    def _actions(self) -> Array:
        """Return actions (N, A) float32, with a different kind of action for each account."""
        env, book = self.batch, rows_of(self.batch.book, 0, self.n)
        price = env.market.price[(book.bar + 1).clamp(max=len(env.market.price) - 1)]
        equity = self.cash + (self.qty * price).sum(-1)
        coins = drop_in.order_quantities(torch.ones_like(price, dtype=torch.float32), book, price, equity, env.params)
        action = np.zeros(price.shape)
        for i in np.flatnonzero(self.is_running):
            qty, at, per_action = (tensor[i].numpy() for tensor in (self.qty, price, coins))
            view = View(float(self.cash[i]), qty, at, per_action, env.market.min_qty.numpy(), env.params)
            action[i] = self.behaviours[i].send(view)
        return np.clip(action, -LARGEST_ACTION, LARGEST_ACTION).astype(np.float32)

    def _advance(self, action: Array) -> tuple[Any, Any, Array, tuple[Any, ...]]:
        """Step the vectorized environment. Return the accounts before and after, the actions, and the step's result.

        Actions whose result depends on rounding are changed. An account is excluded if none of the changes makes its
        result unambiguous.
        """
        synced, source = self._synced(), np.random.default_rng(self.steps)
        before, on_edge, attempt = rows_of(synced, 0, self.n), self.is_running, 0
        while True:
            shifted = np.concatenate([action, _shifted(action, ORDER_SHIFT), _shifted(action, -ORDER_SHIFT)])
            self.batch.book = synced
            returned = self.batch.step(torch.from_numpy(shifted))
            after = self.batch.book
            on_edge = self._on_edge(before, after) & self.is_running
            if not on_edge.any() or attempt > NUDGES:
                break
            nudge = source.uniform(-1e-4, 1e-4, action.shape) if attempt < NUDGES else -1.0
            action = np.where(on_edge[:, None], action * (1.0 + nudge), action).astype(np.float32)
            attempt += 1
        self.left_out += int(on_edge.sum())
        self.is_running &= ~on_edge
        return before, rows_of(after, 0, self.n), action, returned

    def _synced(self) -> Any:
        """Return the vectorized accounts with the host's cash and coins, and with highs rounded as in float32."""
        book, rows = self.batch.book, self.tiled
        high = book.high[rows]
        high = torch.where(high == high.float(), high, high * self.high_factor)
        return replace(
            book, cash=self.cash[rows], qty=self.qty[rows], equity=self.equity[rows], held_bars=book.held_bars[rows],
            high=high, discounted_return=torch.from_numpy(self.discounted)[rows],
        )  # fmt: skip

    def _on_edge(self, before: Any, after: Any) -> Array:
        """Return (N,) bool, True if slightly larger or smaller orders lead to a different result."""
        nominal, found = rows_of(after, 0, self.n), torch.zeros(self.n, dtype=torch.bool)
        price = self.batch.market.price[nominal.bar]
        for k in (1, 2):
            other = rows_of(after, k * self.n, (k + 1) * self.n)
            coins, cash = tolerances(before, nominal, other.qty, price)
            found |= ((other.qty - nominal.qty).abs() > coins).any(-1) | ((other.cash - nominal.cash).abs() > cash)
            found |= (other.held_bars != nominal.held_bars).any(-1) | (other.trades != nominal.trades)
            found |= ((other.qty > 0) != (nominal.qty > 0)).any(-1)
            found |= ((other.high - nominal.high).abs() > COIN_ROUNDING * nominal.high).any(-1)
        return found.numpy()

    # ------------------------------------------------------------------------------------------ comparing
    def _fields(self, before: Any, after: Any, returned: tuple[Any, ...]) -> dict[str, tuple[Array, Array, Array]]:
        """Return a mapping from each field to the host's value, the vectorized value and the tolerance."""
        state, reward, done, info = returned
        p, market = self.batch.params, self.batch.market
        price = market.price[after.bar]
        coins, cash = tolerances(before, after, self.qty, price)
        ours, hosts = (self._settled(before, book) for book in (after, replace(after, cash=self.cash, qty=self.qty)))
        equity = info["equity"][: self.n] + hosts[0] - ours[0]
        money = FLOAT64_ROUNDING * (before.equity.abs() + after.equity.abs())
        swing = money + FLOAT64_ROUNDING * (before.benchmark.abs() + after.benchmark.abs())
        swing = swing * abs(p.norm_reward) * (1.0 + 1.0 / p.initial_capital)
        reward = reward[: self.n].double() + hosts[1] - ours[1]
        reward_room = swing + 2.0 * FLOAT32_ULP * reward.abs()
        terms = torch.stack(tuple(info["reward_terms"].values())).sum(0)[: self.n] + hosts[1] - ours[1]
        terms_room = swing + FLOAT64_ROUNDING * reward.abs()
        terms_room[done[: self.n]] = torch.inf  # the final reward is not a sum of the bar's terms
        state = state[: self.n].double() + hosts[2].double() - ours[2].double()
        host_state, host_reward, host_done = zip(*self.last, strict=True)
        rows: dict[str, tuple[Any, Tensor, Tensor]] = {
            "stocks": (self.qty, after.qty, coins), "cash": (self.cash, after.cash, cash),
            "total_asset": (self.equity, equity, money), "reward": (host_reward, reward, reward_room),
            "reward in float64": (host_reward, terms, terms_room),
            "done": (host_done, done[: self.n], torch.zeros(self.n)),
            "state": (np.stack(host_state), *self._with_room(state)),
        }  # fmt: skip
        return {name: (np.asarray(host), ours.numpy(), room.numpy()) for name, (host, ours, room) in rows.items()}

    def _settled(self, before: Any, after: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return account value, reward and observation of accounts at the end of the bar."""
        p, market = self.batch.params, self.batch.market
        price = market.price[after.bar]
        book = drop_in.mark_to_market(after, price)
        terms = drop_in.reward_terms(before, book, price, market, p)
        return book.equity, torch.stack(tuple(terms.values())).sum(0), drop_in.observe(book, market, p)

    def _with_room(self, state: Tensor) -> tuple[Tensor, Tensor]:
        state = state[: self.n].double()
        return state, 2.0 * FLOAT32_ULP * state.abs() + 1e-37

    def _first_difference(self, step: int, rows: dict[str, tuple[Any, Any, Any]]) -> Difference | None:
        for name in COMPARED:
            if name not in rows:
                continue
            host, ours, room = (np.asarray(values, dtype=np.float64) for values in rows[name])
            if host.shape != ours.shape:
                return self._difference(0, f"{name} (shape)", host.shape[1:], ours.shape[1:], step)
            departs = ~(np.abs(host - ours) <= room)
            departs &= self.is_running if departs.ndim == 1 else self.is_running[:, None]
            if departs.any():
                i, *column = np.argwhere(departs)[0].tolist()
                label = f"{name}[{column[0]}]" if column else name
                return self._difference(i, label, host[i, *column], ours[i, *column], step)
        return None

    def _difference(self, i: int, name: str, host: Any, ours: Any, step: int | None = None) -> Difference:
        step = self.steps if step is None else step
        return Difference(step, i, name, host, ours, self.kinds[i], self.case, self.new_lines[i])


def _shifted(action: Array, units: int) -> Array:
    """Return actions moved away from 0, or towards 0, by a number of float32 units."""
    target = np.float32(np.inf if units > 0 else 0.0)
    for _ in range(abs(units)):
        action = np.nextafter(action, np.where(action == 0, 0.0, np.copysign(target, action)).astype(np.float32))
    return action


def _first(returned: Any) -> Array:
    """Return the state from a result of `reset`, with or without an info."""
    return np.asarray(returned[0] if isinstance(returned, tuple) else returned, dtype=np.float64)


def compare_with_scalar(
    scalar_env: Any, n_steps: int = 1000, seed: int = 0, n_envs: int = 8, env_class: type | None = None
) -> Difference | None:
    """Compare copies of a new scalar environment with a vectorized one that has the same settings.

    The comparison stops at the end of the first episode, because hosts keep their benchmark across a reset and this
    simulator does not. The scalar environment must start at its first bar.

    Returns:
        None if all results agree, otherwise the first `Difference`.
    """
    shared = {id(array): array for array in (scalar_env.price_array, scalar_env.tech_array)}  # not copied N times
    hosts = [copy.deepcopy(scalar_env, dict(shared)) for _ in range(n_envs)]
    batch = drop_in.from_scalar_env(
        scalar_env, 3 * n_envs, env_class or drop_in.VectorizedCryptoEnvAlpaca, as_numpy=False, autoreset=False,
        start="first", gpu_id=-1)  # fmt: skip
    watch = LineWatch(HostClass(type(scalar_env)))
    return SideBySide(hosts, batch, watch, seed).run(n_steps)


# ---------------------------------------------------------------------------------------------- the program
@dataclass
class Outcome:
    """Result of a complete comparison."""

    difference: Difference | None = None
    steps: int = 0  # over all accounts
    cases: int = 0
    notes: tuple[str, ...] = ()
    unreached: tuple[Line, ...] = ()
    n_lines: int = 0
    not_simulated: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 if equal, 1 if different, 3 if equal but incomplete."""
        if self.difference is not None:
            return DIFFERENT
        return NOT_REACHED if self.unreached or self.not_simulated else EQUAL


def compare_class(
    host: HostClass, cases: Iterable[Case], n_planned: int, seed: int = 0, seconds: float = 25.0,
    n_envs: int = len(KINDS),
) -> Outcome:  # fmt: skip
    """Run the planned cases, then further cases until every line of the host's step has run or `seconds` have passed.

    Raises:
        UsageError: If the host's class cannot be built.
    """
    deadline = time.monotonic() + seconds
    watch, found = LineWatch(host), Outcome(not_simulated=tuple(host.not_simulated))
    for number, case in enumerate(cases):
        is_planned = number < n_planned
        if not is_planned and (time.monotonic() >= deadline or not watch.unreached):
            break
        hosts = [host.build(case.config, case.settings) for _ in range(n_envs)]
        batch = host.batch(case.config, case.settings, 3 * n_envs)
        race = SideBySide(hosts, batch, watch, seed + number, case.name, case.low_cash)
        difference = race.run(len(case.config["price_array"]), float("inf") if is_planned else deadline)
        found.steps += race.steps * n_envs
        found.cases += 1
        if race.left_out:
            found.notes += (f"{case.name}: rounding decides a trailing stop; {race.left_out} accounts left early",)
        if difference and difference.field == "exception" and case.may_raise:
            found.notes += (f"left out, the host's class raises {difference.scalar}: {case.name}",)
        elif difference:
            found.difference = difference
            break
    found.unreached, found.n_lines = tuple(watch.unreached), len(watch.lines)
    return found


def main(argv: list[str] | None = None) -> int:
    """Compare the vectorized class with a host's scalar class and return the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if not args.compare:
        parser.print_help()
        return USAGE
    torch.set_num_threads(1)  # the tensors are small
    try:
        return _compare(args)
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=Path(drop_in.__file__).name,
        description="Compare a host's scalar environment with the vectorized class on the same actions.",
        epilog="Exit codes: 0 equal; 1 different; 2 wrong usage; 3 equal, but some lines of the host's step did not "
               "run, or the step reads settings that this simulator does not support.",
    )  # fmt: skip
    parser.add_argument("--compare", action="store_true", help="run the comparison")
    parser.add_argument("--env-file", type=Path, default=Path(drop_in.__file__).with_name("environment_Alpaca.py"),
                        help="file of the scalar class (default: environment_Alpaca.py next to this file)")  # fmt: skip
    parser.add_argument("--class", dest="class_name", metavar="NAME",
                        help="name of the scalar class, required if the file has several")  # fmt: skip
    parser.add_argument("--rules", choices=tuple(drop_in.RULES), help="rule set (default: detected from the class)")
    parser.add_argument("--data", type=Path, metavar="PATH", help=".npz file, or folder with price_array.npy (T, A) "
                        "and tech_array.npy (T, F) (default: generated markets)")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="set an "
                        "env_params key, constructor argument or config entry to a value; repeatable")  # fmt: skip
    parser.add_argument("--steps", type=int, default=300, help="number of bars per episode (default: 300)")
    parser.add_argument("--seconds", type=float, default=25.0, help="time limit in seconds, measured from the "
                        "start, for additional cases that reach more lines (default: 25)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of markets and actions (default: 0)")
    parser.add_argument("--n-coins", type=int, help="number of coins (default: as in the data; otherwise "
                        "the number for which the host has limits, or 7)")  # fmt: skip
    return parser


def _compare(args: argparse.Namespace) -> int:
    if args.steps < 2:
        raise UsageError(f"--steps must be at least 2; received {args.steps}")
    module = load_module(args.env_file)
    cls = find_class(module, args.class_name)
    data = None if args.data is None else _load_data(args.data, args.n_coins)
    host = _with_settings(HostClass(cls, args.rules), args.settings)
    n_coins = args.n_coins or _coins_of(module) if data is None else data["price_array"].shape[1]
    cases = Cases(host, args.steps, args.seed, n_coins, data)
    rules = "each in turn" if host.is_ours else host.batch_rules
    _say(f"{args.env_file.name}: comparing {cls.__name__} with the vectorized class; rules: {rules}; {n_coins} coins")
    if host.not_simulated:
        _say(f"not compared, though its step depends on it: {', '.join(host.not_simulated)}")
    outcome = compare_class(host, cases, len(cases.plan), args.seed, args.seconds)
    _report(outcome)
    return outcome.exit_code


def _report(outcome: Outcome) -> None:
    for note in outcome.notes:
        _say(note)
    if outcome.difference:
        _say(str(outcome.difference))
        return
    _say(f"equal over {outcome.steps:,} steps in {outcome.cases} cases of {len(KINDS)} accounts")
    reached, rest = outcome.n_lines - len(outcome.unreached), "; not reached:" if outcome.unreached else ""
    _say(f"{reached} of {outcome.n_lines} lines of the host's step reached{rest}")
    for line in source_lines(outcome.unreached):
        _say(f"  {line}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _with_settings(host: HostClass, texts: Iterable[str]) -> HostClass:
    given: dict[str, Any] = {}
    config: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set requires KEY=VALUE; received {text!r}")
        if name in host.keys("config") | {"min_order_qty"} and name not in host.signature:
            config[name] = _literal(value)
        elif host.knows(name) or name in SETTINGS:
            given[name] = _literal(value)
        else:
            known = sorted({*host.signature, *host.keys("config"), *host.keys("env_params")} - {"config", "env_params"})
            raise UsageError(f"{host.cls.__name__} does not read {name}; it reads {', '.join(known)}")
    return replace(host, given=given, given_config=config)


def _literal(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return np.asarray(value) if isinstance(value, list | tuple) else value


def _load_data(path: Path, n_coins: int | None) -> dict[str, Array]:
    names = ("price_array", "tech_array")
    try:
        if path.is_dir():
            arrays = {file.stem: np.load(file) for file in sorted(path.glob("*.npy"))}
        else:
            with np.load(path) as archive:
                arrays = dict(archive.items())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    missing = [name for name in names if name not in arrays]
    if missing:
        raise UsageError(f"{path} does not contain {', '.join(missing)}, only {', '.join(arrays) or 'other files'}")
    price = arrays["price_array"].astype(np.float64)  # hosts compute cash with the precision of the prices
    try:
        drop_in.check_arrays(price, arrays["tech_array"])
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    if n_coins is not None and n_coins > price.shape[1]:
        raise UsageError(f"--n-coins {n_coins}: {path} has {price.shape[1]} coins")
    return arrays | {"price_array": price[:, :n_coins]}


def _coins_of(module: Any) -> int:
    """Return the number of coins for which the host has limits, otherwise 7."""
    tables = [value for name, value in vars(module).items() if name.endswith("LIMITS") and np.ndim(value) == 1]
    return max(map(len, tables), default=7)
