"""The band's gradient as a Triton kernel: run by Triton's interpreter, compiled for cards that are not there."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from drl_agents.agents.band_gradient import band_gradient
from tests.support.band_reference import EVERYTHING, band_params, made_market, random_band, roll_out
from tests.support.markets import INTERPRETS_TRITON, REPO

pytestmark = pytest.mark.skipif(not INTERPRETS_TRITON, reason="no triton here, or a GPU: these records are on the CPU")
COMPILE = """
import json, sys, torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from drl_agents.agents import band_gradient_gpu as gpu
from drl_agents.agents.band_gradient import band_gradient
from tests.support.band_reference import EVERYTHING, band_params, made_market, random_band, roll_out

class Device:
    def __init__(self, target): self.target = target
    def get_current_target(self): return self.target
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

class CompileOnly:
    def __init__(self, kernel): self.kernel = kernel
    def __getitem__(self, grid):
        def launch(*arguments, **options):
            made = self.kernel.warmup(*arguments, grid=grid, **options)
            print(json.dumps([arch, self.kernel.__name__, len(made.asm.get("ptx") or made.asm["amdgcn"])]))
        return launch

kernels = gpu.follow, gpu.sweep_back
gpu.follow, gpu.sweep_back = map(CompileOnly, kernels)
for arch, n_assets, as_if_filled in json.loads(sys.argv[1]):
    backend, warp_size = ("cuda", 32) if arch.startswith("sm_") else ("hip", 64 if arch.startswith("gfx9") else 32)
    driver.set_active(Device(GPUTarget(backend, int(arch[3:]) if backend == "cuda" else arch, warp_size)))
    for kernel in kernels:
        kernel.device_caches.clear()
    made = roll_out(made_market(40, n_assets, 1, gaps=True), band_params(max_position_weight=0.3),
                    *random_band(10, 5, n_assets, 1))
    band_gradient(made.record, made.params, backend="triton", as_if_filled=as_if_filled,
                  mean_return=torch.zeros(n_assets).double())
"""
TARGETS = [("sm_80", 1, False), ("sm_90", 7, True), ("gfx942", 7, True), ("gfx1100", 3, False)]


def assert_agrees(record, params, **options):
    """With the loop in torch, whose gradient is compared with autograd's in test_band_gradient.py."""
    found, expected = (band_gradient(record, params, backend=name, **options) for name in ("triton", "torch"))
    for name in ("lo", "hi", "touched", "dropped"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9 * max(float(theirs.abs().max()), 1e-12))


@pytest.mark.parametrize("as_if_filled", [False, True], ids=["as dropped", "as if filled"])
@pytest.mark.parametrize(("n_assets", "kind"), [(1, "noise"), (2, "greedy"), (7, "empty")])
def test_the_kernel_has_the_gradient_of_the_loop(as_if_filled, n_assets, kind):
    config = made_market(60, n_assets, 3, gaps=True, worthless=True)
    made = roll_out(config, band_params(**EVERYTHING), *random_band(14, 5, n_assets, 3, kind), episode_bars=6,
                    invested=True, cost_factor=0.7)  # fmt: skip
    assert made.record.done.any()
    assert_agrees(made.record, made.params, as_if_filled=as_if_filled, cost_factor=0.7)


def test_the_kernel_follows_autograd_with_a_drift_and_a_value_of_what_comes_after():
    mean, final = torch.tensor([2e-3, -1e-3]).double(), torch.tensor([1e-4, 0.0, 3e-4]).double()
    made = roll_out(made_market(40, 2, 4), band_params(**EVERYTHING), *random_band(12, 3, 2, 4), mean_return=mean,
                    final_equity=final)  # fmt: skip
    found = band_gradient(made.record, made.params, backend="triton", as_if_filled=False, mean_return=mean,
                          final_equity=final)  # fmt: skip
    for mine, theirs in zip((found.lo, found.hi), made.gradient, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))


def test_the_kernel_takes_a_band_by_bar_in_float32_and_increments():
    config = made_market(40, 2, 6, qty_increment=0.01)
    made = roll_out(config, band_params(), *random_band(12, 3, 2, 6), episode_bars=5)
    lo, hi = (edge[:, 0].float() for edge in random_band(40, 1, 2, 6))
    record = replace(made.record, lo=lo, hi=hi, action=made.record.action.float())
    for as_if_filled in (False, True):
        found, expected = (band_gradient(record, made.params, backend=name, as_if_filled=as_if_filled)
                           for name in ("triton", "torch"))  # fmt: skip
        assert found.lo.dtype == torch.float32
        torch.testing.assert_close(found.lo, expected.lo, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.hi, expected.hi, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_kernels_compile_for_cards_of_both_makers_without_one(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", COMPILE, json.dumps(TARGETS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows] == [[arch, name] for arch, *_ in TARGETS for name in ("follow", "sweep_back")]
    assert min(length for *_, length in rows) > 10_000
