"""List the files of each study in an artifact store, and remove the files of deleted studies."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from barwise.arguments import add_artifacts, add_storage, artifacts_of, exit_code, storage_of
from train.records.errors import StudyError

if TYPE_CHECKING:
    from train.store.artifact_store import Listed

EPILOG = """
Each line shows one study: its id, its name in the --storage database, the number and size of its files, and the date of
the newest file. A study without a name is not in that database: it was deleted, or it belongs to another database. This
program cannot distinguish the two, so --remove takes explicit ids. Ids of studies in the database are refused.

Exit codes: 0 success; 1 the store or the database failed; 2 wrong flag."""


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_artifacts(p, "artifact store: a folder or s3://BUCKET/PREFIX", is_required=True)
    add_storage(p)
    p.add_argument(
        "--remove", nargs="+", metavar="ID", help="ids of deleted studies; removes their files from the store"
    )
    return p


@dataclass(frozen=True)
class Kept:
    """The files of one study in the store."""

    uuid: str
    name: str  # "" if the database has no such study
    files: tuple[Listed, ...]

    @property
    def line(self) -> str:
        """One-line summary of the study's files."""
        size, last = sum(file.n_bytes for file in self.files), max(file.changed for file in self.files)
        name = self.name or "(not in this database)"
        return f"{self.uuid}  {name:<30} {len(self.files):>7,} files {size / 2**20:>10,.1f} MiB, last {last:%Y-%m-%d}"


def kept_in(files: Sequence[Listed], names: dict[str, str]) -> list[Kept]:
    """Group the store's files by study. Files whose key does not start with a study id are ignored.

    Args:
        files: all files in the store.
        names: id -> name of every study in the database.
    """
    by_uuid: dict[str, list[Listed]] = {}
    for file in files:
        uuid, slash, rest = file.key.partition("/")
        if slash and "/" not in rest and len(uuid) == 32 and set(uuid) <= set("0123456789abcdef"):
            by_uuid.setdefault(uuid, []).append(file)
    return [Kept(uuid, names.get(uuid, ""), tuple(mine)) for uuid, mine in sorted(by_uuid.items())]


def clean(args: argparse.Namespace) -> None:
    """List the studies in the store, and remove the files of those selected with --remove."""
    from functools import partial

    from train.store.artifact_store import open_artifacts
    from train.store.database import study_names

    store = open_artifacts(artifacts_of(args) or "")
    (files,) = store.insist([lambda: list(store.listed())], lasts_s=0.0)
    kept = {study.uuid: study for study in kept_in(files, study_names(storage_of(args)))}
    removed = args.remove or []
    for uuid in removed:
        if uuid not in kept:
            raise StudyError(
                f"--remove {uuid}: {store.url} has no files of this study; run without --remove to list all studies"
            )
        if kept[uuid].name:
            raise StudyError(f"--remove {uuid}: study {kept[uuid].name} is in the database; delete the study first")
    for study in [kept[uuid] for uuid in removed] or kept.values():
        print(study.line)
    for uuid in removed:
        store.insist([partial(store.remove, file.key) for file in kept[uuid].files], lasts_s=0.0)
        print(f"removed {len(kept[uuid].files)} files of {uuid}")
    if not kept:
        print(f"{store.url} contains no study files")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    return exit_code("clean_artifacts.py", lambda: clean(args))
