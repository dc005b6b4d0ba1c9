"""One frame of the dashboard, drawn by rich: two columns in a wide terminal, otherwise one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.rule import Rule
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from train.records.keys import TARGET
from train.study.eligibility import no_best_text
from train.study.progress import caution_text, duration_text, shown
from train.watch.logtail import last_lines, plain_text, study_of
from train.watch.machine import Gpu, Machine
from train.watch.pace import ASCII_BARS, BARS, Pace, best_so_far, pace_of, sparkline, time_left_s
from train.watch.snapshot import COMPLETE, FAIL, FINISHED, PRUNED, RUNNING, WAITING, Snapshot, TrialRow
from train.watch.workers import ALIVE, DEAD, SILENT, UNKNOWN, Worker

TWO_COLUMNS = 120  # characters
GIB = 2.0**30
MOST_LOG_LINES, FEWEST_LOG_LINES = 12, 4
RECENT = 5
STATE_STYLE = {COMPLETE: "green", PRUNED: "yellow", FAIL: "red", RUNNING: "cyan", WAITING: "dim"}
STATE_NAME = {COMPLETE: "complete", PRUNED: "pruned", FAIL: "failed", RUNNING: "running", WAITING: "waiting"}
WORKER_STYLE = {ALIVE: "green", DEAD: "bold red", SILENT: "red", UNKNOWN: "yellow"}
BAR, ASCII_BAR = "█░", "#-"
MISSING = "unknown"


@dataclass(frozen=True)
class Frame:
    """Everything shown at one moment."""

    snapshot: Snapshot
    workers: Sequence[Worker]
    how_far_note: str  # why the progress of workers is unknown; empty if it is known
    machine: Machine
    log: Path
    now: datetime  # time of the frame, with its time zone
    trouble: str = ""  # why the figures are old; empty if they are current

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the frame with as much of the log as fits into the terminal. The last line counts hidden lines."""
        body = rendered(_body(self, options.max_width, console.encoding), console, options)
        height = height_of(console, options)
        room = MOST_LOG_LINES if height is None else min(max(height - len(body) - 1, FEWEST_LOG_LINES), MOST_LOG_LINES)
        lines = body + rendered(_log(self.log, room, self.snapshot.name), console, options)
        yield from fitted(lines, console, options, height)


def rendered(part: RenderableType, console: Console, options: ConsoleOptions) -> list[list[Segment]]:
    """Return the rendered lines of a part."""
    return console.render_lines(part, options.update(height=None), pad=False)


def fitted(
    lines: list[list[Segment]], console: Console, options: ConsoleOptions, height: int | None
) -> Iterator[Segment]:
    """Yield as many lines as the terminal has. The last line gives the number of hidden lines."""
    if height is not None and len(lines) > height:
        hidden = len(lines) - height + 1
        note = Text(f"{hidden} more lines; enlarge the terminal to see them", style="dim", no_wrap=True)
        lines = lines[: height - 1] + rendered(note, console, options)
    for number, line in enumerate(lines):
        yield from line
        if number < len(lines) - 1 or height is None:
            yield Segment.line()


def height_of(console: Console, options: ConsoleOptions) -> int | None:
    """Return the number of lines available, or None if unlimited, as in a file."""
    return options.height or (console.height if console.is_terminal else None)


def _body(frame: Frame, width: int, encoding: str) -> RenderableType:
    """Return the panels, most important first, because a small terminal shows only the first ones."""
    is_wide = width >= TWO_COLUMNS
    half = width // 2 - 2 if is_wide else width
    how = [_progress(frame, half, encoding), _workers(frame)]
    what, settings = _best(frame.snapshot, half, encoding), _settings(frame.snapshot)
    where = [_machine(frame.machine), _recent(frame.snapshot)]
    if not is_wide:
        return Group(_title(frame), *how, what, *where, settings)
    columns = Table.grid(Column(ratio=1), Column(ratio=1), expand=True, padding=(0, 2))
    columns.add_row(Group(*how, *where), Group(what, settings))
    return Group(_title(frame), columns)


