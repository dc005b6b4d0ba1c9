"""Last lines of a log that another process is writing."""

from __future__ import annotations

import re
from pathlib import Path

TAIL_BYTES = 32_768
# Colors, cursor movements and titles; a log may contain any of them, and none may reach the terminal.
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


STARTED = re.compile(rb" study (\S+): \d+ of \d+ trials finished, database ")  # `session.run_study` logs it
SEARCHED_BYTES = 4 << 20


def study_of(path: Path) -> str | None:
    """Return the study that this log's trainer started last, or None if the last 4 MiB of the log do not contain it."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, 2) - SEARCHED_BYTES, 0))
            found = STARTED.findall(file.read(SEARCHED_BYTES))
    except OSError:
        return None
    return found[-1].decode("utf-8", "replace") if found else None


def last_lines(path: Path, n: int) -> tuple[list[str], str]:
    """Return at most the last `n` lines and, if there are none, the reason.

    If a progress bar overwrote a line, only the line's last state is returned.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - TAIL_BYTES, 0))
            lines = file.read(TAIL_BYTES).decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return [], f"{path} does not exist"
    except OSError as error:
        return [], f"{path} cannot be read: {error.strerror}"
    if size > TAIL_BYTES:
        lines = lines[1:]  # the first line is incomplete
    shown = [line for line in map(_last_drawn, lines) if line.strip()]
    return (shown[-n:] if n > 0 else []), "" if shown else f"{path} is empty"


def _last_drawn(line: str) -> str:
    return plain_text(line.rstrip("\r").rpartition("\r")[2])


def plain_text(text: str) -> str:
    """Return the text without control sequences, with tabs replaced by four spaces."""
    return CONTROLS.sub("", ESCAPES.sub("", text).replace("\t", "    "))
