"""What the case table cannot say about region maxima."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import references
from volnet import isa, nn, ops

COORDINATE = st.integers(-12, 40).map(lambda n: n / 4)
SIDE = st.integers(0, 40).map(lambda n: n / 4)


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(COORDINATE, COORDINATE, SIDE, SIDE),
    st.tuples(st.integers(1, 6), st.integers(1, 7)),
    st.tuples(st.integers(1, 3), st.integers(1, 4)),
    st.sampled_from([1.0, 0.5]),
)
def test_depth_one_is_the_published_2d_definition(
    box: tuple[float, ...], size: tuple[int, int], output_size: tuple[int, int], scale: float
) -> None:
    x = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h, w, height, width = box
    expected = references.roi_pool2d(x.tolist(), (h, w, h + height, w + width), output_size, scale)
    boxes = torch.tensor([[0, 0, h, w, 0, h + height, w + width]], dtype=torch.float64)
    y = ops.roi_pool3d(x[None, None, None], boxes, (1, *output_size), scale)
    assert torch.equal(y[0, 0, 0], torch.tensor(expected, dtype=torch.float64))
    turned = ops.roi_pool3d(
        x.T[None, None, :, :, None], boxes[:, [0, 3, 2, 1, 6, 5, 4]], (*output_size[::-1], 1), scale
    )
    assert torch.equal(turned[0, 0, :, :, 0].T, y[0, 0, 0])


LEVELS = [level for level in isa.available() if level in ("scalar", "avx2", "avx512")]
WHOLE = [torch.tensor([[0.0, 0, 0, 9, 9, 9]])]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_nan_and_infinity(level: str, memory_format: torch.memory_format) -> None:
    """NaN is the largest value and the first NaN gets the gradient; minus infinity is a value as well."""
    x = torch.full((1, 3, 3, 4, 5), float("-inf"))
    x[0, 1, 1, 2, 3] = float("nan")
    x[0, 1, 2, 0, 0] = float("nan")
    x[0, 1, 2, 3, 4] = float("inf")
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    with isa.limit(level):
        y = ops.roi_pool3d(x, WHOLE, 1)
        y.backward(torch.tensor([1.0, 2, 3]).reshape(1, 3, 1, 1, 1))
    assert y.isnan().flatten().tolist() == [False, True, False]
    assert y.isneginf().flatten().tolist() == [True, False, True]
    expected = torch.zeros(1, 3, 3, 4, 5)
    expected[0, :, 0, 0, 0] = torch.tensor([1.0, 0, 3])
    expected[0, 1, 1, 2, 3] = 2
    assert x.grad is not None
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_first_in_scan_order_gets_the_gradient(level: str, memory_format: torch.memory_format) -> None:
    """Equal maxima in a later column of an earlier row and an earlier column of a later row."""
    x = torch.zeros(1, 17, 3, 4, 5)
    x[0, :, 1, 1, 4] = x[0, :, 1, 2, 0] = x[0, :, 2, 0, 0] = 1
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    with isa.limit(level):
        ops.roi_pool3d(x, WHOLE, 1).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[0, :, 1, 1, 4], torch.ones(17))
    assert float(x.grad.sum()) == 17


X = torch.randn(2, 3, 6, 7, 8, generator=torch.Generator().manual_seed(1))
BOXES = torch.tensor([[1.0, 1, 1, 4, 5, 6], [0, 0, 0, 6, 7, 8], [2, 3, 4, 5, 6, 7]])


def test_lists_tables_and_single_volumes_say_the_same() -> None:
    table = torch.cat([torch.tensor([[0.0], [1], [1]]), BOXES], dim=1)
    y = ops.roi_pool3d(X, table, 2)
    assert torch.equal(ops.roi_pool3d(X, [BOXES[:1], BOXES[1:]], 2), y)
    assert torch.equal(ops.roi_pool3d(X[1], BOXES, 2)[1:], y[1:])
    layer = nn.RoIPool3d(2, spatial_scale=0.5)
    assert torch.equal(layer(X, table), ops.roi_pool3d(X, table, 2, 0.5))
    assert "spatial_scale=0.5" in repr(layer)


def test_volume_without_voxels_is_zero() -> None:
    assert torch.equal(ops.roi_pool3d(torch.ones(1, 2, 0, 5, 5), [BOXES], 2), torch.zeros(3, 2, 2, 2, 2))


def test_double_backward() -> None:
    def square(value: torch.Tensor) -> torch.Tensor:
        return ops.roi_pool3d(value, [BOXES, BOXES], 2) ** 2

    assert torch.autograd.gradgradcheck(square, X.double().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"boxes": BOXES}, RuntimeError, r"roi_pool3d: boxes must be \[K, 7\]"),
        (
            {"output_size": -1},
            RuntimeError,
            r"output_size must be at least 1 on every axis, got \(-1, -1, -1\)",
        ),
        ({"spatial_scale": -1.0}, RuntimeError, "spatial_scale must be positive, got -1.0"),
        ({"x": X.int()}, RuntimeError, "x must be one of .*, got int32"),
        ({"boxes": [BOXES.flip(1), BOXES]}, RuntimeError, r"boxes must be finite .*got boxes\[0\] = \("),
        ({"boxes": torch.tensor([[2.0, 0, 0, 0, 1, 1, 1]])}, RuntimeError, r"boxes\[0\] is of image 2"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.roi_pool3d(**{"x": X, "boxes": [BOXES, BOXES], "output_size": 2, **arguments})
