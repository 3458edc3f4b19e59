"""How good the weights are, on what the training never saw.

    python -m volnet.train.nodule_rpn.evaluate DATA_DIR

Nodules of held-out patients are planted in the lungs of the held-out scan LIDC-IDRI-0001, a dozen at a time,
on the scan's own grid; the whole pipeline runs on each copy. A planted nodule counts as found if the centre
of a finding lies within its radius, as in LUNA16; findings that hit neither a planted nodule nor the scan's
real one are false positives. Pieces of lung pasted the same way show whether it is the paste that is found.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from volnet.data.preprocess import resample
from volnet.data.read import read_ct
from volnet.data.volume import CTVolume
from volnet.detection import Finding
from volnet.models.nodule_rpn import NoduleRPN, detect_nodules, load_nodule_rpn
from volnet.train.nodule_rpn.crops import is_held_out, read_nodule_crops
from volnet.train.nodule_rpn.planting import Sprite, control_sprite, nodule_sprite, plant
from volnet.train.nodule_rpn.scans import lung_mask

HELD_OUT_SCAN = "LIDC-IDRI-0001"
MIN_READERS = 3
DIAMETERS_MM = (5.0, 40.0)


@dataclass(frozen=True)
class Truth:
    """A nodule that should be found: centre (x, y, z) in mm, and diameter in mm."""

    center_lps: tuple[float, float, float]
    diameter_mm: float

    def hit_by(self, finding: Finding) -> bool:
        """Whether the finding's centre lies within the nodule's radius."""
        distance = np.linalg.norm(np.subtract(finding.center_lps, self.center_lps))
        return bool(distance <= self.diameter_mm / 2)


@dataclass(frozen=True)
class Sensitivity:
    """One point of a FROC curve.

    Attributes:
        false_positives: per scan.
        found: share of the nodules.
        score: the threshold.
    """

    false_positives: float
    found: float
    score: float


def plant_in_scan(
    ct: CTVolume,
    lung: np.ndarray,
    sprites: Sequence[Sprite],
    rng: np.random.Generator,
    keep_clear: np.ndarray,
) -> tuple[CTVolume, list[Truth]]:
    """A copy of a scan with something planted in its lungs, on its own grid.

    Args:
        ct: the scan.
        lung: bool [D, H, W], its lungs at 1 mm.
        sprites: what to plant; one for which 200 random places do not do is left out.
        rng: of places.
        keep_clear: [M, 6] boxes at 1 mm where nothing may go.

    Returns:
        The scan and what was planted.
    """
    fine = resample(ct, (1.0, 1.0, 1.0))
    before = fine.voxels.astype(np.float32)
    after = before.copy()
    places = np.argwhere(lung)
    taken, planted = keep_clear, []
    for sprite in sprites:
        for _ in range(200):
            place = places[rng.integers(len(places))]
            box = plant(after, lung, sprite, place, taken, brightest=True)
            if box is None:
                continue
            taken = np.concatenate([taken, box[None]])
            x, y, z = fine.geometry.voxel_to_lps((box[:3] + box[3:]) / 2 - 0.5)
            planted.append(
                Truth((float(x), float(y), float(z)), float(np.prod(box[3:] - box[:3]) ** (1 / 3)))
            )
            break
    # Only the change goes to the scan's grid: elsewhere its voxels stay as they are.
    change = ndimage.uniform_filter1d(after - before, max(1, round(ct.geometry.spacing[0])), axis=0)
    grid = np.meshgrid(*(np.arange(n) for n in ct.geometry.shape), indexing="ij", sparse=True)
    ratio = np.asarray(ct.geometry.spacing)
    coordinates = np.broadcast_arrays(*((g + 0.5) * r - 0.5 for g, r in zip(grid, ratio, strict=True)))
    added = ndimage.map_coordinates(change, coordinates, order=1, mode="nearest")
    voxels = np.clip(ct.voxels + np.round(added), -1024, 3071).astype(np.int16)
    return replace(ct, voxels=voxels), planted


def froc(
    scans: Sequence[tuple[Sequence[Finding], Sequence[Truth], Sequence[Truth]]],
    rates: Sequence[float] = (1.0, 2.0, 4.0, 8.0),
) -> list[Sensitivity]:
    """Sensitivity at given rates of false positives.

    Args:
        scans: for each its findings, the nodules that count, and others that count neither way.
        rates: false positives per scan.

    Returns:
        One point a rate: the lowest threshold that keeps to it. A nodule hit twice is found once.
    """
    false, found = [], []
    for findings, truths, others in scans:
        for finding in findings:
            if not any(truth.hit_by(finding) for truth in (*truths, *others)):
                false.append(finding.score)
        for truth in truths:
            found.append(max((f.score for f in findings if truth.hit_by(f)), default=-1.0))
    false.sort(reverse=True)
    points = []
    for rate in rates:
        allowed = int(rate * len(scans))
        # Just above the first false positive too many.
        limit = false[allowed] if allowed < len(false) else 0.0
        points.append(Sensitivity(rate, float(np.mean([score > limit for score in found])), limit))
    return points


def evaluate(
    data_dir: Path,
    model: NoduleRPN,
    *,
    per_scan: int = 12,
    max_scans: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, object]:
    """Plant every nodule of the held-out patients once, and count.

    Args:
        data_dir: with `lidc_scans` and `lidc_nodule_crops`.
        model: in eval mode.
        per_scan: nodules planted at a time.
        max_scans: stop after so many copies of the scan.
        seed: of order, places and orientations.
        progress: called with (done, total) copies.

    Returns:
        Numbers for a model card: nodules, patients, FROC points by size class, rank of the scan's own nodule.
    """
    rng = np.random.default_rng(seed)
    crops = [
        crop
        for crop in read_nodule_crops(data_dir / "lidc_nodule_crops")
        if is_held_out(crop.patient_id)
        and crop.patient_id != HELD_OUT_SCAN
        and crop.shows_lung
        and crop.readers >= MIN_READERS
        and DIAMETERS_MM[0] <= crop.diameter_mm < DIAMETERS_MM[1]
        and len(crop.hu) >= 3
    ]
    crops = [crops[i] for i in rng.permutation(len(crops))]
    ct = read_ct(data_dir / "lidc_scans" / f"{HELD_OUT_SCAN}.nii.gz")
    lung = lung_mask(resample(ct, (1.0, 1.0, 1.0)).voxels)
    marks = json.loads((data_dir / "lidc_scans" / "scans.json").read_text())[HELD_OUT_SCAN]
    own = [Truth((x, y, z), d) for x, y, z, d in marks["luna16_nodules_xyz_mm_diam"]]
    clear = np.array(
        [
            [*(c - d / 2), *(c + d / 2)]
            for c, d in (
                (np.asarray(zyx) * ct.geometry.spacing, truth.diameter_mm)
                for zyx, truth in zip(marks["luna16_nodules_zyx_voxel"], own, strict=True)
            )
        ]
    )
    sprites = [nodule_sprite(crop, rng) for crop in crops]
    groups = [sprites[i : i + per_scan] for i in range(0, len(sprites), per_scan)][:max_scans]
    scans: list[tuple[list[Finding], list[Truth], list[Truth]]] = []
    for done, group in enumerate(groups, start=1):
        copy, planted = plant_in_scan(ct, lung, group, rng, clear)
        findings = detect_nodules(copy, model, score_threshold=0.02, max_findings=200)
        scans.append((findings, planted, own))
        if progress:
            progress(done, len(groups))
    plain = detect_nodules(ct, model, score_threshold=0.02, max_findings=200)
    ranks = [i for i, f in enumerate(plain, start=1) if any(truth.hit_by(f) for truth in own)]
    result: dict[str, object] = {
        "copies": len(scans),
        "nodules": sum(len(truths) for _, truths, _ in scans),
        "patients": len({crop.patient_id for crop in crops[: per_scan * len(groups)]}),
        "rank of the scan's own nodule": ranks[0] if ranks else None,
        "its score": plain[ranks[0] - 1].score if ranks else None,
    }
    for low, high in ((5.0, 40.0), (5.0, 8.0), (8.0, 15.0), (15.0, 40.0)):
        part = []
        for findings, truths, others in scans:
            chosen = [t for t in truths if low <= t.diameter_mm < high]
            part.append((findings, chosen, [*others, *(t for t in truths if t not in chosen)]))
        count = sum(len(truths) for _, truths, _ in part)
        found = {f"{p.false_positives:g} FP": round(p.found, 3) for p in froc(part)} if count else {}
        result[f"{low:g}-{high:g} mm"] = {"nodules": count, **found}
    points = froc(scans)
    result["scores at these rates"] = [round(p.score, 3) for p in points]

    # Without what the plain scan has anyway, any finding on a pasted piece of lung is the paste's doing.
    pieces = [piece for crop in crops if (piece := control_sprite(crop, rng)) is not None]
    pieces = pieces[: 2 * per_scan * len(groups)]
    scores = []
    for start in range(0, len(pieces), 2 * per_scan):
        copy, pasted = plant_in_scan(ct, lung, pieces[start : start + 2 * per_scan], rng, clear)
        findings = detect_nodules(copy, model, score_threshold=0.02, max_findings=200)
        new = [f for f in findings if not any(_same_place(f, old) for old in plain)]
        scores += [max((f.score for f in new if piece.hit_by(f)), default=0.0) for piece in pasted]
    result["pieces of lung"] = len(scores)
    result["found at these rates"] = [sum(score > p.score for score in scores) for p in points]
    return result


def _same_place(a: Finding, b: Finding) -> bool:
    distance = np.linalg.norm(np.subtract(a.center_lps, b.center_lps))
    return bool(distance <= b.diameter_mm / 2)


def main() -> None:
    """Evaluate from a shell, and print JSON."""
    parser = argparse.ArgumentParser(description="Evaluate nodule_rpn on planted nodules.")
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--weights", type=Path, default=None, help="instead of those of the package")
    parser.add_argument("--max-scans", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = load_nodule_rpn(args.weights)
    print(json.dumps(evaluate(args.data_dir, model, max_scans=args.max_scans, seed=args.seed), indent=1))


if __name__ == "__main__":
    main()
