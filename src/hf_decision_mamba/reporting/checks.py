"""What is said to those who pass something else than a function takes."""

import reprlib
from typing import Any


def wrong_type(name: str, value: Any, expected: str) -> TypeError:
    """Return the error that says what an argument is, and what to pass instead.

    Args:
        name: of the argument.
        value: what was passed.
        expected: what to pass.
    """
    shown = f"={reprlib.repr(value)}" if isinstance(value, (str, bool, int, float)) else ""
    kind = type(value).__name__
    return TypeError(f"{name}{shown} is {'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}; pass {expected}.")
