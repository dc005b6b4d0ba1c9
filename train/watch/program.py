"""The dashboard's loop: look, draw, wait; what cannot be read is said, and looked for again."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text
from sqlalchemy.engine import URL

from market.errors import UserError
from train.watch.machine import Meter
from train.watch.reading import UnavailableError
from train.watch.snapshot import take_snapshot
from train.watch.view import Frame
from train.watch.workers import find_workers, results_folder

ONCE_PATIENCE_S = 10.0
LOAD_WINDOW_S = 0.3  # loads of the first frame are measured over this

Drawn = TypeVar("Drawn", bound=Any)


class Board(Generic[Drawn]):
    """Frames of something that changes; a frame has a field `trouble`."""

    _last: Drawn | None = None
    _looked_s = 0.0  # when `_last` was taken, on the monotonic clock

    def frame(self) -> Drawn:
        """A new frame.

        Raises:
            UserError: there is nothing to show.
        """
        self._last = self.look()
        self._looked_s = time.monotonic()
        return self._last

    def look(self) -> Drawn:
        """A new frame, which `frame` keeps."""
        raise NotImplementedError

    def frame_or_trouble(self) -> tuple[RenderableType, str]:
        """A new frame, or the last one under a line that says why it is old; and that line."""
        try:
            return self.frame(), ""
        except UserError as error:
            if self._last is None:
                return Text(f"{error}; looking again", style="bold yellow"), str(error)
            age_s = time.monotonic() - self._looked_s
            said = f"{error}; figures of {age_s:.0f} s ago, looking again"
            return replace(self._last, trouble=said), said


@dataclass
class Dashboard(Board[Frame]):
    """Frames of one study."""

    url: URL
    study: str | None  # None: the one whose trials are newest
    log: Path
    results_dir: Path | None = None  # holds the study's folder; None: where the study wrote it

    def __post_init__(self) -> None:
        self._meter = Meter()

    def look(self) -> Frame:
        """A new frame.

        Raises:
            StudyError: there is no such study.
            UnavailableError: the database cannot be read now.
        """
        snapshot = take_snapshot(self.url, self.study)
        self.study = snapshot.name  # stays, should another study begin a trial
        workers = find_workers(snapshot, self._meter, self.results_dir)
        if self._last is None:
            time.sleep(LOAD_WINDOW_S)
            workers = find_workers(snapshot, self._meter, self.results_dir)
        note = "" if results_folder(snapshot, self.results_dir) else how_far_note(snapshot.user_attrs.get("results"))
        return Frame(snapshot, workers, note, self._meter.machine(), self.log, datetime.now().astimezone())


def how_far_note(results: object) -> str:
    """Why workers cannot be asked how far they are."""
    if not isinstance(results, str):
        return "how far each is: unknown, the study does not say where its results are"
    return f"how far each is: unknown, {results} is not on this machine"


def show_once(dashboard: Board[Any], console: Console) -> int:
    """Print one frame; an exit code. A locked database is waited for a little."""
    give_up_at = time.monotonic() + ONCE_PATIENCE_S
    while True:
        try:
            frame = dashboard.frame()
            break
        except UserError as error:
            if not isinstance(error, UnavailableError) or time.monotonic() >= give_up_at:
                sys.stderr.write(f"{error}\n")
                return error.exit_code
    console.print(frame, end="")
    return 0


def show_live(dashboard: Board[Any], console: Console, refresh_s: float) -> int:
    """Draw frame after frame until Ctrl-C; an exit code."""
    try:
        if not console.is_terminal:
            return _print_frames(dashboard, console, refresh_s)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(dashboard.frame_or_trouble()[0], refresh=True)
                time.sleep(refresh_s)
    except KeyboardInterrupt:
        return 0


def _print_frames(dashboard: Board[Any], console: Console, refresh_s: float) -> int:
    """Frames below one another, for a file or a pipe."""
    while True:
        console.print(dashboard.frame_or_trouble()[0])
        sys.stdout.flush()
        time.sleep(refresh_s)
