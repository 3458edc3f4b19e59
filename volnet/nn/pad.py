"""Padding as modules."""

from __future__ import annotations

import torch
from torch import Tensor

from volnet.ops.pad import pad

__all__ = ["CircularPad3d", "ConstantPad3d", "ReflectionPad3d", "ReplicationPad3d"]


class ConstantPad3d(torch.nn.ConstantPad3d):
    """:class:`torch.nn.ConstantPad3d` on :func:`volnet.ops.pad`: same constructor.

    >>> ConstantPad3d(1, 0.5)(torch.zeros(1, 2, 4, 4, 4)).shape
    torch.Size([1, 2, 6, 6, 6])
    """

    def forward(self, input: Tensor) -> Tensor:
        return pad(input, self.padding, "constant", self.value)


class ReflectionPad3d(torch.nn.ReflectionPad3d):
    """:class:`torch.nn.ReflectionPad3d` on :func:`volnet.ops.pad`: same constructor.

    >>> ReflectionPad3d(1)(torch.zeros(1, 2, 4, 4, 4)).shape
    torch.Size([1, 2, 6, 6, 6])
    """

    def forward(self, input: Tensor) -> Tensor:
        return pad(input, self.padding, "reflect")


class ReplicationPad3d(torch.nn.ReplicationPad3d):
    """:class:`torch.nn.ReplicationPad3d` on :func:`volnet.ops.pad`: same constructor.

    >>> ReplicationPad3d(1)(torch.zeros(1, 2, 4, 4, 4)).shape
    torch.Size([1, 2, 6, 6, 6])
    """

    def forward(self, input: Tensor) -> Tensor:
        return pad(input, self.padding, "replicate")


class CircularPad3d(torch.nn.CircularPad3d):
    """:class:`torch.nn.CircularPad3d` on :func:`volnet.ops.pad`: same constructor.

    >>> CircularPad3d(1)(torch.zeros(1, 2, 4, 4, 4)).shape
    torch.Size([1, 2, 6, 6, 6])
    """

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        return pad(input, self.padding, "circular")
