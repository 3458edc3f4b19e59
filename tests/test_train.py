"""Training of the reference detector: losses, planting, patches, and a loop that can be interrupted."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from volnet.data import CTVolume, Geometry
from volnet.detection import Finding, anchor_boxes, decode_boxes, encode_boxes
from volnet.models.nodule_rpn import NoduleRPN, NoduleRPNConfig, load_nodule_rpn
from volnet.train.losses import box_regression_loss, hard_negative_bce
from volnet.train.nodule_rpn.augment import random_appearance, thick_slices
from volnet.train.nodule_rpn.crops import NoduleCrop, estimate_hu, is_held_out, read_nodule_crops
from volnet.train.nodule_rpn.evaluate import Truth, froc, plant_in_scan
from volnet.train.nodule_rpn.loop import detection_loss, train_on_batches
from volnet.train.nodule_rpn.patches import Batch, TrainingBatches
from volnet.train.nodule_rpn.planting import Sprite, control_sprite, nodule_sprite, paste, plant
from volnet.train.nodule_rpn.scans import Background, lung_mask, make_background

TINY = NoduleRPNConfig(channels=(8, 8, 8), anchor_sizes=(6.0, 12.0))
LUNG_HU, NODULE_HU = -850.0, 40.0


def ball(shape: tuple[int, int, int], center: tuple[float, float, float], radius: float) -> np.ndarray:
    grid = np.indices(shape) - np.reshape(center, (3, 1, 1, 1))
    return (grid**2).sum(axis=0) <= radius**2


def made_crop(rng: np.random.Generator, patient: str = "p", radius_mm: float = 5.0) -> NoduleCrop:
    """A round nodule in even lung, in slices of 2 mm and pixels of 0.7 mm."""
    half = int(radius_mm // 2)
    d, h, w = np.meshgrid(np.arange(-half, half + 1) * 2.0, *[(np.arange(96) - 48) * 0.7] * 2, indexing="ij")
    mask = (d**2 + h**2 + w**2 <= radius_mm**2).astype(np.float32)
    hu = LUNG_HU + (NODULE_HU - LUNG_HU) * mask + rng.normal(0, 10, mask.shape)
    return NoduleCrop(
        patient, patient, hu.astype(np.float32), mask, (2.0, 0.7, 0.7), (0, 0, 0), 4, 2 * radius_mm
    )


def made_background(side: int = 96) -> Background:
    hu = np.full((side, side, side), 40, dtype=np.int16)
    lung = np.zeros(hu.shape, dtype=bool)
    lung[8:-8, 8:-8, 8:-8] = True
    hu[lung] = LUNG_HU
    hu += np.random.default_rng(0).integers(-20, 21, hu.shape, dtype=np.int16)
    return Background("made up", hu, lung, np.zeros((0, 6)))


def made_batches(length: int, config: NoduleRPNConfig = TINY, seed: int = 3) -> TrainingBatches:
    rng = np.random.default_rng(1)
    crops = [made_crop(rng, f"p{i}", radius) for i, radius in enumerate((3.0, 5.0, 7.0, 7.0))]
    return TrainingBatches(
        crops, [made_background()], config, batch_size=2, side=48, length=length, seed=seed
    )


# --- losses


def test_hard_negative_bce_equals_its_definition() -> None:
    torch.manual_seed(0)
    logits = torch.randn(500, dtype=torch.float64)
    labels = torch.randint(-1, 2, (500,))
    labels[labels == 1] = torch.where(torch.rand(int((labels == 1).sum())) < 0.1, 1, -1)
    positives = logits[labels == 1]
    hardest = logits[labels == 0].sort(descending=True).values[: max(20, 3 * len(positives))]
    expected = 0.5 * binary_cross_entropy_with_logits(positives, torch.ones_like(positives))
    expected += 0.5 * binary_cross_entropy_with_logits(hardest, torch.zeros_like(hardest))
    assert hard_negative_bce(logits, labels, min_negatives=20).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_loss_gradients() -> None:
    logits = torch.tensor([-2.0, 3.0, 1.0, -5.0, 0.5], requires_grad=True)
    labels = torch.tensor([1, 0, 0, 0, -1])
    hard_negative_bce(logits, labels, negatives_per_positive=2, min_negatives=2).backward()
    # d/dx of 0.5 * softplus(-x), and of 0.25 * softplus(x) for each of the two hardest.
    expected = [-0.5 * torch.tensor(2.0).sigmoid(), *(0.25 * torch.tensor([3.0, 1.0]).sigmoid()), 0.0, 0.0]
    assert logits.grad.tolist() == pytest.approx([float(e) for e in expected])
    # Inside 1/9 smooth L1 is a parabola of slope 9, outside a line: mean over six numbers.
    deltas = torch.tensor([[0.05, -0.05, 1.0, -2.0, 0.0, 0.0]], requires_grad=True)
    box_regression_loss(deltas, torch.zeros(1, 6)).backward()
    assert (6 * deltas.grad).tolist()[0] == pytest.approx([0.45, -0.45, 1.0, -1.0, 0.0, 0.0])


def test_losses_of_nothing_are_zero_and_differentiate() -> None:
    logits = torch.zeros(3, requires_grad=True)
    deltas = torch.zeros(0, 6, requires_grad=True)
    loss = hard_negative_bce(logits, torch.full((3,), -1)) + box_regression_loss(deltas, torch.zeros(0, 6))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"\[3\] and \[2\]"):
        hard_negative_bce(torch.zeros(3), torch.zeros(2))


# --- nodules


def test_estimated_hu_is_near_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth = np.full((3, 96, 96), -860.0)
    truth[:, 50:] = 45.0
    truth[:, 90:, :20] = 700.0
    truth += rng.normal(0, 15, truth.shape)
    for low, step in ((-1000, 8.0), (-970, 9.5), (-985, 7.8)):
        grey = np.clip(np.round((truth - low) / step), 0, 255).astype(np.uint8)
        error = estimate_hu(grey) - truth
        assert np.abs(error).mean() < 40
        assert np.abs(error[:, 50:90]).mean() < 25


def test_estimated_hu_of_real_crops(shared_data: Path) -> None:
    from volnet.data.read import read_ct

    crops = read_nodule_crops(shared_data / "lidc_nodule_crops")
    assert len(crops) == 2106
    for index, name in enumerate(("LIDC-IDRI-0001", "LIDC-IDRI-0002")):
        crop = crops[index]
        assert crop.patient_id == name
        scan = read_ct(shared_data / "lidc_scans" / f"{name}.nii.gz").voxels
        d, h, w = crop.corner
        truth = scan[d : d + len(crop.hu), h : h + 96, w : w + 96]
        # A grey level is about 8 HU, the darkest grey 30 HU uncertain.
        assert np.abs(crop.hu - truth)[crop.mask >= 0.5].mean() < 25
    held_out = {crop.patient_id for crop in crops if is_held_out(crop.patient_id)}
    assert "LIDC-IDRI-0001" in held_out
    assert 100 < len(held_out) < 200


@pytest.mark.parametrize("brightest", [False, True])
def test_planted_nodule_keeps_its_hu_and_its_place(brightest: bool) -> None:
    rng = np.random.default_rng(4)
    crop = made_crop(rng, radius_mm=7.0)
    background = made_background(64)
    before = background.hu.astype(np.float32)
    after = before.copy()
    box = plant(
        after,
        background.lung,
        nodule_sprite(crop, rng),
        np.array([30, 32, 28]),
        np.zeros((0, 6)),
        brightest=brightest,
    )
    assert box is not None
    # 14 mm across in whichever direction it was turned, half a slice of 2 mm more at most.
    assert ((box[3:] - box[:3]) >= 12).all()
    assert ((box[3:] - box[:3]) <= 17).all()
    assert np.abs((box[3:] + box[:3]) / 2 - (30.5, 32.5, 28.5)).max() <= 1.0
    core = ball(after.shape, (30, 32, 28), 4.0)
    assert after[core].mean() == pytest.approx(NODULE_HU, abs=10)
    far = ~ball(after.shape, (30, 32, 28), 12.5)
    assert np.array_equal(after[far], before[far])
    if brightest:
        assert (after >= before).all()


def test_nothing_is_planted_where_it_would_not_be_seen() -> None:
    rng = np.random.default_rng(4)
    sprite = nodule_sprite(made_crop(rng), rng)
    background = made_background(64)
    hu = background.hu.astype(np.float32)
    nothing = np.zeros((0, 6))
    wall, edge, middle = np.array([4, 32, 32]), np.array([62, 32, 32]), np.array([32, 32, 32])
    assert plant(hu, background.lung, sprite, wall, nothing, brightest=True) is None
    assert plant(hu, background.lung, sprite, edge, nothing, brightest=True) is None
    taken = np.array([[30.0, 30, 30, 34, 34, 34]])
    assert plant(hu, background.lung, sprite, middle, taken, brightest=True) is None
    assert np.array_equal(hu, background.hu)


def test_nodule_at_the_wall_is_boxed_where_it_shows() -> None:
    rng = np.random.default_rng(4)
    background = made_background(64)
    hu = background.hu.astype(np.float32)
    sprite = nodule_sprite(made_crop(rng, radius_mm=7.0), rng)
    # The lung begins at 8: about a quarter of the ball is in the wall.
    box = plant(hu, background.lung, sprite, np.array([32, 11, 32]), np.zeros((0, 6)), brightest=True)
    assert box is not None
    assert box[1] == 8


def test_control_is_lung_and_leaves_no_mark_on_lung() -> None:
    rng = np.random.default_rng(0)
    crop = made_crop(rng)
    control = control_sprite(crop, rng)
    assert control is not None
    assert control.hu[control.mask >= 0.5].mean() == pytest.approx(LUNG_HU, abs=20)
    hu = np.full((40, 40, 40), LUNG_HU, dtype=np.float32)
    paste(hu, control, np.array([10, 10, 10]), brightest=False)
    assert np.abs(hu - LUNG_HU).max() < 60
    only_nodule = NoduleCrop(
        "p", "p", np.full_like(crop.hu, NODULE_HU), crop.mask, crop.spacing, (0, 0, 0), 4, crop.diameter_mm
    )
    assert control_sprite(only_nodule, rng) is None


def test_paste_is_cut_at_the_edge_of_the_image() -> None:
    sprite = Sprite(np.full((6, 6, 6), 100, np.float32), np.ones((6, 6, 6), np.float32))
    hu = np.zeros((10, 10, 10), dtype=np.float32)
    paste(hu, sprite, np.array([-3, 7, 2]), brightest=False)
    assert hu[:3, 7:, 2:8].max() == 100
    hu[:3, 7:, 2:8] = 0
    assert not hu.any()
    paste(hu, sprite, np.array([20, 0, 0]), brightest=False)
    assert not hu.any()


# --- scans and patches


def test_lung_mask_takes_lung_and_nothing_else() -> None:
    hu = np.full((120, 160, 160), -1000, dtype=np.int16)
    body = ball(hu.shape, (60, 80, 80), 70) & (np.indices(hu.shape)[0] > 4)
    hu[body] = 40
    lung = ball(hu.shape, (60, 80, 46), 30) | ball(hu.shape, (60, 80, 114), 30)
    hu[lung] = -850
    hu[60, 80, 40:60] = 20  # a vessel
    hu[:, 155:157] = -800  # a thin layer of the table
    mask = lung_mask(hu)
    agreement = (mask & lung).sum() / (mask | lung).sum()
    assert agreement > 0.93
    assert mask[60, 80, 50]
    geometry = Geometry(hu.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    background = make_background(CTVolume(hu, geometry, "1", "made up"), "made up", [[1, 2, 3, 4, 5, 6]])
    assert np.array_equal(background.lung, mask)
    assert background.ignore.tolist() == [[1, 2, 3, 4, 5, 6]]
    with pytest.raises(ValueError, match="made up: no lung"):
        make_background(CTVolume(np.full_like(hu, 40), geometry, "1", "made up"), "made up")


def test_batches_depend_on_seed_and_index_alone() -> None:
    first, second = made_batches(6), made_batches(6)
    for index in (4, 2, 0):
        assert torch.equal(first[index].images, second[index].images)
        assert torch.equal(first[index].labels, second[index].labels)
    assert not torch.equal(first[0].images, first[1].images)
    assert not torch.equal(first[0].images, made_batches(6, seed=9)[0].images)


@pytest.mark.parametrize("index", range(9))
def test_boxes_of_a_batch_are_where_the_nodules_are(index: int) -> None:
    """The nodule of every positive anchor is bright inside its box and dark around it."""
    batches = made_batches(9)
    batch = batches[index]
    assert batch.images.min() >= 0
    assert batch.images.max() <= 1
    grid = [n // 4 for n in batch.images.shape[2:]]
    anchors = anchor_boxes(grid, 4, TINY.anchor_sizes)
    assert batch.labels.shape == (len(batch.images), len(anchors))
    assert len(batch.targets) == int((batch.labels == 1).sum())
    used = 0
    for image, labels in zip(batch.images[:, 0], batch.labels, strict=True):
        count = int((labels == 1).sum())
        boxes = decode_boxes(batch.targets[used : used + count], anchors[labels == 1])
        used += count
        for box in boxes.round().long().unique(dim=0).tolist():
            middle = [(box[i] + box[i + 3]) // 2 for i in range(3)]
            core = image[tuple(slice(max(m - 1, 0), m + 2) for m in middle)]
            assert core.mean() > 0.5


def test_unreachable_data_is_refused() -> None:
    with pytest.raises(ValueError, match="0 nodules, 1 scans"):
        TrainingBatches([], [made_background()], TINY, batch_size=1, side=48, length=1, seed=0)


def test_thick_slices_average_over_their_thickness() -> None:
    rng = np.random.default_rng(0)
    hu = rng.normal(0, 100, (60, 4, 4)).astype(np.float32)
    thick = thick_slices(hu, 5.0, 1.0)
    # Slices begin at 0, 5, 10, ...: their centres lie on voxels 2, 7, 12, ...
    expected = hu.reshape(12, 5, 4, 4).mean(axis=1)
    np.testing.assert_allclose(thick[2::5], expected, atol=0.02)
    np.testing.assert_allclose(thick[4::5][:-1], 0.6 * expected[:-1] + 0.4 * expected[1:], atol=0.02)
    flat = np.full((30, 3, 3), 7.0, dtype=np.float32)
    for thickness, phase in ((2.0, 0.3), (2.5, 0.0), (3.0, 0.9)):
        np.testing.assert_allclose(thick_slices(flat, thickness, phase), flat, rtol=1e-5)


def test_appearance_stays_within_reason() -> None:
    rng = np.random.default_rng(0)
    hu = np.full((24, 24, 24), -850, dtype=np.float32)
    for _ in range(30):
        changed = random_appearance(hu.copy(), rng)
        assert changed.shape == hu.shape
        assert changed.dtype == np.float32
        assert abs(changed.mean() + 850) < 200


# --- evaluation


def finding(x: float, score: float) -> Finding:
    return Finding((0.0, 0.0, 0.0), (x, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0, 1.0, 1.0), 5.0, score)


def test_froc_by_hand() -> None:
    first = [finding(0, 0.9), finding(1, 0.85), finding(50, 0.8), finding(99, 0.7), finding(20, 0.6)]
    second = [finding(50, 0.5), finding(0, 0.4)]
    truths = [Truth((0.0, 0.0, 0.0), 6.0), Truth((20.0, 0.0, 0.0), 6.0)]
    other = [Truth((99.0, 0.0, 0.0), 6.0)]
    # False: 0.8 and 0.5. Found, at their scores: 0.9, 0.6, 0.4, and one never.
    points = froc([(first, truths, other), (second, truths, [])], rates=(0.0, 0.5, 1.0, 2.0))
    assert [p.found for p in points] == [0.25, 0.5, 0.75, 0.75]
    assert [p.score for p in points] == [0.8, 0.5, 0.0, 0.0]


def test_nodules_planted_in_a_scan_are_where_the_truth_says() -> None:
    rng = np.random.default_rng(0)
    geometry = Geometry((40, 140, 140), (2.5, 0.7, 0.7), (-49.0, -49.0, 10.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    voxels = np.full(geometry.shape, LUNG_HU, dtype=np.int16)
    ct = CTVolume(voxels, geometry, "1.2.3", "made up")
    lung = np.ones(geometry.resampled((1, 1, 1)).shape, dtype=bool)
    sprites = [nodule_sprite(made_crop(rng, f"p{i}", 6.0), rng) for i in range(3)]
    copy, truths = plant_in_scan(ct, lung, sprites, rng, np.zeros((0, 6)))
    assert len(truths) == 3
    assert (voxels == LUNG_HU).all()
    coordinates = np.moveaxis(np.indices(geometry.shape), 0, -1)
    lps = geometry.voxel_to_lps(coordinates)
    changed = np.zeros(geometry.shape, dtype=bool)
    for truth in truths:
        distance = np.linalg.norm(lps - np.array(truth.center_lps), axis=-1)
        assert copy.voxels[distance < 3].mean() == pytest.approx(NODULE_HU, abs=25)
        changed |= distance < 11
    assert np.abs(copy.voxels[~changed] - LUNG_HU).max() <= 1


# --- the loop


def test_a_tiny_network_learns_one_batch() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 1, 32, 32, 32) * 0.1
    image[0, 0, 9:15, 17:23, 9:15] = 0.8
    anchors = anchor_boxes((8, 8, 8), 4, TINY.anchor_sizes)
    box = torch.tensor([9.0, 17, 9, 15, 23, 15])
    labels = torch.zeros(2, len(anchors), dtype=torch.int64)
    positive = ((anchors - box).abs().amax(dim=1) <= 2).nonzero()[:, 0]
    labels[0, positive] = 1
    batch = Batch(image, labels, encode_boxes(box.expand(len(positive), 6), anchors[positive]))
    model = NoduleRPN(TINY).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    metrics = []
    for _ in range(61):
        optimizer.zero_grad()
        loss, measured = detection_loss(model(batch.images), batch)
        loss.backward()
        optimizer.step()
        metrics.append(measured)
    first, last = metrics[0], metrics[-1]
    assert last["score_loss"] < 0.1 * first["score_loss"]
    assert last["box_loss"] < 0.5 * max(first["box_loss"], 1e-3)
    assert last["recall"] == 1.0
    assert last["false_share"] == 0.0


def test_resuming_gives_the_same_bits(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    options = {"minutes": None, "seed": 5, "bfloat16": False, "workers": 0}
    asked = iter([False, True])
    train_on_batches(made_batches(4), whole, **options)
    train_on_batches(made_batches(4), halves, stop=lambda: next(asked), **options)
    assert len((halves / "metrics.csv").read_text().splitlines()) == 3
    train_on_batches(made_batches(4), halves, **options)
    expected, result = (load_nodule_rpn(f / "nodule_rpn.safetensors").state_dict() for f in (whole, halves))
    for name, value in expected.items():
        assert torch.equal(result[name], value), name
    rows = [list(csv.DictReader((f / "metrics.csv").read_text().splitlines())) for f in (whole, halves)]
    assert [row["step"] for row in rows[0]] == ["1", "2", "3", "4"]
    for a, b in zip(*rows, strict=True):
        del a["seconds"], b["seconds"]
        assert a == b


def test_bfloat16_weights_serve_the_float32_network(tmp_path: Path) -> None:
    weights = train_on_batches(made_batches(3), tmp_path, minutes=None, seed=5, bfloat16=True)
    trained = load_nodule_rpn(weights)
    initial = NoduleRPN(TINY).state_dict()
    for name, value in trained.state_dict().items():
        assert value.dtype == initial[name].dtype
        assert value.isfinite().all()
    image = made_batches(3)[0].images
    with torch.inference_mode():
        exact = trained(image)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = trained(image)[0].float()
    # Logits are of size 5; bfloat16 carries 8 bits.
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.1)


def test_no_time_left_still_leaves_weights(tmp_path: Path) -> None:
    weights = train_on_batches(made_batches(100), tmp_path, minutes=1e-9, seed=0, bfloat16=False)
    assert load_nodule_rpn(weights).config == TINY
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2
