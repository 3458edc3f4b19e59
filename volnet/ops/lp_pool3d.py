"""3-D power-average pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from volnet.ops._arguments import check_bool, check_tensor, triple
from volnet.ops.avg_pool3d import avg_pool3d
from volnet.ops.max_pool3d import max_pool3d

__all__ = ["lp_pool3d"]


def lp_pool3d(
    input: Tensor,
    norm_type: float,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The p-norm of each window of a volume, as :func:`torch.nn.functional.lp_pool3d` takes it.

    ``y[n, c, o] = (sum over taps j of input[n, c, o * stride + j] ** p) ** (1 / p)``

    It is composed of the powers, :func:`volnet.ops.avg_pool3d` (or ``max_pool3d``) and the roots: the powers
    are a pass over memory, and a volume, more than those take.

    A negative sum, as an odd ``p`` can make, gives what torch's ``pow`` makes of it. A window that
    ``ceil_mode`` lets reach past the volume counts as if its mean filled it.

    Args:
        input: [N, C, D, H, W] or [C, D, H, W]; float32, bfloat16 (which torch's does not take) or float64.
        norm_type: p; infinity for the largest magnitude, minus infinity for the smallest.
        kernel_size: voxels of the window, one number or one an axis.
        stride: step from one window to the next; ``kernel_size`` if not given.
        ceil_mode: round the size of the output up, so that a last window may reach past the volume.

    Returns:
        [N, C, OD, OH, OW] in the layout of ``input`` (plain or channels_last_3d). bfloat16 is computed in
        float32 and rounded once.

    Raises:
        RuntimeError: the shape or dtype of ``input`` does not fit, the window's numbers are out of range, or
            no output would be left.
        TypeError: an argument is of the wrong type.
        ZeroDivisionError: ``norm_type`` is 0.

    >>> x = torch.full((1, 1, 2, 2, 2), 2.0)
    >>> float(lp_pool3d(x, 3, 2)), float(lp_pool3d(x, float("inf"), 2))
    (4.0, 2.0)
    """
    op = "lp_pool3d"
    check_tensor(op, "input", input)
    check_bool(op, "ceil_mode", ceil_mode)
    if isinstance(norm_type, bool) or not isinstance(norm_type, (int, float)):
        raise TypeError(f"{op}: norm_type must be a number, got {norm_type!r}")
    kernels = triple(op, "kernel_size", kernel_size)
    if math.isinf(norm_type):
        sign = 1 if norm_type > 0 else -1
        y = max_pool3d(sign * input.abs(), kernels, stride, ceil_mode=ceil_mode)
        assert isinstance(y, Tensor)
        return sign * y
    x = input.float() if input.dtype == torch.bfloat16 else input
    mean = avg_pool3d(x.pow(norm_type), kernels, stride, ceil_mode=ceil_mode)
    # The detour, which is torch's own, gives a sum of 0 the gradient 0 instead of NaN.
    norm = (mean.sign() * mean.abs().relu()).mul(math.prod(kernels)).pow(1.0 / norm_type)
    return norm.to(input.dtype)
