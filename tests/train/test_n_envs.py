"""The number of environments that `--n-envs auto` takes, and the bytes it counts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized
from train.n_envs import (
    LEAST_HORIZON_CPU,
    LEAST_HORIZON_GPU,
    buffer_bytes,
    choose_n_envs,
    free_bytes,
    rollout_bytes,
)

GIB = 2**30


def choose(**changed):
    usual = {"bytes_per_env": 4_000, "rollout_bytes": 10**7, "free_bytes": 8 * GIB, "least_rollout_samples": 1024,
             "on_gpu": False}  # fmt: skip
    return choose_n_envs(**usual | changed)


@pytest.mark.parametrize(
    ("samples", "on_gpu", "n_envs"),
    [(1024, False, 16), (2048, False, 32), (1024, True, 128), (2048, True, 256), (1500, False, 16), (40, False, 1)],
)
def test_the_smallest_rollout_keeps_a_horizon(samples, on_gpu, n_envs):
    choice = choose(least_rollout_samples=samples, on_gpu=on_gpu)
    assert choice.n_envs == n_envs
    assert f"{samples:,} samples" in choice.reason
    assert ("a GPU" if on_gpu else "a CPU") in choice.reason


def test_memory_bounds_the_number():
    # half of 100 000 bytes, less 10 000 of the rollout, holds 10 environments of 4 000
    choice = choose(free_bytes=100_000, rollout_bytes=10_000)
    assert choice.n_envs == 8
    assert "twice as many would take more than 50% of the free memory; 3.91 KiB each" in choice.reason


def test_too_little_memory_is_an_error_that_names_the_sizes():
    with pytest.raises(
        ValueError,
        match=r"the largest rollout \(9.54 MiB\) together need more than 50% of the free memory \(9.77 KiB\)",
    ):
        choose(free_bytes=10_000)


@given(
    bytes_per_env=st.integers(1, 10**6), free=st.integers(4 * 10**7, 10**12), samples=st.integers(1, 10**5),
    on_gpu=st.booleans(),
)  # fmt: skip
def test_the_number_fits_and_is_the_largest_that_does(bytes_per_env, free, samples, on_gpu):
    def fits(n_envs):
        horizon = LEAST_HORIZON_GPU if on_gpu else LEAST_HORIZON_CPU
        return n_envs * bytes_per_env + 10**7 <= free / 2 and (n_envs == 1 or samples // n_envs >= horizon)

    choice = choose(bytes_per_env=bytes_per_env, free_bytes=free, least_rollout_samples=samples, on_gpu=on_gpu)
    assert fits(choice.n_envs)
    assert not fits(2 * choice.n_envs)
    assert choice == choose(
        bytes_per_env=bytes_per_env, free_bytes=free, least_rollout_samples=samples, on_gpu=on_gpu
    )  # fmt: skip


def environment(env_class, n_envs, n_bars=200, **options):
    rng = np.random.default_rng(0)
    config = {"price_array": rng.random((n_bars, 3)) + 1.0, "tech_array": rng.random((n_bars, 5))}
    return env_class(config, {"rules": "standard", "lookback": 4}, n_envs, gpu_id=-1, **options)


@pytest.mark.parametrize("env_class", [VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized])
def test_counted_bytes_grow_with_environments_and_not_with_bars(env_class):
    few, many = buffer_bytes(environment(env_class, 16)), buffer_bytes(environment(env_class, 64))
    assert many == pytest.approx(4 * few, rel=0.05)
    assert buffer_bytes(environment(env_class, 16, n_bars=2_000)) == few


def test_bytes_are_counted_where_the_plain_step_fills_the_buffers(monkeypatch):
    monkeypatch.setattr(VectorizedCryptoEnvAlpacaOptimized, "_native_kernel", lambda _env: None)
    few, many = (buffer_bytes(environment(VectorizedCryptoEnvAlpacaOptimized, n)) for n in (16, 64))
    assert many == pytest.approx(4 * few, rel=0.05)


def test_counted_bytes_are_at_least_both_observations():
    env = environment(VectorizedCryptoEnvAlpacaOptimized, 64)
    assert 64 * 2 * 4 * env.state_dim < buffer_bytes(env) < 64 * (2 * 4 * env.state_dim + 1000)


def test_a_byte_seen_twice_counts_once():
    tensor, array = torch.zeros(100), np.zeros(50)
    value = {"a": tensor, "b": tensor[10:], "c": (array, array[5:]), "d": torch.from_numpy(array)}
    assert buffer_bytes(value) == 400 + 400


def test_a_rollout_holds_at_least_its_observations():
    assert rollout_bytes(1000, 393, 7) > 2 * 4 * 1000 * 393


def test_the_host_has_free_memory():
    assert free_bytes(torch.device("cpu")) > 0
