"""What the benchmarks share: fair timing, the machine's own limits, tables, and the file of results.

Contenders are timed in turn, round after round, so that a slow second of the machine hits all of them alike. A ratio is
the median over rounds of the ratio within a round. A result file belongs to one machine; every benchmark writes its
own section of it and leaves the others alone.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]

RESULTS = REPO / "benchmarks" / "results"
ROUNDS, ROUNDS_QUICK = 9, 2
SLICE_S, SLICE_S_QUICK = 0.4, 0.01
COPY_BYTES, COPY_BYTES_QUICK = 256 * 2**20, 2**20
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


# --------------------------------------------------------------------------------------------------- the program
Option = tuple[str, dict[str, Any]]  # of a command line, as `add_argument` takes it
Draw = Callable[[dict[str, Any], Path], None]  # makes a section's picture; "machine" is its name


def run(name: str, description: str | None, measure: Callable[[argparse.Namespace], dict[str, Any]], **how: Any) -> int:
    """A benchmark's program: its flags, the section `name` that `measure` makes of them; `how` as in `parsed`."""
    draw = how.pop("draw", None)
    args = parsed(description, **how)
    return keep(args, name, measure(args), draw)


def parsed(
    description: str | None,
    *,
    gpu: bool = False,
    threads: int | None = None,
    learns: bool = True,
    own_file: str = "",
    options: Sequence[Option] = (),
    argv: Sequence[str] | None = None,
) -> argparse.Namespace:
    """The flags that the benchmarks share; torch is set up as they say.

    Args:
        description: what `--help` says.
        gpu: whether there is a use of one.
        threads: of torch and numba where `--threads` is not given.
        learns: whether torch keeps gradients.
        own_file: name of the result file; without one it is the machine's.
        options: further flags.
        argv: the command line.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {"help": "number of the GPU; -1 = CPU (default)"} if gpu else {"choices": [-1], "help": "-1: the CPU only"}
    parser.add_argument("--gpu", type=int, default=-1, metavar="N", **known)
    words = f"CPU threads of torch and numba (default {threads or '2; 1 with --quick'})"
    parser.add_argument("--threads", type=int, default=threads, metavar="N", help=words)
    words = "only check that it runs, in seconds; the figures mean nothing and are not kept"
    parser.add_argument("--quick", action="store_true", help=words)
    words = f"result file (default: benchmarks/results/{own_file or '<machine>.json'}; none with --quick)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=words)
    for flag, about in options:
        parser.add_argument(flag, **about)
    args = parser.parse_args(argv, argparse.Namespace(own_file=own_file))
    with_threads(args)
    import torch

    torch.set_num_threads(args.threads)
    if not learns:
        torch.set_grad_enabled(False)
    return args


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


def interleaved(contenders: Sequence[Local], rounds: int, seconds: float) -> list[list[float]]:
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

    known = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    return known | {"gpu": torch.cuda.get_device_name(gpu) if gpu >= 0 else None}


def cpu_name() -> str:
    """As the kernel calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def machine_text(about: Mapping[str, Any]) -> str:
    """The GPU's name, or `AMD EPYC, 2 cores`."""
    return about["gpu"] or f"{about['cpu']}, {about['cores']} cores"


def slug(about: Mapping[str, Any]) -> str:
    """The machine's name as a file's."""
    text = about["gpu"] or f"{about['cpu']} {about['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


