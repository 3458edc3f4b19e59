"""Existing networks on volnet's operators: :func:`optimize`, and ``torch.compile(backend="volnet")``; and
:func:`sliding_window`, which takes them over large volumes."""

from volnet.optimize.optimize import optimize
from volnet.optimize.sliding_window import sliding_window

__all__ = ["optimize", "sliding_window"]
