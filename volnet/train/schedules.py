"""Learning rates that fall to nothing at the end of the training: torch's schedules, joined to a warm-up."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    PolynomialLR,
    SequentialLR,
)

SCHEDULES = ("constant", "cosine", "poly")


def make_schedule(
    optimizer: Optimizer, name: str, steps: int, *, warmup: int = 0, power: float = 0.9
) -> LRScheduler:
    """A schedule over a whole training, stepped once a step of the optimizer.

    Args:
        optimizer: with the highest learning rate.
        name: ``"constant"``; ``"cosine"``, half a wave down to 0; or ``"poly"``,
            ``(1 - step / steps) ** power``, as nnU-Net has it.
        steps: of the optimizer, all in all.
        warmup: so many steps at first rise evenly to the highest rate; the schedule has the others.
        power: of ``"poly"``.

    Raises:
        ValueError: ``name`` is another, or the warm-up is not shorter than the training.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule, rates = make_schedule(optimizer, "cosine", 6, warmup=2), []
    >>> for _ in range(6):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 3))
    ...     optimizer.step()
    ...     schedule.step()
    >>> rates
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if name not in SCHEDULES:
        raise ValueError(f"a schedule is one of {', '.join(SCHEDULES)}, got {name!r}")
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup must be at least 0 and less than the {steps} steps, got {warmup}")
    main: LRScheduler
    if name == "cosine":
        main = CosineAnnealingLR(optimizer, steps - warmup)
    elif name == "poly":
        main = PolynomialLR(optimizer, steps - warmup, power)
    else:
        main = ConstantLR(optimizer, 1.0, 0)
    if warmup == 0:
        return main
    rise = LinearLR(optimizer, 1 / warmup, 1.0, max(warmup - 1, 1))
    return SequentialLR(optimizer, [rise, main], [warmup])
