"""Losses against torch, torchvision and MONAI in float64, with gradients by autograd through those."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from volnet import isa, losses, memory

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
LEVELS = [level for level in isa.available() if level in ("scalar", "avx2", "avx512")]
LABELS = [torch.uint8, torch.int16, torch.int32, torch.int64]
# Of a loss, and of a gradient as a share of its largest value. The logits are the same numbers for the
# reference; what is left is float32 arithmetic, and for bfloat16 the rounding of the gradient.
TOLERANCE = {torch.float32: (2e-6, 4e-6), torch.bfloat16: (2e-6, 4e-3), torch.float64: (1e-12, 1e-11)}


def logits_of(shape: tuple[int, ...], seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels_of(shape: tuple[int, ...], classes: int, seed: int = 1) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return F.one_hot(labels, classes).movedim(-1, 1).double()


def check(
    ours: Callable[[Tensor], Tensor],
    theirs: Callable[[Tensor], Tensor],
    logits: Tensor,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
) -> None:
    """Loss and gradient of ``ours`` at ``logits`` in a dtype and layout against ``theirs`` in float64."""
    memory_format = layout if logits.dim() == 5 else torch.contiguous_format
    x = logits.to(dtype).contiguous(memory_format=memory_format)
    exact = x.double().requires_grad_()
    x.requires_grad_()
    actual, expected = ours(x), theirs(exact)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert actual.shape == expected.shape
    of_loss, of_gradient = TOLERANCE[dtype]
    scale = max(float(expected.detach().abs().max()), 1.0) if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=of_loss * scale)
    weight = torch.linspace(1, 2, max(expected.numel(), 1), dtype=torch.float64)[: expected.numel()]
    weight = weight.reshape(expected.shape)
    (grad,) = torch.autograd.grad(actual, x, weight.to(actual.dtype))
    (exact_grad,) = torch.autograd.grad(expected, exact, weight)
    assert grad.dtype == dtype
    assert grad.is_contiguous(memory_format=memory_format)
    largest = float(exact_grad.abs().max()) if exact_grad.numel() else 0.0
    torch.testing.assert_close(grad.double(), exact_grad, rtol=0, atol=of_gradient * largest + 1e-30)


# --- cross-entropy


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 5, 6, 7), (1, 2, 20, 16, 16), (2, 17, 3, 4, 5), (1, 1, 2, 3, 4)])
def test_cross_entropy(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, level: str
) -> None:
    logits, labels = logits_of(shape), labels_of((shape[0], *shape[2:]), shape[1])
    labels[0, 0] = -100
    weight = torch.linspace(0.5, 2, shape[1], dtype=torch.float64)
    with isa.limit(level):
        for arguments in (
            {},
            {"weight": weight, "reduction": "sum"},
            {"weight": weight, "label_smoothing": 0.3},
            {"weight": weight, "label_smoothing": 0.3, "reduction": "none"},
        ):
            check(
                lambda x, a=arguments: losses.cross_entropy(x, labels, **a),
                lambda x, a=arguments: F.cross_entropy(x, labels, **a),
                logits,
                dtype,
                layout,
            )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cross_entropy_of_shares(layout: torch.memory_format, reduction: str, label_smoothing: float) -> None:
    shares = logits_of((2, 3, 3, 4, 5), seed=5).softmax(1)
    arguments = {
        "weight": torch.tensor([1.0, 2.0, 0.0]).double(),
        "reduction": reduction,
        "label_smoothing": label_smoothing,
    }
    for target in (shares, shares.contiguous(memory_format=torch.channels_last_3d)):
        check(
            lambda x, t=target: losses.cross_entropy(x, t, **arguments),
            lambda x: F.cross_entropy(x, shares, **arguments),
            logits_of((2, 3, 3, 4, 5)),
            torch.float32,
            layout,
        )


@pytest.mark.parametrize("dtype", LABELS)
def test_labels_of_every_dtype(dtype: torch.dtype) -> None:
    logits, labels = logits_of((2, 4, 3, 4, 5)), labels_of((2, 3, 4, 5), 4)
    labels[1, 2] = 200
    expected = F.cross_entropy(logits, labels, ignore_index=200)
    for target in (labels.to(dtype), labels.to(dtype).unsqueeze(1)):
        torch.testing.assert_close(losses.cross_entropy(logits, target, ignore_index=200), expected)


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 7), (2, 3, 4, 5), (2, 3, 2, 2, 3, 3)])
def test_any_number_of_axes(shape: tuple[int, ...]) -> None:
    labels = labels_of((shape[0], *shape[2:]), 3)
    check(lambda x: losses.cross_entropy(x, labels), lambda x: F.cross_entropy(x, labels), logits_of(shape))
    for reduction in ("none", "sum"):
        check(
            lambda x, r=reduction: losses.cross_entropy(x, labels, reduction=r),
            lambda x, r=reduction: F.cross_entropy(x, labels, reduction=r),
            logits_of(shape),
        )
    hot = one_hot(labels, 3)
    if len(shape) > 2:
        check(lambda x: losses.dice(x, hot), lambda x: monai_dice(x, labels), logits_of(shape))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*(st.integers(0 if axis == 0 else 1, 9) for axis in range(5))),
    ignored=st.floats(0, 1),
    smoothing=st.sampled_from([0.0, 0.1]),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**16),
)
def test_cross_entropy_of_any_shape(
    shape: tuple[int, ...], ignored: float, smoothing: float, layout: torch.memory_format, seed: int
) -> None:
    labels = labels_of((shape[0], *shape[2:]), shape[1], seed)
    labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < ignored] = -100
    arguments = {"label_smoothing": smoothing, "reduction": "sum"}
    check(
        lambda x: losses.cross_entropy(x, labels, **arguments),
        lambda x: F.cross_entropy(x, labels, **arguments),
        logits_of(shape, seed),
        layout=layout,
    )


def test_nothing_to_count_is_zero() -> None:
    for shape in ((2, 3, 4, 5, 6), (0, 3, 4, 5, 6), (2, 3, 0, 5, 6)):
        x = logits_of(shape).float().requires_grad_()
        labels = torch.full((shape[0], *shape[2:]), 255, dtype=torch.uint8)
        for loss in (
            losses.cross_entropy(x, labels, ignore_index=255),
            losses.focal(x, labels, ignore_index=255),
        ):
            (grad,) = torch.autograd.grad(loss, x)
            assert loss.item() == 0
            assert torch.equal(grad, torch.zeros_like(x))


def test_voxels_that_are_ignored_may_be_nan() -> None:
    x, labels = logits_of((1, 3, 4, 4, 4)), labels_of((1, 4, 4, 4), 3)
    expected = F.cross_entropy(x[:, :, 1:], labels[:, 1:])
    x[:, :, 0] = math.nan
    labels[:, 0] = -100
    x.requires_grad_()
    loss = losses.cross_entropy(x, labels)
    torch.testing.assert_close(loss, expected)
    for value in (loss, losses.dice_ce(x, labels, ignore_index=-100)):
        (grad,) = torch.autograd.grad(value, x)
        assert torch.equal(grad[:, :, 0], torch.zeros_like(grad[:, :, 0]))
        assert grad.isfinite().all()
    x.data[0, 0, 2, 2, 2] = math.nan
    assert losses.cross_entropy(x, labels).isnan(), "a NaN that counts must show"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits(dtype: torch.dtype, level: str) -> None:
    """Powers of these would overflow; bfloat16 has eight bits of them."""
    logits, labels = logits_of((1, 4, 5, 6, 7), scale=3000.0), labels_of((1, 5, 6, 7), 4)
    hot = one_hot(labels, 4)
    with isa.limit(level):
        check(lambda x: losses.cross_entropy(x, labels), lambda x: F.cross_entropy(x, labels), logits, dtype)
        check(
            lambda x: losses.focal(x, hot, gamma=0.0),
            lambda x: F.binary_cross_entropy_with_logits(x, hot),
            logits,
            dtype,
        )
    # A class that is masked out, and is nowhere wanted.
    logits[:, 3] = -math.inf
    x = logits.to(dtype).requires_grad_()
    loss = losses.cross_entropy(x, labels.clamp(max=2))
    torch.testing.assert_close(loss.double(), F.cross_entropy(x.double(), labels.clamp(max=2)))
    loss.backward()
    assert torch.equal(x.grad[:, 3], torch.zeros_like(x.grad[:, 3]))


@pytest.mark.parametrize("level", LEVELS)
def test_small_losses_are_exact(level: str) -> None:
    """Where the sigmoid is right by far, ln(1 + e^-x) is far smaller than what rounds 1."""
    x = torch.linspace(5, 80, 333).reshape(1, 1, 3, 3, 37)
    with isa.limit(level):
        loss = losses.focal(x, torch.ones_like(x), gamma=0.0, reduction="sum")
    expected = F.softplus(-x.double()).sum()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


# --- overlap


def monai_dice(x: Tensor, labels: Tensor, **arguments: object) -> Tensor:
    from monai.losses import DiceLoss

    arguments.setdefault("softmax", not arguments.get("sigmoid"))
    return DiceLoss(to_onehot_y=x.shape[1] > 1, **arguments)(x, labels.unsqueeze(1).double())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_overlap_is_monai_s(
    activation: str, layout: torch.memory_format, dtype: torch.dtype, level: str
) -> None:
    from monai.losses import TverskyLoss

    shape = (2, 3, 6, 7, 9)
    logits, labels = logits_of(shape), labels_of((2, 6, 7, 9), 3)
    labels[1] = labels[1].clamp(max=1)  # an empty class in one image
    kind = {activation: True, "to_onehot_y": True}
    hot = one_hot(labels, 3)
    with isa.limit(level):
        for background, batch, reduction in (
            (True, False, "mean"),
            (False, True, "sum"),
            (False, False, "mean"),
        ):
            same = {"include_background": background, "batch": batch, "reduction": reduction}
            for target in (labels.to(torch.uint8), labels.unsqueeze(1), hot, hot.bool(), hot.to(torch.uint8)):
                check(
                    lambda x, t=target, s=same: losses.dice(x, t, activation=activation, **s),
                    lambda x, s=same: monai_dice(x, labels, **{activation: True}, **s),
                    logits,
                    dtype,
                    layout,
                )
            check(
                lambda x, s=same: losses.tversky(x, labels, alpha=0.3, beta=0.7, activation=activation, **s),
                lambda x, s=same: TverskyLoss(alpha=0.3, beta=0.7, **kind, **s)(x, labels.unsqueeze(1)),
                logits,
                dtype,
                layout,
            )


def test_dice_of_classes_one_by_one_and_weighted() -> None:
    logits, labels = logits_of((2, 3, 4, 5, 6)), labels_of((2, 4, 5, 6), 3)
    for batch in (False, True):
        by_class = losses.dice(logits, labels, batch=batch, reduction="none")
        expected = monai_dice(logits, labels, batch=batch, reduction="none").reshape(by_class.shape)
        torch.testing.assert_close(by_class, expected)
    weight = [0.5, 2.0]
    check(
        lambda x: losses.dice(x, labels, include_background=False, weight=weight),
        lambda x: monai_dice(x, labels, include_background=False, weight=weight),
        logits,
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("background", [True, False])
def test_dice_ce_is_monai_s(background: bool, label_smoothing: float) -> None:
    from monai.losses import DiceCELoss

    logits, labels = logits_of((2, 3, 6, 7, 9)), labels_of((2, 6, 7, 9), 3)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    same = {
        "include_background": background,
        "weight": weight,
        "label_smoothing": label_smoothing,
        "lambda_dice": 0.7,
        "lambda_ce": 1.3,
    }
    check(
        lambda x: losses.dice_ce(x, labels, **same),
        lambda x: DiceCELoss(softmax=True, to_onehot_y=True, **same)(x, labels.unsqueeze(1)),
        logits,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_class(layout: torch.memory_format) -> None:
    from monai.losses import DiceCELoss, DiceLoss

    logits, labels = logits_of((2, 1, 6, 7, 9)), labels_of((2, 1, 6, 7, 9), 2)
    for target in (labels, labels[:, 0], labels.bool(), labels.double()):
        check(
            lambda x, t=target: losses.dice(x, t, activation="sigmoid"),
            lambda x: DiceLoss(sigmoid=True)(x, labels.double()),
            logits,
            layout=layout,
        )
        weight = torch.tensor([3.0], dtype=torch.float64)
        check(
            lambda x, t=target, w=weight: losses.dice_ce(x, t, activation="sigmoid", weight=w),
            lambda x, w=weight: DiceCELoss(sigmoid=True, weight=w)(x, labels.double()),
            logits,
            layout=layout,
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ignored_labels_of_overlap(layout: torch.memory_format) -> None:
    from monai.losses import DiceLoss, TverskyLoss

    logits, labels = logits_of((2, 3, 6, 7, 9)), labels_of((2, 6, 7, 9), 3)
    labels[:, 1:3] = 255
    labels[1, 4] = 255
    arguments = {"softmax": True, "to_onehot_y": True, "ignore_index": 255}
    for ours, theirs in ((losses.dice, DiceLoss), (losses.tversky, TverskyLoss)):
        for background in (True, False):
            check(
                lambda x, f=ours, b=background: f(x, labels, ignore_index=255, include_background=b),
                lambda x, f=theirs, b=background: f(include_background=b, **arguments)(
                    x, labels.unsqueeze(1)
                ),
                logits,
                layout=layout,
            )
    binary = labels.clone()
    binary[binary == 2] = 1
    counts = binary != 255
    check(
        lambda x: losses.dice_ce(x, binary, activation="sigmoid", ignore_index=255, lambda_dice=0.0),
        lambda x: F.binary_cross_entropy_with_logits(x[:, 0][counts], binary[counts].double()),
        logits[:, :1],
        layout=layout,
    )


# --- focal


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 2.5])
def test_focal_is_torchvision_s_and_monai_s(
    gamma: float, layout: torch.memory_format, dtype: torch.dtype, level: str
) -> None:
    from monai.losses import FocalLoss
    from torchvision.ops import sigmoid_focal_loss

    logits, labels = logits_of((2, 3, 5, 6, 7)), labels_of((2, 5, 6, 7), 3)
    hot = one_hot(labels, 3)
    with isa.limit(level):
        for alpha, reduction in ((0.25, "sum"), (None, "mean")):
            check(
                lambda x, a=alpha, r=reduction: losses.focal(x, labels, alpha=a, gamma=gamma, reduction=r),
                lambda x, a=alpha, r=reduction: sigmoid_focal_loss(x, hot, -1 if a is None else a, gamma, r),
                logits,
                dtype,
                layout,
            )
        soft = (0.8 * hot + 0.1).contiguous()
        check(
            lambda x: losses.focal(x, soft, gamma=gamma),
            lambda x: (
                -(
                    soft * (1 - x.sigmoid()) ** gamma * F.logsigmoid(x)
                    + (1 - soft) * x.sigmoid() ** gamma * F.logsigmoid(-x)
                ).mean()
            ),
            logits,
            dtype,
            layout,
        )
    if dtype == torch.float64:
        return
    theirs = FocalLoss(to_onehot_y=True, gamma=gamma, alpha=0.25, weight=[1.0, 2.0, 0.5])
    ours = losses.focal(logits.to(dtype), labels, gamma=gamma, alpha=0.25, weight=[1.0, 2.0, 0.5])
    torch.testing.assert_close(ours, theirs(logits.to(dtype), labels.unsqueeze(1)), rtol=1e-5, atol=1e-6)


def test_focal_of_anchors() -> None:
    from torchvision.ops import sigmoid_focal_loss

    logits, anchors = logits_of((700, 2)), labels_of((700,), 2)
    check(
        lambda x: losses.focal(x, anchors, alpha=0.25, reduction="sum"),
        lambda x: sigmoid_focal_loss(x, F.one_hot(anchors, 2).double(), reduction="sum"),
        logits,
    )


# --- the hardest


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ohem_is_nnunet_s(layout: torch.memory_format, dtype: torch.dtype, level: str) -> None:
    logits, labels = logits_of((2, 3, 9, 20, 21)), labels_of((2, 9, 20, 21), 3)
    labels[0, 1] = -100
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def top_k(x: Tensor, fraction: float, **arguments: object) -> Tensor:
        found = F.cross_entropy(x, labels, reduction="none", **arguments).flatten()
        return found.topk(int(found.numel() * fraction)).values.mean()

    with isa.limit(level):
        for fraction in (0.1, 0.013, 1.0):
            check(
                lambda x, f=fraction: losses.ohem(x, labels, fraction=f),
                lambda x, f=fraction: top_k(x, f),
                logits,
                dtype,
                layout,
            )
        arguments = {"weight": weight, "label_smoothing": 0.1}
        check(
            lambda x: losses.ohem(x, labels, **arguments),
            lambda x: top_k(x, 0.1, **arguments),
            logits,
            dtype,
            layout,
        )


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(
        st.one_of(st.floats(width=32), st.sampled_from([0.0, -0.0, 1.0, 1.0, -1.0])), min_size=1, max_size=80
    ),
    share=st.floats(0, 1.2),
    masked=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    level=st.sampled_from(LEVELS),
)
def test_the_hardest_are_those_of_topk(
    values: list[float], share: float, masked: bool, dtype: torch.dtype, level: str
) -> None:
    x = torch.tensor(values, dtype=dtype)
    candidates = torch.arange(len(x)) % 3 > 0 if masked else None
    taking_part = x if candidates is None else x[candidates]
    count = min(int(share * len(x)), len(taking_part))
    with isa.limit(level):
        total, chosen = torch.ops.volnet.hardest(x, candidates, torch.tensor(count))
    expected = taking_part.double().topk(count).values
    assert int(chosen.sum()) == count
    assert candidates is None or not (chosen & ~candidates).any()
    torch.testing.assert_close(
        x[chosen].double().sort().values, expected.sort().values, rtol=0, atol=0, equal_nan=True
    )
    if expected.isfinite().all():
        torch.testing.assert_close(total, expected.sum())


def test_the_first_of_equals_are_chosen_whatever_the_threads() -> None:
    x = torch.randint(4, (300_000,), generator=torch.Generator().manual_seed(0)).float()
    order = x.sort(descending=True, stable=True).indices
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for k in (0, 1, 100_000, 160_001, 300_000):
                total, chosen = torch.ops.volnet.hardest(x, None, torch.tensor(k))
                expected = torch.zeros(len(x), dtype=torch.bool)
                expected[order[:k]] = True
                assert torch.equal(chosen, expected)
                assert total == x[expected].sum(dtype=torch.float64)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize(("positives", "least"), [(20, 7), (3, 50), (0, 11), (20, 10_000)])
def test_hard_negatives(positives: int, least: int, balanced: bool, dtype: torch.dtype) -> None:
    # All different, in bfloat16 too: of equal ones torch chooses others.
    numbers = torch.cat([torch.arange(128, 256).double() * 2.0**exponent for exponent in range(-9, -4)])
    numbers = torch.cat([numbers, -numbers])[torch.randperm(1280, generator=torch.Generator().manual_seed(0))]
    logits = numbers[:1200].reshape(2, 600)
    labels = torch.zeros(2, 600, dtype=torch.int64)
    labels[0, :positives] = 1
    labels[1, 500:] = -1

    def by_definition(x: Tensor) -> Tensor:
        found = F.binary_cross_entropy_with_logits(x, (labels == 1).double(), reduction="none")
        negative = found[labels == 0]
        hard = negative.topk(min(max(2 * positives, least), len(negative))).values
        if not balanced:
            return torch.cat([found[labels == 1], hard]).mean()
        positive = found[labels == 1]
        return 0.5 * hard.mean() + (0.5 * positive.mean() if positives else 0.0)

    check(
        lambda x: losses.hard_negative(
            x, labels, negatives_per_positive=2, min_negatives=least, balanced=balanced
        ),
        by_definition,
        logits,
        dtype,
    )


def test_hard_negatives_are_those_of_monai_s_sampler() -> None:
    from monai.apps.detection.utils.hard_negative_sampler import HardNegativeSampler

    logits, labels = logits_of((1000,)), torch.zeros(1000, dtype=torch.int64)
    labels[:10] = 1
    sampler = HardNegativeSampler(batch_size_per_image=40, positive_fraction=0.25, min_neg=1, pool_size=1)
    positive, negative = sampler([labels], logits)
    x = logits.requires_grad_()
    (grad,) = torch.autograd.grad(losses.hard_negative(x, labels, min_negatives=1), x)
    assert torch.equal(grad != 0, (positive[0] + negative[0]).bool())


def test_hard_negatives_of_nothing() -> None:
    for labels in (torch.full((5,), -1), torch.zeros(0, dtype=torch.int64)):
        x = torch.zeros(len(labels), requires_grad=True)
        loss = losses.hard_negative(x, labels)
        (grad,) = torch.autograd.grad(loss, x)
        assert loss.item() == 0
        assert not grad.any()


# --- smooth L1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_smooth_l1(reduction: str, beta: float, dtype: torch.dtype, level: str) -> None:
    with isa.limit(level):
        for shape in ((7, 6), (2, 3, 9, 20, 21), (1,), (70_001,)):
            target = logits_of(shape, seed=1, scale=1.0).to(dtype)
            check(
                lambda x, t=target: losses.smooth_l1(x, t, beta=beta, reduction=reduction),
                lambda x, t=target: F.smooth_l1_loss(x, t.double(), beta=beta, reduction=reduction),
                logits_of(shape, scale=1.0),
                dtype,
            )


def test_smooth_l1_of_both_layouts_dtypes_and_of_nothing() -> None:
    x = (
        logits_of((2, 3, 4, 5, 6))
        .bfloat16()
        .contiguous(memory_format=torch.channels_last_3d)
        .requires_grad_()
    )
    target = logits_of((2, 3, 4, 5, 6), seed=1).float().requires_grad_()
    ours, theirs = losses.smooth_l1(x, target), F.smooth_l1_loss(x.float(), target)
    torch.testing.assert_close(ours, theirs)
    for a, e in zip(*(torch.autograd.grad(y, (x, target)) for y in (ours, theirs)), strict=True):
        assert a.dtype == e.dtype
        torch.testing.assert_close(a, e)
    nothing = torch.zeros(0, 6, requires_grad=True)
    loss = losses.smooth_l1(nothing, torch.zeros(0, 6))
    loss.backward()
    assert loss.item() == 0


# --- what all have in common


def overlap_by_definition(x: Tensor, t: Tensor, counts: Tensor, sigmoid: bool, alpha: float) -> Tensor:
    """Tversky of [N, C, ...] with beta 1 - alpha; Dice is that of 1/2 but for what smooths it."""
    p = (x.sigmoid() if sigmoid else x.softmax(1)) * counts
    t = t * counts
    axes = tuple(range(2, x.dim()))
    both, wrong = (p * t).sum(axes), alpha * (p * (1 - t)).sum(axes) + (1 - alpha) * ((1 - p) * t).sum(axes)
    return (1 - (both + 1e-3) / (both + wrong + 1e-3)).mean()


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 20), *[st.integers(1, 12)] * 3),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    layout=st.sampled_from(LAYOUTS),
    labels_dtype=st.sampled_from(LABELS),
    sigmoid=st.booleans(),
    level=st.sampled_from(LEVELS),
    seed=st.integers(0, 2**16),
)
def test_losses_of_any_shape(
    shape: tuple[int, ...],
    ignored: float,
    dtype: torch.dtype,
    layout: torch.memory_format,
    labels_dtype: torch.dtype,
    sigmoid: bool,
    level: str,
    seed: int,
) -> None:
    logits, labels = logits_of(shape, seed), labels_of((shape[0], *shape[2:]), shape[1], seed)
    counts = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) >= ignored
    hot, mask = one_hot(labels, shape[1]), counts.unsqueeze(1)
    target = labels.where(counts, 255).to(labels_dtype)
    same = {"activation": "sigmoid" if sigmoid else "softmax", "smooth_dr": 1e-3}
    with isa.limit(level):
        check(
            lambda x: losses.dice(
                x, target, ignore_index=255, smooth_nr=2e-3, **(same | {"smooth_dr": 2e-3})
            ),
            lambda x: overlap_by_definition(x, hot, mask, sigmoid, 0.5),
            logits,
            dtype,
            layout,
        )
        check(
            lambda x: losses.tversky(
                x, target, alpha=0.3, beta=0.7, ignore_index=255, smooth_nr=1e-3, **same
            ),
            lambda x: overlap_by_definition(x, hot, mask, sigmoid, 0.3),
            logits,
            dtype,
            layout,
        )
        check(
            lambda x: losses.focal(x, target, ignore_index=255, reduction="sum"),
            lambda x: (
                -(
                    (
                        hot * (1 - x.sigmoid()) ** 2 * F.logsigmoid(x)
                        + (1 - hot) * x.sigmoid() ** 2 * F.logsigmoid(-x)
                    )
                    * mask
                ).sum()
            ),
            logits,
            dtype,
            layout,
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_probabilities_in_memory(layout: torch.memory_format) -> None:
    """The gradient is all that is as large as the logits."""
    logits = logits_of((1, 6, 32, 64, 64)).float().contiguous(memory_format=layout).requires_grad_()
    labels = labels_of((1, 32, 64, 64), 6).to(torch.uint8)
    size = logits.numel() * 4
    for loss in (losses.dice_ce, losses.focal, losses.cross_entropy, losses.ohem):
        with torch.profiler.profile(profile_memory=True) as profile:
            memory.reset_peak()
            before = memory.stats()["in_use"]
            value = loss(logits, labels)
            forward = memory.stats()["peak"] - before
            (grad,) = torch.autograd.grad(value, logits)
            both = memory.stats()["peak"] - before
        of_torch = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
        one_channel = size // 6 if loss is losses.ohem else 0
        assert forward < 0.1 * size + 1.3 * one_channel, loss
        assert both < 1.1 * size + 1.3 * one_channel, loss
        assert of_torch < 0.1 * size + one_channel, loss
        del grad


def every_loss(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {
        "cross_entropy": losses.cross_entropy(logits, labels),
        "voxels": losses.cross_entropy(logits, labels, reduction="none").sum(),
        "dice": losses.dice(logits, labels),
        "dice_ce": losses.dice_ce(logits, labels),
        "tversky": losses.tversky(logits, labels, activation="sigmoid"),
        "focal": losses.focal(logits, labels),
        "ohem": losses.ohem(logits, labels),
        "hard_negative": losses.hard_negative(logits[:, 0], labels),
        "smooth_l1": losses.smooth_l1(logits, logits.detach().flip(0)),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_do_not_change_a_bit(layout: torch.memory_format) -> None:
    logits = logits_of((2, 3, 20, 33, 34)).float().contiguous(memory_format=layout).requires_grad_()
    labels = labels_of((2, 20, 33, 34), 3)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found = every_loss(logits, labels)
            del found["voxels"]  # its sum is torch's
            results.append([(v.detach(), torch.autograd.grad(v, logits)[0]) for v in found.values()])
    finally:
        torch.set_num_threads(threads)
    for (loss, grad), (other_loss, other_grad) in zip(*results, strict=True):
        assert torch.equal(loss, other_loss)
        assert torch.equal(grad, other_grad)


def test_views_are_read_correctly() -> None:
    logits, labels = logits_of((2, 3, 5, 6, 7)).float(), labels_of((2, 5, 6, 7), 3)
    expected = every_loss(logits, labels)
    views = (
        torch.stack([logits, torch.full_like(logits, 7)], -1)[..., 0],
        torch.stack([labels, labels], 1)[:, 0],
    )
    for name, value in every_loss(*views).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)


def test_compiles_as_one_graph() -> None:
    logits, labels = logits_of((2, 3, 5, 6, 7)).float().requires_grad_(), labels_of((2, 5, 6, 7), 3)
    torch._dynamo.reset()
    compiled = torch.compile(every_loss, fullgraph=True, backend="aot_eager")(logits, labels)
    for name, value in every_loss(logits, labels).items():
        torch.testing.assert_close(compiled[name], value, msg=name)
        torch.testing.assert_close(
            torch.autograd.grad(compiled[name], logits, retain_graph=True)[0],
            torch.autograd.grad(value, logits)[0],
            msg=name,
        )


def test_autocast_leaves_the_logits_as_they_are() -> None:
    logits, labels = logits_of((1, 3, 5, 6, 7)).bfloat16(), labels_of((1, 5, 6, 7), 3)
    expected = every_loss(logits, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for name, value in every_loss(logits, labels).items():
            assert torch.equal(value, expected[name]), name


def test_torch_opcheck() -> None:
    labels = labels_of((2, 3, 4, 5), 3)
    for layout in LAYOUTS:
        logits = logits_of((2, 3, 3, 4, 5)).contiguous(memory_format=layout).requires_grad_()
        arguments = (logits, labels, None, False, 0.0, 0)
        checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(torch.ops.volnet.segmentation_sums, arguments, test_utils=checks)
        weights = torch.ones(2, 3, dtype=torch.float64)
        arguments = (logits, labels, weights, None, True, 2.0, 0)
        torch.library.opcheck(torch.ops.volnet.voxel_losses, arguments, test_utils=checks)
    x, count = logits_of((70,)).requires_grad_(), torch.tensor(5)
    torch.library.opcheck(torch.ops.volnet.hardest, (x, None, count), test_utils=checks)
    torch.library.opcheck(torch.ops.volnet.hardest, (x, x > 0, count), test_utils=checks)
    torch.library.opcheck(torch.ops.volnet.smooth_l1_sum, (x, x.detach().flip(0), 0.5), test_utils=checks)


def test_second_derivatives_are_refused() -> None:
    logits, labels = logits_of((1, 3, 3, 4, 5)).requires_grad_(), labels_of((1, 3, 4, 5), 3)
    for value in every_loss(logits, labels).values():
        (grad,) = torch.autograd.grad(value, logits, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            torch.autograd.grad(grad.square().sum(), logits)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_label_out_of_range_is_named(layout: torch.memory_format) -> None:
    logits = logits_of((2, 3, 9, 30, 31)).float().contiguous(memory_format=layout)
    labels = labels_of((2, 9, 30, 31), 3)
    labels[1, 8, 20, 5] = 7
    labels[1, 8, 20, 6] = -2
    for loss in (losses.cross_entropy, losses.dice, losses.dice_ce, losses.focal):
        with pytest.raises(
            RuntimeError, match=r"label 7 of image 1 at voxel \[8, 20, 5\] is not in \[0, 3\)"
        ):
            loss(logits, labels)
    with pytest.raises(RuntimeError, match=r"label -2 .* and is not ignore_index 7"):
        losses.cross_entropy(logits, labels, ignore_index=7, reduction="none")
    with pytest.raises(RuntimeError, match=r"label 2 .* is not in \[0, 2\)"):
        losses.focal(logits[:, :1], labels.clamp(0, 2))


def test_bad_arguments() -> None:
    x, y = torch.zeros(2, 3, 4, 4, 4), torch.zeros(2, 4, 4, 4, dtype=torch.int64)
    for call, error, text in (
        (lambda: losses.cross_entropy(x.int(), y), RuntimeError, "got int32"),
        (lambda: losses.cross_entropy(x, y.to(torch.complex64)), RuntimeError, "got complex64"),
        (lambda: losses.cross_entropy(x, y.float()), ValueError, r"got float32 of shape \(2, 4, 4, 4\)"),
        (lambda: losses.cross_entropy(x, y[:, :3]), ValueError, r"got int64 of shape \(2, 3, 4, 4\)"),
        (lambda: losses.cross_entropy(x[0, 0, 0, 0], y), ValueError, r"got shape \(4,\)"),
        (lambda: losses.cross_entropy(x[:, :0], y), ValueError, "no classes"),
        (lambda: losses.cross_entropy(x, y, reduction="avg"), ValueError, "got 'avg'"),
        (lambda: losses.cross_entropy(x, y, label_smoothing=1.5), ValueError, "got 1.5"),
        (lambda: losses.cross_entropy(x, y, [1.0, 2.0]), ValueError, r"got \(2,\)"),
        (lambda: losses.cross_entropy(x, y, ignore_index=1.0), TypeError, "got 1.0"),
        (
            lambda: losses.cross_entropy(x, x.softmax(1), ignore_index=1),
            ValueError,
            "ignore_index=1 is for labels",
        ),
        (lambda: losses.dice(x, y, activation="relu"), ValueError, "got 'relu'"),
        (lambda: losses.dice(x[:, :1], y), ValueError, "one channel"),
        (
            lambda: losses.dice(x[:, :1], y, activation="sigmoid", include_background=False),
            ValueError,
            "nothing",
        ),
        (lambda: losses.dice_ce(x, y, lambda_ce=-1.0), ValueError, "got -1.0"),
        (lambda: losses.dice_ce(x, y, activation="sigmoid", label_smoothing=0.1), ValueError, "got 0.1"),
        (lambda: losses.focal(x, y, gamma=-1.0), ValueError, "got -1.0"),
        (lambda: losses.focal(x, y, alpha=2), ValueError, "got 2"),
        (lambda: losses.focal(x, y, gamma="2"), TypeError, "got '2'"),
        (lambda: losses.cross_entropy(x, [1.0]), TypeError, "target must be a Tensor, got list"),
        (lambda: losses.focal([1.0], y), TypeError, "got list"),
        (lambda: losses.ohem(x, y, fraction=0), ValueError, "above 0, got 0"),
        (lambda: losses.ohem(x, y, fraction=10), ValueError, "from 0.0 to 1.0, got 10"),
        (lambda: losses.hard_negative(x, y), ValueError, r"got \(2, 3, 4, 4, 4\) and \(2, 4, 4, 4\)"),
        (lambda: losses.hard_negative(y.float(), y.float()), RuntimeError, "got float32"),
        (lambda: losses.hard_negative(y.float(), y, min_negatives=-1), ValueError, "got -1"),
        (lambda: losses.hard_negative(y.float(), y, negatives_per_positive=0.5), TypeError, "got 0.5"),
        (lambda: losses.smooth_l1(x, x[:1]), ValueError, "one shape"),
        (lambda: losses.smooth_l1(x, x, beta=-1.0), ValueError, "got -1.0"),
        (lambda: losses.smooth_l1(x, x, reduction="none"), ValueError, "got 'none'"),
    ):
        with pytest.raises(error, match=text):
            call()
