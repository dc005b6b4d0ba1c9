"""Main loop of the dashboard: read, draw and wait. Unreadable data are reported and read again."""

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
LOAD_WINDOW_S = 0.3  # interval in seconds over which the first frame measures loads

Drawn = TypeVar("Drawn", bound=Any)


class Board(Generic[Drawn]):
    """Source of frames. Each frame has a field `trouble`."""

    _last: Drawn | None = None
    _looked_s = 0.0  # monotonic time at which `_last` was made

    def frame(self) -> Drawn:
        """Return a new frame and remember it.

        Raises:
            UserError: there is nothing to show.
        """
        self._last = self.look()
        self._looked_s = time.monotonic()
        return self._last

    def look(self) -> Drawn:
        """Return a new frame."""
        raise NotImplementedError

    def frame_or_trouble(self) -> tuple[RenderableType, str]:
        """Return a new frame, or the last frame under a line that says why it is outdated, together with that line."""
        try:
            return self.frame(), ""
        except UserError as error:
            if self._last is None:
                return Text(f"{error}; retrying", style="bold yellow"), str(error)
            age_s = time.monotonic() - self._looked_s
            said = f"{error}; showing figures from {age_s:.0f} s ago, retrying"
            return replace(self._last, trouble=said), said


@dataclass
class Dashboard(Board[Frame]):
    """Source of frames of one study."""

    url: URL
    study: str | None  # None selects the study with the newest trials
    log: Path
    results_dir: Path | None = None  # parent of the study's results; None uses the path stored in the study

    def __post_init__(self) -> None:
        self._meter = Meter()

    def look(self) -> Frame:
        """Return a new frame.

        Raises:
            StudyError: the study does not exist.
            UnavailableError: the database cannot be read now.
        """
        snapshot = take_snapshot(self.url, self.study)
        self.study = snapshot.name  # keeps the choice if another study starts a trial
        workers = find_workers(snapshot, self._meter, self.results_dir)
        if self._last is None:
            time.sleep(LOAD_WINDOW_S)
            workers = find_workers(snapshot, self._meter, self.results_dir)
        note = "" if results_folder(snapshot, self.results_dir) else how_far_note(snapshot.user_attrs.get("results"))
        return Frame(snapshot, workers, note, self._meter.machine(), self.log, datetime.now().astimezone())


def how_far_note(results: object) -> str:
    """Return the reason why the progress of workers is unknown."""
    if not isinstance(results, str):
        return "progress of each worker unknown: the study does not record its results folder"
    return f"progress of each worker unknown: {results} is not on this machine"


def show_once(dashboard: Board[Any], console: Console) -> int:
    """Print one frame and return an exit code. If the database is locked, retry for a few seconds."""
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
    """Draw frames until Ctrl-C and return an exit code."""
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
    """Print frames one after the other, for a file or a pipe."""
    while True:
        console.print(dashboard.frame_or_trouble()[0])
        sys.stdout.flush()
        time.sleep(refresh_s)
