"""The operators that are measured, a function each that makes the :class:`Work` of a shape."""

# Imported for the operators that they register.
from operators import (  # noqa: F401
    boxes,
    classes,
    convolution,
    losses,
    moving,
    norms,
    pooling,
    regions,
    resampling,
)
from operators.work import OPERATORS, Operator, Shape, Work

__all__ = ["OPERATORS", "Operator", "Shape", "Work"]
