"""What the case table cannot say about non-maximum suppression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from volnet import isa, ops


def greedy_in_float32(boxes: Tensor, scores: Tensor, iou_threshold: float) -> list[int]:
    """The plain algorithm with the operator's own rounding, so that no decision may differ."""
    order = np.argsort(-scores.numpy(), kind="stable")
    box = boxes.numpy()[order]
    alive = np.ones(len(box), dtype=bool)
    with np.errstate(all="ignore"):
        side = box[:, 3:] - box[:, :3]
        volume = side[:, 0] * side[:, 1] * side[:, 2]
        for i in range(len(box)):
            if alive[i]:
                later = box[i + 1 :]
                overlap = np.minimum(box[i, 3:], later[:, 3:]) - np.maximum(box[i, :3], later[:, :3])
                overlap = np.maximum(overlap, 0)
                inter = overlap[:, 0] * overlap[:, 1] * overlap[:, 2]
                iou = inter / (volume[i] + volume[i + 1 :] - inter)
                assert iou.dtype == np.float32
                alive[i + 1 :] &= ~(iou.astype(np.float64) > iou_threshold)
    return order[alive].tolist()


@pytest.mark.parametrize(
    "level", [level for level in isa.available() if level in ("scalar", "avx2", "avx512")]
)
def test_keeps_the_boxes_of_the_plain_algorithm(level: str) -> None:
    generator = torch.Generator().manual_seed(0)
    side = 4 + 20 * torch.rand(6000, 3, generator=generator)
    start = (200 - side) * torch.rand(6000, 3, generator=generator)
    boxes = torch.cat([start, start + side], dim=1)
    scores = torch.rand(6000, generator=generator)
    with isa.limit(level):
        assert ops.nms3d(boxes, scores, 0.22).tolist() == greedy_in_float32(boxes, scores, 0.22)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_integer_boxes_and_ties(data: st.DataObject) -> None:
    """Small integers make exact ties of scores and of IoU with threshold, and boxes without volume."""
    count = data.draw(st.integers(0, 40))
    draw = lambda high, n: data.draw(st.lists(st.integers(0, high), min_size=n, max_size=n))  # noqa: E731
    start = torch.tensor(draw(6, 3 * count), dtype=torch.float32).reshape(count, 3)
    size = torch.tensor(draw(4, 3 * count), dtype=torch.float32).reshape(count, 3)
    scores = torch.tensor(draw(5, count), dtype=torch.float32)
    threshold = data.draw(st.sampled_from([0.0, 1 / 3, 0.25, 0.5, 2 / 3, 1.0]))
    boxes = torch.cat([start, start + size], dim=1)
    assert ops.nms3d(boxes, scores, threshold).tolist() == greedy_in_float32(boxes, scores, threshold)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e18, 1e37])
def test_extreme_coordinates(scale: float) -> None:
    """Volumes that underflow or overflow float32 are still decided as the formula says."""
    generator = torch.Generator().manual_seed(1)
    start = torch.rand(300, 3, generator=generator) - 0.5
    boxes = scale * torch.cat([start, start + 0.3 * torch.rand(300, 3, generator=generator)], dim=1)
    scores = torch.rand(300, generator=generator)
    assert ops.nms3d(boxes, scores, 0.1).tolist() == greedy_in_float32(boxes, scores, 0.1)


def test_one_enormous_box_among_many_small_ones() -> None:
    generator = torch.Generator().manual_seed(2)
    start = 100 * torch.rand(2000, 3, generator=generator)
    boxes = torch.cat([start, start + 4], dim=1)
    boxes[::500] = torch.tensor([-5e3, -5e3, -5e3, 5e3, 5e3, 5e3])
    scores = torch.rand(2000, generator=generator)
    assert ops.nms3d(boxes, scores, 0.2).tolist() == greedy_in_float32(boxes, scores, 0.2)


def test_threshold_is_compared_in_double() -> None:
    """An IoU of 1/3 rounds to a float32 above the double 1/3, as does the threshold if it is rounded up."""
    boxes = torch.tensor([[0.0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 3]])
    scores = torch.tensor([2.0, 1.0])
    iou = float(torch.tensor(1.0) / 3)
    assert iou > 1 / 3
    assert ops.nms3d(boxes, scores, 1 / 3).tolist() == [0]
    assert ops.nms3d(boxes, scores, iou).tolist() == [0, 1]


