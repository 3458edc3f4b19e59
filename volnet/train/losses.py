"""Losses for detectors."""

from __future__ import annotations

from torch import Tensor

from volnet import losses


def hard_negative_bce(
    logits: Tensor,
    labels: Tensor,
    *,
    negatives_per_positive: int = 3,
    min_negatives: int = 64,
) -> Tensor:
    """Binary cross-entropy over the positives and the negatives that score highest.

    Nearly all anchors are easy background; a mean over them would teach nothing. Positives and hard negatives
    count half each, so that a patch without nodules still teaches.

    Args:
        logits: float [K].
        labels: int64 [K]; 1 positive, 0 negative, anything else ignored.
        negatives_per_positive: how many negatives are mined for each positive,
        min_negatives: but at least so many (or all there are).

    Returns:
        Scalar, 0 with a gradient of 0 where everything is ignored.

    Raises:
        ValueError: if the two are not vectors of one length.

    Example:
        >>> import torch
        >>> round(hard_negative_bce(torch.tensor([9.0, -9.0]), torch.tensor([1, 0])).item(), 3)
        0.0
    """
    if logits.ndim != 1 or logits.shape != labels.shape:
        raise ValueError(
            "logits and labels must be vectors of one length, "
            f"got {list(logits.shape)} and {list(labels.shape)}"
        )
    return losses.hard_negative(
        logits, labels, negatives_per_positive=negatives_per_positive, min_negatives=min_negatives
    )


def box_regression_loss(deltas: Tensor, targets: Tensor) -> Tensor:
    """Smooth L1 between the offsets of positive anchors and their targets, mean over all numbers.

    Args:
        deltas: float [P, 6].
        targets: float [P, 6].

    Returns:
        Scalar, 0 with a gradient of 0 for P = 0.

    Example:
        >>> import torch
        >>> box_regression_loss(torch.zeros(1, 6), torch.zeros(1, 6)).item()
        0.0
    """
    return losses.smooth_l1(deltas, targets, beta=1 / 9)
