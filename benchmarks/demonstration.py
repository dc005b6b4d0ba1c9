#!/usr/bin/env python3
"""Check the demonstration: run the launcher's study on the sample market, with the planted signal and without it.

    python benchmarks/demonstration.py            # both at full size; writes benchmarks/results/demonstration.json
    python benchmarks/demonstration.py --quick    # both at small size, as in CI; writes nothing

The market and the trainer's flags are read from the launcher's own files. With the signal the verdict must be "Evidence
of skill"; without it, "Not evidence of skill". Each study must finish within ten minutes on two cores. `--keep FOLDER`
keeps data, study and report.html in that folder.
"""

from __future__ import annotations

import argparse
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.studies import SAMPLE, TRAINER, storage_of
from market.defaults import DEMONSTRATION_SEED
from market.planted import Law
from train.findings.stored_trial import open_stored
from train.report.collect import SHARE, collect
from train.report.verdict import ALPHA_PBO, DEFLATED_ALPHA, TRIALS_DIFFER
from train.store.address import absolute_url
from train.study.eligibility import NO_SIGNAL_CODE

REPO = Path(__file__).resolve().parents[1]

LAUNCHER, DATA_SCRIPT = REPO / "start_vectorized_training.sh", REPO / "scripts" / "setup" / "data.sh"
MOST_S = 600.0
QUICK_MARKET = ("--n-bars", "8000")
QUICK_STUDY = ("--n-trials", "10", "--break-step", "200000")
KEEP = ("--keep", {"type": Path, "metavar": "FOLDER", "help": "new folder in which data, study and report are kept"})
FIGURES = {"share": SHARE, "deflated": DEFLATED_ALPHA, "pbo": ALPHA_PBO, "differ": TRIALS_DIFFER}
COLUMNS = measuring.columns(law="market", verdict="verdict", share="share of the attainable growth")
COLUMNS |= {"deflated": "deflated Sharpe ratio", "pbo": "PBO", "differ": "difference between trials"}
COLUMNS |= {"wall_s": "wall time, s", "cpu_s": "CPU time, s"}


@dataclass(frozen=True)
class Ended:
    """Results of a finished demonstration."""

    law: Law
    verdict: str  # first sentence of the report's verdict
    holdout: str
    figures: dict[str, str]  # keyed as FIGURES; empty if no best trial exists
    n_compared: int  # completed trials
    wall_s: float
    cpu_s: float  # user and system time of all its processes

    @property
    def is_skill(self) -> bool:
        """Return True if the report finds evidence of skill."""
        return self.verdict.startswith("Evidence of skill")


def words_of(path: Path, name: str) -> list[str]:
    """Return the words of a `readonly` array or string in a shell file."""
    found = re.search(rf'^readonly {name}=[("](.*?)[)"]$', path.read_text(), re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"{path} does not set {name}")
    return shlex.split(found[1])


def demonstrate(law: Law, folder: Path, market: Sequence[str] = (), study: Sequence[str] = ()) -> Ended:
    """Create the market in `folder`, run the study there and read its report.

    Args:
        law: with or without the signal.
        folder: an empty folder.
        market: additional flags of make_sample.py.
        study: additional flags of the trainer, which override the launcher's.
    """
    began, cpu_before_s = time.perf_counter(), _children_s()
    name, storage, seed = law.value.replace(" ", "_"), storage_of(folder), ("--seed", DEMONSTRATION_SEED)
    flags = [] if law is Law.PLANTED else ["--no-signal"]
    tickers = words_of(DATA_SCRIPT, "SAMPLE_TICKERS")
    _run([SAMPLE, "--tickers", *tickers, "--out", folder / "5m", *seed, *flags, *market], folder)
    command = [TRAINER, *words_of(LAUNCHER, "DEMONSTRATION"), "--gpu", -1, "--study-name", name, *seed]
    command += ["--data-dir", folder / "5m", "--storage", storage, "--results-dir", folder / "results", *study]
    _run(command, folder, allowed=(0, NO_SIGNAL_CODE))
    wall_s, cpu_s = time.perf_counter() - began, _children_s() - cpu_before_s
    stored = open_stored(absolute_url(storage, folder), name, folder / "results")
    page = collect(stored.study, stored.folder)
    numbers = {title: number for title, number, _ in page.verdict.numbers}
    figures = {key: numbers[title] for key, title in FIGURES.items() if title in numbers}
    n_compared = sum(trial.state == "complete" for trial in page.trials)
    return Ended(law, page.verdict.sentences[0], page.holdout, figures, n_compared, wall_s, cpu_s)


