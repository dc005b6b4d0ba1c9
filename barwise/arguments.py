"""Flags, values and exit codes that the programs share. Light: everything heavy is imported when it is used."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from market.defaults import FEATURE_SET_NAMES, STAMPS
from market.errors import BarsError, UserError
from market.names import TIMEFRAME_SECONDS, ticker_of
from market.symbols import known_pair
from train.records.errors import StudyError
from train.records.keys import DEFAULT_STORAGE
from train.records.provenance import ROOT, home

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy.engine import URL

    from market.dataset import Dataset
    from market.venues import Venue
    from train.findings.stored_trial import StoredStudy, StoredTrial

FAULT, USER_ERROR, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141  # exit codes
# A path on the command line that is wrong; other operating system errors are faults of the machine.
WRONG_PATHS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
SAID_IN_A_LINE = (UserError, ModuleNotFoundError, OSError, MemoryError, RuntimeError, ValueError)
INSTALL = "pip install -e . in the repository, or activate its environment: source .venv/bin/activate"


# ----------------------------------------------------------------------------------------------------------- exit codes
def exit_code(
    program: str,
    work: Callable[[], int | None],
    after_a_fault: str = "",
    faults: tuple[type[Exception], ...] = (),
) -> int:
    """Run a program's work and turn its errors into one line on standard error.

    Args:
        program: its name, which begins the line.
        work: returns the exit code, or None for 0.
        after_a_fault: what to do once the machine works again, added to the line.
        faults: further errors of the machine, such as those of a GPU.

    Returns:
        2 for what the user can put right: a flag, a file, a study, data. 1 for a fault of the machine or the database.
        130 after Ctrl-C. Other exceptions are mistakes in this code and are raised.
    """
    try:
        refuse_another_checkout()
        return work() or 0
    except KeyboardInterrupt as interruption:
        say(program, f"interrupted{f'; {interruption}' if interruption.args else ''}")
        return INTERRUPTED
    except (*SAID_IN_A_LINE, *database_errors()) as error:  # evaluated when something was raised
        code, text = code_and_text(error)
        if code is None and isinstance(error, faults):
            code, text = FAULT, f"{type(error).__name__}: {str(error).strip() or 'no message'}"
        if code is None:
            raise
        say(program, f"{text}; {after_a_fault}" if code == FAULT and after_a_fault else text)
        return code


def refuse_another_checkout() -> None:
    """Refuse a script of one checkout that would run the code of another, with that one's data and results.

    Raises:
        UserError: says how to install the script's own checkout.
    """
    script = Path(sys.argv[0]).resolve()
    own = next((folder for folder in script.parents if (folder / "barwise" / "__main__.py").is_file()), ROOT)
    if own != ROOT:
        raise UserError(f"{own} is not the checkout that is installed ({ROOT}): pip install -e . in {own}")


def code_and_text(error: BaseException) -> tuple[int | None, str]:
    """The exit code of an error and its one line; the code is None for a mistake in this code."""
    if isinstance(error, UserError):
        return error.exit_code, str(error)
    if isinstance(error, ModuleNotFoundError):
        missing = str(error.name)
        if missing.partition(".")[0] in ("barwise", "market", "train", "drl_agents"):
            return None, ""
        return USER_ERROR, f"{missing} is not installed for this Python: {INSTALL}"
    if isinstance(error, ValueError) and type(error).__name__ == "PolicyFileError":
        return USER_ERROR, str(error)
    if isinstance(error, BrokenPipeError):  # whoever read the output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing is flushed into the closed pipe at exit
        return BROKEN_PIPE, "the reader of the output has gone"
    if isinstance(error, OSError):
        text = f"{error.filename or 'file'}: {error.strerror or error}"
        return (USER_ERROR if isinstance(error, WRONG_PATHS) else FAULT), text
    if isinstance(error, database_errors()):
        from train.store.retrying import reason_of

        return FAULT, f"the database failed: {reason_of(error)}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's is a RuntimeError
        return FAULT, f"out of memory: {str(error).strip() or 'no message'}"
    return None, ""


def database_errors() -> tuple[type[Exception], ...]:
    """What a database raises; nothing where no database was opened, so that nothing heavy is imported."""
    if "optuna" not in sys.modules:
        return ()
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return StorageInternalError, SQLAlchemyError


def say(program: str, text: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"{program}: {text}\n")


def plain_logging(*names: str) -> None:
    """Log lines of these packages on standard error, without time stamps."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in names:
        logging.getLogger(name).setLevel(logging.INFO)


