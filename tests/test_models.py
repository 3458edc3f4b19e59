"""The reference detector: its network, its blocks, its weights file, and the way from voxels to findings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from volnet.data import CTVolume, Geometry
from volnet.models import InvalidWeightsError, NoduleRPN, NoduleRPNConfig, detect_nodules, load_nodule_rpn
from volnet.models.nodule_rpn import detect as detection
from volnet.models.nodule_rpn import fold_batch_norm, save_nodule_rpn
from volnet.models.nodule_rpn.model import ANCHOR_STRIDE, RECEPTIVE_RADIUS

LUNG_HU = -850
SMALL = NoduleRPNConfig(channels=(4, 6, 8), anchor_sizes=(5.0, 10.0))


def random_model(seed: int = 0, config: NoduleRPNConfig = SMALL) -> NoduleRPN:
    """Untrained, in eval mode, with running statistics that are not the identity."""
    torch.manual_seed(seed)
    model = NoduleRPN(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 2.0)
            torch.nn.init.normal_(module.bias)
    torch.nn.init.normal_(model.score.weight)
    return model.eval()


def test_output_shapes() -> None:
    logits, offsets = random_model()(torch.rand(2, 1, 16, 24, 40))
    assert logits.shape == (2, 2, 4, 6, 10)
    assert offsets.shape == (2, 2, 6, 4, 6, 10)


@pytest.mark.parametrize("shape", [(1, 1, 12, 16, 16), (1, 2, 16, 16, 16), (1, 16, 16, 16), (1, 1, 0, 8, 8)])
def test_refuses_other_inputs(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        random_model()(torch.zeros(shape))


def test_receptive_radius_is_the_true_one() -> None:
    # float64 and positive weights: nothing cancels, so a gradient of zero means out of sight.
    model = NoduleRPN(NoduleRPNConfig(channels=(1, 1, 1), anchor_sizes=(5.0,))).double().eval()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    side = 2 * RECEPTIVE_RADIUS + 64
    reach = 0
    for cell in (side // 8 - 1, side // 8):
        x = torch.ones(1, 1, side, 8, 8, dtype=torch.float64, requires_grad=True)
        model(x)[0][0, 0, cell].sum().backward()
        seen = torch.nonzero(x.grad.abs().sum(dim=(0, 1, 3, 4)))[:, 0]
        first, last = cell * ANCHOR_STRIDE, (cell + 1) * ANCHOR_STRIDE - 1
        reach = max(reach, first - int(seen.min()), int(seen.max()) - last)
    assert RECEPTIVE_RADIUS - 8 < reach <= RECEPTIVE_RADIUS


def test_folding_keeps_the_outputs() -> None:
    model = random_model().double()
    x = torch.rand(1, 1, 16, 24, 32, dtype=torch.float64)
    folded = fold_batch_norm(model)
    for expected, result in zip(model(x), folded(x), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    assert isinstance(model.stem[1], torch.nn.BatchNorm3d)
    with pytest.raises(ValueError, match="training mode"):
        fold_batch_norm(model.train())


@pytest.mark.parametrize("max_voxels", [190 * 24 * 32, 168 * 24 * 32, 1])
def test_blocks_equal_a_single_pass(max_voxels: int) -> None:
    model = random_model()
    image = torch.rand(224, 24, 32)
    calls: list[tuple[int, int]] = []
    blocks = detection.plan_blocks((224, 24, 32), max_voxels)
    assert len(blocks) > 1
    if max_voxels == 1:
        # As fine as it gets is slow: the plan is checked here, its arithmetic in the other cases.
        assert len(blocks) == 28 * 3 * 4
        return
    result = detection.predict_blocks(
        model, image, max_voxels=max_voxels, progress=lambda done, total: calls.append((done, total))
    )
    with torch.inference_mode():
        expected = model(image[None, None])
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b[0], rtol=1e-4, atol=1e-4)
    done, totals = zip(*calls, strict=True)
    assert done[0] == 0
    assert done[-1] == totals[0]
    assert len(set(totals)) == 1
    assert list(done) == sorted(set(done))


@pytest.mark.parametrize("shape", [(8, 8, 8), (304, 256, 304), (96, 512, 512)])
@pytest.mark.parametrize("max_voxels", [14_000_000, 6_000_000])
def test_block_plans_cover_everything_once_within_the_limit(
    shape: tuple[int, int, int], max_voxels: int
) -> None:
    covered = np.zeros([n // 8 for n in shape], dtype=int)
    for block in detection.plan_blocks(shape, max_voxels):
        keep, compute = [b[0] for b in block], [b[1] for b in block]
        covered[tuple(slice(a // 8, b // 8) for a, b in keep)] += 1
        assert np.prod([b - a for a, b in compute]) <= max_voxels
        for (a, b), (low, high), length in zip(keep, compute, shape, strict=True):
            assert low == max(0, a - RECEPTIVE_RADIUS)
            assert high == min(length, b + RECEPTIVE_RADIUS)
    assert (covered == 1).all()


def test_weights_round_trip(tmp_path: Path) -> None:
    model = random_model()
    save_nodule_rpn(model, tmp_path / "weights.safetensors")
    loaded = load_nodule_rpn(tmp_path / "weights.safetensors")
    assert loaded.config == SMALL
    assert not loaded.training
    x = torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(loaded(x)[0], model(x)[0])


def test_loading_names_the_file_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(InvalidWeightsError, match=r"w\.safetensors.*cannot be read"):
        load_nodule_rpn(path)
    path.write_bytes(b"no weights at all")
    with pytest.raises(InvalidWeightsError, match=r"w\.safetensors.*cannot be read"):
        load_nodule_rpn(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InvalidWeightsError, match=r"w\.safetensors.*None"):
        load_nodule_rpn(path)
    save_file({"a": torch.zeros(1)}, path, {"model": "nodule_rpn", "config": SMALL.to_json()})
    with pytest.raises(InvalidWeightsError, match=r"w\.safetensors.*do not fit"):
        load_nodule_rpn(path)
    for config in ("", "[]", json.dumps({"depth": [3]})):
        save_file({"a": torch.zeros(1)}, path, {"model": "nodule_rpn", "config": config})
        with pytest.raises(InvalidWeightsError, match=r"w\.safetensors.*configuration"):
            load_nodule_rpn(path)


class BrightCube(NoduleRPN):
    """Stands in for a trained network: fires where its input is bright, with the anchor's own box."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bright = torch.nn.functional.avg_pool3d(x, ANCHOR_STRIDE)
        anchors = len(self.config.anchor_sizes)
        logits = (20 * bright - 10).expand(-1, anchors, -1, -1, -1)
        return logits, torch.zeros(*logits.shape[:2], 6, *logits.shape[2:])