def _title(frame: Frame) -> RenderableType:
    s = frame.snapshot
    head = Table.grid(Column(ratio=1), Column(justify="right", no_wrap=True), expand=True, padding=(0, 1))
    others = f"  ({len(s.other_studies)} more in this database: --study NAME)" if s.other_studies else ""
    head.add_row(
        Text.assemble(("study ", "dim"), (plain_text(s.name), "bold"), (others, "dim")),
        Text(f"{frame.now:%H:%M:%S}", style="dim"),
    )
    labels = s.user_attrs.get("data")
    if isinstance(labels, list) and labels:
        data = [
            Text(str(label), style="bold black on yellow" if "SYNTHETIC" in str(label) else "green") for label in labels
        ]
    else:
        data = [Text(f"data {MISSING}: 1_optimize_unified.py did not create this study", style="yellow")]
    trouble = [Text(frame.trouble, style="bold white on red")] if frame.trouble else []
    return Group(*trouble, head, *data)


def section(title: str, *parts: RenderableType) -> RenderableType:
    """Return parts under a rule with a title."""
    return Group(Rule(Text(title, style="bold blue"), align="left", style="blue"), *parts)


# ------------------------------------------------------------------------------------------------------------- progress
def _progress(frame: Frame, width: int, encoding: str) -> RenderableType:
    s, is_at_work = frame.snapshot, _is_at_work(frame)
    ends = [t.ended for t in s.trials if t.ended is not None]
    pace = pace_of(s.trials, frame.now if is_at_work or not ends else max(ends))
    target, n_finished = target_of(s), s.count(*FINISHED)
    if target is not None:
        share = min(n_finished / max(target, 1), 1.0)
        said = f" {n_finished} of {target} trials finished ({share:.0%})"
        line = Text.assemble((_bar(share, min(width - len(said), 30), encoding), "green"), (said, "bold"))
    else:
        line = Text(f"{n_finished} trials finished, target {MISSING}", style="bold")
    counts = [Text(f"{s.count(state)} {name}", style=STATE_STYLE[state]) for state, name in STATE_NAME.items()]
    counts = [text for text in counts if not text.plain.startswith("0 ")]
    return section(
        "progress",
        line,
        Text(", ").join(counts) if counts else Text("no trial yet", style="dim"),
        Text(pace_text(pace, is_at_work)),
        Text(left_text(frame, pace, target, n_finished)),
    )


def _bar(share: float, width: int, encoding: str) -> str:
    full, empty = BAR if is_unicode(encoding) else ASCII_BAR
    n = int(share * max(width, 0))
    return full * n + empty * (max(width, 0) - n)


def is_unicode(encoding: str) -> bool:
    """Return True if a terminal with this encoding can show block characters."""
    return encoding.lower().startswith("utf")


def target_of(snapshot: Snapshot) -> int | None:
    """Return the target number of finished trials, or None if the study has none."""
    target = snapshot.user_attrs.get(TARGET)
    return target if isinstance(target, int) and not isinstance(target, bool) else None


def _is_at_work(frame: Frame) -> bool:
    return any(worker.state in (ALIVE, UNKNOWN) for worker in frame.workers)


def pace_text(pace: Pace, is_at_work: bool = True) -> str:
    """Return text such as `33.1 trials/hour (18 finished in 33 min of the last hour)`.

    For an inactive study, the last hour is the last hour in which it was active.
    """
    if pace.per_hour is None:
        return f"trials/hour {MISSING}: no trial has finished"
    if not pace.in_last_hour:
        return f"0 trials/hour in the last hour; before that, one per {duration_text(3600.0 / pace.per_hour)}"
    hour = "the last hour" if is_at_work else "the last active hour"
    window = hour if pace.window_s >= 3600.0 else f"{duration_text(pace.window_s)} of {hour}"
    return f"{pace.per_hour:.1f} trials/hour ({pace.in_last_hour} finished in {window})"


def left_text(frame: Frame, pace: Pace, target: int | None, n_finished: int) -> str:
    """Return the remaining time, or the reason why it is unknown."""
    if target is not None and n_finished >= target:
        return "finished: all trials are done"
    if target is None:
        return f"ETA {MISSING}: the study has no trial target"
    if not _is_at_work(frame):
        return f"no ETA: {target - n_finished} trials are left and no worker is alive"
    seconds = time_left_s(n_finished, target, pace)
    if seconds is None:
        return f"ETA {MISSING}: no trial has finished yet"
    try:
        end = (frame.now + timedelta(seconds=seconds)).astimezone()  # daylight saving may begin or end before then
    except OverflowError:
        return f"ETA about {duration_text(seconds)} at this pace"
    day = "" if end.date() == frame.now.date() else f"{end:%a %d %b} "
    return f"ETA about {duration_text(seconds)} ({day}{end:%H:%M}) at this pace"


