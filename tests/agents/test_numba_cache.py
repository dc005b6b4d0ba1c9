"""Compiled functions where nothing can be kept on disk."""

from collections.abc import Callable
from typing import Any

import pytest
from numba import njit

import environment_Alpaca_vectorized as drop_in
from drl_agents.numba_cache import cached


def without_a_file() -> Callable[[int], int]:
    """A function whose code is in no file, so that numba finds no place for its cache."""
    scope: dict[str, Any] = {}
    exec(compile("def doubled(x):\n    return 2 * x\n", "<nowhere>", "exec"), scope)
    return scope["doubled"]


@pytest.mark.parametrize("kept", [cached, drop_in.kernels("memory").cached])
def test_a_function_is_compiled_where_numba_can_keep_nothing(kept):
    with pytest.raises(RuntimeError, match="no locator"):
        njit(cache=True)(without_a_file())
    assert kept(without_a_file(), error_model="numpy")(21) == 42
