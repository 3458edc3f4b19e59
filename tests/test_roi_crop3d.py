"""What the case table cannot say about crops."""

from __future__ import annotations

import pytest
import torch

from volnet import isa, ops

X = torch.arange(2 * 3 * 6 * 7 * 8, dtype=torch.float32).reshape(2, 3, 6, 7, 8)
BOXES = torch.tensor([[1.0, 1, 1, 4, 5, 6], [0, 0, 0, 6, 7, 8], [2, 3, 4, 5, 6, 7]])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integer_volumes(dtype: torch.dtype) -> None:
    x = (X % 100).to(dtype)
    inside, outside = ops.roi_crop3d(
        x[0], torch.tensor([[1.0, 2, 3, 4, 5, 6], [5, 5, 5, 8, 8, 9]]), pad_value=3
    )
    assert torch.equal(inside, x[0, :, 1:4, 2:5, 3:6])
    assert outside.dtype == dtype
    assert torch.equal(outside[:, :1, :2, :3], x[0, :, 5:, 5:, 5:])
    assert (outside[:, 1:] == 3).all()
    assert (outside[:, :, :, 3:] == 3).all()


def test_channels_stay_innermost() -> None:
    x = X.contiguous(memory_format=torch.channels_last_3d)
    for crop, plain in zip(ops.roi_crop3d(x, [BOXES, BOXES]), ops.roi_crop3d(X, [BOXES, BOXES]), strict=True):
        assert crop.permute(1, 2, 3, 0).is_contiguous()
        assert plain.is_contiguous()
        assert torch.equal(crop, plain)


def test_lists_tables_and_single_volumes_say_the_same() -> None:
    table = torch.cat([torch.tensor([[0.0], [1], [1]]), BOXES], dim=1)
    crops = ops.roi_crop3d(X, table)
    for other in (ops.roi_crop3d(X, [BOXES[:1], BOXES[1:]]), ops.roi_crop3d(X, table.double())):
        assert all(torch.equal(a, b) for a, b in zip(crops, other, strict=True))
    assert torch.equal(ops.roi_crop3d(X[1], BOXES)[2], crops[2])
    assert ops.roi_crop3d(X, [BOXES[:0], BOXES[:0]]) == []


def test_gradient_of_one_crop_among_several() -> None:
    x = X.clone().requires_grad_()
    ops.roi_crop3d(x, [BOXES, BOXES])[4].sum().backward()
    expected = torch.zeros_like(X)
    expected[1] = 1
    assert x.grad is not None
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize(
    "level", [level for level in isa.available() if level in ("scalar", "avx2", "avx512")]
)
def test_backward_runs_at_every_level(level: str) -> None:
    def calls() -> int:
        return sum(
            n for name, at, n in isa.kernels() if name.startswith("roi_crop3d_backward") and at == level
        )

    x = X.clone().requires_grad_()
    before = calls()
    with isa.limit(level):
        torch.stack([c[:, :1, :1, :1].sum() for c in ops.roi_crop3d(x, [BOXES, BOXES])]).sum().backward()
    assert calls() > before


def test_double_backward() -> None:
    def square(value: torch.Tensor) -> torch.Tensor:
        return sum((crop**2).sum() for crop in ops.roi_crop3d(value, [BOXES, BOXES]))

    assert torch.autograd.gradgradcheck(square, (X.double() / 100).requires_grad_(), fast_mode=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"boxes": BOXES}, RuntimeError, r"roi_crop3d: boxes must be \[K, 7\]"),
        ({"boxes": [BOXES.int(), BOXES.int()]}, RuntimeError, r"boxes\[0\] must be one of .*, got int32"),
        ({"x": X[0, 0]}, RuntimeError, r"x must be \[N, C, D, H, W\] or .*got shape \(6, 7, 8\)"),
        ({"x": X.half()}, RuntimeError, "x must be one of .*, got float16"),
        ({"x": X.to(torch.uint8), "pad_value": -1}, RuntimeError, "pad_value -1 is no value of"),
        ({"pad_value": "0"}, TypeError, "pad_value must be a number, got str"),
        ({"boxes": [BOXES.flip(1), BOXES]}, RuntimeError, r"boxes must be finite .*got boxes\[0\] = \("),
        ({"boxes": torch.tensor([[2.0, 0, 0, 0, 1, 1, 1]])}, RuntimeError, r"boxes\[0\] is of image 2"),
        (
            {"boxes": torch.tensor([[0, 0, 0, 0, 1e7, 1e7, 1e7]])},
            RuntimeError,
            r"boxes\[0\] has 3e\+21 values",
        ),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.roi_crop3d(**{"x": X, "boxes": [BOXES, BOXES], **arguments})
