"""What every test process starts with."""

import logging
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from hypothesis import settings

import environment_Alpaca_vectorized as drop_in
from tests.support.interpreted_triton import patch_once_a_launch

pytest_plugins = [
    "tests.support.lab",
    "tests.support.moto_server",
    "tests.support.postgres_server",
    "tests.support.sample_bars",
]

# A suite started in the background (nohup, a CI runner) inherits an ignored SIGINT and would hand it on to the trainers
# whose answer to Ctrl-C is tested. A handler of our own is put back to the default in every child.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a GPU the Triton kernel is tested in Triton's interpreter, which is chosen before triton is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if find_spec("triton") is not None:
        patch_once_a_launch()

# How long an example takes is a question for benchmarks: on a machine that is busy every deadline fails some day.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def log_levels_stay() -> Iterator[None]:
    """A program that is run in this process may silence our loggers; the next test may look at what they say."""
    before = {name: logging.getLogger(name).level for name in ("", "train", "train.study", "market")}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(autouse=True)
def every_test_hears_of_the_plain_step() -> None:
    """The drop-in says once a process why the native step is not used; pyproject.toml makes an error of it."""
    drop_in._warn_once.cache_clear()
