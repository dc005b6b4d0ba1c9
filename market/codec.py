"""JSON files of typed records: a size limit, type checks by msgspec, and errors that name file and field.

A record is a `msgspec.Struct` or a dataclass, and its annotations define the check. Missing fields and wrong types
raise an error. Unknown fields are ignored, unless a Struct has `forbid_unknown_fields=True` or the caller sets
`is_exact`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from market.errors import UserError

LARGEST_FILE_BYTES = 16 * 2**20
LONGEST_FAULT = 200
ABSENT_OR_UNKNOWN = re.compile(r"Object (?:(missing) required|contains (unknown)) field `(.*)`", re.DOTALL)

Record = TypeVar("Record")


def read_object(
    path: Path | str,
    error: type[UserError],
    advice: str,
    *,
    what: str = "a JSON object",
    most_bytes: int = LARGEST_FILE_BYTES,
) -> dict[str, Any]:
    """Read a JSON object from a file without checking its fields. NaN and Infinity are accepted, as in Python's `json`.

    Args:
        path: path of the file.
        error: class of the error to raise.
        advice: what to do about a damaged file; ends the message.
        what: expected content of the file, with its article.
        most_bytes: size limit. Larger files are not read completely.

    Raises:
        error: the file is missing, unreadable, too large or not a JSON object. The message is one line and starts with
            the path.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as fault:
        raise error(f"{path}: cannot be read ({fault.strerror}); {advice}") from fault
    if len(content) > most_bytes:
        raise error(f"{path}: larger than {most_bytes} bytes, so not {what}; {advice}")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as fault:
        raise error(f"{path}: not valid JSON, perhaps truncated; {advice}") from fault
    if not isinstance(found, dict):
        raise error(f"{path}: not {what}; {advice}")
    return found


def decode(
    content: object,
    kind: type[Record],
    error: type[UserError],
    where: str,
    advice: str = "",
    is_exact: bool = False,
) -> Record:
    """Convert plain JSON values to a record.

    Args:
        content: dicts, lists, numbers and strings.
        kind: a Struct, a dataclass, or any other type to which msgspec can convert.
        error: class of the error to raise.
        where: name of the file or of a place in it; starts the message.
        advice: what to do about the error; ends the message.
        is_exact: if True, unknown fields raise an error at any depth.

    Raises:
        error: a field is missing, unknown, of a wrong type, or rejected by the record. The message is one line and
            names the field.
    """
    try:
        record = msgspec.convert(content, kind)
    except RecursionError as fault:
        raise error(f"{where}: nested too deeply{advice and f'; {advice}'}") from fault
    except msgspec.ValidationError as fault:
        raise error(f"{where}: {_field_fault(fault)}{advice and f'; {advice}'}") from fault
    for name in _unknown(content, msgspec.to_builtins(record)) if is_exact else ():
        raise error(f"{where}: field {_printable(name)} is unknown{advice and f'; {advice}'}")
    return record


def _unknown(content: object, kept: object) -> Iterator[str]:
    """Yield the names of fields in JSON values that the decoded record does not have."""
    if isinstance(content, dict) and isinstance(kept, dict):
        yield from content.keys() - kept.keys()
        for name in content.keys() & kept.keys():
            yield from (f"{name}.{rest}" for rest in _unknown(content[name], kept[name]))
    elif isinstance(content, list) and isinstance(kept, list | tuple):
        for i, (value, other) in enumerate(zip(content, kept, strict=True)):
            yield from (f"{i}.{rest}" for rest in _unknown(value, other))


def _field_fault(fault: msgspec.ValidationError) -> str:
    """Shorten msgspec's message: `field venue.as_of is missing` or `field bar_seconds: expected int, got str`."""
    text, _, place = str(fault).partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    if found := ABSENT_OR_UNKNOWN.fullmatch(text):
        return _printable(f"field {'.'.join(filter(None, (place, found[3])))} is {found[1] or found[2]}")
    text = re.sub("^(Expected|Invalid)", lambda word: word[0].lower(), re.sub("`(.*?)`", r"\1", text))
    return _printable(f"field {place}: {text}" if place else text)


def _printable(text: str) -> str:
    """Return a text that may quote a file, shortened and without control characters."""
    text = text[:LONGEST_FAULT]
    return text if text.isprintable() else ascii(text)


def encode(record: object) -> bytes:
    """Return a record or a mapping as JSON text with one field per line and a final newline. NaN stays NaN.

    Raises:
        TypeError: a value cannot be written as JSON.
    """
    return (json.dumps(record, indent=1, default=plain_value) + "\n").encode()


def plain_value(value: object) -> Any:
    """Return the JSON value of a record, a NumPy scalar or a path.

    Raises:
        TypeError: the value has a different type.
    """
    if isinstance(value, msgspec.Struct) or (is_dataclass(value) and not isinstance(value, type)):
        return msgspec.to_builtins(value, enc_hook=plain_value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
