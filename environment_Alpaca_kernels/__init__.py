# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Native steps of `environment_Alpaca_vectorized.py`: `cpu` (numba) and `gpu` (Triton), imported on demand.

The drop-in file loads the adjacent folder and passes its own module as `drop_in`, so both work at the top level and
inside a package. If this folder is imported directly, it finds the drop-in file next to it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import environment_Alpaca_vectorized as drop_in
elif "drop_in" not in globals():
    _outer = __name__.rpartition(".")[0]
    drop_in = importlib.import_module(f"{_outer}." * bool(_outer) + "environment_Alpaca_vectorized")

VERSION = "2026.12"  # must equal the drop-in file's version, otherwise the plain step runs

__all__ = ["VERSION", "drop_in"]
