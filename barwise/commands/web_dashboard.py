"""Serve a study with optuna-dashboard to browsers on this machine, including the equity curves of each trial."""

from __future__ import annotations

import argparse
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from barwise.arguments import add_study, exit_code, here, storage_of
from train.records.errors import StudyError
from train.records.provenance import home

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from optuna.storages import RDBStorage
    from sqlalchemy.engine import URL

    from train.watch.snapshot import Snapshot

HOST = "127.0.0.1"  # local access only, because anyone who can open the page can delete studies
LOCAL_NAMES = (HOST, "localhost", "::1")
EPILOG = """
The server runs in this terminal until Ctrl-C. It only accepts local connections; from another machine, use
ssh -L 8080:127.0.0.1:8080 HOST. Relative paths are resolved from the current directory. Default paths are in the
repository.

Exit codes: 1 the database cannot be read; 2 wrong flag, missing database or study, or port in use."""


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--port", type=int, default=8080, metavar="N", help="port on 127.0.0.1 (default: 8080)")
    add_study(p, is_required=False)
    p.add_argument(
        "--artifact-dir",
        type=Path,
        metavar="DIR",
        help="folder that contains the trials' plots (default: the study's artifact store, or the folder artifacts "
        "next to its results)",
    )
    return p  # fmt: skip


class Server(ThreadingMixIn, WSGIServer):
    """HTTP server with one thread per request, because browsers keep connections open."""

    daemon_threads = True


class QuietHandler(WSGIRequestHandler):
    """Request handler that does not log successful requests."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log a request unless it succeeded or was redirected."""
        if not str(code).startswith(("2", "3")):
            super().log_request(code, size)


def listen(port: int) -> Server:
    """Return a server on the port, without an application.

    Raises:
        StudyError: if the port is invalid, in use or not permitted.
    """
    if not 1 <= port <= 65_535:
        raise StudyError(f"--port must be from 1 to 65535; received {port}")
    try:
        return Server((HOST, port), QuietHandler)
    except OSError as error:
        why = (
            "is in use; give another --port" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        )
        raise StudyError(f"--port {port}: {why}") from error


def artifact_dir(snapshot: Snapshot, given: Path | None, results_dir: Path | None = None) -> Path:
    """Return the folder that contains the trials' plots.

    Raises:
        StudyError: if --artifact-dir does not exist.
    """
    if given is not None:
        if not given.is_dir():
            raise StudyError(f"--artifact-dir {given}: the folder does not exist")
        return given
    from train.records.results import artifacts_folder

    if results_dir is not None:
        return artifacts_folder(results_dir / snapshot.name)
    results = snapshot.user_attrs.get("results")
    return artifacts_folder(Path(results) if isinstance(results, str) else home() / "train_results" / snapshot.name)


def serve(args: argparse.Namespace) -> None:
    """Serve the study until a signal. All checks run before the slow import of optuna-dashboard."""
    from optuna.artifacts import FileSystemArtifactStore

    from train.store.artifact_files import pictures_in
    from train.watch.accessible import accessible
    from train.watch.snapshot import take_snapshot

    url = storage_of(args)
    snapshot = take_snapshot(url, args.study_name)  # first, because the server would create tables in an empty database
    folder = artifact_dir(snapshot, here(args.artifact_dir), here(args.results_dir))
    in_store = pictures_in(snapshot.user_attrs) if args.artifact_dir is None else None
    with listen(args.port) as server, opened_storage(url) as storage:
        from optuna_dashboard import wsgi

        pages = wsgi(storage, artifact_store=in_store or FileSystemArtifactStore(folder))
        server.set_app(only_local(accessible(pages)))
        if in_store is None and not folder.is_dir():
            print(f"no trial plots: folder {folder} does not exist")
        page = f"http://{HOST}:{args.port}/dashboard/studies/{snapshot.study_id}"
        print(f"study {snapshot.name}: {page}   (Ctrl-C to stop)", flush=True)
        server.serve_forever()


def only_local(app: WSGIApplication) -> WSGIApplication:
    """Wrap an application so that it rejects requests from other sites' pages in a local browser.

    The Host header reveals a foreign name that resolves to 127.0.0.1 (DNS rebinding), and the Origin header reveals a
    foreign page. The port is not checked, because it may belong to an SSH tunnel.
    """

    def guarded(request: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        host, origin = request.get("HTTP_HOST", ""), request.get("HTTP_ORIGIN")
        try:
            is_local = urlsplit(f"//{host}").hostname in LOCAL_NAMES
        except ValueError:  # no valid host, such as "[::1"
            is_local = False
        if is_local and origin in (None, f"http://{host}"):
            return app(request, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"This server only answers requests for 127.0.0.1 and localhost from its own pages.\n"]

    return guarded


@contextmanager
def opened_storage(url: URL) -> Iterator[RDBStorage]:
    """Open the storage without creating tables. Close it on exit, so that SQLite removes its temporary files."""
    from optuna.storages import RDBStorage

    from train.store.address import LOCK_TIMEOUT_S, sqlite_path

    if sqlite_path(url):
        options: dict[str, Any] = {"connect_args": {"timeout": LOCK_TIMEOUT_S}}
    else:
        from train.store.server_connection import engine_options

        options = engine_options(url, LOCK_TIMEOUT_S)
    options["pool_pre_ping"] = True
    address = url.render_as_string(hide_password=False)
    storage = RDBStorage(address, engine_kwargs=options, skip_table_creation=True)
    try:
        yield storage
    finally:
        storage.engine.dispose()


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    return exit_code("web_dashboard.py", lambda: serve(args), faults=(RuntimeError,))
