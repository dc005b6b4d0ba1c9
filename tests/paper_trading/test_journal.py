"""The journal is whole lines, in order, or it says which line is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paper_trading.journal import Journal, JournalError, encoded, read

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from paper_trading.journal import Journal
journal = Journal(Path(sys.argv[1]))
for n in range(3):
    journal.append("bar", bar_s=n)
os.write(journal._descriptor, b'{"n":3,"utc":"half of a li')
os.kill(os.getpid(), signal.SIGKILL)
"""


def written(path: Path, n: int = 5) -> list[dict]:
    journal = Journal(path)
    lines = [journal.append("bar", bar_s=300 * k, close=[1.5, 1e-9]) for k in range(n)]
    journal.close()
    return lines


def test_what_is_written_is_read(tmp_path):
    lines = written(tmp_path / "journal.jsonl")
    found = read(tmp_path / "journal.jsonl")
    assert [{k: v for k, v in line.items() if k != "crc"} for line in found] == lines
    assert [line["n"] for line in found] == list(range(5))
    again = Journal(tmp_path / "journal.jsonl")
    assert again.append("stop", why="")["n"] == 5


def test_no_file_is_no_event(tmp_path):
    assert read(tmp_path / "none.jsonl") == []


def test_kill_9_in_the_middle_of_a_line_costs_that_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == -9
    assert [line["bar_s"] for line in read(path)] == [0, 1, 2]
    journal = Journal(path)
    journal.append("bar", bar_s=3)
    assert [line["bar_s"] for line in read(path)] == [0, 1, 2, 3]
    assert path.read_bytes().count(b"\n") == 4


@given(place=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_changed_bit_is_found_wherever_it_is(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    written(path)
    content = bytearray(path.read_bytes())
    at = min(int(place * len(content)), len(content) - 1)
    content[at] ^= 1 << bit
    path.write_bytes(content)
    if at == len(content) - 1:  # the end of the last line: a line without one was never finished
        assert len(read(path)) == 4
        return
    with pytest.raises(JournalError, match="line "):
        read(path)


def test_a_line_that_is_missing_is_found(tmp_path):
    path = tmp_path / "journal.jsonl"
    written(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(JournalError, match="line 3 has number 3, so earlier lines are missing"):
        read(path)


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    written(path, 2)
    journal = Journal(path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, text: write(descriptor, text[:20]))
    with pytest.raises(OSError, match="no space left"):
        journal.append("intents", orders=[])
    monkeypatch.undo()
    journal.append("bar", bar_s=9)
    assert [line["event"] for line in read(path)] == ["bar", "bar", "bar"]


def test_a_number_in_another_spelling_is_a_changed_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    line = encoded({"n": 0, "event": "bar", "price": 1e-09})
    path.write_bytes(line)
    assert read(path)[0]["price"] == 1e-09
    path.write_bytes(line.replace(b"1e-09", b"1E-09"))
    with pytest.raises(JournalError, match="line 1 is damaged"):
        read(path)


def test_a_link_is_no_journal(tmp_path):
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / "journal.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        Journal(tmp_path / "journal.jsonl")
