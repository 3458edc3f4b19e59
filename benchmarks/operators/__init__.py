"""The operators that are measured, a function each that makes the :class:`Work` of a shape."""

# Imported for the operators that they register.
from operators import boxes, classes, convolution, moving, norms, pooling, regions, resampling  # noqa: F401
from operators.work import OPERATORS, Operator, Shape, Work

__all__ = ["OPERATORS", "Operator", "Shape", "Work"]
