"""Tables as plain text and CSV. A row maps column names to values, and undefined values stay empty."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from market.files import write_whole

Row = Mapping[str, Any]


def text_table(rows: Sequence[Row], formats: Mapping[str, str]) -> str:
    """Return aligned columns with headers, in the order of `formats` (column -> format specification)."""
    cells = [list(formats)] + [[_shown(row.get(name), spec) for name, spec in formats.items()] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(formats))]
    is_text = [all(isinstance(row.get(name), str | None) for row in rows) for name in formats]
    lines = []
    for line in cells:
        padded = [c.ljust(w) if left else c.rjust(w) for c, w, left in zip(line, widths, is_text, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write all columns of all rows atomically."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if _is_undefined(value) else value for name, value in row.items()} for row in rows)
    write_whole(path, buffer.getvalue().encode())


def _is_undefined(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _shown(value: Any, spec: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return format(value, "" if isinstance(value, str) else spec)
