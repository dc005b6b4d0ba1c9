"""Real PostgreSQL server for tests: on loopback, in a temporary folder, without fsync."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

BINARIES = Path("/usr/lib/postgresql/15/bin")
USER = "postgres"  # the server refuses to run as root
PASSWORD = "not-to-be-printed"
SETTINGS = ("listen_addresses=127.0.0.1", "fsync=off", "synchronous_commit=off", "full_page_writes=off",
            "max_connections=300")  # fmt: skip


def why_not() -> str | None:
    """Return the reason why no server can be started here, or None."""
    if not (BINARIES / "initdb").exists():
        return f"no PostgreSQL 15 in {BINARIES}: apt-get install postgresql-15"
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        return "PostgreSQL does not run as root, and there is no setpriv to become another user"
    return None


@dataclass
class PostgresServer:
    """PostgreSQL server that starts on construction. The folder must not exist yet; USER needs access to its parent."""

    folder: Path
    port: int = 0
    settings: tuple[str, ...] = SETTINGS

    def __post_init__(self) -> None:
        self.folder.mkdir()
        if os.getuid() == 0:
            shutil.chown(self.folder, USER, USER)
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._run("initdb", "-D", self.folder / "data", "-U", USER, "-A", "scram-sha-256", "--pwfile", password, "-N")
        password.unlink()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database as a user types it."""
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def new_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        self._run("createdb", "-h", "127.0.0.1", "-p", self.port, "-U", USER, name)
        return self.url(name)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = " ".join(f"-c {setting}" for setting in (*self.settings, f"port={self.port}"))
        options += f" -k {self.folder}"
        log = self.folder / "data" / "log"
        self._run("pg_ctl", "-D", self.folder / "data", "-l", log, "-o", options, "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server, roll back open transactions and close connections. The mode `immediate` acts like a kill."""
        self._run("pg_ctl", "-D", self.folder / "data", "-m", mode, "-w", "stop")

    def copy(self) -> None:
        """Take a base backup of the running server for `restore`."""
        copy = ("-D", self.folder / "copy", "-c", "fast", "-X", "stream")
        self._run("pg_basebackup", "-h", "127.0.0.1", "-p", self.port, "-U", USER, *copy)

    def restore(self) -> None:
        """Kill the server and start the copy instead. Everything written since `copy` is lost."""
        self.stop("immediate")
        shutil.rmtree(self.folder / "data")
        (self.folder / "copy").rename(self.folder / "data")
        self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Suspend all server processes inside this context. Connections stay open, but nothing is answered."""
        pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def _run(self, program: str, *arguments: object) -> None:
        as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"] if os.getuid() == 0 else []
        command = [*as_user, str(BINARIES / program), *map(str, arguments)]
        environment = {"PATH": os.environ["PATH"], "PGPASSWORD": PASSWORD, "LC_ALL": "C"}
        # The output goes to a file, because the server inherits the streams and would keep a pipe open.
        with (self.folder.parent / "output.txt").open("w+") as output:
            done = subprocess.run(
                command, cwd="/", env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=60, check=False
            )
            output.seek(0)
            assert done.returncode == 0, output.read()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Yield a running server, or skip the test if none can be started."""
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:  # other users cannot access pytest's folders
        Path(folder).chmod(0o755)
        server = PostgresServer(Path(folder) / "server")
        yield server
        server.stop()
