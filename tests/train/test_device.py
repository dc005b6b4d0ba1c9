"""Threads of torch follow the setting; a missing GPU is named."""

import pytest
import torch

from train.device import prepare_device


def test_torch_takes_as_many_threads_as_it_is_given():
    before = torch.get_num_threads()
    try:
        for n_threads in (2, 1):
            prepare_device(-1, n_threads)
            assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)


def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="there is no GPU 99"):
        prepare_device(99)
