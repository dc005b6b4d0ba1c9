"""Generated markets and the environments under test."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized, kernels

HOST_NORMS = {
    "norm_cash": 2.0**-12, "norm_stocks": 2.0**-8, "norm_tech": 2.0**-6, "norm_reward": 2.0**-10, "norm_action": 4.0,
}  # fmt: skip
REPO = Path(__file__).resolve().parents[2]


class WithoutKernel(VectorizedCryptoEnvAlpacaOptimized):
    """The fast class where numba or triton is missing: the plain step, behind the same interface."""

    def _native_kernel(self) -> None:
        return None


class InterpretedTriton(VectorizedCryptoEnvAlpacaOptimized):
    """The fast class with its GPU kernel run by Triton's interpreter, on tensors of the CPU."""

    def _native_kernel(self) -> Any:
        return kernels("gpu").NativeStep(self)


# tests/conftest.py chooses the interpreter where there is no GPU.
INTERPRETS_TRITON = importlib.util.find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"
ENV_CLASSES = (
    VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized, WithoutKernel,
    *((InterpretedTriton,) if INTERPRETS_TRITON else ()),
)  # fmt: skip


def random_config(
    n_bars: int = 200, n_assets: int = 3, n_features: int = 4, seed: int = 0, volatility: float = 0.01, **more: Any
) -> dict[str, Any]:
    """Log-normal prices from a cent to ten thousand, features of unit size."""
    rng = np.random.default_rng(seed)
    first_price = 10.0 ** rng.uniform(-2.0, 4.0, n_assets)
    price = first_price * np.exp(np.cumsum(rng.normal(0.0, volatility, (n_bars, n_assets)), axis=0))
    tech = rng.normal(size=(n_bars, n_features)).astype(np.float32)
    min_qty = np.full(n_assets, 1e-3) / first_price
    return {"price_array": price, "tech_array": tech, "min_order_qty": min_qty, **more}


def params_of(rules: str, **overrides: Any) -> dict[str, Any]:
    """env_params of a rule set whose orders fill on `random_config` markets."""
    norms = {} if rules == "standard" else dict(HOST_NORMS)
    if rules in ("finrl_crypto", "ccxt", "finrl_meta"):
        norms["norm_action"] = 20_000.0
    if rules == "finrl":  # its scale depends on how many digits a price prints with: huge ones for short prices
        norms["norm_action"] = 1e14
    return {"rules": rules, "lookback": 3, **norms, **overrides}


def real_bars_folder() -> Path | None:
    """Where real bars are, or None: $CRYPTO_BARS_DIR, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("CRYPTO_BARS_DIR", REPO.parent / "shared" / "data"))
    return folder if folder.is_dir() else None
