"""What the case table cannot say about the IoU of boxes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from volnet import ops

INTEGER_BOX = st.tuples(*[st.integers(0, 5)] * 3, *[st.integers(0, 5)] * 3)


def as_boxes(values: list[tuple[int, ...]]) -> Tensor:
    table = torch.tensor(values, dtype=torch.float32).reshape(len(values), 6)
    return torch.cat([table[:, :3], table[:, :3] + table[:, 3:]], dim=1)


@settings(max_examples=40, deadline=None)
@given(st.lists(INTEGER_BOX, max_size=6), st.lists(INTEGER_BOX, max_size=20))
def test_counts_voxels(first: list[tuple[int, ...]], second: list[tuple[int, ...]]) -> None:
    """Boxes of whole voxels: the IoU is that of the sets of voxels in them."""

    def voxels(box: Tensor) -> set[tuple[int, ...]]:
        d1, h1, w1, d2, h2, w2 = box.int().tolist()
        return {(d, h, w) for d in range(d1, d2) for h in range(h1, h2) for w in range(w1, w2)}

    a, b = as_boxes(first), as_boxes(second)
    iou = ops.box_iou3d(a, b)
    assert iou.shape == (len(a), len(b))
    for i, box_a in enumerate(a):
        for j, box_b in enumerate(b):
            of_a, of_b = voxels(box_a), voxels(box_b)
            expected = len(of_a & of_b) / len(of_a | of_b) if of_a | of_b else 0.0
            assert float(iou[i, j]) == float(torch.tensor(expected))


def test_only_the_needed_gradient_is_made() -> None:
    a = torch.tensor([[0.0, 0, 0, 4, 4, 4]], requires_grad=True)
    b = torch.tensor([[1.0, 1, 1, 5, 5, 5]])
    ops.box_iou3d(a, b).sum().backward()
    assert a.grad is not None
    assert b.grad is None


def test_strided_boxes() -> None:
    wide = torch.rand(20, 6).cumsum(dim=1)[:, [0, 1, 2, 3, 4, 5]]
    spread = torch.stack([wide, -wide], dim=2)[..., 0]
    assert not spread.is_contiguous()
    assert torch.equal(ops.box_iou3d(spread, spread[::2]), ops.box_iou3d(wide, wide[::2].contiguous()))


BOX = torch.tensor([[0.0, 0, 0, 4, 4, 4]]).repeat(70000, 1)


@pytest.mark.parametrize(("row", "value"), [(0, float("nan")), (69999, float("inf")), (66000, 5.0)])
def test_invalid_box_is_named(row: int, value: float) -> None:
    boxes = BOX.clone()
    boxes[row, 1] = value
    boxes[69999, 0] = 7.0  # a later row that is invalid too: the first is named
    with pytest.raises(RuntimeError, match=rf"box_iou3d: b must be finite .*, got b\[{row}\] = \("):
        ops.box_iou3d(BOX[:2], boxes)


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (BOX[0], BOX, RuntimeError, r"a must be \[K, 6\], got shape \(6,\)"),
        (BOX, BOX[:, :4], RuntimeError, r"b must be \[K, 6\], got shape \(70000, 4\)"),
        (BOX, BOX.double(), RuntimeError, "a and b must have one dtype, got torch.float32 and torch.float64"),
        (BOX.int(), BOX, RuntimeError, "a must be one of float32, float64, bfloat16, got int32"),
        (BOX, BOX.to_sparse(), RuntimeError, "b must be a dense tensor"),
        (BOX, None, TypeError, "b must be a Tensor, got NoneType"),
    ],
)
def test_wrong_arguments(a: Tensor, b: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.box_iou3d(a, b)
