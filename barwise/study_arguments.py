"""What the programs that read a study back have in common: their flags, and errors as one line."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from optuna.exceptions import StorageInternalError

from market.errors import DatasetError
from train.device import prepare_device
from train.findings.stored_trial import StoredStudy, StoredTrial, open_stored, own_data_dir, read_trial
from train.records.errors import StudyError
from train.records.keys import DEFAULT_STORAGE
from train.records.provenance import ROOT
from train.store.address import absolute_url
from train.store.retrying import reason_of
from train.validation.splits import SplitError


def add_study(parser: argparse.ArgumentParser) -> None:
    """Which study, and where its results are."""
    parser.add_argument("--study-name", required=True, help="of a study made by scripts/training/1_optimize_unified.py")
    parser.add_argument("--storage", metavar="URL", help=f"its database (default {DEFAULT_STORAGE}, in the repository)")
    parser.add_argument(
        "--results-dir", type=Path, metavar="DIR", help="that holds the study's folder (default: as the study says)"
    )


def add_trial(parser: argparse.ArgumentParser) -> None:
    """Which trial, and the data it stands on."""
    add_study(parser)
    parser.add_argument("--trial", default="best", metavar="N", help="number of the trial, or best (default)")
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="the study's data set, checked by its hash (default: where the study read it)",
    )
    parser.add_argument("--gpu", type=int, default=-1, help="number of the GPU; -1 = CPU (default)")


def stored_study(args: argparse.Namespace) -> StoredStudy:
    """The study that the flags name."""
    here = Path.cwd()
    url = absolute_url(args.storage, here) if args.storage else absolute_url(DEFAULT_STORAGE, ROOT)
    return open_stored(url, args.study_name, here / args.results_dir if args.results_dir else None)


def stored_trial(args: argparse.Namespace) -> StoredTrial:
    """The trial that the flags name, with its data, on a device that is ready."""
    n_gpus = torch.cuda.device_count()
    if args.gpu >= n_gpus:
        raise StudyError(f"--gpu {args.gpu}: torch sees {n_gpus or 'no'} GPUs; pass --gpu -1 for the CPU")
    stored = stored_study(args)
    data_dir = Path.cwd() / args.data_dir if args.data_dir else own_data_dir(stored)
    prepare_device(args.gpu)
    return read_trial(stored, args.trial, data_dir)


def factor(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number of at least 0")
    return value


def file_to_write(text: str) -> Path:
    """A path, from the current directory, that is no folder."""
    path = Path.cwd() / text
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def exit_code(program: str, work: Callable[[], None]) -> int:
    """Run a program's work; what its user can mend is one line on standard error and exit code 2, a fault 1."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("train.study").setLevel(logging.INFO)
    try:
        work()
    except (StudyError, DatasetError, SplitError) as error:
        sys.stderr.write(f"{program}: {error}\n")
        return 2
    except StorageInternalError as error:
        sys.stderr.write(f"{program}: the database failed: {reason_of(error)}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{program}: {error.filename or 'file'}: {error.strerror or error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: interrupted\n")
        return 130
    return 0
