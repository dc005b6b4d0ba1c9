"""Terminal view of a trader, rendered with rich. Values that the journal does not record are shown as unknown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Column, Table
from rich.text import Text

from paper_trading import words
from paper_trading.journal import FILE
from paper_trading.story import Note, Reader, Story
from paper_trading.trader_status import ALIVE, ENDED, Status, StatusError, find_account, read_status
from train.watch.logtail import plain_text
from train.watch.pace import ASCII_BARS, BARS, sparkline
from train.watch.program import Board
from train.watch.view import fitted, height_of, is_unicode, rendered, section

MARK_STYLE = {"LIVE": "bold white on red", "PAPER": "bold black on cyan", "REPLAY": "bold black on white"}
WARNING_STYLE = "bold black on yellow"
STATE_STYLE = {"ACTIVE": "bold green", "REDUCING": "bold yellow", "HALTED": "bold red"}
TWO_COLUMNS = 152  # characters: the table of positions is 72 wide
NEAR, AT = 0.8, 1.0  # used fractions of a limit
MOST_NOTES, MOST_ORDERS, LONGEST_SPARKLINE = 3, 6, 60


@dataclass(frozen=True)
class TraderFrame:
    """Content of one frame."""

    story: Story
    status: Status | None
    account: str
    now: datetime  # with a time zone
    faults: tuple[str, ...] = ()  # damaged files
    trouble: str = ""  # why the frame is outdated; "" if it is current

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the frame, with a note in the last line if the terminal is too small."""
        lines = rendered(_body(self, options.max_width, console.encoding), console, options)
        yield from fitted(lines, console, options, height_of(console, options))


@dataclass
class TraderBoard(Board[TraderFrame]):
    """Board that shows the trader of one account."""

    folder: Path  # folder of the account

    def __post_init__(self) -> None:
        self._reader = Reader(self.folder / FILE)

    def look(self) -> TraderFrame:
        """Return a new frame.

        Raises:
            UserError: if the account does not exist.
        """
        find_account(self.folder.parent, self.folder.name)
        story = self._reader.refresh()
        faults = [self._reader.damage and f"{self._reader.damage}. Only earlier events are shown"]
        status = None
        try:
            status = read_status(self.folder)
        except StatusError as error:
            faults.append(str(error))
        now = datetime.now().astimezone()
        return TraderFrame(story, status, self.folder.name, now, tuple(filter(None, faults)))


def _body(frame: TraderFrame, width: int, encoding: str) -> RenderableType:
    is_wide = width >= TWO_COLUMNS
    half = width // 2 - 2 if is_wide else width
    story = frame.story
    left = [_state(frame), _positions(story), _orders(story)]
    right = [_equity(story, half, encoding), _costs(story), _record(story), _limits(story)]
    if not is_wide:
        return Group(_title(frame), *left, *right, _events(story))
    columns = Table.grid(Column(ratio=1), Column(ratio=1), expand=True, padding=(0, 2))
    columns.add_row(Group(*left, _events(story)), Group(*right))
    return Group(_title(frame), columns)


def _title(frame: TraderFrame) -> RenderableType:
    line = Text()
    for mark in words.marks_of(frame.story, frame.status):
        line.append(f" {mark} ", MARK_STYLE.get(mark, WARNING_STYLE))
        line.append(" ")
    head = Table.grid(Column(ratio=1), Column(justify="right", no_wrap=True), expand=True, padding=(0, 1))
    head.add_row(line, Text(f"{frame.now:%H:%M:%S}", style="dim"))
    start = frame.story.start
    who = Text.assemble(("account ", "dim"), (frame.account, "bold"))
    if start is not None:
        who.append(f"  {len(start.tickers)} coins, {start.bar_seconds / 60:g}-minute bars", "dim")
    what = Text.assemble(("deployment ", "dim"), (frame.story.deployment or words.UNKNOWN, "bold"))
    faults = [Text(text, style="bold white on red") for text in (frame.trouble, *frame.faults) if text]
    return Group(head, *faults, who, what)


def _state(frame: TraderFrame) -> RenderableType:
    status, story = frame.status, frame.story
    life, said = words.life_text(status, frame.now, story)
    state = status.state if status else story.state or words.UNKNOWN
    why = plain_text(status.why) if status else story.why
    line = Text(plain_text(state), style=STATE_STYLE.get(state, "bold yellow"))
    line.append(f": {why}" if why else "", "none")
    parts = [line, Text(said, style="green" if life == ALIVE else "dim" if life == ENDED else "bold red")]
    if status is not None and life == ALIVE:
        parts.append(Text(plain_text(status.phase)))
    bars = f"last bar {words.clock(story.bar_s)}, {len(story.curves.bar_s):,} decisions"
    return section("state", *parts, Text(bars))