# --------------------------------------------------------------------------------------------------------------- values
def day_seconds(text: str) -> int:
    """Parse a time of day; the seconds since midnight."""
    hours, colon, minutes = text.partition(":")
    if not (colon and hours.isdecimal() and minutes.isdecimal() and int(hours) < 24 and int(minutes) < 60):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time of day such as 16:00")
    return 3_600 * int(hours) + 60 * int(minutes)


def utc_date(text: str) -> datetime:
    """Parse an ISO date or date-time; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an ISO date such as 2024-01-31") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def whole_number(least: int) -> Callable[[str], int]:
    """Make a parser of whole numbers of at least `least`."""

    def parse(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return parse


def factor(text: str) -> float:
    """Parse a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number of at least 0")
    return value


def file_to_write(text: str) -> Path:
    """Parse a path, relative to the current folder, that is not a folder itself."""
    path = Path.cwd() / text
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def split_tickers(words: list[str]) -> list[str]:
    """Tickers from words that may hold commas; repeated coins are refused by name."""
    tickers = [ticker for word in words for ticker in word.split(",") if ticker.strip()]
    names = [ticker_of(ticker) for ticker in tickers if known_pair(ticker)]  # the data decides what others mean
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not tickers:
        raise BarsError("--tickers: names no coin")
    if repeated:
        raise BarsError(f"--tickers: {', '.join(repeated)} is given twice; name each coin once")
    return tickers


# ----------------------------------------------------------------------------------------------- flags of data programs
def add_tickers(
    parser: argparse.ArgumentParser,
    default: Sequence[str] | None,
    default_timeframe: str | None = "5m",
    default_words: tuple[str, str] = ("%(default)s", "%(default)s"),
) -> None:
    """Add --tickers and --timeframe; `default_words` say in the help what their defaults are."""
    parser.add_argument(
        "--tickers",
        nargs="+",
        default=None if default is None else list(default),
        metavar="TICKER",
        help=f"coins, as BTC, BTC/USD, BTC/USDT or BTCUSD, in column order (default: {default_words[0]})",
    )
    parser.add_argument(
        "--timeframe",
        choices=TIMEFRAME_SECONDS,
        default=default_timeframe,
        help=f"bar length (default: {default_words[1]})",
    )


def add_stamp(parser: argparse.ArgumentParser, default: str | None = "open") -> None:
    """Add --stamp and --offset to a program that reads files of bars."""
    parser.add_argument(
        "--stamp",
        choices=STAMPS,
        default=default,
        help="which time of a bar the timestamps in the file are; they become open times (default: open)",
    )
    parser.add_argument(
        "--offset",
        type=day_seconds,
        metavar="HH:MM",
        help="how long after the UTC grid bars open, for example 16:00 if days open at 16:00 UTC (default: 00:00)",
    )


def add_features(parser: argparse.ArgumentParser, default: str | None = "default") -> None:
    """Add --features to a program that makes a dataset; with None as `default` it is known whether it was given."""
    parser.add_argument(
        "--features",
        choices=FEATURE_SET_NAMES,
        default=default,
        help="columns: default is stationary and scaled; host is the raw set of the FinRL_Crypto family, in dollars, "
        "coins and points (default: default)",
    )


def add_venue(parser: argparse.ArgumentParser) -> None:
    """Add --venue to a program that makes a dataset."""
    parser.add_argument(
        "--venue",
        type=Path,
        metavar="FILE",
        help="order rules and fees that go into the dataset, as scripts/data/refresh_venues.py writes them "
        "(default: the built-in table of Alpaca; a refreshed file is used only when it is named here)",
    )


