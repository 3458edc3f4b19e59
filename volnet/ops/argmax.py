"""Labels of voxels from the scores of their classes."""

from __future__ import annotations

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import check_bool, check_tensor
from volnet.ops._axis import checked_axis
from volnet.ops._dense import empty_like

__all__ = ["argmax"]

_LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)


@names_shortage
def argmax(
    input: Tensor, dim: int | None = 1, keepdim: bool = False, *, dtype: torch.dtype = torch.uint8
) -> Tensor:
    """The index of the greatest value along an axis: of the greatest channel, the labels of a segmentation.
    As :func:`torch.argmax`, but along the channels and in bytes if nothing else is said.

    Args:
        input: of any shape, say [N, C, D, H, W]; float32, bfloat16 or float64.
        dim: the axis; ``None`` for the index in the whole of ``input``, flattened.
        keepdim: keep the axis, with size 1.
        dtype: of the labels; ``torch.uint8``, ``torch.int16``, ``torch.int32`` or ``torch.int64``.

    Returns:
        The shape of ``input`` without the axis, in its layout. Of equal values it is the first; NaN is
        greater than any number.

    Raises:
        RuntimeError: the dtype of ``input`` does not fit, or there are more indices than ``dtype`` has.
        IndexError: ``input`` has no axis ``dim``, or nothing along it.
        TypeError: an argument is of the wrong type.

    >>> argmax(torch.tensor([[0.1, 0.7, 0.2]])), argmax(torch.tensor([[1.0, 1.0]]), dtype=torch.int64)
    (tensor([1], dtype=torch.uint8), tensor([0]))
    """
    op = "argmax"
    check_tensor(op, "input", input)
    check_bool(op, "keepdim", keepdim)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{op}: dtype must be a torch.dtype, got {dtype!r}")
    if dtype not in _LABELS:
        raise RuntimeError(f"{op}: dtype must be uint8, int16, int32 or int64, got {dtype}")
    if dim is None or input.dim() == 0:
        if dim is not None:
            checked_axis(op, input, dim)
        index = argmax(input.reshape(-1), 0, dtype=dtype)
        return index.reshape([1] * input.dim() if keepdim else [])
    axis = checked_axis(op, input, dim)
    count = input.shape[axis]
    if count == 0:
        raise IndexError(f"{op}: axis {axis} of input of shape {tuple(input.shape)} is empty")
    if count > torch.iinfo(dtype).max + 1:
        raise RuntimeError(f"{op}: {count} channels do not fit dtype {dtype}; give a larger one")
    labels: Tensor = torch.ops.volnet.argmax(input, axis, keepdim, dtype)
    return labels


@torch.library.register_fake("volnet::argmax")
def _(x: Tensor, dim: int, keepdim: bool, dtype: torch.dtype) -> Tensor:
    dense = empty_like(x)
    count, step = dense.shape[dim], dense.stride(dim)
    kept = [i for i in range(x.dim()) if i != dim or keepdim]
    sizes = [1 if i == dim else dense.shape[i] for i in kept]
    strides = [s // count if (s := dense.stride(i)) > step and i != dim else s for i in kept]
    return torch.empty_strided(sizes, strides, dtype=dtype, device=x.device)
