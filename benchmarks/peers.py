#!/usr/bin/env python3
"""Compare the environment steps per second of other projects' trading environments with ours on one machine.

The projects take turns. Every peer runs in its own virtual environment, because its dependencies conflict with ours and
with those of other peers. `--install` first creates these virtual environments, which takes about ten minutes and 6 GB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import measuring

TORCH = "torch==2.13.0"
FEW, MANY = 12, 4096
COLUMNS = measuring.columns(contender="environment class", n_envs="environments", per_s="env-steps/s")
COLUMNS |= {"n_coins": "coins", "ratio": "speedup of our class"}
ABOUT = (
    "The table shows environment steps per second on the CPU. The market has 30,000 five-minute bars and 77 feature "
    "columns, and the window has 5 bars. Random actions are drawn in advance. The last column divides the rate of "
    "VectorizedCryptoEnvAlpacaOptimized, which trades 7 coins, by the rate of the row. Our class runs "
    f"{FEW} environments, or {MANY:,} for rows measured with {MANY:,}. Projects without a vectorized environment step "
    "one environment in a loop."
)
OPTIONS: tuple[measuring.Option, ...] = (
    (
        "--environments",
        {
            "type": Path,
            "default": measuring.REPO / "build" / "peers",
            "metavar": "DIR",
            "help": "folder of the peers' virtual environments (default: build/peers)",
        },
    ),
    ("--install", {"action": "store_true", "help": "create the virtual environments that do not exist yet"}),
)


@dataclass(frozen=True)
class Features:
    """Features of a project other than its speed, as shown in README.md. "no" means that the feature does not exist.

    The values were determined from the source code of the installed version.
    """

    vectorized: str
    coins: str
    costs: str
    checks: str
    trading: str


@dataclass(frozen=True)
class Peer:
    """A project to compare with: how to install it, and the environment to step."""

    project: str
    environment: str
    requirements: tuple[str, ...]
    n_coins: int
    features: Features
    sizes: tuple[int, ...] = (1,)
    without_dependencies: tuple[str, ...] = ()

    def folder(self, environments: Path) -> Path:
        """Return the folder of the peer's virtual environment."""
        return environments / self.project.lower()


OWN_FEATURES = Features(
    "CPU, GPU",
    "many",
    "fee, slippage, minimum order, lot size",
    "look-ahead, purged splits, hold-out, deflated Sharpe ratio, PBO",
    "paper: Alpaca",
)
PEERS = (
    Peer(
        "gym-trading-env",
        "TradingEnv",
        ("gym-trading-env==0.3.5",),
        1,
        Features("no", "one", "fee, borrow interest", "no", "no"),
    ),
    # The file of this environment in finrl needs only NumPy.
    Peer(
        "FinRL",
        "CryptoEnv",
        ("numpy",),
        7,
        Features("no", "many", "fee", "no", "paper: Alpaca"),
        (1,),
        ("finrl==0.3.7",),
    ),
    Peer(
        "ElegantRL",
        "StockTradingVmapEnv",
        (TORCH, "gymnasium", "matplotlib", "tqdm", "pandas"),
        7,
        Features("CPU, GPU (all environments on the same bar)", "many", "fee", "no", "no"),
        (FEW, MANY),
        ("elegantrl==0.3.6",),
    ),
    Peer(
        "TorchTrade",
        "VectorizedSequentialTradingEnv",
        (TORCH, "torchtrade==0.1.0"),
        1,
        Features("CPU", "one", "fee, slippage, liquidation", "no", "live: five exchanges"),
        (FEW, MANY),
    ),
    Peer(
        "freqtrade",
        "Base5ActionRLEnv",
        (TORCH, "freqtrade[freqai-rl]==2026.9"),
        1,
        Features("no", "one", "fee", "look-ahead, sliding-window retraining", "live: many exchanges"),
    ),
)


