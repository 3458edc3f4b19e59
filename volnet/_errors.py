"""What volnet raises beyond Python's and torch's own exceptions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["OutOfMemoryError", "names_shortage"]

P = ParamSpec("P")
T = TypeVar("T")

_SHORTAGE = "volnet is out of memory"  # as csrc/memory/pool.cpp begins its messages


class OutOfMemoryError(MemoryError, RuntimeError):
    """The pool's limit or the system's memory does not suffice.

    The message names the operator, the shape, the bytes asked for, those in use, the limit, and what would
    help. Nothing is lost, and smaller calls work on.

    It is a ``RuntimeError`` too: that is what torch raises where its own tensors find no memory, and what a
    compiled model raises, with the same message.
    """


def names_shortage(function: Callable[P, T]) -> Callable[P, T]:
    """For functions that call operators: torch passes on any exception of theirs as a ``RuntimeError``."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            text = str(error)
            if _SHORTAGE not in text or isinstance(error, OutOfMemoryError):
                raise
            message = text[text.index(_SHORTAGE) :].splitlines()[0]
        raise OutOfMemoryError(message)

    return call
