"""The Triton kernel compiles for cards of both makers without one at hand, and says so where it does not."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.markets import INTERPRETS_TRITON, REPO

pytestmark = pytest.mark.skipif(not INTERPRETS_TRITON, reason="no triton here, or a GPU, where the kernel itself runs")

# A driver that names a card which is not there: enough to compile, and nothing can be launched.
STAND_IN = """
import json, sys, warnings, torch
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpacaOptimized, kernels
from tests.environment.test_parity import VARIANTS
from tests.support.markets import params_of, random_config
triton_step, step = kernels("gpu"), kernels("gpu_step").step

class Device:
    def __init__(self, target): self.target = target
    def get_current_target(self): return self.target
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

class OnACard(VectorizedCryptoEnvAlpacaOptimized):
    is_checked = False
    def _native_kernel(self):
        try:
            return triton_step.NativeStep(self, checked=self.is_checked)
        except triton_step.drop_in.NoNativeStep as reason:
            self.why_not_native = str(reason)

def take(arch):
    backend, warp_size = ("cuda", 32) if arch.startswith("sm_") else ("hip", 64 if arch.startswith("gfx9") else 32)
    driver.set_active(Device(GPUTarget(backend, int(arch[3:]) if backend == "cuda" else arch, warp_size)))
    step.device_caches.clear()
    triton_step.device_name = lambda device: arch
    return backend in ("cuda" if name == "nvidia" else "hip" for name in backends)

def environment(rules, variant, n_assets):
    config = random_config(60, n_assets=n_assets, n_features=20, segments=[(0, 30), (30, 60)])
    return OnACard(config, params_of(rules, **VARIANTS[variant]), 48, gpu_id=-1)
"""
COMPILE = (
    STAND_IN
    + """
warmup, compiled = step.warmup, []
step.warmup = lambda *arguments, **options: compiled.append(warmup(*arguments, **options))
for arch, rules, variant, n_assets in json.loads(sys.argv[1]):
    if take(arch):
        environment(rules, variant, n_assets)._fast.kernel.compile()
        text = compiled[-1].asm.get("ptx") or compiled[-1].asm["amdgcn"]
        print(json.dumps([arch, rules, sum("fma." in line for line in text.splitlines()), len(text)]))
"""
)
REFUSE = (
    STAND_IN
    + """
OnACard.is_checked = True
for arch in json.loads(sys.argv[1]):
    if take(arch):
        env = environment("standard", "plain", 4)
        env.reset()
        env.step(torch.ones(48, 4))
        print(json.dumps([arch, env.stepped_by, env.why_not_native]))
"""
)
# A rule set, a variant and a number of coins each, so that together they cover what is compiled in.
TARGETS = [
    ("gfx1100", "cappuccino", "stop and penalties", 7), ("gfx1201", "standard", "all terms", 3),
    ("gfx942", "finrl_crypto", "capped and stale", 4), ("sm_75", "finrl", "plain", 1),
    ("sm_80", "standard", "all terms", 1), ("sm_86", "ccxt", "plain", 4),
    ("sm_89", "standard", "small reserve, increments", 8), ("sm_90", "cappuccino", "stop and penalties", 7),
    ("sm_100", "finrl_meta", "capped and stale", 5), ("sm_120", "standard", "plain", 4),
]  # fmt: skip


def run(code, argument, tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "triton"),
                   "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(REPO)}  # fmt: skip
    command = [sys.executable, "-c", code, json.dumps(argument)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def rows(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_kernel_compiles_for_every_supported_card_without_one(tmp_path):
    found = rows(run(COMPILE, TARGETS, tmp_path))
    assert [row[0] for row in found] == [target[0] for target in TARGETS], "this triton has both makers' compilers"
    for arch, rules, n_fused, length in found:
        # Only the logarithm of the standard rules is made of fused multiply-adds: the plain step has none.
        assert n_fused == 0 or rules == "standard" or arch.startswith("gfx")
        assert length > 10_000


def test_a_card_that_triton_does_not_compile_for_gets_the_plain_step_and_the_reason(tmp_path):
    done = run(REFUSE, ["gfx1030", "gfx900"], tmp_path)
    for arch, stepped_by, reason in rows(done):
        assert stepped_by == "torch"
        assert f"the triton step cannot run on {arch}" in reason
        assert f"unsupported target: '{arch}'" in reason
    assert len(done.stderr.splitlines()) < 20, "the compiler's thousand lines of intermediate code are not shown"
    kept = [json.loads(path.read_text()) for path in (tmp_path / "cache").rglob("*.json")]
    assert {outcome["verdict"] for outcome in kept} == {"failed"}
