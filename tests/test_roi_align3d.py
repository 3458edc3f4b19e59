"""What the case table cannot say about region averages."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import references
from volnet import nn, ops

COORDINATE = st.floats(-3, 12, width=32)
SIDE = st.floats(0, 12, width=32)


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(COORDINATE, COORDINATE, SIDE, SIDE),
    st.tuples(st.integers(1, 6), st.integers(1, 7)),
    st.tuples(st.integers(1, 3), st.integers(1, 4)),
    st.sampled_from([1.0, 0.5, 0.3]),
    st.integers(-1, 3),
    st.booleans(),
)
def test_depth_one_is_the_published_2d_definition(
    box: tuple[float, ...],
    size: tuple[int, int],
    output_size: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> None:
    x = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h, w, height, width = box
    expected = references.roi_align2d(
        x.tolist(), (h, w, h + height, w + width), output_size, scale, sampling_ratio, aligned
    )
    # One slice: depth [0, 1) of the map, whatever the scale.
    boxes = torch.tensor([[0, 0, h, w, 1 / scale, h + height, w + width]], dtype=torch.float64)
    arguments = ((1, *output_size), scale, sampling_ratio, aligned)
    y = ops.roi_align3d(x[None, None, None], boxes, *arguments)
    torch.testing.assert_close(y[0, 0, 0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    # Any other axis may be the flat one.
    turned = ops.roi_align3d(
        x.T[None, None, :, :, None],
        boxes[:, [0, 3, 2, 1, 6, 5, 4]],
        (*output_size[::-1], 1),
        scale,
        sampling_ratio,
        aligned,
    )
    torch.testing.assert_close(turned[0, 0, :, :, 0].T, y[0, 0, 0], rtol=0, atol=1e-12)


def test_a_linear_ramp_is_averaged_exactly() -> None:
    """Inside the volume, a bin's average of a linear function is its value in the middle of the bin."""
    d, h, w = torch.meshgrid(*[torch.arange(20.0)] * 3, indexing="ij")
    x = (d + 10 * h - 3 * w)[None, None]
    y = ops.roi_align3d(x, [torch.tensor([[3.0, 4, 5, 11, 13, 15]])], output_size=(2, 3, 5))[0, 0]
    # Half-open boxes: voxel 3 covers [3, 4), its centre is at 3.5.
    middle = [torch.tensor([5.0, 9]), torch.tensor([5.5, 8.5, 11.5]), torch.arange(6.0, 15, 2)]
    d, h, w = torch.meshgrid(*[m - 0.5 for m in middle], indexing="ij")
    torch.testing.assert_close(y, d + 10 * h - 3 * w)


X = torch.randn(2, 3, 6, 7, 8, generator=torch.Generator().manual_seed(1))
BOXES = torch.tensor([[1.0, 1, 1, 4, 5, 6], [0, 0, 0, 6, 7, 8], [2, 3, 4, 5, 6, 7]])


def test_lists_tables_and_single_volumes_say_the_same() -> None:
    table = torch.cat([torch.tensor([[0.0], [1], [1]]), BOXES], dim=1)
    y = ops.roi_align3d(X, table, 2)
    assert torch.equal(ops.roi_align3d(X, [BOXES[:1], BOXES[1:]], 2), y)
    assert torch.equal(ops.roi_align3d(X, table[[2, 0, 1]], 2), y[[2, 0, 1]])
    assert torch.equal(ops.roi_align3d(X[1], BOXES, 2)[1:], y[1:])
    assert ops.roi_align3d(X, [BOXES[:0], BOXES[:0]], 2).shape == (0, 3, 2, 2, 2)
    assert ops.roi_align3d(X[:0], [], 2).shape == (0, 3, 2, 2, 2)


def test_module() -> None:
    layer = nn.RoIAlign3d((2, 3, 4), spatial_scale=0.5, sampling_ratio=2, aligned=True)
    assert torch.equal(
        layer(X, [BOXES, BOXES]), ops.roi_align3d(X, [BOXES, BOXES], (2, 3, 4), 0.5, 2, aligned=True)
    )
    assert "sampling_ratio=2" in repr(layer)
    assert not nn.RoIAlign3d(2, 1.0, -1).aligned


