"""Shared code of the benchmarks: fair timing, hardware limits, tables and the result file.

Contenders are timed in alternation, round after round, so that machine noise affects all of them equally. A ratio is
the median over rounds of the ratio within a round. A result file belongs to one machine. Each benchmark writes its own
section and leaves the others unchanged.
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
Option = tuple[str, dict[str, Any]]  # a command-line option: name and arguments of `add_argument`
Draw = Callable[[dict[str, Any], Path], None]  # draws a section, whose "machine" is the machine's name, to a file


def run(name: str, description: str | None, measure: Callable[[argparse.Namespace], dict[str, Any]], **how: Any) -> int:
    """Run a benchmark: parse its flags, then measure and keep the section `name`; `how` is passed to `parsed`."""
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
    """Parse the flags that the benchmarks share and configure torch accordingly.

    Args:
        description: the text of `--help`.
        gpu: True if the benchmark can use a GPU.
        threads: default number of torch and numba threads.
        learns: True if torch must record gradients.
        own_file: name of the result file; empty for the machine's file.
        options: additional flags.
        argv: the command line.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    known: dict[str, Any] = {"help": "index of the GPU; -1 selects the CPU (default: -1)"}
    if not gpu:
        known = {"choices": [-1], "help": "only -1, the CPU, is supported by this benchmark"}
    parser.add_argument("--gpu", type=int, default=-1, metavar="N", **known)
    words = f"number of torch and numba CPU threads (default: {threads or '2; 1 with --quick'})"
    parser.add_argument("--threads", type=int, default=threads, metavar="N", help=words)
    words = "run a smoke test that takes seconds; its results are meaningless and are not stored"
    parser.add_argument("--quick", action="store_true", help=words)
    words = f"path of the result file (default: benchmarks/results/{own_file or '<machine>.json'}; none with --quick)"
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
    """Set `args.threads` and limit all libraries to that number of threads.

    Libraries read the number at import, so the program re-executes itself if its environment differs.
    """
    if args.gpu >= 0:
        import torch

        if args.gpu >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise SystemExit(f"--gpu {args.gpu} does not exist: torch finds {count} GPUs; use -1 for the CPU")
    args.threads = args.threads or (1 if args.quick else 2)
    wanted = dict.fromkeys(THREAD_VARIABLES, str(args.threads))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted)


def rounds_of(args: argparse.Namespace) -> tuple[int, float]:
    """Return the number of rounds and the seconds per contender and round."""
    return (ROUNDS_QUICK, SLICE_S_QUICK) if args.quick else (ROUNDS, SLICE_S)