def test_findings_come_back_in_the_scan_s_own_coordinates() -> None:
    # An oblique, anisotropic scan; the bright cube is 8 mm wide, whatever the voxels are.
    turn = np.deg2rad(20)
    direction = (np.cos(turn), -np.sin(turn), 0.0, np.sin(turn), np.cos(turn), 0.0, 0.0, 0.0, 1.0)
    geometry = Geometry((40, 60, 80), (2.0, 0.8, 0.8), (-30.0, 12.0, 100.0), direction)
    voxels = np.full(geometry.shape, LUNG_HU, dtype=np.int16)
    voxels[20:24, 30:40, 40:50] = 400
    ct = CTVolume(voxels, geometry, "1.2.3", "made up")
    model = BrightCube(NoduleRPNConfig(anchor_sizes=(8.0,)))
    calls: list[tuple[int, int]] = []
    findings = detect_nodules(
        ct, model, score_threshold=0.5, progress=lambda done, total: calls.append((done, total))
    )
    assert calls[0][0] == 0
    assert calls[-1][0] == calls[-1][1]
    assert len(findings) >= 1
    best = findings[0]
    center = (21.5, 34.5, 44.5)
    # The grid of anchors has a step of 4 mm: the nearest one is at most half of that away on each axis.
    offset_mm = (np.array(best.center_voxel) - center) * geometry.spacing
    assert np.abs(offset_mm).max() <= 2.5
    lps = geometry.voxel_to_lps(best.center_voxel)
    assert best.center_lps == pytest.approx(tuple(lps))
    box = np.array(best.box_voxel)
    assert (box[3:] - box[:3]) * geometry.spacing == pytest.approx([8.0, 8.0, 8.0], rel=1e-4)
    # Half-open boxes, centres of voxels: half a voxel apart.
    assert (box[3:] + box[:3]) / 2 - 0.5 == pytest.approx(best.center_voxel, abs=1e-4)
    assert best.diameter_mm == pytest.approx(8.0, rel=1e-4)
    assert [f.score for f in findings] == sorted((f.score for f in findings), reverse=True)


