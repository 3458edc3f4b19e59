"""Checks of arguments that operators share: in the caller's terms, with torch's exception classes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16)
# What an operator that only moves voxels takes.
COPYABLE = (*FLOATING, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def integer(op: str, name: str, value: Any) -> int:
    """``value`` as an int; no bool, float or string, as torch has it."""
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return int(value)
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be of ints, got {value!r}") from None


def triple(op: str, name: str, value: int | Sequence[int]) -> list[int]:
    """``value`` as [d, h, w]; one number, or a sequence of one, counts for all three axes."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [integer(op, name, value)] * 3
    result = [integer(op, name, v) for v in value]
    if len(result) == 1:
        return result * 3
    if len(result) != 3:
        raise RuntimeError(f"{op}: {name} must be one int or three, got {tuple(value)}")
    return result


def check_bool(op: str, name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a bool, got {value!r}")


def check_at_least(op: str, name: str, values: Sequence[int], least: int) -> None:
    if any(v < least for v in values):
        raise RuntimeError(f"{op}: {name} must be at least {least} on every axis, got {tuple(values)}")


def check_tensor(op: str, name: str, value: Tensor, dtypes: Sequence[torch.dtype] = FLOATING) -> None:
    """A dense tensor on the CPU with one of ``dtypes``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")
    if value.device.type not in ("cpu", "meta"):
        raise RuntimeError(f"{op}: {name} must be on the CPU, got a tensor on {value.device}")
    if value.layout != torch.strided:
        raise RuntimeError(f"{op}: {name} must be a dense tensor, got layout {value.layout}")
    if value.dtype not in dtypes:
        expected = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise RuntimeError(
            f"{op}: {name} must be one of {expected}, got {str(value.dtype).removeprefix('torch.')}"
        )


def check_boxes(op: str, name: str, value: Tensor) -> None:
    """Boxes [K, 6]; their values are checked where they are read, so that a graph traces without them."""
    check_tensor(op, name, value)
    if value.dim() != 2 or value.shape[1] != 6:
        raise RuntimeError(f"{op}: {name} must be [K, 6], got shape {tuple(value.shape)}")


def batched(op: str, name: str, value: Tensor) -> tuple[Tensor, bool]:
    """A volume as [N, C, D, H, W], and whether a batch axis had to be added to [C, D, H, W]."""
    check_tensor(op, name, value)
    if value.dim() == 5:
        return value, False
    if value.dim() == 4:
        return value.unsqueeze(0), True
    raise RuntimeError(
        f"{op}: {name} must be [N, C, D, H, W] or [C, D, H, W], got shape {tuple(value.shape)}"
    )


def memory_format_of(x: Tensor) -> torch.memory_format:
    """The layout a result of ``x`` gets: channels_last_3d where the strides of ``x`` say so, else plain."""
    one_voxel = x.shape[2:].numel() == 1
    return torch.channels_last_3d if x.stride(1) == 1 and not one_voxel else torch.contiguous_format


def empty_volume(
    like: Tensor, sizes: Sequence[int], memory_format: torch.memory_format, dtype: torch.dtype | None = None
) -> Tensor:
    """Uninitialised, with the strides that the kernels give to a result of this layout."""
    return torch.empty(sizes, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)


def check_pad_value(op: str, value: float, dtype: torch.dtype) -> None:
    """A number that ``dtype`` can hold."""
    name = str(dtype).removeprefix("torch.")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: pad_value must be a number, got {type(value).__name__}")
    if dtype.is_floating_point:
        # Infinity and NaN are values of the dtype; a finite number beyond its range is not.
        largest = torch.finfo(dtype).max
        fits = value in (float("inf"), float("-inf")) or value != value or -largest <= value <= largest
    else:
        # The operator takes pad_value as float64, which holds every integer up to 2**53.
        info = torch.iinfo(dtype)
        least, most = max(info.min, -(2**53)), min(info.max, 2**53)
        fits = least <= value <= most and int(value) == value
    if not fits:
        raise RuntimeError(f"{op}: pad_value {value} is no value of the volume's dtype {name}")