# --------------------------------------------------------------------------------------------------- results
def rows_of(
    contenders: Sequence[Local],
    rates: Sequence[Sequence[float]],
    peer: str,
    floor: Mapping[str, Sequence[float]] | None = None,
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
    rows, floor = [], floor or {}
    for contender, own in zip(contenders, rates, strict=True):
        row = {"contender": contender.name, "n_envs": contender.n_envs, "per_s": round(statistics.median(own))}
        against = peers.get(contender.n_envs, next(iter(peers.values()), None))
        if against is not None:
            row["ratio"] = ratio(own, against)
        if contender.name in floor:
            row["share"] = ratio(own, floor[contender.name])
        rows.append(row | contender.row)
    return rows


def rows_against(contenders: Sequence[Local], rates: Sequence[Sequence[float]], **about: Any) -> list[dict[str, Any]]:
    """One row a contender, `about` in each; its ratio is what the first of them makes, times this one."""
    rows = rows_of(contenders, rates, contenders[0].name)
    return [row | about | {"ratio": ratio(rates[0], own)} for row, own in zip(rows, rates, strict=True)]


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
    command = re.sub(r" --out(=| )\S+", "", command)  # a path of this machine is no part of the result
    made = {"command": command, "date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__}
    made |= {"threads": args.threads, "commit": measured_version(code_version())}
    return made | {"about": about, "columns": dict(columns), **content}


def measured_version(version: str) -> str:
    """The commit that was measured: a result that was just written makes the tree dirty, and no code."""
    command = ["git", "-C", str(REPO), "status", "--porcelain", "--untracked-files=no"]
    changed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    is_code = any(not line[3:].startswith("benchmarks/results/") for line in changed)
    return version if is_code else version.removesuffix("-dirty")


def result_file(args: argparse.Namespace) -> Path | None:
    """Where a section goes; None where it is not kept."""
    if args.out is not None or args.quick:
        return args.out
    return RESULTS / (args.own_file or f"{slug(machine(args.gpu))}.json")


def keep(args: argparse.Namespace, name: str, part: dict[str, Any], draw: Draw | None = None) -> int:
    """Print a section, write it to its file and draw it, unless nothing is kept; returns the exit code."""
    from drl_agents.atomic_file import write_atomically

    print("\n".join(section_lines(part)))
    path = result_file(args)
    if path is None:
        return 0
    known = json.loads(path.read_text()) if path.exists() else {}
    about = known["machine"] if getattr(args, "redraw", False) else machine(args.gpu)
    content = {name: part} if args.own_file else {"sections": known.get("sections", {}) | {name: part}}
    write_atomically(path, (json.dumps({"machine": about, **content}, indent=1) + "\n").encode())
    if draw is not None:
        ending = ".png" if args.own_file else f"_{name}.png"
        draw(part | {"machine": machine_text(about)}, path.with_name(path.stem + ending))
    print(f"\nwrote {name} of {path}", file=sys.stderr)
    return 0


# --------------------------------------------------------------------------------------------------- long benchmarks
Job = tuple[Any, ...]
RESUMED: tuple[Option, ...] = (
    ("--processes", {"type": int, "default": 2, "metavar": "N", "help": "jobs at once (default 2)"}),
    ("--redraw", {"action": "store_true", "help": "run nothing: count and draw what the result file has"}),
)


def resumed(
    args: argparse.Namespace, jobs: Sequence[Job], work: Callable[..., dict[str, Any]], identity: Callable[[Job], str]
) -> list[dict[str, Any]]:
    """What `work` makes of every job, in the order of the jobs.

    Each is added to a file beside the result as soon as it has ended, and a run that was stopped goes on from there.
    What was kept under another identity, or in a line that a kill cut short, is made again.
    """
    path = result_file(args)
    path = path.with_suffix(".jobs") if path is not None else None
    lines = []
    if path is not None and path.exists():
        lines = path.read_text().split("\n")[:-1]
        path.write_text("".join(f"{line}\n" for line in lines))
    kept = {tuple(key): row for key, row in map(json.loads, lines)}
    keys = {job: (identity(job), *job) for job in jobs}
    todo = [job for job in jobs if keys[job] not in kept]
    started = time.perf_counter()
    for number, (job, row) in enumerate(_ended(todo, work, 1 if args.quick else args.processes), start=1):
        kept[keys[job]] = row
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps([keys[job], row]) + "\n")
        left_s = (time.perf_counter() - started) / number * (len(todo) - number)
        print(f"{number} of {len(todo)}: {job}; about {left_s:.0f} s left", file=sys.stderr, flush=True)
    return [kept[keys[job]] for job in jobs]


def _ended(jobs: Sequence[Job], work: Callable[..., Any], n_processes: int) -> Iterator[tuple[Job, Any]]:
    """Jobs and what they made, in the order of their ends."""
    if n_processes == 1:
        yield from ((job, work(*job)) for job in jobs)
        return
    with ProcessPoolExecutor(n_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(work, *job): job for job in jobs}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def written(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """A section as its own result file has it."""
    path = args.out or RESULTS / args.own_file
    return json.loads(path.read_text())[name]


# --------------------------------------------------------------------------------------------------- tables
def columns(*same: str, **titles: str) -> dict[str, str]:
    """Columns of a table: first those whose key is their title, then those with a title of their own."""
    return {key: key for key in same} | titles


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


def figure(size: tuple[float, float], part: Mapping[str, Any]) -> Any:
    """An empty picture with large letters, titled with the machine and the day of a section."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["font.size"] = 15
    made = Figure(figsize=size, layout="constrained")
    made.suptitle(f"{part['machine']}, {part['threads']} threads, {part['date']}", fontsize=13, color="#555555")
    return made


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
