"""The operators that are measured, a function each that makes the :class:`Work` of a shape."""

from operators import boxes, convolution, pooling, regions  # noqa: F401 - they register their operators
from operators.work import OPERATORS, Operator, Shape, Work

__all__ = ["OPERATORS", "Operator", "Shape", "Work"]