# ----------------------------------------------------------------------------------------------------------------- best
def _best(s: Snapshot, width: int, encoding: str) -> RenderableType:
    if s.n_objectives > 1:
        return section(
            "best trial", Text(f"none: with {s.n_objectives} objectives no single trial is best", style="yellow")
        )
    if s.best is None:
        return section("best trial", Text(f"none: {_why_no_best(s)}"))
    best, is_ours = s.best, "identity" in s.user_attrs
    loses = is_ours and best.value <= 0.0
    head = Text.assemble((f"{best.value:+.4f}", "bold red" if loses else "bold green"), f"  trial {best.number}")
    head.append("" if s.maximize else "  (minimized)", "dim")
    head.append("  not better than equal weight" if loses else "", "red")
    parts: list[RenderableType] = [head]
    if best.splits:
        scores = " ".join(f"{value:+.2f}" for _, value in sorted(best.splits.items()))
        parts.append(Text.assemble(("excess Sharpe by split  " if is_ours else "by step  ", "dim"), scores))
    parts.append(_course(s, width, encoding))
    if is_ours:
        parts.append(Text(caution_text(s.user_attrs, s.count(COMPLETE), best.number), style="yellow"))
    return section("best trial", *parts)


def _why_no_best(s: Snapshot) -> str:
    broken = [name for trial in s.trials if trial.state == COMPLETE for name in trial.violates]
    return no_best_text(s.count(COMPLETE), s.count(PRUNED), s.count(FAIL), broken)


def _course(s: Snapshot, width: int, encoding: str) -> RenderableType:
    """Return a sparkline of the best value so far, from the first completed trial to the last."""
    values = best_so_far(s.trials, s.maximize)
    first, last = f"{values[0]:+.2f} ", f" {values[-1]:+.2f}"
    bars = BARS if is_unicode(encoding) else ASCII_BARS
    line = sparkline(values, max(min(width - len(first) - len(last) - 14, 60), 1), bars)
    return Text.assemble(("best so far  ", "dim"), first, (line, "green"), last, no_wrap=True, overflow="crop")


def _settings(s: Snapshot) -> RenderableType:
    """Return names and values of the best trial's settings, in as many columns as fit."""
    pairs = [(name, shown(value)) for name, value in s.best.params.items()] if s.best else []
    if s.best is None or not pairs:
        return Group()
    widest = max(len(name) for name, _ in pairs)
    cells = [Text.assemble((f"{name:<{widest}} ", "dim"), value) for name, value in pairs]
    return section(f"settings of trial {s.best.number}", Columns(cells, padding=(0, 3), column_first=True))


# -------------------------------------------------------------------------------------------------------------- workers
def _workers(frame: Frame) -> RenderableType:
    parts: list[RenderableType] = []
    if not frame.workers:
        parts.append(Text("none: no trial is running", style="dim"))
    for worker in frame.workers:
        parts += _worker(worker)
    if frame.workers and frame.how_far_note:
        parts.append(Text(frame.how_far_note, style="dim"))
    parts.append(Text(rates_text(frame)))
    return section("workers", *parts)


def _worker(w: Worker) -> list[RenderableType]:
    who = "unknown process" if w.pid is None else f"{plain_text(w.host)} pid {w.pid}"
    trial = "between trials" if w.trial is None else f"trial {w.trial}"
    line = Text.assemble((f"{w.state} ", WORKER_STYLE[w.state]), who, "  ", (trial, "bold"), f"  {_how_far(w)}")
    loads = []
    if w.cores is not None:
        loads.append(f"{w.cores:.1f} cores")
    if w.rss_bytes is not None:
        loads.append(_bytes(w.rss_bytes))
    if w.status is not None and w.status.validation_score is not None:
        loads.append(f"validation {w.status.validation_score:+.4g}")
    if w.is_status_old or w.state in (DEAD, SILENT):
        age = None if w.sign_age_s is None else duration_text(w.sign_age_s)
        loads.append("no heartbeat yet" if age is None else f"last heartbeat {age} ago")
    detail = Text("  " + ", ".join(loads), style="dim")
    return [line, detail] if loads else [line]


