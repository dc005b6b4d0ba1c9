"""Serve a study's database to a browser on this machine with optuna-dashboard, each trial's equity curves included."""

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

HOST = "127.0.0.1"  # of this machine only: who reaches the page can delete studies
LOCAL_NAMES = (HOST, "localhost", "::1")
EPILOG = """
Runs until Ctrl-C, in this terminal. The page is for this machine; from another: ssh -L 8080:127.0.0.1:8080 HOST.
Relative paths are taken from the current directory; the defaults lie in the repository.
Exit code: 2 for a bad flag, a missing database or study, or a port in use; 1 when the database cannot be read."""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--port", type=int, default=8080, metavar="N", help="of 127.0.0.1 (default: 8080)")
    add_study(p, is_required=False)
    p.add_argument(
        "--artifact-dir",
        type=Path,
        metavar="DIR",
        help="pictures of the trials (default: the study's artifact store, or artifacts beside its results)",
    )
    return p  # fmt: skip


class Server(ThreadingMixIn, WSGIServer):
    """A thread a request: browsers keep connections open, and a single thread would wait for them."""

    daemon_threads = True


class QuietHandler(WSGIRequestHandler):
    """Says nothing of requests that went well."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log what was refused or failed."""
        if not str(code).startswith(("2", "3")):
            super().log_request(code, size)


def listen(port: int) -> Server:
    """A server on the port, without anything to serve yet; raises StudyError where it cannot be had."""
    if not 1 <= port <= 65_535:
        raise StudyError(f"--port {port}: ports are 1 to 65535")
    try:
        return Server((HOST, port), QuietHandler)
    except OSError as error:
        why = (
            "is in use; give another --port" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        )
        raise StudyError(f"--port {port}: {why}") from error


def artifact_dir(snapshot: Snapshot, given: Path | None, results_dir: Path | None = None) -> Path:
    """The folder of the pictures; raises StudyError for one that was given and is not there."""
    if given is not None:
        if not given.is_dir():
            raise StudyError(f"--artifact-dir {given}: there is no such folder")
        return given
    from train.records.results import artifacts_folder

    if results_dir is not None:
        return artifacts_folder(results_dir / snapshot.name)
    results = snapshot.user_attrs.get("results")
    return artifacts_folder(Path(results) if isinstance(results, str) else home() / "train_results" / snapshot.name)


def serve(args: argparse.Namespace) -> None:
    """Check everything, then serve until a signal. Its library takes seconds to import: errors come before."""
    from optuna.artifacts import FileSystemArtifactStore

    from train.store.artifact_files import pictures_in
    from train.watch.snapshot import take_snapshot

    url = storage_of(args)
    snapshot = take_snapshot(url, args.study_name)  # first: the server itself would make tables in an empty database
    folder = artifact_dir(snapshot, here(args.artifact_dir), here(args.results_dir))
    in_store = pictures_in(snapshot.user_attrs) if args.artifact_dir is None else None
    with listen(args.port) as server, opened_storage(url) as storage:
        from optuna_dashboard import wsgi

        server.set_app(only_local(wsgi(storage, artifact_store=in_store or FileSystemArtifactStore(folder))))
        if in_store is None and not folder.is_dir():
            print(f"no pictures of trials: there is no folder {folder}")
        page = f"http://{HOST}:{args.port}/dashboard/studies/{snapshot.study_id}"
        print(f"study {snapshot.name}: {page}   Ctrl-C ends it", flush=True)
        server.serve_forever()


def only_local(app: WSGIApplication) -> WSGIApplication:
    """Refuse requests that a page of another site made in this machine's browser.

    A foreign name that leads to 127.0.0.1 (DNS rebinding) is in the Host header, a foreign page in Origin. The port may
    be that of an ssh tunnel.
    """

    def guarded(request: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        host, origin = request.get("HTTP_HOST", ""), request.get("HTTP_ORIGIN")
        try:
            is_local = urlsplit(f"//{host}").hostname in LOCAL_NAMES
        except ValueError:  # no host at all, as "[::1"
            is_local = False
        if is_local and origin in (None, f"http://{host}"):
            return app(request, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"This page answers requests for 127.0.0.1 and localhost only, from its own pages.\n"]

    return guarded


@contextmanager
def opened_storage(url: URL) -> Iterator[RDBStorage]:
    """The storage as it is: no tables are made. Closed at the end, so that SQLite puts its files in order."""
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
    """Parse, serve."""
    args = parser().parse_args(argv)
    return exit_code("web_dashboard.py", lambda: serve(args), faults=(RuntimeError,))