def install(peer: Peer, environments: Path) -> None:
    """Create the peer's virtual environment. If this fails, store the reason, which becomes the peer's row."""
    folder = peer.folder(environments)
    python, failed = folder / "bin" / "python", folder / "failed.txt"
    if python.exists() and not failed.exists():
        return
    print(f"installing {peer.project} in {folder}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    commands = [[*pip, *peer.requirements]]
    if peer.without_dependencies:
        commands.append([*pip, "--no-deps", *peer.without_dependencies])
    failed.unlink(missing_ok=True)
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            failed.write_text((errors or ["pip failed"])[0])
            return


@dataclass
class Remote:
    """Peer in its own interpreter, with the interface of `measuring.Local`."""

    n_envs: int
    process: subprocess.Popen[str]
    name: str
    row: dict[str, Any] = field(default_factory=dict)

    def ask(self, line: str = "") -> str:
        """Send the line, if any, and return the peer's next line. Raise RuntimeError if the peer has exited."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if line:
            print(line, file=self.process.stdin, flush=True)
        if answer := self.process.stdout.readline().strip():
            return answer
        self.process.wait()
        assert self.process.stderr is not None
        raise RuntimeError((self.process.stderr.read().strip().splitlines() or ["exited without an error message"])[-1])

    def rate(self, seconds: float) -> float:
        """Return environment steps per second over about `seconds`."""
        return float(self.ask(str(seconds)))


def started(peer: Peer, n_envs: int, environments: Path) -> Remote | dict[str, Any]:
    """Start a peer, or return a row with the reason why it does not run."""
    name = f"{peer.project} {peer.environment}"
    row = {"contender": name, "n_envs": n_envs, "n_coins": peer.n_coins, "features": asdict(peer.features)}
    folder = peer.folder(environments)
    if (folder / "failed.txt").exists():
        return row | {"note": f"cannot be installed: {(folder / 'failed.txt').read_text()}"}
    if not (folder / "bin" / "python").exists():
        return row | {"note": "not installed: run benchmarks/peers.py --install"}
    program = Path(__file__).with_name("peer_environments.py")
    command = [str(folder / "bin" / "python"), "-P", str(program), peer.project, str(n_envs)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    remote = Remote(n_envs, subprocess.Popen(command, text=True, **pipes), name)
    try:
        remote.name = f"{peer.project} {remote.ask()} {peer.environment}"
    except RuntimeError as error:
        return row | {"note": f"does not run: {error}"}
    remote.row = {"n_coins": peer.n_coins, "features": row["features"]}
    return remote


def own() -> list[measuring.Local]:
    """Return our environments, the two fast environments first."""
    from benchmarks import contenders as who

    made = [who.batched(True, "standard", n_envs) for n_envs in (FEW, MANY)]
    made += [who.batched(False, "standard", FEW), who.scalar_loop("standard", 1)]
    made.append(who.gymnasium_vector("Sync", "standard", FEW))
    for contender in made:
        is_vectorized = contender in made[:3]
        features = asdict(OWN_FEATURES) | ({} if is_vectorized else {"vectorized": "no"})
        contender.row = {"n_coins": who.N_ASSETS, "features": features, "own": True}
    return made


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all environments and return the section "peers"."""
    if args.install:
        for peer in PEERS:
            install(peer, args.environments)
    ours = own()
    found = [started(peer, n_envs, args.environments) for peer in PEERS for n_envs in peer.sizes]
    remotes = [item for item in found if isinstance(item, Remote)]
    rates = measuring.interleaved([*ours, *remotes], *measuring.rounds_of(args))
    for remote in remotes:
        remote.process.terminate()
        remote.process.wait()
    rows = measuring.rows_of([*ours, *remotes], rates, "")
    for row, own_rates in zip(rows, rates, strict=True):
        row["ratio"] = measuring.ratio(rates[1 if row["n_envs"] == MANY else 0], own_rates)
    missing = [item for item in found if not isinstance(item, Remote)]
    return measuring.section(args, ABOUT, COLUMNS, rows=[*rows, *missing], unit="env-steps/s")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the section."""
    return measuring.run("peers", __doc__, measure, learns=False, options=OPTIONS, argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
