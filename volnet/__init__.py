"""volnet: 3-D deep learning on CPUs."""

from importlib.metadata import version

from volnet import isa, losses, memory, nn, ops, plans
from volnet._errors import OutOfMemoryError
from volnet.explain import explain
from volnet.optimize.optimize import optimize
from volnet.optimize.sliding_window import sliding_window
from volnet.optimize.whole.whole_volume import plan_whole_volume, whole_volume
from volnet.precision import get_precision, set_precision

__version__ = version("volnet")
__all__ = [
    "OutOfMemoryError",
    "__version__",
    "explain",
    "get_precision",
    "isa",
    "losses",
    "memory",
    "nn",
    "ops",
    "optimize",
    "plan_whole_volume",
    "plans",
    "set_precision",
    "sliding_window",
    "whole_volume",
]
