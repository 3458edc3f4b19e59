"""The sums over a volume that the losses of a segmentation are made of.

Every loss here is a short formula of a few sums for each image and class. The sums are one pass over the
logits (csrc/kernels/segmentation_loss), the formula is torch on tensors of a few numbers in float64, and its
gradient goes back into one more pass. No probabilities and no one-hot target are ever written to memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import check_tensor, memory_format_of

LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)
TARGETS = (*LABELS, torch.bool, torch.float32, torch.float64, torch.bfloat16)

NO_LABEL = -100  # what torch ignores unless told otherwise

ClassWeights = Tensor | Sequence[float] | None


class Sums(NamedTuple):
    """Sums over the voxels of each image and class that are not ignored, [N, C] float64 each.

    ``p`` is the probability of the class, ``t`` its target, 0 or 1 for labels.
    """

    p: Tensor
    p_and_t: Tensor  # p * t
    t: Tensor
    hit: Tensor  # t * -ln p; focal: t * (1 - p)^gamma * -ln p
    miss: Tensor  # softmax: -ln p; sigmoid: (1 - t) * -ln(1 - p); focal: times p^gamma
    voxels: Tensor


class Volumes(NamedTuple):
    """Arguments in the shapes that the operators take."""

    logits: Tensor  # [N, C, D, H, W]
    target: Tensor  # labels [N, D, H, W], or a number for each logit, [N, C, D, H, W]
    ignore_index: int | None
    first: int  # the label of channel 0


def volumes(
    op: str, input: Tensor, target: Tensor, ignore_index: int | None, *, one_channel_is_binary: bool
) -> Volumes:
    """Checks what all losses take: ``input`` [N, C, ...], ``target`` [N, ...], [N, 1, ...] or [N, C, ...].

    With ``one_channel_is_binary``, labels of a single channel are 0 and 1, and the channel is that of 1.
    """
    check_tensor(op, "input", input)
    check_tensor(op, "target", target, TARGETS)
    if input.dim() < 2:
        raise ValueError(f"{op}: input must be [N, C, ...], got shape {tuple(input.shape)}")
    if input.shape[1] == 0:
        raise ValueError(f"{op}: input has no classes, got shape {tuple(input.shape)}")
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
        raise TypeError(f"{op}: ignore_index must be an int or None, got {ignore_index!r}")
    per_voxel = (input.shape[0], *input.shape[2:])
    is_labels = target.dtype in LABELS and (
        target.shape == per_voxel or target.shape == (input.shape[0], 1, *input.shape[2:])
    )
    if is_labels:
        labels = target.reshape(per_voxel)
        first = int(one_channel_is_binary and input.shape[1] == 1)
    elif target.shape != input.shape:
        expected = f"{per_voxel} or {(per_voxel[0], 1, *per_voxel[1:])}"
        what = f"labels of shape {expected}, or one number for each of input {tuple(input.shape)}"
        kind = str(target.dtype).removeprefix("torch.")
        raise ValueError(f"{op}: target must be {what}, got {kind} of shape {tuple(target.shape)}")
    elif ignore_index not in (None, NO_LABEL):
        raise ValueError(
            f"{op}: ignore_index={ignore_index} is for labels, got a target with one number for each logit"
        )
    else:
        ignore_index, first = None, 0
    if input.dim() == 2:  # [N, C] is one image of N voxels, whose channels lie side by side
        input = input.t()[None, :, :, None, None]
        target = labels[None, :, None, None] if is_labels else target.t()[None, :, :, None, None]
    else:
        input = _three_axes(input, 2)
        target = _three_axes(labels, 1) if is_labels else _three_axes(target, 2)
    return Volumes(input, target, ignore_index, first)


def _three_axes(x: Tensor, start: int) -> Tensor:
    """With three spatial axes, whatever their number is from axis ``start`` on; in the same layout."""
    while x.dim() < start + 3:
        x = x.unsqueeze(start)
    return x.flatten(start + 2) if x.dim() > start + 3 else x


def sums(given: Volumes, *, sigmoid: bool, gamma: float = 0.0) -> Sums:
    found: Tensor = torch.ops.volnet.segmentation_sums(
        given.logits, given.target, given.ignore_index, sigmoid, gamma, given.first
    )
    return Sums(*found.unbind(1))


def voxel_losses(given: Volumes, hit: Tensor, miss: Tensor, *, sigmoid: bool) -> Tensor:
    """[N, D, H, W]: for each voxel the sum over classes of ``hit`` and ``miss``, weighted by these [C]."""
    weights = torch.stack([hit, miss]).double()
    losses: Tensor = torch.ops.volnet.voxel_losses(
        given.logits, given.target, weights, given.ignore_index, sigmoid, 0.0, given.first
    )
    return losses


def class_weights(op: str, weight: ClassWeights, classes: int) -> Tensor:
    """[C] float64, ones where none are given."""
    if weight is None:
        return torch.ones(classes, dtype=torch.float64)
    values = torch.as_tensor(weight, dtype=torch.float64)
    if values.shape != (classes,):
        raise ValueError(f"{op}: weight must be [{classes}], one for each class, got {tuple(values.shape)}")
    return values.detach()


def is_sigmoid(op: str, activation: str) -> bool:
    if activation not in ("softmax", "sigmoid"):
        raise ValueError(f"{op}: activation must be 'softmax' or 'sigmoid', got {activation!r}")
    return activation == "sigmoid"


def check_choice(op: str, name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_range(op: str, name: str, value: float, low: float, high: float = float("inf")) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    if not low <= value <= high:
        span = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
        raise ValueError(f"{op}: {name} must be {span}, got {value}")


def ratio(total: Tensor, count: Tensor) -> Tensor:
    """total / count, 0 with a gradient of 0 where there is nothing to count."""
    return total / torch.where(count == 0, 1.0, count) * (count != 0)


def in_dtype_of(loss: Tensor, input: Tensor) -> Tensor:
    """float64 for float64 logits, else float32."""
    return loss if input.dtype == torch.float64 else loss.float()


def reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


ONCE = "trying to differentiate twice a function that was marked with @once_differentiable"


def refuse_second_derivatives(ctx: Any, *grads: Tensor) -> Any:
    raise RuntimeError(ONCE)


def _empty_gradient(logits: Tensor) -> Tensor:
    return torch.empty(
        logits.shape, dtype=logits.dtype, device=logits.device, memory_format=memory_format_of(logits)
    )


@torch.library.register_fake("volnet::segmentation_sums")
def _(
    logits: Tensor, target: Tensor, ignore_index: int | None, sigmoid: bool, gamma: float, first: int
) -> Tensor:
    return logits.new_empty((logits.shape[0], len(Sums._fields), logits.shape[1]), dtype=torch.float64)


@torch.library.register_fake("volnet::_segmentation_sums_backward")
def _(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    ignore_index: int | None,
    sigmoid: bool,
    gamma: float,
    first: int,
) -> Tensor:
    return _empty_gradient(logits)


@torch.library.register_fake("volnet::voxel_losses")
def _(
    logits: Tensor,
    target: Tensor,
    weights: Tensor,
    ignore_index: int | None,
    sigmoid: bool,
    gamma: float,
    first: int,
) -> Tensor:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty((logits.shape[0], *logits.shape[2:]), dtype=dtype)


@torch.library.register_fake("volnet::_voxel_losses_backward")
def _(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weights: Tensor,
    ignore_index: int | None,
    sigmoid: bool,
    gamma: float,
    first: int,
) -> Tensor:
    return _empty_gradient(logits)


def _setup_sums(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, target, *ctx.arguments = inputs
    ctx.save_for_backward(logits, target)


@names_shortage
def _sums_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_logits = torch.ops.volnet._segmentation_sums_backward(grad, *ctx.saved_tensors, *ctx.arguments)
    return grad_logits, None, None, None, None, None


def _setup_voxels(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, target, weights, *ctx.arguments = inputs
    ctx.save_for_backward(logits, target, weights)


@names_shortage
def _voxels_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_logits = torch.ops.volnet._voxel_losses_backward(grad, *ctx.saved_tensors, *ctx.arguments)
    return grad_logits, None, None, None, None, None, None


torch.library.register_autograd("volnet::segmentation_sums", _sums_backward, setup_context=_setup_sums)
torch.library.register_autograd("volnet::voxel_losses", _voxels_backward, setup_context=_setup_voxels)
torch.library.register_autograd("volnet::_segmentation_sums_backward", refuse_second_derivatives)
torch.library.register_autograd("volnet::_voxel_losses_backward", refuse_second_derivatives)