# --------------------------------------------------------------------------------------------------- timing
@dataclass
class Local:
    """A contender that runs in this process."""

    name: str
    n_envs: int | None
    work: Callable[[], Any]  # the timed call
    units: float  # units of work per call
    wait: Callable[[], None] = lambda: None  # waits for an asynchronous device
    least_calls: int = 1
    row: dict[str, Any] = field(default_factory=dict)  # additional columns of the table
    _call_s: float = 0.0

    def rate(self, seconds: float) -> float:
        """Return units per second.

        The previous round determines the number of calls. The first round, and every round of short calls, starts with
        a warm-up call.
        """
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
    """Return the rates of every contender, one per round; an additional first round is discarded."""
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
    """Return the median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(rates, others, strict=True))


# --------------------------------------------------------------------------------------------------- the machine
def copy_bandwidth(gpu: int, quick: bool) -> Local:
    """Return a contender for torch's copy_ of 256 MiB of float32, in bytes read plus written per second."""
    import torch

    device = torch.device(f"cuda:{gpu}" if gpu >= 0 else "cpu")
    n_bytes = COPY_BYTES_QUICK if quick else COPY_BYTES
    source = torch.ones(n_bytes // 4, device=device)
    target = torch.zeros_like(source)
    return Local("copy_", None, lambda: target.copy_(source), 2.0 * n_bytes, wait=waiter(gpu))


def matmul_rates(rows: int, inner: int, columns: int) -> list[Local]:
    """Return contenders for one CPU matrix product in FLOP/s: torch.mm, and oneDNN if the agents use it."""
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
    """Return a function that waits for the device, because GPU calls return before the work is done."""
    import torch

    return (lambda: torch.cuda.synchronize(gpu)) if gpu >= 0 else (lambda: None)


def machine(gpu: int) -> dict[str, Any]:
    """Describe the machine of the measurement."""
    import torch

    known = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    return known | {"gpu": torch.cuda.get_device_name(gpu) if gpu >= 0 else None}


def cpu_name() -> str:
    """Return the CPU name that the kernel reports."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def machine_text(about: Mapping[str, Any]) -> str:
    """Return the GPU's name, or a text such as `AMD EPYC, 2 cores`."""
    return about["gpu"] or f"{about['cpu']}, {about['cores']} cores"


def slug(about: Mapping[str, Any]) -> str:
    """Return the machine's name in the form used for file names."""
    text = about["gpu"] or f"{about['cpu']} {about['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


# --------------------------------------------------------------------------------------------------- results
def rows_of(
    contenders: Sequence[Local],
    rates: Sequence[Sequence[float]],
    peer: str,
    floor: Mapping[str, Sequence[float]] | None = None,
) -> list[dict[str, Any]]:
    """Return one row per contender: median rate, ratio to the baseline, and share of the floor if it has one.

    The baseline is the contender named `peer` with the same n_envs, or the first one of that name if none matches.

    Args:
        contenders: in the order of `rates`.
        rates: as returned by `interleaved`.
        peer: name of the contender with ratio 1.
        floor: row name -> the rates that the hardware would allow, by round.
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
    """Return one row per contender, each with `about`; its ratio is the first contender's rate over its own."""
    rows = rows_of(contenders, rates, contenders[0].name)
    return [row | about | {"ratio": ratio(rates[0], own)} for row, own in zip(rows, rates, strict=True)]


def missing_row(name: str, package: str, n_envs: int | None = None) -> dict[str, Any]:
    """Return the row of a library that is not installed."""
    return {"contender": name, "n_envs": n_envs, "note": f"not installed: pip install {package}"}


def check(
    what: str, measured: float | None, *, least: float | None = None, most: float | None = None
) -> dict[str, Any]:
    """Return a target and whether it is met."""
    is_met = measured is not None and (least is None or measured >= least) and (most is None or measured <= most)
    return {"what": what, "measured": measured, "least": least, "most": most, "met": is_met}


def section(args: argparse.Namespace, about: str, columns: Mapping[str, str], **content: Any) -> dict[str, Any]:
    """Return a benchmark's section of a result file: provenance, table columns (key -> title), and content."""
    import torch

    from train.records.provenance import code_version

    command = " ".join(["python", *sys.orig_argv[1:]]).replace(f"{REPO}/", "")
    command = re.sub(r" --out(=| )\S+", "", command)  # a local path does not belong in the result
    made = {"command": command, "date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__}
    made |= {"threads": args.threads, "commit": measured_version(code_version())}
    return made | {"about": about, "columns": dict(columns), **content}


def measured_version(version: str) -> str:
    """Return the measured commit; modified result files do not count as modified code."""
    command = ["git", "-C", str(REPO), "status", "--porcelain", "--untracked-files=no"]
    changed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    is_code = any(not line[3:].startswith("benchmarks/results/") for line in changed)
    return version if is_code else version.removesuffix("-dirty")


def result_file(args: argparse.Namespace) -> Path | None:
    """Return the file that a section is written to, or None if it is not kept."""
    if args.out is not None or args.quick:
        return args.out
    return RESULTS / (args.own_file or f"{slug(machine(args.gpu))}.json")


def keep(args: argparse.Namespace, name: str, part: dict[str, Any], draw: Draw | None = None) -> int:
    """Print a section; write and draw it unless results are not kept; return the exit code."""
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
        draw_section(draw, part | {"machine": machine_text(about)}, path.with_name(path.stem + ending))
    print(f"\nwrote section {name} to {path}", file=sys.stderr)
    return 0


def draw_section(draw: Draw, part: dict[str, Any], path: Path) -> None:
    """Draw a section to a file, with matplotlib's default style before and after."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        draw(part, path)


# --------------------------------------------------------------------------------------------------- long benchmarks
Job = tuple[Any, ...]
RESUMED: tuple[Option, ...] = (
    ("--processes", {"type": int, "default": 2, "metavar": "N", "help": "number of parallel jobs (default: 2)"}),
    ("--redraw", {"action": "store_true", "help": "summarize and draw the stored results without running anything"}),
)


def resumed(
    args: argparse.Namespace, jobs: Sequence[Job], work: Callable[..., dict[str, Any]], identity: Callable[[Job], str]
) -> list[dict[str, Any]]:
    """Return the result of `work` for every job, in job order.

    Each result is appended to a file next to the result file as soon as its job ends, so an interrupted run resumes
    there. Results with a different identity are computed again, as are lines truncated because the process was killed.
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
        print(f"finished {number} of {len(todo)}: {job}; about {left_s:.0f} s left", file=sys.stderr, flush=True)
    return [kept[keys[job]] for job in jobs]


def _ended(jobs: Sequence[Job], work: Callable[..., Any], n_processes: int) -> Iterator[tuple[Job, Any]]:
    """Yield jobs and their results in order of completion."""
    if n_processes == 1:
        yield from ((job, work(*job)) for job in jobs)
        return
    with ProcessPoolExecutor(n_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(work, *job): job for job in jobs}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def written(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Read a section from its own result file."""
    path = args.out or RESULTS / args.own_file
    return json.loads(path.read_text())[name]


# --------------------------------------------------------------------------------------------------- tables
def columns(*same: str, **titles: str) -> dict[str, str]:
    """Return a table's columns: first those whose title is their key, then those with a different title."""
    return {key: key for key in same} | titles


def section_lines(part: Mapping[str, Any]) -> list[str]:
    """Return a section as Markdown: description, table, notes and targets."""
    lines = [part["about"], "", *table_lines(part["columns"], part["rows"])]
    if part.get("notes"):
        lines += ["", *part["notes"]]
    if part.get("checks"):
        lines += ["", *(check_line(item) for item in part["checks"])]
    return lines


def table_lines(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a Markdown table; a row's note replaces its values."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    for row in rows:
        cells = [shown(key, row.get(key)) for key in columns]
        if "note" in row:
            cells[2] = row["note"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def figure(size: tuple[float, float], part: Mapping[str, Any]) -> Any:
    """Return an empty figure in large type, titled with the machine and date of a section."""
    import matplotlib
    from matplotlib.figure import Figure

    from market.names import counted

    matplotlib.rcParams["font.size"] = 15
    made = Figure(figsize=size, layout="constrained")
    threads = counted(part["threads"], "thread")
    made.suptitle(f"{part['machine']}, {threads}, {part['date']}", fontsize=13, color="#555555")
    return made


def check_line(item: Mapping[str, Any]) -> str:
    """Format a target as `- metric (case): value (target >= bound, met)`."""
    bound = f">= {item['least']:g}" if item["least"] is not None else f"<= {item['most']:g}"
    got = "not measured" if item["measured"] is None else f"{item['measured']:.3g}"
    if not item["met"] and got == bound[3:]:  # rounding must not hide a narrow miss
        got = f"{item['measured']:.5g}"
    return f"- {item['what']}: {got} (target {bound}, {'met' if item['met'] else 'missed'})"


def shown(key: str, value: object) -> str:
    """Format a table cell: shares as percentages, ratios with two or three digits, counts with commas."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if key.startswith("share"):
        return f"{value:.0%}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
