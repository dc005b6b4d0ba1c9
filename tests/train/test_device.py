"""Threads of torch and of numba follow one setting."""

import sys

import pytest
import torch

from train.device import prepare_device


def test_torch_and_numba_take_as_many_threads_as_they_are_given():
    numba = pytest.importorskip("numba")
    before = torch.get_num_threads(), numba.get_num_threads()
    try:
        for n_threads in (2, 1):
            prepare_device(-1, n_threads)
            assert torch.get_num_threads() == n_threads
            assert numba.get_num_threads() == min(n_threads, numba.config.NUMBA_NUM_THREADS)
        prepare_device(-1, numba.config.NUMBA_NUM_THREADS + 1)      # more than numba has is not an error
        assert numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


def test_without_numba_only_torch_is_set(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    before = torch.get_num_threads()
    try:
        prepare_device(-1, 1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="there is no GPU 99"):
        prepare_device(99)
