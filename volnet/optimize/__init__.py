"""Existing networks on volnet's operators: :func:`optimize`, and ``torch.compile(backend="volnet")``."""

from volnet.optimize.optimize import optimize

__all__ = ["optimize"]
