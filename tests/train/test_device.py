"""Threads of torch follow the setting; a missing GPU is named."""

import platform
import resource

import pytest
import torch

from train.device import keep_freed_memory, prepare_device


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


@pytest.mark.parametrize(("asked", "set_to"), [(None, "high"), ("highest", "highest"), ("high", "high")])
def test_a_gpu_takes_the_precision_it_is_given(asked, set_to, monkeypatch):
    taken = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", taken.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a stand-in")
    prepare_device(-1, torch.get_num_threads(), asked)
    assert taken == []
    prepare_device(0, torch.get_num_threads(), asked)
    assert taken == [set_to]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an allocator of another kind")
def test_freed_memory_is_kept():
    assert keep_freed_memory()

    def faults(n_bytes):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.zeros(n_bytes, dtype=torch.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults(4 << 20)
    assert faults(4 << 20) < 1024  # one block has as many pages
