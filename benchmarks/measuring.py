"""What the benchmarks share: fair timing, the machine's own limits, tables, and the file of results.

Contenders are timed in turn, round after round, so that a slow second of the machine hits all of them alike. A ratio is
the median over rounds of the ratio within a round. A result file belongs to one machine; every benchmark writes its
own section of it and leaves the others alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

REPO = Path(__file__).resolve().parents[1]

RESULTS = REPO / "benchmarks" / "results"
ROUNDS, ROUNDS_QUICK = 9, 2
SLICE_S, SLICE_S_QUICK = 0.4, 0.01
COPY_BYTES, COPY_BYTES_QUICK = 256 * 2**20, 2**20
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


# --------------------------------------------------------------------------------------------------- command line
def arguments(description: str | None, gpu: bool = True, result: str = "<machine>.json") -> argparse.ArgumentParser:
    """The flags that the benchmarks share; without `gpu` for one that has no use of it. `result`: its file's name."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {"help": "number of the GPU; -1 = CPU (default)"} if gpu else {"choices": [-1], "help": "-1: the CPU only"}
    parser.add_argument("--gpu", type=int, default=-1, metavar="N", **known)
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads of torch and numba (default 2; 1 with --quick)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only check that it runs, in seconds; the figures mean nothing and are not kept",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"result file (default: benchmarks/results/{result}; none with --quick)",
    )
    return parser  # fmt: skip


def with_threads(args: argparse.Namespace) -> None:
    """Settle `args.threads` and hold the libraries to it.

    They read the number when they load, so the program starts again where its environment does not give it.
    """
    if args.gpu >= 0:
        import torch

        if args.gpu >= torch.cuda.device_count():
            raise SystemExit(f"--gpu {args.gpu}: torch sees {torch.cuda.device_count()} GPUs here; -1 is the CPU")
    args.threads = args.threads or (1 if args.quick else 2)
    wanted = dict.fromkeys(THREAD_VARIABLES, str(args.threads))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted)


def rounds_of(args: argparse.Namespace) -> tuple[int, float]:
    """Rounds, and seconds of a contender's turn in each."""
    return (ROUNDS_QUICK, SLICE_S_QUICK) if args.quick else (ROUNDS, SLICE_S)


# --------------------------------------------------------------------------------------------------- timing
class Contender(Protocol):
    """Something that is timed."""

    name: str
    n_envs: int | None

    def rate(self, seconds: float) -> float:
        """Work for about so long; units per second."""
        ...


@dataclass
class Local:
    """Work in this process."""

    name: str
    n_envs: int | None
    work: Callable[[], Any]  # one call
    units: float  # of work in a call
    wait: Callable[[], None] = lambda: None  # for a device that works behind the caller's back
    least_calls: int = 1
    row: dict[str, Any] = field(default_factory=dict)  # further columns of the table
    _call_s: float = 0.0

    def rate(self, seconds: float) -> float:
        """Units per second; as many calls as the turn before says, after one to warm up where a call is short."""
        if not self._call_s or self._call_s < seconds / 4:
            first_s = self._time_of(1)
            self._call_s = self._call_s or first_s
        calls = max(self.least_calls, math.ceil(seconds / self._call_s), 1)
        self._call_s = self._time_of(calls) / calls
        return self.units / self._call_s

    def _time_of(self, calls: int) -> float:
        self.wait()
        started = time.perf_counter()
        for _ in range(calls):
            self.work()
        self.wait()
        return time.perf_counter() - started


