"""The check of types and shapes that stands at the package's boundaries in tests; it moves no generator."""

import functools
import random
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

# a whole number is a float too, as type checkers have it
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check what a function is given, or gives, by beartype, which looks at one member of a list drawn at random.

    Notes: jaxtyping hands over a function that has the annotations and does nothing else
    """
    check = _check(function)
    if isinstance(function, type):
        return check

    @functools.wraps(check)
    def keep(*args: Any, **kwargs: Any) -> Any:
        before = random.getstate()
        try:
            return check(*args, **kwargs)
        finally:
            random.setstate(before)

    return keep
