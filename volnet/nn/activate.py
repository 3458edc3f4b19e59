"""Activations as modules."""

from __future__ import annotations

import torch
from torch import Tensor

from volnet.ops import activate

__all__ = ["ELU", "GELU", "LeakyReLU", "PReLU", "ReLU", "SiLU", "Sigmoid"]


class ReLU(torch.nn.ReLU):
    """:class:`torch.nn.ReLU` on :func:`volnet.ops.relu`: same constructor.

    >>> ReLU()(torch.tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    def forward(self, input: Tensor) -> Tensor:
        return activate.relu(input, self.inplace)


class LeakyReLU(torch.nn.LeakyReLU):
    """:class:`torch.nn.LeakyReLU` on :func:`volnet.ops.leaky_relu`: same constructor.

    >>> LeakyReLU(0.5)(torch.tensor([-1.0, 2.0])).tolist()
    [-0.5, 2.0]
    """

    def forward(self, input: Tensor) -> Tensor:
        return activate.leaky_relu(input, self.negative_slope, self.inplace)


class PReLU(torch.nn.PReLU):
    """:class:`torch.nn.PReLU` on :func:`volnet.ops.prelu`: same constructor, same ``state_dict``.

    >>> PReLU(2, init=0.5)(torch.tensor([[-1.0, 2.0]])).tolist()
    [[-0.5, 2.0]]
    """

    def forward(self, input: Tensor) -> Tensor:
        return activate.prelu(input, self.weight)


class SiLU(torch.nn.SiLU):
    """:class:`torch.nn.SiLU` on :func:`volnet.ops.silu`: same constructor.

    >>> SiLU()(torch.zeros(2)).tolist()
    [0.0, 0.0]
    """

    def forward(self, input: Tensor) -> Tensor:
        return activate.silu(input, self.inplace)


class GELU(torch.nn.GELU):
    """:class:`torch.nn.GELU` on :func:`volnet.ops.gelu`: same constructor.

    >>> GELU("tanh")(torch.zeros(2)).tolist()
    [0.0, 0.0]
    """

    def forward(self, input: Tensor) -> Tensor:
        return activate.gelu(input, self.approximate)


class ELU(torch.nn.ELU):
    """:class:`torch.nn.ELU` on :func:`volnet.ops.elu`: same constructor.

    >>> ELU()(torch.tensor([0.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    def forward(self, input: Tensor) -> Tensor:
        return activate.elu(input, self.alpha, self.inplace)


class Sigmoid(torch.nn.Sigmoid):
    """:class:`torch.nn.Sigmoid` on :func:`volnet.ops.sigmoid`: same constructor.

    >>> Sigmoid()(torch.zeros(2)).tolist()
    [0.5, 0.5]
    """

    def forward(self, input: Tensor) -> Tensor:
        return activate.sigmoid(input)
