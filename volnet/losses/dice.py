"""Losses of overlap: Dice, Dice with cross-entropy, Tversky."""

from __future__ import annotations

from torch import Tensor

from volnet._errors import names_shortage
from volnet.losses._segmentation import (
    ClassWeights,
    Sums,
    check_choice,
    check_range,
    class_weights,
    in_dtype_of,
    is_sigmoid,
    ratio,
    reduced,
    sums,
    volumes,
)

__all__ = ["dice", "dice_ce", "tversky"]


@names_shortage
def dice(
    input: Tensor,
    target: Tensor,
    *,
    activation: str = "softmax",
    include_background: bool = True,
    batch: bool = False,
    weight: ClassWeights = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
) -> Tensor:
    """``1 - (2 sum(p t) + smooth_nr) / (sum(p) + sum(t) + smooth_dr)`` for each image and class.

    MONAI's ``DiceLoss`` in one pass over the logits, and one for their gradient.

    Args:
        input: logits [N, C, ...], of a volume [N, C, D, H, W]; float32, bfloat16 or float64, either layout.
        target: labels [N, ...] or [N, 1, ...] from 0 to C - 1 in uint8, int16, int32 or int64 (for one
            channel 0 and 1, which is the channel's); or t itself [N, C, ...], in those, bool or floats.
        activation: what makes p of the logits, "softmax" over the classes or "sigmoid" of each.
        include_background: whether class 0 counts.
        batch: whether the sums are over all images, not of each.
        weight: of each class that counts; [C], or [C - 1] without the background.
        ignore_index: a label whose voxels do not count.
        reduction: "mean", "sum" or "none" of images and classes.
        smooth_nr, smooth_dr: keep an empty class from 0 / 0.

    Returns:
        Scalar, or for "none" [N, C'] of the C' classes that count, [C'] with ``batch``: float64 for float64
        logits, else float32. Differentiable once.

    Raises:
        ValueError: shapes, or the value of an argument, do not fit.
        RuntimeError: a dtype does not fit; a label is out of range: the message names it and its voxel.

    >>> import torch
    >>> labels = torch.randint(3, (2, 4, 4, 4), dtype=torch.uint8)
    >>> logits = 100.0 * torch.nn.functional.one_hot(labels.long(), 3).movedim(-1, 1)
    >>> round(dice(logits, labels, include_background=False).item(), 4)
    0.0
    """
    op = "dice"
    sigmoid = _checked(op, input, activation, include_background, reduction)
    found = sums(volumes(op, input, target, ignore_index, one_channel_is_binary=sigmoid), sigmoid=sigmoid)
    losses = _dice(op, found, include_background, batch, weight, smooth_nr, smooth_dr)
    return in_dtype_of(reduced(losses, reduction), input)


@names_shortage
def dice_ce(
    input: Tensor,
    target: Tensor,
    *,
    activation: str = "softmax",
    include_background: bool = True,
    batch: bool = False,
    weight: ClassWeights = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
) -> Tensor:
    """``lambda_dice * dice + lambda_ce * cross-entropy``, both means, from one pass over the logits.

    MONAI's ``DiceCELoss``; also nnU-Net's, with ``batch=True, include_background=False``. With "sigmoid" the
    cross-entropy is that of each class against the rest, as MONAI has it for one channel and nnU-Net for
    regions.

    Args:
        input, target, activation, include_background, batch, ignore_index, smooth_nr, smooth_dr: see
            :func:`dice`.
        weight: [C], of each class, for both losses; with "sigmoid" the cross-entropy's positives have it,
            and of one class nothing else.
        label_smoothing: from 0 to 1, of the cross-entropy with "softmax".
        lambda_dice, lambda_ce: what each loss counts.

    Returns:
        Scalar, float64 for float64 logits, else float32. Differentiable once.

    Raises:
        ValueError: shapes, or the value of an argument, do not fit.
        RuntimeError: a dtype does not fit; a label is out of range: the message names it and its voxel.

    >>> import torch
    >>> labels = torch.randint(2, (1, 1, 4, 4, 4), dtype=torch.uint8)
    >>> loss = dice_ce(torch.zeros(1, 1, 4, 4, 4, requires_grad=True), labels, activation="sigmoid")
    >>> loss.backward()
    """
    op = "dice_ce"
    sigmoid = _checked(op, input, activation, include_background, "mean")
    check_range(op, "label_smoothing", label_smoothing, 0.0, 0.0 if sigmoid else 1.0)
    check_range(op, "lambda_dice", lambda_dice, 0.0)
    check_range(op, "lambda_ce", lambda_ce, 0.0)
    given = volumes(op, input, target, ignore_index, one_channel_is_binary=sigmoid)
    found = sums(given, sigmoid=sigmoid)
    classes = input.shape[1]
    weights = class_weights(op, weight, classes)
    of_dice = weights if include_background else weights[1:]
    overlaps = _dice(
        op, found, include_background, batch, None if classes == 1 else of_dice, smooth_nr, smooth_dr
    )
    if sigmoid:
        entropy = ratio((found.hit * weights + found.miss).sum(), found.voxels.sum())
    else:
        total = (1 - label_smoothing) * (found.hit * weights).sum()
        if label_smoothing > 0:
            total = total + label_smoothing / classes * (found.miss * weights).sum()
        by_label = given.target.dim() == 4
        entropy = ratio(total, (found.t * weights).sum() if by_label else found.voxels[:, 0].sum())
    return in_dtype_of(lambda_dice * overlaps.mean() + lambda_ce * entropy, input)