def _how_far(w: Worker) -> str:
    """Return text such as `split 2 (3 of 6), 31% of 40,000 steps`; splits are numbered from 0, as in the log."""
    s = w.status
    if s is None or s.split is None:
        return ""
    of = f" ({s.split + 1} of {s.n_splits})" if s.n_splits else ""
    share = f", {w.split_share:.0%} of {s.total_env_steps:,} steps" if w.split_share is not None else ""
    return f"split {s.split}{of}{share}"


def rates_text(frame: Frame) -> str:
    """Return the exploration and update rates of the live workers, or those of the last finished split."""
    said = [w.status for w in frame.workers if w.state == ALIVE and w.status and not w.is_status_old]
    now = [s for s in said if s.explore_steps_per_s is not None and s.update_samples_per_s is not None]
    if now:
        explore = sum(s.explore_steps_per_s or 0.0 for s in now)
        update = sum(s.update_samples_per_s or 0.0 for s in now)
        whose = "now" if len(now) == 1 else f"now, {len(now)} workers together"
    elif (rates := frame.snapshot.rates) is not None:
        explore, update = rates.explore_steps_per_s, rates.update_samples_per_s
        whose = f"last split of trial {rates.trial}"
    else:
        return f"explore and update rates {MISSING}: no split has finished"
    return f"explore {explore:,.0f} env-steps/s, update {update:,.0f} samples/s ({whose})"


# -------------------------------------------------------------------------------------------------------------- machine
def _machine(m: Machine) -> RenderableType:
    cores = "core" if m.n_cores == 1 else "cores"
    lines = [
        Text(f"CPU {m.cpu:.0%} of {m.n_cores} {cores}, load {m.load_1min:.1f}; "
             f"memory {_bytes(m.memory_used_bytes)} of {_bytes(m.memory_total_bytes)}")
    ]  # fmt: skip
    lines += [Text(gpu_text(gpu)) for gpu in m.gpus] or [Text(f"GPU {m.gpu_note}", style="dim")]
    return section("machine", *lines)


def gpu_text(gpu: Gpu) -> str:
    """Return text such as `GPU 0: 87 % busy, 12.3 GiB used, 250 W, 61 C`; an unavailable value is shown as unknown."""
    memory = None if gpu.memory_used_bytes is None else _bytes(gpu.memory_used_bytes)
    figures = (
        ("busy", gpu.busy, "{:.0%} busy"),
        ("memory", memory, "{} used"),
        ("power", gpu.power_w, "{:.0f} W"),
        ("temperature", gpu.temperature_c, "{:.0f} C"),
    )
    parts = [f"{name} {MISSING}" if value is None else form.format(value) for name, value, form in figures]
    return f"GPU {gpu.number}: " + ", ".join(parts)


def _bytes(n: int) -> str:
    return f"{n / GIB:.1f} GiB" if n >= GIB else f"{n / 2**20:.0f} MiB"


# --------------------------------------------------------------------------------------------------------- trials, log
def _recent(s: Snapshot) -> RenderableType:
    ended = [t for t in s.trials if t.state in (*FINISHED, FAIL)]
    if not ended:
        return Group()
    latest = sorted(ended, key=lambda t: (t.ended or datetime.min, t.number))[: -RECENT - 1 : -1]
    return section("last trials", *(_ended_line(t, s.reasons.get(t.number, "")) for t in latest))


def _ended_line(t: TrialRow, reason: str) -> RenderableType:
    if t.state == COMPLETE:
        said = f"{t.value:+.4f}" if t.value is not None else "no finite value"
        said += f", not eligible to be best: {reason or ', '.join(t.violates)}" if t.violates else ""
    else:
        said = reason or "no reason given"
    took = f" {duration_text((t.ended - t.started).total_seconds())}" if t.ended and t.started else ""
    return Text.assemble(
        f"{t.number} ",
        (STATE_NAME[t.state], STATE_STYLE[t.state]),
        f" {said}",
        (took, "dim"),
        no_wrap=True,
        overflow="ellipsis",
    )


def _log(path: Path, n: int, study: str) -> RenderableType:
    other = study_of(path)
    wrong = f"{path} is a log of study {other}; give --log FILE"
    lines, why = last_lines(path, n) if other in (None, study) else ([], wrong)
    body = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines] or [Text(why, style="dim")]
    return section(f"log {path.name}", *body)
