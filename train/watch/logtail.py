"""The last lines of a log that somebody writes to."""

from __future__ import annotations

import re
from pathlib import Path

TAIL_BYTES = 32_768
# Colours, cursor movements and titles: a log may hold anything, and none of it is to reach the terminal.
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


STARTED = re.compile(rb" study (\S+): \d+ of \d+ trials finished, database ")  # `session.run_study` logs it
SEARCHED_BYTES = 4 << 20


def study_of(path: Path) -> str | None:
    """The study that the trainer whose log this is was last started for; None where its last 4 MiB do not say."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, 2) - SEARCHED_BYTES, 0))
            found = STARTED.findall(file.read(SEARCHED_BYTES))
    except OSError:
        return None
    return found[-1].decode("utf-8", "replace") if found else None


def last_lines(path: Path, n: int) -> tuple[list[str], str]:
    """At most `n` lines and, where there are none, why. Of a line that a progress bar drew over, what was seen last."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - TAIL_BYTES, 0))
            lines = file.read(TAIL_BYTES).decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return [], f"there is no {path}"
    except OSError as error:
        return [], f"{path} cannot be read: {error.strerror}"
    if size > TAIL_BYTES:
        lines = lines[1:]  # its beginning is not here
    shown = [line for line in map(_last_drawn, lines) if line.strip()]
    return (shown[-n:] if n > 0 else []), "" if shown else f"{path} is empty"


def _last_drawn(line: str) -> str:
    return plain_text(line.rstrip("\r").rpartition("\r")[2])


def plain_text(text: str) -> str:
    """Without anything that a terminal would obey; a tab is four blanks."""
    return CONTROLS.sub("", ESCAPES.sub("", text).replace("\t", "    "))
