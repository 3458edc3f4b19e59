"""Cross-entropy of a segmentation, and of its hardest voxels."""

from __future__ import annotations

from torch import Tensor

from volnet._errors import names_shortage
from volnet.losses._segmentation import (
    NO_LABEL,
    ClassWeights,
    check_choice,
    check_range,
    class_weights,
    in_dtype_of,
    ratio,
    sums,
    volumes,
    voxel_losses,
)

__all__ = ["cross_entropy"]


@names_shortage
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: ClassWeights = None,
    *,
    ignore_index: int | None = NO_LABEL,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """:func:`torch.nn.functional.cross_entropy` in one pass over the logits, and one for their gradient.

    Args:
        input: logits [N, C, ...], of a volume [N, C, D, H, W]; float32, bfloat16 or float64, either layout.
        target: labels [N, ...] or [N, 1, ...] from 0 to C - 1 in uint8, int16, int32 or int64; or shares of
            the classes [N, C, ...].
        weight: [C], of each class.
        ignore_index: a label whose voxels do not count; shares have none.
        reduction: "mean" over the weights of the voxels (over voxels for shares), "sum" or "none".
        label_smoothing: from 0 to 1, so much of each label is spread over all classes.

    Returns:
        Scalar, or [N, ...] for "none": float64 for float64 logits, else float32. A mean over nothing (all
        voxels ignored) is 0 with a gradient of 0, where torch has NaN. Differentiable once.

    Raises:
        ValueError: shapes, ``weight``, ``reduction`` or ``label_smoothing`` do not fit.
        RuntimeError: a dtype does not fit; a label is out of range: the message names it and its voxel.

    >>> import torch
    >>> logits = torch.zeros(1, 4, 2, 2, 2)
    >>> labels = torch.randint(4, (1, 2, 2, 2), dtype=torch.uint8)
    >>> round(cross_entropy(logits, labels).item(), 4)  # ln 4
    1.3863
    """
    op = "cross_entropy"
    check_choice(op, "reduction", reduction, ("mean", "sum", "none"))
    check_range(op, "label_smoothing", label_smoothing, 0.0, 1.0)
    given = volumes(op, input, target, ignore_index, one_channel_is_binary=False)
    classes = input.shape[1]
    weights = class_weights(op, weight, classes)
    hit, miss = (1 - label_smoothing) * weights, label_smoothing / classes * weights
    if reduction == "none":
        losses = voxel_losses(given, hit, miss, sigmoid=False)
        return losses.reshape(input.shape[0], *input.shape[2:])
    found = sums(given, sigmoid=False)
    total = (found.hit * hit).sum()
    if label_smoothing > 0:
        total = total + (found.miss * miss).sum()
    if reduction == "mean":
        by_label = given.target.dim() == 4
        total = ratio(total, (found.t * weights).sum() if by_label else found.voxels[:, 0].sum())
    return in_dtype_of(total, input)