def add_dataset_folder(parser: argparse.ArgumentParser) -> None:
    """Add --out and --overwrite to a program that makes a dataset."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="dataset folder, for example data/5m")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there already")


def write_dataset(dataset: Dataset, args: argparse.Namespace) -> None:
    """Write the dataset with its picture to --out and print its order rules and label."""
    from market.dataset import save_dataset
    from market.describe import venue_lines
    from market.pictures import quality_picture

    save_dataset(dataset, args.out, args.overwrite, quality_picture(dataset))
    for line in venue_lines(dataset):
        print(line)
    print(f"wrote {args.out}: {dataset.label}")


def with_lookahead_check(dataset: Dataset, bars: pd.DataFrame, tickers: Sequence[str] | None = None) -> Dataset:
    """The dataset with a record of whether later bars change it, which is printed; at most a minute."""
    from tqdm import tqdm

    from market.lookahead import checked

    with tqdm(unit="build", disable=None, desc="look-ahead check") as progress:

        def show(n_runs: int) -> None:
            progress.total = n_runs
            progress.update()

        try:
            dataset, _ = checked(dataset, bars, tickers, on_run=show)
        except BarsError as error:
            print(f"look-ahead: not checked, {error}")
            return dataset
    print(dataset.standing.line)
    return dataset


def venue_of(path: Path | None) -> Venue:
    """The table that --venue names; the built-in one without it."""
    from market.venues import ALPACA, load_venue

    return ALPACA if path is None else load_venue(path)


# ---------------------------------------------------------------------------------------- flags of study programs
def add_storage(parser: argparse.ArgumentParser) -> None:
    """Add --storage."""
    parser.add_argument(
        "--storage",
        metavar="URL",
        help=f"database of the study: sqlite:///FILE or postgresql://USER@HOST/NAME (default: {DEFAULT_STORAGE})",
    )


def add_artifacts(parser: argparse.ArgumentParser, what: str, is_required: bool = False) -> None:
    """Add --artifacts, which is for `what`."""
    parser.add_argument("--artifacts", required=is_required, metavar="URL", help=what)


def add_results_dir(parser: argparse.ArgumentParser) -> None:
    """Add --results-dir to a program that reads results."""
    parser.add_argument(
        "--results-dir",
        type=Path,
        metavar="DIR",
        help="folder that holds the study's folder (default: where the study wrote its results)",
    )


def add_study(parser: argparse.ArgumentParser, is_required: bool = True) -> None:
    """Add the flags that say which study, and where it is."""
    whose = "a study of scripts/training/1_optimize_unified.py"
    parser.add_argument(
        "--study-name",
        "--study",
        required=is_required,
        metavar="NAME",
        help=whose if is_required else f"{whose} (default: the newest in the database)",
    )
    add_storage(parser)
    add_results_dir(parser)


def add_trial(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which trial, and the data it was made on."""
    add_study(parser)
    parser.add_argument("--trial", default="best", metavar="N", help="number of the trial, or best (default: best)")
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="the study's data set, checked by its hash (default: where the study read it)",
    )
    parser.add_argument("--gpu", type=int, default=-1, metavar="N", help="number of the GPU; -1 = CPU (default: -1)")


def here(path: Path | None) -> Path | None:
    """A path of the command line, relative to the current folder."""
    return None if path is None else Path.cwd() / path


def storage_of(args: argparse.Namespace) -> URL:
    """The database that --storage names, or the default one."""
    from train.store.address import absolute_url

    return absolute_url(args.storage, Path.cwd()) if args.storage else absolute_url(DEFAULT_STORAGE, home())


def artifacts_of(args: argparse.Namespace) -> str | None:
    """The artifact store that --artifacts names; None without the flag."""
    if args.artifacts is None:
        return None
    from train.store.artifact_store import artifacts_url

    return artifacts_url(args.artifacts, Path.cwd())


def stored_study(args: argparse.Namespace) -> StoredStudy:
    """Open the study that the flags name, to read it."""
    from train.findings.stored_trial import open_stored

    return open_stored(storage_of(args), args.study_name, here(args.results_dir))


def stored_trial(args: argparse.Namespace) -> StoredTrial:
    """Read the trial that the flags name, with its data, and prepare the device."""
    import torch

    from train.device import prepare_device
    from train.findings.stored_trial import own_data_dir, read_trial

    n_gpus = torch.cuda.device_count()
    if args.gpu >= n_gpus:
        raise StudyError(f"--gpu {args.gpu}: torch sees {n_gpus or 'no'} GPUs; pass --gpu -1 for the CPU")
    stored = stored_study(args)
    data_dir = here(args.data_dir) or own_data_dir(stored)
    prepare_device(args.gpu)
    return read_trial(stored, args.trial, data_dir)