def test_scores_may_have_another_dtype_than_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 0, 4, 4, 4], [0, 0, 0, 4, 4, 5]])
    scores = torch.tensor([0.5, 0.5 + 1e-12], dtype=torch.float64)  # equal in float32
    assert ops.nms3d(boxes, scores, 0.2).tolist() == [1]
    assert ops.nms3d(boxes, torch.tensor([float("-inf"), float("inf")]), 0.2).tolist() == [1]


def test_strided_arguments() -> None:
    wide = torch.rand(50, 12, generator=torch.Generator().manual_seed(3))
    boxes = torch.cat([wide[:, :3], wide[:, :3] + wide[:, 3:6]], dim=1)
    scores = wide[:, 7]
    spread = torch.stack([boxes, boxes], dim=2)[..., 0]
    assert not spread.is_contiguous()
    assert torch.equal(ops.nms3d(spread, scores, 0.1), ops.nms3d(boxes, scores.contiguous(), 0.1))


BOX = torch.tensor([[0.0, 0, 0, 4, 4, 4]]).repeat(3, 1)
SCORE = torch.ones(3)


@pytest.mark.parametrize(
    "values",
    [
        (0, 0, 0, 4, 4, -1),
        (5, 0, 0, 4, 4, 4),
        (0, float("nan"), 0, 4, 4, 4),
        (0, 0, 0, float("inf"), 4, 4),
    ],
)
def test_invalid_box_is_named(values: tuple[float, ...]) -> None:
    boxes = BOX.clone()
    boxes[1] = torch.tensor(values)
    with pytest.raises(RuntimeError, match=r"nms3d: boxes must be finite .*, got boxes\[1\] = \("):
        ops.nms3d(boxes, SCORE, 0.5)
    with pytest.raises(RuntimeError, match=r"boxes\[1\]"):
        ops.batched_nms3d(boxes, SCORE, torch.tensor([2, 1, 2]), 0.5)


def test_nan_score_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"scores must not be NaN, got scores\[2\]"):
        ops.nms3d(BOX, torch.tensor([1.0, 2.0, float("nan")]), 0.5)


@pytest.mark.parametrize(
    ("boxes", "scores", "threshold", "error", "message"),
    [
        (BOX[0], SCORE, 0.5, RuntimeError, r"boxes must be \[K, 6\], got shape \(6,\)"),
        (BOX[:, :4], SCORE, 0.5, RuntimeError, r"boxes must be \[K, 6\], got shape \(3, 4\)"),
        (BOX, SCORE[:2], 0.5, RuntimeError, r"scores must be \[3\], one for each box, got shape \(2,\)"),
        (BOX, SCORE[:, None], 0.5, RuntimeError, r"scores must be \[3\].*got shape \(3, 1\)"),
        (BOX.int(), SCORE, 0.5, RuntimeError, "boxes must be one of .*, got int32"),
        (BOX, SCORE.half(), 0.5, RuntimeError, "scores must be one of .*, got float16"),
        (BOX, SCORE, 1.5, ValueError, "iou_threshold must be from 0 to 1, got 1.5"),
        (BOX, SCORE, float("nan"), ValueError, "iou_threshold must be from 0 to 1, got nan"),
        (BOX.tolist(), SCORE, 0.5, TypeError, "boxes must be a Tensor, got list"),
    ],
)
def test_wrong_arguments(
    boxes: Tensor, scores: Tensor, threshold: float, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ops.nms3d(boxes, scores, threshold)


def test_wrong_labels() -> None:
    with pytest.raises(RuntimeError, match=r"labels must be \[3\]"):
        ops.batched_nms3d(BOX, SCORE, torch.zeros(2, dtype=torch.int64), 0.5)
    with pytest.raises(RuntimeError, match=r"labels must be one of .*, got float32"):
        ops.batched_nms3d(BOX, SCORE, torch.zeros(3), 0.5)
