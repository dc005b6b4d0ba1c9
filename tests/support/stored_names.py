"""Names that users rely on: those that docs/stored_names.md lists, and those that code and files have.

    python -m tests.support.stored_names

adds to the page what is new. It takes nothing away: that is a decision.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sqlite3
import sys
import tarfile
import tempfile
import textwrap
from collections.abc import Mapping
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from barwise.__main__ import COMMANDS
from environment_Alpaca_kernels import compare
from tests.support.programs import options_of
from train.records import keys
from train.records.keys import LOOKED, REFIT
from train.study import objective

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "stored_names.md"
EARLIER = ROOT / "tests" / "fixtures" / "study_c6a6d1f.tar.xz"
BLOCK = re.compile(r"```names (.+)\n((?:.*\n)*?)```")
# Values whose own names are listed, too; elsewhere they depend on data or settings.
INSIDE = {
    "settings.json": ("train", "env_resolved", "venue", "data"),
    "result.json": ("agent", "equal_weight"),
    "holdout.json": ("holdout",),
    "deployment.json": ("venue", "data", "holdout", "scores", "options"),
    "manifest.json": ("arrays", "venue", "quality", "lookahead"),
    "pbo.json": ("lead", "account"),
    "validation.json": ("summary",),
    "candidate": ("options",),
}
JSON_FILES = (
    "study.json", "settings.json", "value.json", "result.json", "holdout.json", "yardsticks.json", "validation.json",
    "backtest.json", "pbo.json", "refit.json", "deployment.json", "manifest.json",
)  # fmt: skip
ARRAY_FILES = ("equity.npz", "closes_<timeframe>.npz", "paths.npz", "pbo_lead.npz")
# Of trials that fail, are killed or are tried again: the run of this module has none.
TRIAL_CONSTANTS = (
    keys.FAILURE, keys.WORKER, keys.RETRY_OF, keys.KILLS, keys.CODE_VERSION, objective.OUT_OF_MEMORY, "pruned",
)  # fmt: skip
PLACES = (
    (r"^results/old/", "<results>/<study>/"), (r"^results/", "<results>/"), (r"trial_\d+", "trial_<n>"),
    (r"split_\d+", "split_<k>"), (r"seed_\d+", "seed_<i>"), (r"refit_\d+", "refit_<seed>"),
    (r"equity_\d+", "equity_<k>"), (r"closes_\w+\.npz", "closes_<timeframe>.npz"),
    (r"artifacts/[-0-9a-f]{36}", "artifacts/<id>"), (r"^handed_over/", "deployments/"),
    (r"deployments/\d{8}T\d+Z_old_trial<n>_[0-9a-f]{8}", "deployments/<utc>_<study>_trial<n>_<hash>"),
    (r"deployments/\d{8}T\d+Z_old_trial\d+_[0-9a-f]{8}", "deployments/<utc>_<study>_trial<n>_<hash>"),
    (r"^made/", "<dataset>/"),
)  # fmt: skip
READ_BY_PYTHON = r"""environ(?:\.get|\.setdefault|\.pop)?[\[(]\s*["']([A-Z][A-Z0-9_]+)"""
ENVIRONMENT = re.compile(READ_BY_PYTHON + r"|\$\{([A-Z][A-Z0-9_]+):-")


OF_THE_LAUNCHER = {"GPU", "PROGRAM", "SAMPLE", "STUDY"}  # shell variables that look like the others


# ---------------------------------------------------------------------------------------------------------- the page
def listed(page: str | None = None) -> dict[str, set[str]]:
    """Block -> its names, one or several a line, `# ...` a comment."""
    found: dict[str, set[str]] = {}
    for title, body in BLOCK.findall(PAGE.read_text() if page is None else page):
        lines = [line.partition("  # ")[0] for line in body.splitlines()]
        is_one_a_line = title in ("log lines", "exit codes")
        found[title] = {word.strip() for line in lines for word in ([line] if is_one_a_line else line.split())} - {""}
    return found


def with_new_names(page: str, names: Mapping[str, set[str]]) -> str:
    """The page with names of its blocks that are not there yet."""

    def filled(match: re.Match[str]) -> str:
        title = match.group(1)
        missing = names.get(title, set()) - listed(match.group(0))[title]
        if not missing:
            return match.group(0)
        everything = sorted(missing | listed(match.group(0))[title])
        text = " ".join(everything) if title not in ("files", "further files") else "\n".join(everything)
        lines = textwrap.wrap(text, 110, break_long_words=False, break_on_hyphens=False) if " " in text else [text]
        return f"```names {title}\n" + "\n".join(lines) + "\n```"

    return BLOCK.sub(filled, page)


# ----------------------------------------------------------------------------------------------------------- the code
def names_of_the_code() -> dict[str, set[str]]:
    """What parsers and sources say, without running anything."""
    flags = {f"barwise {command}": {f for a in options_of(command) for f in a.option_strings} for command in COMMANDS}
    codes = (compare.EQUAL, compare.DIFFERENT, compare.USAGE, compare.NOT_REACHED)
    others = {"commands": set(COMMANDS), "environment variables": environment_variables()}
    return flags | others | {"--compare": {str(code) for code in codes}}


def sources() -> dict[Path, str]:
    """Every program and module, tests and benchmarks excepted."""
    folders = ("environment_Alpaca_kernels", "market", "drl_agents", "train", "adapters", "barwise", "scripts")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sh")]
    return {path: path.read_text() for path in [*paths, *ROOT.glob("*.py"), *ROOT.glob("*.sh")]}


def environment_variables() -> set[str]:
    """Names that are read by name; those behind a constant are in the page's block by hand."""
    found = {name or other for text in sources().values() for name, other in ENVIRONMENT.findall(text)}
    return found - OF_THE_LAUNCHER


# ---------------------------------------------------------------------------------------------------------- the files
def unpack_earlier(folder: Path) -> None:
    """The study of commit c6a6d1f (tests/fixtures/study_c6a6d1f.sh)."""
    with tarfile.open(EARLIER) as packed:
        packed.extractall(folder, filter="data")


def run_everything(folder: Path) -> list[str]:
    """Resume that study, judge, deploy and report it with today's code -> the trainer's log lines."""
    unpack_earlier(folder)
    # Today's code writes these again; what it wrote then would hide a name that is gone.
    for name in ("holdout.json", "closes_5m.npz"):
        (folder / "results" / "old" / name).unlink()
    shutil.rmtree(folder / "results" / "old" / "holdout")
    with closing(sqlite3.connect(folder / "study.db")) as database, database:
        database.execute("DELETE FROM study_user_attributes WHERE key NOT IN ('uuid', 'created_s', 'identity')")
    study = ["--study-name", "old", "--storage", f"sqlite:///{folder}/study.db", "--results-dir", f"{folder}/results"]
    data = ["--data-dir", f"{folder}/bars"]
    searched = "--n-envs 4 --break-step 2048 --num-paths 1 --k-test-groups 1 --holdout 0.2 --pruner none --n-trials 4"
    made = f"--timeframe 5m --tickers BTC ETH --n-bars 2400 --out {folder}/made"
    deployed = f"--deployments-dir {folder}/handed_over --once --allow-unproven --allow-unverified --allow-synthetic"
    deployed += " --allow-unchecked"
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("train").addHandler(handler)
    try:
        for command, words in (
            ("make-sample", made.split()),
            ("optimize", [*study, *data, *searched.split()]),
            ("validate", [*study, *data, "--random-draws", "2"]),
            ("backtest", [*study, *data, "--costs", "1", "--seeds", "1"]),
            ("pbo", [*study, "--least-trials", "2", "--blocks", "4"]),
            ("deploy", [*study, *data, *deployed.split()]),
        ):
            code = import_module(f"barwise.commands.{COMMANDS[command][0]}").main(words)
            assert code == 0, (command, code, lines[-3:])
    finally:
        logging.getLogger("train").removeHandler(handler)
    return lines


def names_of_the_files(folder: Path) -> dict[str, set[str]]:
    """Block -> names found in a folder that `run_everything` or `unpack_earlier` filled."""
    found: dict[str, set[str]] = {"files": set(), "decisions.jsonl": set()}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not is_old(p, folder)):
        place = placed(path.relative_to(folder).as_posix())
        name = place.rpartition("/")[2]
        if not place.startswith(("bars/", "study.db")) and not name.endswith(".lock"):
            found["files"].add(place)
        if name in JSON_FILES:
            found.setdefault(name, set()).update(keys_of(json.loads(path.read_text()), INSIDE.get(name, ())))
        if name in ARRAY_FILES:
            with np.load(path, allow_pickle=False) as arrays:
                found.setdefault(name, set()).update(arrays.files)
        if name == "decisions.jsonl":
            for line in path.read_text().splitlines():
                found[name] |= keys_of(json.loads(line), ("candidate",))
    return found | attributes(folder / "study.db", 3 if is_todays(folder) else 0)


def is_old(path: Path, folder: Path) -> bool:
    """Whether today's code did not write it, in a folder where it wrote others of its kind."""
    parts = path.relative_to(folder).parts
    if not is_todays(folder):
        return False
    is_of_then = parts[0] in ("bars", "deployments") or any(part in ("trial_0", "trial_2") for part in parts)
    return is_of_then or (parts[2:3] == ("trial_1",) and parts[3].startswith(("split_", "settings", "value")))


def is_todays(folder: Path) -> bool:
    """Whether `run_everything` filled it."""
    return (folder / "handed_over").is_dir()


def placed(name: str) -> str:
    """A path with its numbers and hashes replaced by what they stand for."""
    for pattern, instead in PLACES:
        name = re.sub(pattern, instead, name)
    return name


def keys_of(content: Mapping[str, Any], inside: tuple[str, ...]) -> set[str]:
    """Keys, and `key.inner` of those in `inside`."""
    inner = {f"{k}.{i}" for k in inside if isinstance(content.get(k), dict) for i in content[k]}
    return {*content, *inner}


def attributes(database: Path, first_trial: int) -> dict[str, set[str]]:
    """What Optuna keeps of the study, and of its trials from that number on."""
    tables = {"study user attributes": "study_user_attributes", "trial user attributes": "trial_user_attributes",
              "trial system attributes": "trial_system_attributes"}  # fmt: skip
    found = {}
    with closing(sqlite3.connect(database)) as connection:
        for title, table in tables.items():
            where = "" if table.startswith("study") else f"JOIN trials USING (trial_id) WHERE number >= {first_trial}"
            rows = connection.execute(f"SELECT DISTINCT key FROM {table} {where}").fetchall()
            found[title] = {attribute(key) for (key,) in rows}
    return found


def attribute(key: str) -> str:
    """With its hash or number replaced."""
    key = re.sub(rf"^{LOOKED}[0-9a-f]+$", f"{LOOKED}<hash>", key)
    key = re.sub(rf"^{REFIT}\d+_\d+$", f"{REFIT}<trial>_<seed>", key)
    return re.sub(r"^artifacts:.*", "artifacts:<id>", re.sub(r"^split_\d+$", "split_<k>", key))


def main() -> int:
    """Add what is new to the page."""
    with tempfile.TemporaryDirectory() as folder:
        run_everything(Path(folder))
        names = names_of_the_code() | names_of_the_files(Path(folder))
    names["trial user attributes"] |= set(TRIAL_CONSTANTS)
    PAGE.write_text(with_new_names(PAGE.read_text(), names))
    sys.stdout.write(f"wrote {PAGE.relative_to(ROOT)}; every name that is gone is yours to decide about\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
