"""The focal loss of detectors and of rare classes."""

from __future__ import annotations

from torch import Tensor

from volnet._errors import names_shortage
from volnet.losses._segmentation import (
    ClassWeights,
    check_choice,
    check_range,
    class_weights,
    in_dtype_of,
    ratio,
    sums,
    volumes,
)

__all__ = ["focal"]


@names_shortage
def focal(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float | None = None,
    gamma: float = 2.0,
    weight: ClassWeights = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Sigmoid focal loss: cross-entropy of each class against the rest, where what is easy hardly counts.

    ``-t (1 - p)^gamma ln p - (1 - t) p^gamma ln(1 - p)`` in one pass over the logits, and one for their
    gradient; as torchvision's ``sigmoid_focal_loss`` and MONAI's ``FocalLoss`` ("sum" as torchvision).

    Args:
        input: logits [N, C, ...]; float32, bfloat16 or float64, either layout.
        target: labels [N, ...] or [N, 1, ...] from 0 to C - 1 in uint8, int16, int32 or int64 (for one
            channel 0 and 1, which is the channel's); or t itself [N, C, ...], in those, bool or floats.
        alpha: from 0 to 1, weighs the first term with alpha and the second with 1 - alpha.
        gamma: at least 0, which is plain cross-entropy.
        weight: [C], of each class.
        ignore_index: a label whose voxels do not count.
        reduction: "mean" over logits that count, or "sum".

    Returns:
        Scalar, float64 for float64 logits, else float32; 0 with a gradient of 0 where everything is ignored.
        Differentiable once.

    Raises:
        ValueError: shapes, or the value of an argument, do not fit.
        RuntimeError: a dtype does not fit; a label is out of range: the message names it and its voxel.

    >>> import torch
    >>> logits, anchors = torch.zeros(100, 1), torch.zeros(100, dtype=torch.int64)
    >>> round(focal(logits, anchors, alpha=0.25, reduction="sum").item(), 3)  # 100 * 0.75 * 0.5^2 * ln 2
    12.997
    """
    op = "focal"
    check_choice(op, "reduction", reduction, ("mean", "sum"))
    check_range(op, "gamma", gamma, 0.0)
    if alpha is not None:
        check_range(op, "alpha", alpha, 0.0, 1.0)
    given = volumes(op, input, target, ignore_index, one_channel_is_binary=True)
    found = sums(given, sigmoid=True, gamma=float(gamma))
    positive, negative = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    weights = class_weights(op, weight, input.shape[1])
    total = ((positive * found.hit + negative * found.miss) * weights).sum()
    if reduction == "mean":
        total = ratio(total, found.voxels.sum())
    return in_dtype_of(total, input)
