from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.cases import Case, Sample, randn
from volnet import losses

SHAPES = {
    "small": (2, 3, 3, 4, 5),
    "one_voxel": (1, 4, 1, 1, 1),
    "no_images": (0, 3, 4, 5, 6),
    "no_voxels": (2, 3, 0, 5, 6),
    "c2": (2, 2, 5, 6, 7),
    "c16": (2, 16, 3, 3, 4),
    "c17": (1, 17, 3, 3, 4),
    "c33": (2, 33, 4, 4, 18),
    "many_pieces": (2, 6, 24, 32, 48),
}


def labels_of(shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)


def samples():
    return [Sample(name, (3 * randn(*shape), labels_of(shape))) for name, shape in SHAPES.items()]


def both(x, labels):
    """Every sum of the kernels: those of labels by softmax and of planes by sigmoid."""
    planes = F.one_hot(labels, x.shape[1]).movedim(-1, 1)
    overlap = losses.tversky(x, labels, reduction="sum")
    entropy = losses.cross_entropy(x, labels, reduction="sum", label_smoothing=0.1)
    return 10 * overlap + entropy + losses.focal(x, planes, reduction="sum")


def both_reference(x, labels):
    t, axes = F.one_hot(labels, x.shape[1]).movedim(-1, 1).double(), (2, 3, 4)
    p, q = x.softmax(1), x.sigmoid()
    hits, wrong = (p * t).sum(axes), (0.5 * p * (1 - t) + 0.5 * (1 - p) * t).sum(axes)
    overlap = (1 - (hits + 1e-5) / (hits + wrong + 1e-5)).sum()
    entropy = F.cross_entropy(x, labels, reduction="sum", label_smoothing=0.1)
    focal = -(t * (1 - q) ** 2 * F.logsigmoid(x) + (1 - t) * q**2 * F.logsigmoid(-x)).sum()
    return 10 * overlap + entropy + focal


def hardest(x, labels):
    return losses.ohem(x, labels, fraction=0.3)


def hardest_reference(x, labels):
    found = F.cross_entropy(x, labels, reduction="none").flatten()
    count = max(int(found.numel() * 0.3), 1)
    return found.topk(min(count, found.numel())).values.sum() / count


def distances():
    return [
        Sample(name, (randn(*shape), randn(*shape, seed=1)), {"beta": 0.5}) for name, shape in SHAPES.items()
    ]


def case(name, function, reference, samples, kernels, differentiable):
    return Case(
        name=name,
        kernels=kernels,
        function=function,
        reference=reference,
        samples=samples,
        # Sums of float32 arithmetic, whatever the dtype of the logits; gradients are rounded to it.
        tolerance=8,
        gradient_tolerance=16,
        differentiable=differentiable,
        volumes=differentiable,
        same_layout=False,
    )


CASES = [
    case("segmentation_loss", both, both_reference, samples, "segmentation_loss_", (0,)),
    case("hardest", hardest, hardest_reference, samples, "hardest_", (0,)),
    case(
        "smooth_l1",
        losses.smooth_l1,
        lambda x, y, beta: F.smooth_l1_loss(x, y, beta=beta, reduction="sum") / max(x.numel(), 1),
        distances,
        "smooth_l1_",
        (0, 1),
    ),
]
