"""Losses of segmentations, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.work import (
    BOTH,
    HAS_MONAI,
    LAYOUTS,
    Shape,
    Work,
    generator,
    nbytes,
    operator,
    random,
    relative_l2,
)
from volnet import losses

MONAI = ("volnet plain", "volnet channels_last", "monai plain", "monai channels_last")
Loss = Callable[[Tensor, Tensor], Tensor]


@operator(*BOTH)
def cross_entropy(shape: Shape) -> Work:
    return both_ways(shape, losses.cross_entropy, {"torch": lambda x, y: F.cross_entropy(x, y[:, 0])})


@operator(*MONAI, shapes="cross_entropy")
def dice_ce(shape: Shape) -> Work:
    peers: dict[str, Loss] = {}
    if HAS_MONAI:
        from monai.losses import DiceCELoss

        peers["monai"] = DiceCELoss(softmax=True, to_onehot_y=True)
    return both_ways(shape, losses.dice_ce, peers)


@operator(*MONAI, shapes="cross_entropy")
def tversky(shape: Shape) -> Work:
    peers: dict[str, Loss] = {}
    if HAS_MONAI:
        from monai.losses import TverskyLoss

        peers["monai"] = TverskyLoss(softmax=True, to_onehot_y=True)
    return both_ways(shape, losses.tversky, peers)


@operator(*MONAI, shapes="cross_entropy")
def focal(shape: Shape) -> Work:
    peers: dict[str, Loss] = {}
    if HAS_MONAI:
        from monai.losses import FocalLoss

        peers["monai"] = FocalLoss(to_onehot_y=True)

    def exact(x: Tensor, y: Tensor) -> Tensor:  # MONAI's computes in float32 at most
        sign = 2 * F.one_hot(y[:, 0], x.shape[1]).movedim(-1, 1) - 1
        return -((1 - (sign * x).sigmoid()) ** 2 * F.logsigmoid(sign * x)).mean()

    return both_ways(shape, losses.focal, peers, exact)


@operator(*BOTH, shapes="cross_entropy")
def ohem(shape: Shape) -> Work:
    def hardest(x: Tensor, y: Tensor) -> Tensor:
        found = F.cross_entropy(x, y[:, 0], reduction="none").flatten()
        return found.topk(found.numel() // 10).values.mean()

    # Of voxels that are equally hard each takes others, of bfloat16 many: their gradients are as large.
    return both_ways(shape, losses.ohem, {"torch": hardest}, compared=lambda x: x.abs().sum())


@torch.inference_mode(False)
def both_ways(
    shape: Shape,
    ours: Loss,
    peers: dict[str, Loss],
    exact: Loss | None = None,
    compared: Callable[[Tensor], Tensor] = lambda x: x,
) -> Work:
    """The gradient of the logits. Peers that would add up in bfloat16 get logits that are made float32, as
    autocast does it. Floor: logits and labels twice, and the gradient."""
    dtype = getattr(torch, shape.get("dtype", "float32"))
    logits = random(shape["batch"], shape["channels"], *shape["size"]).to(dtype)
    sizes = (shape["batch"], 1, *shape["size"])
    labels = torch.randint(shape["channels"], sizes, generator=generator(1))
    small = labels.to(torch.uint8)

    def run(loss: Loss, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
        leaf = x.detach().requires_grad_()

        @torch.inference_mode(False)
        @torch.enable_grad()
        def gradient() -> Tensor:
            return torch.autograd.grad(loss(leaf, y), leaf)[0]

        return gradient

    # Without a formula and without a peer the check is volnet's own float64.
    expected = compared(run(exact or next(iter(peers.values()), ours), logits.double(), labels)())
    implementations: dict[str, Callable[[], Any]] = {}
    for layout, memory_format in LAYOUTS.items():
        x = logits.contiguous(memory_format=memory_format)
        implementations[f"volnet {layout}"] = run(ours, x, small)
        for name, peer in peers.items():
            implementations[f"{name} {layout}"] = run(lambda x, y, f=peer: f(x.float(), y), x, labels)
    return Work(
        implementations,
        error=lambda gradient: relative_l2(compared(gradient.double()), expected),
        tolerance={torch.float32: 1e-5, torch.bfloat16: 4e-3}[dtype],
        bytes=float(3 * nbytes(logits) + 2 * nbytes(small)),
    )