def _run(command: Sequence[object], folder: Path, allowed: Sequence[int] = (0,)) -> None:
    """Run a script of the repository; its output is appended to `log.txt` in the folder.

    Raises:
        RuntimeError: If the exit code is not allowed; the message has the last lines of the log.
    """
    log = folder / "log.txt"
    with log.open("a") as file:
        words = [sys.executable, *map(str, command)]
        code = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code not in allowed:
        last = "\n".join(log.read_text().splitlines()[-20:])
        raise RuntimeError(f"command failed with exit code {code}: {shlex.join(words)}\n{last}")


def _children_s() -> float:
    """Return the CPU seconds of this process's finished children and their descendants."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def row_of(ended: Ended) -> dict[str, Any]:
    """Return one row of the table."""
    known = {"law": f"SYNTHETIC, {ended.law.value}", "verdict": ended.verdict, "holdout": ended.holdout}
    known |= {"n_compared": ended.n_compared, "wall_s": ended.wall_s, "cpu_s": ended.cpu_s}
    return dict.fromkeys(FIGURES, "") | ended.figures | known


def checks(with_signal: Ended, without: Ended) -> list[dict[str, Any]]:
    """Return the targets of the demonstration."""
    return [
        measuring.check("evidence of skill (planted signal)", float(with_signal.is_skill), least=1.0),
        measuring.check("evidence of skill (no signal)", float(without.is_skill), most=0.0),
        measuring.check("comparable trials (planted signal)", with_signal.n_compared, least=10),
        measuring.check("seconds (planted signal)", with_signal.wall_s, most=MOST_S),
        measuring.check("seconds (no signal)", without.wall_s, most=MOST_S),
    ]


def run_both(args: argparse.Namespace, scratch: Path) -> list[Ended]:
    """Run the demonstration with the signal, then without it."""
    sizes = {"market": QUICK_MARKET, "study": QUICK_STUDY} if args.quick else {}
    ended = []
    for law in (Law.PLANTED, Law.NO_SIGNAL):
        folder = scratch / law.value.replace(" ", "_")
        folder.mkdir(parents=True)
        print(f"{law.value}: running; the log is {folder}/log.txt", file=sys.stderr, flush=True)
        ended.append(demonstrate(law, folder, **sizes))
        print(f"{law.value}: {ended[-1].verdict} Hold-out: {ended[-1].holdout}", file=sys.stderr, flush=True)
    return ended


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the section."""
    with tempfile.TemporaryDirectory() as name:
        with_signal, without = run_both(args, args.keep.absolute() if args.keep else Path(name))
    about = "The launcher runs the demonstration study on the sample market, with and without the planted signal."
    found = {"rows": [row_of(with_signal), row_of(without)], "checks": checks(with_signal, without)}
    return measuring.section(args, about, COLUMNS, flags=words_of(LAUNCHER, "DEMONSTRATION"), **found)


def main(argv: Sequence[str] | None = None) -> int:
    """Run both demonstrations, print the results and write them."""
    how = {"threads": 1, "own_file": "demonstration.json", "options": [KEEP], "argv": argv}
    return measuring.run("demonstration", __doc__, measure, **how)


if __name__ == "__main__":
    sys.exit(main())
