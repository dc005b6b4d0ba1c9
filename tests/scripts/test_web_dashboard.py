"""The web dashboard: a real server on loopback that a client talks to, and the shell script that starts it."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact

from barwise.commands import web_dashboard
from tests.support.launcher_clone import clean_environment, write
from tests.support.made_studies import close, make_study, trial

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "scripts" / "monitoring" / "web_dashboard.py"
PICTURE = b"\x89PNG\r\n\x1a\n a picture"


@pytest.fixture
def folder(tmp_path):
    """A study with one completed trial and one running that has a picture."""
    place = tmp_path / "a folder with blanks"
    place.mkdir()
    study = make_study(place, [trial(value=1.5)])
    running = study.ask()
    (place / "equity.png").write_bytes(PICTURE)
    (place / "results" / "artifacts").mkdir(parents=True)
    store = FileSystemArtifactStore(place / "results" / "artifacts")
    upload_artifact(artifact_store=store, file_path=str(place / "equity.png"), study_or_trial=running)
    study.tell(running, 2.5)
    close(study)
    return place


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(*flags: object) -> list[str]:
    return [sys.executable, str(PROGRAM), "--storage", "sqlite:///study.db", *map(str, flags)]


@contextmanager
def serving(folder: Path, port: int) -> Iterator[subprocess.Popen]:
    """The server, once it has said where it is."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command("--port", port), cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def fetch(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return answer.read()


def refused(folder: Path, *flags: object) -> str:
    done = subprocess.run(command(*flags), cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.slow
def test_a_browser_gets_the_study_and_its_pictures_until_ctrl_c(folder):
    port = free_port()
    with serving(folder, port) as server:
        assert server.stdout.readline() == f"study s: http://127.0.0.1:{port}/dashboard/studies/1   (Ctrl-C to stop)\n"
        # A browser keeps connections open that it does not use yet: they must hold nobody up.
        with socket.create_connection(("127.0.0.1", port)):
            (found,) = json.loads(fetch(port, "/api/studies"))["study_summaries"]
            assert found["study_name"] == "s"
            page = fetch(port, "/dashboard/studies/1")
            assert b"<html" in page
            assert b'src="/accessible.js"' in page
            assert b"aria-label" in fetch(port, "/accessible.js")
            trials = json.loads(fetch(port, "/api/studies/1?after=0"))["trials"]
            assert [t["state"] for t in trials] == ["Complete", "Complete"]
            (artifact,) = trials[1]["artifacts"]
            assert artifact["filename"] == "equity.png"
            assert fetch(port, f"/artifacts/1/2/{artifact['artifact_id']}") == PICTURE
        assert "is in use; give another --port" in refused(folder, "--port", port)
        with pytest.raises(urllib.error.URLError):  # of this machine only
            urllib.request.urlopen(f"http://{address_of_this_machine()}:{port}/", timeout=5)
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 130
        assert server.stderr.read() == "web_dashboard.py: interrupted\n"
    assert not (folder / "study.db-wal").exists()
    assert len(optuna.load_study(study_name="s", storage=f"sqlite:///{folder}/study.db").trials) == 2


def address_of_this_machine() -> str:
    """One that is not loopback; where there is none, one that nobody answers at."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "192.0.2.1"
        address = probe.getsockname()[0]
    return address if not address.startswith("127.") else "192.0.2.1"


def test_what_is_missing_is_named_and_nothing_is_made(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = {path.name for path in folder.iterdir()}
    for flags, words in (
        (["--study", "x"], "study.db has no study x; its studies: s"),
        (["--storage", "sqlite:///none.db"], "there is no database"),
        (["--storage", "what"], "--storage what: not a database URL"),
        (["--port", "0"], "--port must be from 1 to 65535; received 0"),
        (["--artifact-dir", "none"], "none: the folder does not exist"),
    ):
        assert web_dashboard.main(["--storage", "sqlite:///study.db", *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
        assert {path.name for path in folder.iterdir()} == before


def test_a_database_of_another_program_is_refused_before_anything_is_made_in_it(tmp_path, capsys):
    path = tmp_path / "study.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = path.read_bytes()
    assert web_dashboard.main(["--storage", f"sqlite:///{path}"]) == 2
    assert "contains no Optuna study" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.fixture
def script(clone):
    place = clone.root / "scripts" / "monitoring" / "web_dashboard.sh"
    place.parent.mkdir(parents=True)
    return shutil.copy(ROOT / "scripts" / "monitoring" / "web_dashboard.sh", place)


def test_the_shell_script_uses_the_launchers_environment_and_passes_every_flag_on(clone, script, tmp_path):
    write(script.with_suffix(".py"), "import os, sys\nprint(sys.executable, os.getpid(), sys.argv[1:], os.getcwd())")
    flags = ["--study", "two words", "--port", "81"]
    command = ["bash", script, *flags]
    with subprocess.Popen(command, cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.read().splitlines()[-1]
        assert process.wait(20) == 0
    # exec: the server is the process that Ctrl-C and a supervisor see.
    assert said == f"{clone.root}/.venv/bin/python {process.pid} {flags} {tmp_path}"


def test_the_shell_script_asks_for_help_without_an_environment(clone, script, tmp_path):
    shutil.rmtree(clone.root / ".venv")
    began = time.monotonic()
    done = subprocess.run(["bash", script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: scripts/monitoring/web_dashboard.sh")
    assert not (clone.root / ".venv").exists()
    assert time.monotonic() - began < 10.0


FOREIGN = (
    {"Host": "evil.example:8080"},  # a name of somebody else's that leads here
    {"Host": "127.0.0.1.evil.example"},
    {"Host": "127.0.0.1@evil.example"},
    {"Host": "[::1"},
    {"Host": ""},
    {"Origin": "http://evil.example"},  # a page of somebody else's
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},  # another server of this machine
)


@pytest.mark.slow
def test_a_foreign_page_can_neither_read_nor_delete(folder):
    def status(method: str, path: str, headers: dict[str, str]) -> int:
        client = http.client.HTTPConnection("127.0.0.1", port)
        client.request(method, path, headers=headers)
        return client.getresponse().status

    port = free_port()
    with serving(folder, port) as server:
        server.stdout.readline()
        for headers in FOREIGN:
            assert [status("GET", "/api/studies", headers), status("DELETE", "/api/studies/1", headers)] == [403, 403]
        for host in (f"127.0.0.1:{port}", "localhost:9000", "[::1]:8080"):  # the others: ssh tunnels
            assert status("GET", "/api/studies", {"Host": host}) == 200
            assert status("GET", "/api/studies", {"Host": host, "Origin": f"http://{host}"}) == 200
        assert optuna.get_all_study_names(f"sqlite:///{folder}/study.db") == ["s"]
        assert status("DELETE", "/api/studies/1", {"Origin": f"http://127.0.0.1:{port}"}) == 204
