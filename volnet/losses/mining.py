"""Losses of the hardest: of voxels in a segmentation, of negatives in a classification."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.losses._segmentation import (
    LABELS,
    NO_LABEL,
    ClassWeights,
    Volumes,
    check_range,
    class_weights,
    in_dtype_of,
    ratio,
    sums,
    volumes,
    voxel_losses,
)
from volnet.ops._arguments import check_bool, check_tensor, integer

__all__ = ["hard_negative", "ohem"]


@names_shortage
def ohem(
    input: Tensor,
    target: Tensor,
    weight: ClassWeights = None,
    *,
    fraction: float = 0.1,
    ignore_index: int | None = NO_LABEL,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of the hardest voxels (online hard example mining): nnU-Net's ``TopKLoss``.

    The voxels are chosen exactly, without sorting them: a few passes over one number for each voxel.

    Args:
        input, target, weight, label_smoothing: see :func:`cross_entropy`.
        fraction: above 0 and at most 1; so much of all voxels of the batch counts, at least one.
        ignore_index: a label whose voxels have no loss; they are part of all voxels nonetheless.

    Returns:
        Scalar, the mean over the chosen: float64 for float64 logits, else float32. Differentiable once. Of
        voxels that are equally hard the first ones count.

    Raises:
        ValueError: shapes, or the value of an argument, do not fit.
        RuntimeError: a dtype does not fit; a label is out of range: the message names it and its voxel.

    >>> logits = torch.tensor([[[4.0, 4.0, 0.0, 4.0]], [[0.0] * 4]]).movedim(0, 1)  # of two classes
    >>> labels = torch.zeros(1, 4, dtype=torch.uint8)
    >>> round(ohem(logits, labels, fraction=0.25).item(), 4)  # the third: ln 2
    0.6931
    """
    op = "ohem"
    check_range(op, "label_smoothing", label_smoothing, 0.0, 1.0)
    check_range(op, "fraction", fraction, 0.0, 1.0)
    if fraction == 0:
        raise ValueError(f"{op}: fraction must be above 0, got {fraction}")
    given = volumes(op, input, target, ignore_index, one_channel_is_binary=False)
    classes = input.shape[1]
    weights = class_weights(op, weight, classes)
    losses = voxel_losses(
        given, (1 - label_smoothing) * weights, label_smoothing / classes * weights, sigmoid=False
    )
    count = max(int(losses.numel() * fraction), 1)
    total, _ = torch.ops.volnet.hardest(losses, None, torch.tensor(count))
    return in_dtype_of(total / count, input)


@names_shortage
def hard_negative(
    input: Tensor,
    labels: Tensor,
    *,
    negatives_per_positive: int = 3,
    min_negatives: int = 64,
    balanced: bool = True,
) -> Tensor:
    """Binary cross-entropy over the positives and the negatives that score highest.

    Nearly all anchors of a detector, and nearly all voxels of a rare class, are easy background; a mean over
    them would teach nothing. The choice is that of MONAI's ``HardNegativeSampler`` without its randomness.

    Args:
        input: logits of any shape; float32, bfloat16 or float64.
        labels: of the same shape, uint8, int16, int32 or int64: 1 positive, 0 negative, any other ignored.
        negatives_per_positive: how many negatives are mined for each positive,
        min_negatives: but at least so many (or all there are).
        balanced: positives and mined negatives count half each, so that a patch without positives still
            teaches; else the result is the mean over both.

    Returns:
        Scalar, float64 for float64 logits, else float32; 0 with a gradient of 0 where everything is ignored.
        Differentiable once. Of negatives that score the same the first ones count.

    Raises:
        ValueError: the shapes differ; a number is negative.
        RuntimeError: a dtype does not fit.

    >>> logits, labels = torch.tensor([9.0, -9.0, 0.0]), torch.tensor([1, 0, -1])
    >>> round(hard_negative(logits, labels).item(), 3)
    0.0
    """
    op = "hard_negative"
    check_tensor(op, "input", input)
    check_tensor(op, "labels", labels, LABELS)
    if input.shape != labels.shape:
        shapes = f"{tuple(input.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"{op}: input and labels must have one shape, got {shapes}")
    for name, value in (
        ("negatives_per_positive", negatives_per_positive),
        ("min_negatives", min_negatives),
    ):
        check_range(op, name, integer(op, name, value), 0)
    check_bool(op, "balanced", balanced)
    logits, positive, negative = input.reshape(-1), labels.reshape(-1) == 1, labels.reshape(-1) == 0
    count = (positive.sum() * negatives_per_positive).clamp(min=min_negatives)
    scores = logits.detach()
    _, mined = torch.ops.volnet.hardest(
        scores if scores.dtype == torch.float64 else scores.float(), negative, count
    )
    ignored = 255
    target = torch.where(mined, 0, ignored).to(torch.uint8).masked_fill_(positive, 1)
    volume = Volumes(logits[None, None, :, None, None], target[None, :, None, None], ignored, 1)
    found = sums(volume, sigmoid=True)
    positives, negatives = found.t.sum(), (found.voxels - found.t).sum()
    if balanced:
        loss = 0.5 * ratio(found.hit.sum(), positives) + 0.5 * ratio(found.miss.sum(), negatives)
    else:
        loss = ratio(found.hit.sum() + found.miss.sum(), positives + negatives)
    return in_dtype_of(loss, input)


@torch.library.register_fake("volnet::hardest")
def _(values: Tensor, candidates: Tensor | None, count: Tensor) -> tuple[Tensor, Tensor]:
    return values.new_empty((), dtype=torch.float64), values.new_empty(values.shape, dtype=torch.bool)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_sum: Tensor, grad_chosen: Tensor) -> tuple[Tensor | None, ...]:
    (chosen,) = ctx.saved_tensors
    return chosen * grad_sum.to(ctx.dtype), None, None


torch.library.register_autograd("volnet::hardest", _backward, setup_context=_setup)
