"""The operators that are measured, a function each that makes the :class:`Work` of a shape."""

from operators import boxes, convolution, norms, pooling, regions  # noqa: F401 - they register theirs
from operators.work import OPERATORS, Operator, Shape, Work

__all__ = ["OPERATORS", "Operator", "Shape", "Work"]