def _positions(story: Story) -> RenderableType:
    d = story.decision
    if d is None:
        return section("positions", Text(words.NO_DECISION, style="dim"))
    numbers = [Column(title, justify="right", no_wrap=True) for title in ("weight", "target")]
    band = [Column("band", justify="right", no_wrap=True)] if d.lo and d.hi else []
    table = Table(Column("coin", no_wrap=True), *numbers, *band, Column("action", justify="right", no_wrap=True),
                  Column("coins", justify="right", no_wrap=True), Column("why"), box=None, pad_edge=False,
                  header_style="dim")  # fmt: skip
    for i, ticker in enumerate(story.tickers):
        target = d.target[i] if d.target else None
        edges = [f"{words.percent(d.lo[i], '.1%')} to {words.percent(d.hi[i], '.1%')}"] if d.lo and d.hi else []
        table.add_row(
            plain_text(ticker), words.percent(d.weights[i], ".1%"), words.percent(target, ".1%"), *edges,
            f"{d.action[i]:+.2f}", f"{d.qty[i]:.6g}", words.reason(story, i),
        )  # fmt: skip
    cash = f"cash {words.usd(d.cash)} ({words.percent(1.0 - sum(d.weights), '.1%')})"
    return section(f"decision of {words.clock(d.bar_s)}", table, Text(cash, style="dim"))


def _orders(story: Story) -> RenderableType:
    if not story.orders:
        return section("orders", Text("none yet", style="dim"))
    last = story.last_orders()
    parts = [Text(words.order_text(order)) for order in last[:MOST_ORDERS]]
    parts += [Text(f"and {len(last) - MOST_ORDERS} more", style="dim")] if len(last) > MOST_ORDERS else []
    waiting = [order for order in story.unfinished if order not in last]
    parts += [Text(words.order_text(order), style="bold yellow") for order in waiting[:MOST_ORDERS]]
    n = len(story.unfinished)
    parts.append(Text(f"open or unknown: {n or 'none'}", style="bold yellow" if n else "dim"))
    return section(f"last orders, {words.clock(last[0].bar_s)} (bp: slippage from the close)", *parts)


def _equity(story: Story, width: int, encoding: str) -> RenderableType:
    c, d = story.curves, story.decision
    if d is None:
        return section("equity", Text(words.NO_DECISION, style="dim"))
    bars = BARS if is_unicode(encoding) else ASCII_BARS
    first = c.equity[0]
    room = min(max(width - 40, 8), LONGEST_SPARKLINE)
    table = Table.grid(Column(no_wrap=True), Column(justify="right", no_wrap=True), Column(justify="right"), Column(),
                       padding=(0, 1))  # fmt: skip
    for name, values in (("trader", c.equity), ("simulator", c.sim_equity), ("equal weight", c.benchmark)):
        known = [value for value in values if value is not None]
        last = values[-1]
        gain = None if last is None or not first > 0.0 else last / first - 1.0
        table.add_row(Text(name, style="dim"), words.usd(last), words.percent(gain),
                      Text(sparkline(known, room, bars), style="green", no_wrap=True))  # fmt: skip
    said = f"returns since the start with {words.usd(first)}; each line has its own scale"
    return section("equity", table, Text(said, style="dim"))


def _costs(story: Story) -> RenderableType:
    drift, d = story.drift, story.decision
    parts: list[RenderableType] = [
        _pairs((("fees", words.fees_text(drift, d.fees if d else None)), ("slippage", words.slippage_text(drift))))
    ]
    if d is not None and d.sim_equity is not None:
        table = Table.grid(Column(), Column(justify="right", no_wrap=True), Column(justify="right", no_wrap=True),
                           padding=(0, 1))  # fmt: skip
        for cause, value, share in words.drift_rows(drift.causes, drift, d.equity):
            table.add_row(Text(cause, style="dim"), value, share)
        total = drift.causes.total
        table.add_row("trader minus simulator", words.usd(total, "+,.2f"), words.share(total, d.equity))
        parts.append(table)
    return section("costs and difference from the simulator", *parts)


def _record(story: Story) -> RenderableType:
    return section("evidence of skill (probabilistic Sharpe ratio)", _pairs(words.records_of(story)))


def _limits(story: Story) -> RenderableType:
    table = Table.grid(Column(), Column(justify="right"), Column(), Column(justify="right"), Column(justify="right"),
                       padding=(0, 1))  # fmt: skip
    for name, used, bound, share in words.limit_rows(story):
        style = "none" if share is None or share < NEAR else "bold yellow" if share < AT else "bold red"
        near = "" if share is None else f"{words.percent(share, '.0%')} used"
        table.add_row(Text(name, style="dim"), Text(used, style=style), "of", bound, Text(near, style=style))
    return section("limits", table)


def _events(story: Story) -> RenderableType:
    pairs = [
        ("bars without orders", words.missed_text(story.skipped)),
        *([("last one", _noted(story.last_skip))] if story.last_skip else []),
        ("unfilled orders", words.missed_text(story.drift.n_missed)),
    ]
    for title, notes in (
        ("state", story.states), ("deployment", story.deployments), ("foreign", story.foreign),
        ("drift", story.drifts), ("bars", story.bar_notes),
    ):  # fmt: skip
        told = words.tail([_noted(note) for note in notes], MOST_NOTES)
        pairs += [(title if i == 0 else "", text) for i, text in enumerate(told)]
    return section("events", _pairs(pairs))


def _noted(note: Note) -> str:
    return f"{words.clock(note.at_s)} {note.text}"


def _pairs(pairs: Iterable[tuple[str, str]] | Sequence[tuple[str, str]]) -> RenderableType:
    table = Table.grid(Column(no_wrap=True), Column(ratio=1), padding=(0, 1))
    for name, text in pairs:
        table.add_row(Text(name, style="dim"), Text(text))
    return table
