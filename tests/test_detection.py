"""volnet.detection against definitions written out here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from volnet.detection import (
    IGNORED,
    NEGATIVE,
    Finding,
    anchor_boxes,
    decode_boxes,
    encode_boxes,
    match_anchors,
    select_boxes,
)

coordinate = st.floats(-200, 200, width=32)
side = st.floats(2, 80, width=32)  # decoding holds scales beyond 64


def boxes_from(corners: list[float], sides: list[float]) -> torch.Tensor:
    low = torch.tensor(corners, dtype=torch.float64)
    return torch.cat([low, low + torch.tensor(sides, dtype=torch.float64)])


def iou(a: np.ndarray, b: np.ndarray) -> float:
    shared = 1.0
    for axis in range(3):
        shared *= max(0.0, min(a[axis + 3], b[axis + 3]) - max(a[axis], b[axis]))
    return shared / (np.prod(a[3:] - a[:3]) + np.prod(b[3:] - b[:3]) - shared)


def random_boxes(rng: np.random.Generator, count: int, extent: float = 40.0) -> np.ndarray:
    low = rng.uniform(0, extent, (count, 3))
    return np.concatenate([low, low + rng.uniform(3, 20, (count, 3))], axis=1)


def test_anchors_are_cubes_centred_on_their_cell_position_major() -> None:
    shape, stride, sizes = (2, 3, 4), 4, (5.0, 10.0)
    boxes = anchor_boxes(shape, stride, sizes)
    assert boxes.shape == (2 * 3 * 4 * 2, 6)
    row = 0
    for d in range(2):
        for h in range(3):
            for w in range(4):
                for size in sizes:
                    center = [stride * i + stride / 2 for i in (d, h, w)]
                    expected = [c - size / 2 for c in center] + [c + size / 2 for c in center]
                    assert boxes[row].tolist() == expected
                    row += 1


@pytest.mark.parametrize(
    ("shape", "stride", "sizes"), [((2, 2), 4, [5.0]), ((2, 2, 2), 0, [5.0]), ((2, 2, 2), 4, [-5.0])]
)
def test_anchors_refuse_nonsense(shape: tuple[int, ...], stride: int, sizes: list[float]) -> None:
    with pytest.raises(ValueError, match="got"):
        anchor_boxes(shape, stride, sizes)


@given(
    st.lists(coordinate, min_size=3, max_size=3),
    st.lists(side, min_size=3, max_size=3),
    st.lists(coordinate, min_size=3, max_size=3),
    st.lists(side, min_size=3, max_size=3),
)
def test_coder_round_trip(
    corners: list[float], sides: list[float], anchor_corners: list[float], anchor_sides: list[float]
) -> None:
    box, anchor = boxes_from(corners, sides), boxes_from(anchor_corners, anchor_sides)
    # Limited by the cancellation in centre - centre, at coordinates of a few hundred.
    assert torch.allclose(decode_boxes(encode_boxes(box, anchor), anchor), box, rtol=0, atol=1e-9)


def test_coder_by_hand() -> None:
    anchor = torch.tensor([10.0, 10, 10, 20, 20, 20])
    box = torch.tensor([10.0, 15, 5, 30, 25, 10])
    log2 = float(np.log(2))
    expected = [0.5, 0.5, -0.75, log2, 0.0, -log2]
    assert encode_boxes(box, anchor).tolist() == pytest.approx(expected)


def test_wild_offsets_decode_to_finite_boxes() -> None:
    anchor = torch.tensor([[0.0, 0, 0, 4, 4, 4]])
    assert decode_boxes(torch.full((1, 6), 1e4), anchor).isfinite().all()


@pytest.mark.parametrize("function", [encode_boxes, decode_boxes])
def test_coder_refuses_other_shapes(function) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"\[2, 5\]"):
        function(torch.zeros(2, 5), torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"\[2, 4\]"):
        function(torch.zeros(2, 6), torch.zeros(2, 4))


@pytest.mark.parametrize("seed", range(5))
def test_matching_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    anchors = anchor_boxes((8, 8, 8), 4, [5.0, 10.0, 20.0]).double()
    boxes = random_boxes(rng, seed, extent=20)
    labels = match_anchors(anchors, torch.from_numpy(boxes), positive_iou=0.35, negative_iou=0.1).tolist()
    table = np.array([[iou(a, b) for b in boxes] for a in anchors.numpy()]).reshape(len(anchors), len(boxes))
    best_anchor = table.max(axis=0) if len(boxes) else []
    for row, label in zip(table, labels, strict=True):
        # Ties between symmetric anchors differ in the last bits.
        forced = [m for m in range(len(boxes)) if row[m] >= best_anchor[m] - 1e-12]
        if forced:
            assert label in forced
        elif len(boxes) and row.max() >= 0.35:
            assert label == row.argmax()
        elif len(boxes) and row.max() >= 0.1:
            assert label == IGNORED
        else:
            assert label == NEGATIVE


def test_every_small_nodule_has_an_anchor() -> None:
    anchors = anchor_boxes((12, 12, 12), 4, [5.0, 10.0, 20.0, 40.0])
    for place in np.random.default_rng(0).uniform(8, 36, (50, 3)):
        box = torch.tensor([*place, *(place + 4)], dtype=torch.float32)[None]
        assert (match_anchors(anchors, box) == 0).any()


def test_matching_refuses_thresholds_out_of_order() -> None:
    with pytest.raises(ValueError, match=r"0\.5, 0\.3"):
        match_anchors(torch.zeros(0, 6), torch.zeros(0, 6), negative_iou=0.5, positive_iou=0.3)


@pytest.mark.parametrize("seed", range(5))
def test_selected_boxes_are_the_best_of_their_places(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, 60), rng.permutation(60) / 60
    kept, kept_scores = select_boxes(
        torch.from_numpy(boxes),
        torch.from_numpy(scores),
        score_threshold=0.2,
        iou_threshold=0.1,
        max_boxes=100,
    )

    def suppresses(a: np.ndarray, b: np.ndarray) -> bool:
        centers = (a[:3] + a[3:]) / 2, (b[:3] + b[3:]) / 2
        a_in_b = ((centers[0] >= b[:3]) & (centers[0] < b[3:])).all()
        b_in_a = ((centers[1] >= a[:3]) & (centers[1] < a[3:])).all()
        return bool(iou(a, b) > 0.1 or a_in_b or b_in_a)

    assert (kept_scores.diff() < 0).all()
    for i, a in enumerate(kept.numpy()):
        assert not any(suppresses(a, b) for b in kept.numpy()[:i])
    survivors = {tuple(box) for box in kept.tolist()}
    for box, score in zip(boxes, scores, strict=True):
        if tuple(box) not in survivors and score >= 0.2:
            # Something better overlapped it: kept itself, or dropped for the sake of something better still.
            assert any(suppresses(box, other) for other in boxes[scores > score])
    assert scores.max() == kept_scores[0]


def test_selection_keeps_to_its_limits() -> None:
    boxes = torch.tensor([[10.0 * i, 0, 0, 10 * i + 5, 5, 5] for i in range(10)])
    scores = torch.arange(10) / 10
    assert len(select_boxes(boxes, scores, score_threshold=0.45)[0]) == 5
    assert select_boxes(boxes, scores, score_threshold=0.0, max_boxes=2)[1].tolist() == pytest.approx(
        [0.9, 0.8]
    )
    assert len(select_boxes(boxes, scores, score_threshold=2.0)[0]) == 0
    with pytest.raises(ValueError, match="got 0"):
        select_boxes(boxes, scores, score_threshold=0.0, max_boxes=0)


def test_finding_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match=r"1\.5"):
        Finding((0, 0, 0), (0, 0, 0), (0, 0, 0, 1, 1, 1), 1.0, 1.5)
    with pytest.raises(ValueError, match="box_voxel"):
        Finding((0, 0, 0), (0, 0, 0), (0, 0, 0, 1), 1.0, 0.5)
