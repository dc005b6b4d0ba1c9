"""JSON records: what comes back, and which message a damaged file gets."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from market.codec import decode, encode, read_object
from market.errors import DatasetError


@dataclass(frozen=True)
class Size:
    qty: float

    def __post_init__(self):
        if self.qty < 0:
            raise ValueError("qty must be at least 0")


def decode_file(path, kind, error, advice, **limits):
    return decode(read_object(path, error, advice, **limits), kind, error, str(path), advice)


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bars: int
    segments: tuple[tuple[int, int], ...] = ()
    size: Size | None = None
    score: float = math.nan


def test_a_record_comes_back_from_its_file(tmp_path):
    note = Note(3, ((0, 2), (4, 9)), Size(0.5), 1.0)
    (tmp_path / "note.json").write_bytes(encode(note))
    assert decode_file(tmp_path / "note.json", Note, DatasetError, "") == note
    assert encode(note) == (json.dumps(json.loads(encode(note)), indent=1) + "\n").encode()


def test_numpy_scalars_paths_and_nan_have_a_form_in_json():
    content = json.loads(encode({"a": np.float32(0.5), "b": Path("x/y"), "c": np.nan, "d": [Size(1.0)]}))
    assert (content["a"], content["b"], content["d"]) == (0.5, "x/y", [{"qty": 1.0}])
    assert math.isnan(decode({"bars": 1, "score": content["c"]}, Note, DatasetError, "note").score)
    with pytest.raises(TypeError, match="set cannot be written as JSON"):
        encode({"a": {1}})


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "not valid JSON, perhaps truncated"),
        ("[" * 100_000, "not valid JSON, perhaps truncated"),
        ("1" * 5_000, "not valid JSON, perhaps truncated"),
        (b"\xff", "not valid JSON, perhaps truncated"),
        ("[]", "not a note"),
        (" " * 1_000, "larger than 999 bytes, so not a note"),
        ("{}", "field bars is missing"),
        ('{"bars": "3"}', "field bars: expected int, got str"),
        ('{"bars": true}', "field bars: expected int, got bool"),
        ('{"bars": 3, "segments": [[1]]}', "field segments[0]: expected array of length 2, got 1"),
        ('{"bars": 3, "size": {}}', "field size.qty is missing"),
        ('{"bars": 3, "size": {"qty": -1}}', "field size: qty must be at least 0"),
        ('{"bars": 3, "new": 1}', "field new is unknown"),
        ('{"bars": 3, "a`\\nb": 1}', "'field a`\\nb is unknown'"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(tmp_path, content, fault):
    path = tmp_path / "note.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    most_bytes = 999 if content == " " * 1_000 else 2**20
    with pytest.raises(DatasetError) as caught:
        decode_file(path, Note, DatasetError, "write it again", what="a note", most_bytes=most_bytes)
    assert str(caught.value) == f"{path}: {fault}; write it again"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"no\.json: cannot be read \(No such file or directory\); restore it"):
        decode_file(tmp_path / "no.json", Note, DatasetError, "restore it")


def test_unknown_fields_of_a_dataclass_are_refused_where_a_file_must_be_exactly_its_record():
    content = {"bars": 1, "size": {"qty": 1.0, "note": 2}}
    assert decode(content, Note, DatasetError, "a").size == Size(1.0)
    with pytest.raises(DatasetError, match=r"^a: field size\.note is unknown; mend it$"):
        decode(content, Note, DatasetError, "a", "mend it", is_exact=True)
