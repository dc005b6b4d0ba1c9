"""Triton's interpreter without its repeated work.

It swaps the functions of `triton.language` for numpy ones when a kernel starts, and again for every device function
that the kernel calls: half of a launch. Once a launch gives the same results.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any


def patch_once_a_launch() -> None:
    """Swap the language once for a launch; a Triton without these names is left as it is."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch = getattr(interpreter, "_patch_lang", None)
    executor = getattr(interpreter, "GridExecutor", None)
    if patch is None or executor is None:
        return
    launch = executor.__call__
    patched: set[int] = set()

    @cache
    def languages_of(function: Any) -> frozenset[int]:
        modules = (value for value in function.__globals__.values() if inspect.ismodule(value))
        return frozenset(id(module) for module in modules if module in (tl, tl.core))

    def patch_new(function: Any) -> Any:
        if languages_of(function) <= patched:
            return None
        patched.update(languages_of(function))
        return patch(function)

    def launch_and_forget(self: Any, *args: Any, **kwargs: Any) -> None:
        patched.clear()
        try:
            launch(self, *args, **kwargs)
        finally:
            patched.clear()

    interpreter._patch_lang = patch_new
    executor.__call__ = launch_and_forget
