"""What the benchmarks promise beyond their figures."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEP_ON_A_GPU = """
import argparse, sys
from benchmarks import contenders, measuring, step
contenders.batched(True, "standard", 12).rate(0.0)
measuring.section(argparse.Namespace(threads=1), "", {})
heavy = {"elegantrl", "optuna", "gymnasium", "stable_baselines3", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""


def test_stepping_alone_needs_neither_elegantrl_nor_optuna():
    done = subprocess.run(
        [sys.executable, "-c", STEP_ON_A_GPU], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_market_is_as_wide_as_the_pages_say():
    program = (
        "from benchmarks import contenders as who, learners\n"
        "assert who.batched_env(True, 'standard', 2).state_dim == who.STATE_DIM == 393\n"
        "assert who.scalar_env('cappuccino').state_dim == 393\n"
        "assert who.elegantrl_vmap(2).rate(0.0) > 0\n"
        # 2 nets: forward and weight gradients of 3 layers, input gradients of the upper 2
        "assert learners.gemm_flops(8) == sum(2 * (2 * 393 * 8 + 3 * (8 * 8 + 8 * out)) for out in (7, 1))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
