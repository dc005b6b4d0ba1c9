"""Compiled functions where nothing can be kept on disk."""

from collections.abc import Callable
from typing import Any

import pytest
from numba import njit

import environment_Alpaca_vectorized as drop_in
from drl_agents.agents import band_gradient, band_gradient_cpu
from drl_agents.numba_cache import cached, sources


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


def test_a_kept_function_is_asked_for_by_every_file_whose_layouts_it_uses(tmp_path):
    """Found on disk after a change of another file, it would read one field of the rules for another."""
    first = tmp_path / "rules.py"
    first.write_text("cash_haircut, reserve")
    before = sources(str(first), __file__)
    first.write_text("reserve, cash_haircut")
    assert sources(str(first), __file__) != before
    captured = [cell.cell_contents for cell in band_gradient_cpu.sweep_block.py_func.__closure__]
    assert sources(band_gradient_cpu.__file__, band_gradient.__file__) in captured
