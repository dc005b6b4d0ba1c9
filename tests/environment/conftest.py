"""Which tests of the interpreted GPU kernel are slow: its interpreter needs about 25 ms a step."""

import pytest

from tests.support.markets import InterpretedTriton

MANY_STEPS = ("test_parity", "test_golden_traces")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """tests/environment/test_triton_step.py compares the same with fewer steps."""
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else {}
        if values.get("env_class") is InterpretedTriton and item.path.stem in MANY_STEPS:
            item.add_marker(pytest.mark.slow)
