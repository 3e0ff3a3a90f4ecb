"""Compiling a loop with numba: the one place that says how.

Import this module inside functions only: numba takes half a second to load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """`function` as machine code, made at its first call and kept on disk where a folder allows it.

    It lets go of the interpreter lock and runs on one thread. Sums keep their written order.
    """
    try:
        made: Any = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        made = numba.njit(nogil=True)(function)
    return cast(F, made)