def test_volume_without_voxels_is_zero() -> None:
    assert torch.equal(ops.roi_align3d(torch.ones(1, 2, 0, 5, 5), [BOXES], 2), torch.zeros(3, 2, 2, 2, 2))


def test_boxes_far_outside_do_not_take_forever() -> None:
    boxes = torch.tensor([[-1e9, -1e9, -1e9, 1e9, 1e9, 1e9]])
    y = ops.roi_align3d(torch.ones(1, 1, 4, 4, 4), [boxes], 2)
    assert y.abs().max() < 1e-6  # nearly all samples are outside


def test_double_backward() -> None:
    x = X.double().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda v: ops.roi_align3d(v, [BOXES, BOXES], 2) ** 2, x, fast_mode=True
    )


@pytest.mark.parametrize(
    ("x", "boxes", "arguments", "error", "message"),
    [
        (X, BOXES, {}, RuntimeError, r"boxes must be \[K, 7\] .* \(or a list .*got shape \(3, 6\)"),
        (
            X[0],
            [BOXES],
            {},
            RuntimeError,
            r"one entry for each volume .*, got 1 for .*\(3, 6, 7, 8\)",
        ),
        (X, [BOXES], {}, RuntimeError, r"one entry for each volume of the batch, got 1"),
        (X, [BOXES, BOXES[:, :4]], {}, RuntimeError, r"boxes\[1\] must be \[K, 6\], got shape \(3, 4\)"),
        (X, [BOXES, BOXES.double()], {}, RuntimeError, r"one dtype, got torch.float32 and torch.float64"),
        (X, 3, {}, TypeError, "boxes must be a Tensor or a list of Tensors, got int"),
        (X, [BOXES, BOXES.int()], {}, RuntimeError, r"boxes\[1\] must be one of .*, got int32"),
        (X[0, 0], BOXES, {}, RuntimeError, r"x must be \[N, C, D, H, W\] or \[C, D, H, W\]"),
        (X.int(), [BOXES, BOXES], {}, RuntimeError, "x must be one of .*, got int32"),
        (X, [BOXES, BOXES], {"output_size": (2, 0, 2)}, RuntimeError, "output_size must be at least 1"),
        (X, [BOXES, BOXES], {"output_size": (2, 2)}, RuntimeError, "output_size must be one int or three"),
        (X, [BOXES, BOXES], {"output_size": 2.5}, TypeError, "output_size must be of ints, got 2.5"),
        (X, [BOXES, BOXES], {"spatial_scale": 0.0}, RuntimeError, "spatial_scale must be positive, got 0.0"),
        (X, [BOXES, BOXES], {"sampling_ratio": 0.5}, TypeError, "sampling_ratio must be of ints, got 0.5"),
        (X, [BOXES, BOXES], {"aligned": 1}, TypeError, "aligned must be a bool, got 1"),
    ],
)
def test_wrong_arguments(
    x: Tensor, boxes: Tensor, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ops.roi_align3d(x, boxes, **{"output_size": 2, **arguments})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            (0, 1, 1, 1, 4, 5, 0),
            r"roi_align3d: boxes must be finite .*boxes\[1\] = \(1, 1, 1, 4, 5, 0\)",
        ),
        ((0, 1, 1, 1, 4, float("nan"), 6), r"boxes\[1\] = \(1, 1, 1, 4, nan, 6\)"),
        ((2, 1, 1, 1, 4, 5, 6), r"boxes\[1\] is of image 2 in a batch of 2"),
        ((-1, 1, 1, 1, 4, 5, 6), r"boxes\[1\] is of image -1 in a batch of 2"),
        ((0, 1, 1, 1, 4, 5, 1e10), r"within 2\^31 voxels, got boxes\[1\]\[5\] = 1e\+10"),
    ],
)
def test_invalid_box_is_named(row: tuple[float, ...], message: str) -> None:
    boxes = torch.tensor([(0.0, 1, 1, 1, 4, 5, 6), row])
    with pytest.raises(RuntimeError, match=message):
        ops.roi_align3d(X, boxes, 2)
