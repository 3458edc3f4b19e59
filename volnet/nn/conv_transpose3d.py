"""Transposed 3-D convolution as a module."""

from __future__ import annotations

from torch import Tensor, nn

from volnet.ops.conv_transpose3d import conv_transpose3d

__all__ = ["ConvTranspose3d"]


class ConvTranspose3d(nn.ConvTranspose3d):
    """:class:`torch.nn.ConvTranspose3d` on volnet's kernels: same constructor, same ``state_dict``.

    >>> import torch
    >>> ConvTranspose3d(8, 4, kernel_size=2, stride=2)(torch.zeros(1, 8, 4, 5, 6)).shape
    torch.Size([1, 4, 8, 10, 12])
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``output_size`` [d, h, w] chooses among the sizes that the stride leaves open."""
        assert not isinstance(self.padding, str)  # torch's constructor takes none here
        stride, padding, kernel_size, dilation = (
            list(values) for values in (self.stride, self.padding, self.kernel_size, self.dilation)
        )
        output_padding = self._output_padding(
            input, output_size, stride, padding, kernel_size, len(stride), dilation
        )
        return conv_transpose3d(
            input, self.weight, self.bias, stride, padding, output_padding, self.groups, dilation
        )
