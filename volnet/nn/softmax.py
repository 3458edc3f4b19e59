"""Softmax as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from volnet.ops.softmax import softmax

__all__ = ["Softmax"]


class Softmax(torch.nn.Softmax):
    """:class:`torch.nn.Softmax` on :func:`volnet.ops.softmax`: same constructor.

    >>> Softmax(dim=1)(torch.zeros(1, 2, 1, 1, 1)).flatten().tolist()
    [0.5, 0.5]
    """

    def forward(self, input: Tensor) -> Tensor:
        return softmax(input, self.dim, _stacklevel=5)