class Remote:
    """Work in a process of its own, idle between its turns: it answers every line "seconds" with a rate."""

    def __init__(self, name: str, n_envs: int | None, command: Sequence[str]) -> None:
        self.name, self.n_envs, self.row = name, n_envs, {}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def rate(self, seconds: float) -> float:
        """Units per second, as the process counts them."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name}: its process ended with code {self.process.wait()}")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def serve(contender: Contender) -> None:
    """The other side of `Remote`."""
    for line in sys.stdin:
        print(contender.rate(float(line)), flush=True)


def interleaved(contenders: Sequence[Contender], rounds: int, seconds: float) -> list[list[float]]:
    """Rates of every contender, one a round; a first round is thrown away."""
    rates: list[list[float]] = [[] for _ in contenders]
    for number in range(rounds + 1):
        for contender, kept in zip(contenders, rates, strict=True):
            rate = contender.rate(seconds if number else min(seconds, 0.05))
            if number:
                kept.append(rate)
        if number:
            print(f"round {number} of {rounds}", file=sys.stderr)
    return rates


def ratio(rates: Sequence[float], others: Sequence[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(rates, others, strict=True))


# --------------------------------------------------------------------------------------------------- the machine
def copy_bandwidth(gpu: int, quick: bool) -> Local:
    """Bytes read and bytes written per second by torch's copy_ of one float32 array of 256 MiB to another."""
    import torch

    device = torch.device(f"cuda:{gpu}" if gpu >= 0 else "cpu")
    n_bytes = COPY_BYTES_QUICK if quick else COPY_BYTES
    source = torch.ones(n_bytes // 4, device=device)
    target = torch.zeros_like(source)
    return Local("copy_", None, lambda: target.copy_(source), 2.0 * n_bytes, wait=waiter(gpu))


def matmul_rates(rows: int, inner: int, columns: int) -> list[Local]:
    """FLOPs per second of one matrix product on the CPU: torch.mm, and oneDNN's where our agents use it."""
    import torch

    from drl_agents.agents.mlp_gradient import has_onednn

    a, b, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
    flops, weight = 2.0 * rows * inner * columns, b.t().contiguous()
    made = [Local("torch.mm", None, lambda: torch.mm(a, b, out=out), flops)]
    if has_onednn():
        linear = torch.ops.mkldnn._linear_pointwise
        made.append(Local("oneDNN", None, lambda: linear(a, weight, None, "none", [], ""), flops))
    return made


def waiter(gpu: int) -> Callable[[], None]:
    """Waits for the device; a GPU returns before it has worked."""
    import torch

    return (lambda: torch.cuda.synchronize(gpu)) if gpu >= 0 else (lambda: None)


def machine(gpu: int) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    return {
        "cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name(gpu) if gpu >= 0 else None, "python": platform.python_version(),
    }  # fmt: skip


def cpu_name() -> str:
    """As the kernel calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def slug(about: Mapping[str, Any]) -> str:
    """The machine's name as a file's."""
    text = about["gpu"] or f"{about['cpu']} {about['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


# --------------------------------------------------------------------------------------------------- results
def rows_of(
    contenders: Sequence[Any], rates: Sequence[Sequence[float]], peer: str, floor: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """One row a contender: median rate, ratio to the peer, share of the floor where it has one.

    The peer is the one of the same n_envs, or its first where there is none.

    Args:
        contenders: in the order of `rates`.
        rates: as `interleaved` returns them.
        peer: name of the contender that has ratio 1.
        floor: row name -> the rates that the machine's limit would allow, by round.
    """
    peers = {c.n_envs: r for c, r in zip(contenders, rates, strict=True) if c.name == peer}
    rows = []
    for contender, own in zip(contenders, rates, strict=True):
        row = {"contender": contender.name, "n_envs": contender.n_envs, "per_s": round(statistics.median(own))}
        against = peers.get(contender.n_envs, next(iter(peers.values()), None))
        if against is not None:
            row["ratio"] = ratio(own, against)
        if contender.name in floor:
            row["share"] = ratio(own, floor[contender.name])
        rows.append(row | contender.row)
    return rows


def missing_row(name: str, package: str, n_envs: int | None = None) -> dict[str, Any]:
    """The row of a peer that is not there."""
    return {"contender": name, "n_envs": n_envs, "note": f"not installed: pip install {package}"}


def check(
    what: str, measured: float | None, *, least: float | None = None, most: float | None = None
) -> dict[str, Any]:
    """A target and whether it is met."""
    is_met = measured is not None and (least is None or measured >= least) and (most is None or measured <= most)
    return {"what": what, "measured": measured, "least": least, "most": most, "met": is_met}


def section(args: argparse.Namespace, about: str, columns: Mapping[str, str], **content: Any) -> dict[str, Any]:
    """A benchmark's part of a result file: how it was made, the table's columns (key -> title), and the rest."""
    import torch

    from train.records.provenance import code_version

    command = " ".join(["python", *sys.orig_argv[1:]]).replace(f"{REPO}/", "")
    return {
        "command": command, "date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__,
        "threads": args.threads, "commit": code_version(), "about": about, "columns": dict(columns), **content,
    }  # fmt: skip


def finish(args: argparse.Namespace, name: str, part: Mapping[str, Any]) -> Path | None:
    """Print a section and merge it into the result file; returns the file, None where none was to be written."""
    print("\n".join(section_lines(part)))
    if args.quick and args.out is None:
        return None
    about = machine(args.gpu)
    path = args.out or RESULTS / f"{slug(about)}.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    result = {"machine": about, "sections": result.get("sections", {}) | {name: part}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwrote section {name} of {path}", file=sys.stderr)
    return path


# --------------------------------------------------------------------------------------------------- tables
def section_lines(part: Mapping[str, Any]) -> list[str]:
    """What was measured, the table, the targets: Markdown."""
    lines = [part["about"], "", *table_lines(part["columns"], part["rows"])]
    if part.get("notes"):
        lines += ["", *part["notes"]]
    if part.get("checks"):
        lines += ["", *(check_line(item) for item in part["checks"])]
    return lines


def table_lines(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A Markdown table; a row's note takes the place of its figures."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    for row in rows:
        cells = [shown(key, row.get(key)) for key in columns]
        if "note" in row:
            cells[2] = row["note"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def check_line(item: Mapping[str, Any]) -> str:
    """`- met: 512 where at least 400 was wanted: ...`."""
    bound = f"at least {item['least']:g}" if item["least"] is not None else f"at most {item['most']:g}"
    got = "nothing" if item["measured"] is None else f"{item['measured']:.3g}"
    return f"- {'met' if item['met'] else 'missed'}: {item['what']}: {got}, wanted {bound}"


def shown(key: str, value: object) -> str:
    """A cell. Shares are percentages, ratios have two or three digits, counts their commas."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if key.startswith("share"):
        return f"{value:.0%}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