@names_shortage
def tversky(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    activation: str = "softmax",
    include_background: bool = True,
    batch: bool = False,
    ignore_index: int | None = None,
    reduction: str = "mean",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
) -> Tensor:
    """``1 - (TP + smooth_nr) / (TP + alpha FP + beta FN + smooth_dr)`` for each image and class.

    MONAI's ``TverskyLoss`` in one pass over the logits, and one for their gradient. TP is the sum of p t, FP
    of p (1 - t), FN of (1 - p) t.

    Args:
        input, target, activation, include_background, batch, ignore_index, reduction, smooth_nr, smooth_dr:
            see :func:`dice`.
        alpha, beta: what false positives and false negatives count.

    Returns:
        As :func:`dice`.

    Raises:
        ValueError: shapes, or the value of an argument, do not fit.
        RuntimeError: a dtype does not fit; a label is out of range: the message names it and its voxel.

    >>> import torch
    >>> labels = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    >>> tversky(torch.zeros(1, 2, 4, 4, 4), labels, alpha=0.3, beta=0.7, reduction="none").shape
    torch.Size([1, 2])
    """
    op = "tversky"
    sigmoid = _checked(op, input, activation, include_background, reduction)
    found = sums(volumes(op, input, target, ignore_index, one_channel_is_binary=sigmoid), sigmoid=sigmoid)
    p, p_and_t, t = _counting(found, include_background, batch)
    wrong = alpha * (p - p_and_t) + beta * (t - p_and_t)
    losses = 1 - (p_and_t + smooth_nr) / (p_and_t + wrong + smooth_dr)
    return in_dtype_of(reduced(losses, reduction), input)


def _checked(op: str, input: Tensor, activation: str, include_background: bool, reduction: str) -> bool:
    """Whether the activation is the sigmoid."""
    sigmoid = is_sigmoid(op, activation)
    check_choice(op, "reduction", reduction, ("mean", "sum", "none"))
    if isinstance(input, Tensor) and input.dim() > 1 and input.shape[1] == 1:
        if not sigmoid:
            raise ValueError(f"{op}: the softmax of one channel is 1 everywhere; use activation='sigmoid'")
        if not include_background:
            raise ValueError(f"{op}: include_background=False leaves nothing of one channel")
    return sigmoid


def _counting(found: Sums, include_background: bool, batch: bool) -> list[Tensor]:
    """The sums of p, p t and t, [N, C'] or [C'], as the arguments want them."""
    results = []
    for values in (found.p, found.p_and_t, found.t):
        counting = values if include_background else values[:, 1:]
        results.append(counting.sum(0) if batch else counting)
    return results


def _dice(
    op: str,
    found: Sums,
    include_background: bool,
    batch: bool,
    weight: ClassWeights,
    smooth_nr: float,
    smooth_dr: float,
) -> Tensor:
    p, p_and_t, t = _counting(found, include_background, batch)
    losses = 1 - (2 * p_and_t + smooth_nr) / (p + t + smooth_dr)
    return losses * class_weights(op, weight, losses.shape[-1])
