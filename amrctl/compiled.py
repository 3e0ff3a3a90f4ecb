"""Compiling a loop with numba: the one place that says how.

Import this module inside functions, or in modules that are imported so: numba takes half a second to
load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiling(**options: Any) -> Callable[[F], F]:
    """A decorator that makes a function machine code at its first call, kept on disk where possible.

    The code lets go of the interpreter lock and runs on one thread. `options`: further ones of `numba.njit`;
    without any, sums keep their written order.
    """

    def compiled(function: F) -> F:
        try:
            made: Any = numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache can be written
            made = numba.njit(nogil=True, **options)(function)
        return cast(F, made)

    return compiled


def compiled(function: F) -> F:
    """`compiling` without further options."""
    return compiling()(function)