def test_threshold_and_number_of_findings() -> None:
    geometry = Geometry((64, 64, 64), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    voxels = np.full(geometry.shape, LUNG_HU, dtype=np.int16)
    for index, place in enumerate((8, 24, 40, 52)):
        voxels[place : place + 8, place : place + 8, place : place + 8] = 100 * index
    ct = CTVolume(voxels, geometry, "1.2.3", "made up")
    model = BrightCube(NoduleRPNConfig(anchor_sizes=(8.0,)))
    everything = detect_nodules(ct, model, score_threshold=0.5)
    assert len(everything) >= 4
    assert detect_nodules(ct, model, score_threshold=0.5, max_findings=2) == everything[:2]
    few = detect_nodules(ct, model, score_threshold=everything[1].score)
    assert few == everything[: len(few)]
    assert detect_nodules(ct, model, score_threshold=1.0) == []
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match=str(wrong)):
            detect_nodules(ct, model, score_threshold=wrong)
    with pytest.raises(ValueError, match="got 0"):
        detect_nodules(ct, model, max_findings=0)


@pytest.mark.parametrize(("around", "found"), [(LUNG_HU, True), (-1000, False), (40, False)])
def test_only_what_has_lung_around_it_is_found(around: int, found: bool) -> None:
    geometry = Geometry((64, 64, 64), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    voxels = np.full(geometry.shape, around, dtype=np.int16)
    voxels[24:32, 24:32, 24:32] = 400
    ct = CTVolume(voxels, geometry, "1.2.3", "made up")
    findings = detect_nodules(ct, BrightCube(NoduleRPNConfig(anchor_sizes=(8.0,))), score_threshold=0.99)
    assert bool(findings) == found


def test_lung_share_counts_what_is_in_the_widened_box() -> None:
    rng = np.random.default_rng(0)
    image = np.zeros((48, 40, 56), dtype=np.float32)
    blocks = rng.random((24, 20, 28)) < 0.4
    image[...] = np.where(blocks.repeat(2, 0).repeat(2, 1).repeat(2, 2), 0.1, 0.9)  # -860 and 260 HU
    low = rng.integers(-4, 30, (40, 3)) * 2
    boxes = np.concatenate([low, low + rng.integers(1, 10, (40, 3)) * 2], axis=1)
    shares = detection._lung_share(
        torch.from_numpy(image), torch.from_numpy(boxes).float(), NoduleRPNConfig()
    )
    for box, share in zip(boxes, shares.tolist(), strict=True):
        first = np.minimum(np.maximum(box[:3] - 6, 0), np.array(image.shape) - 2)
        last = np.maximum(np.minimum(box[3:] + 6, image.shape), first + 2)
        inside = image[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
        assert share == pytest.approx((inside < 0.5).mean(), abs=1e-6)


def test_weights_of_the_package_load_and_are_small() -> None:
    assert detection.DEFAULT_WEIGHTS.stat().st_size < 25e6
    model = load_nodule_rpn()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_shipped_weights_find_a_real_nodule(shared_data: Path) -> None:
    """The 23 mm nodule of LIDC-IDRI-0001, in a piece of the scan that fits in a unit test."""
    from volnet.data.read import read_ct

    scan = json.loads((shared_data / "lidc_scans" / "scans.json").read_text())["LIDC-IDRI-0001"]
    ct = read_ct(shared_data / "lidc_scans" / "LIDC-IDRI-0001.nii.gz")
    (d, h, w), diameter = scan["luna16_nodules_zyx_voxel"][0], scan["luna16_nodules_xyz_mm_diam"][0][3]
    start = (int(d) - 22, int(h) - 80, int(w) - 80)
    stop = (int(d) + 22, int(h) + 80, int(w) + 80)
    window = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    piece = CTVolume(ct.voxels[window].copy(), ct.geometry.cropped(start, stop), ct.series_uid, ct.source)
    best = detect_nodules(piece, max_findings=3, score_threshold=0.05)
    true_center = ct.geometry.voxel_to_lps((d, h, w))
    assert min(np.linalg.norm(np.array(f.center_lps) - true_center) for f in best) < diameter / 2
