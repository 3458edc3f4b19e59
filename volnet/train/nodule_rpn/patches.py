"""Training patches: every number of batch i follows from the seed and i, whoever makes it and when."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from volnet.data.preprocess import normalize_hu
from volnet.detection import NEGATIVE, anchor_boxes, encode_boxes, match_anchors
from volnet.models.nodule_rpn.config import NoduleRPNConfig
from volnet.models.nodule_rpn.model import ANCHOR_STRIDE
from volnet.train.nodule_rpn.augment import random_appearance
from volnet.train.nodule_rpn.crops import NoduleCrop
from volnet.train.nodule_rpn.planting import control_sprite, nodule_sprite, paste, plant
from volnet.train.nodule_rpn.scans import Background

MIN_DIAMETER_MM = 4.0
"""Smaller nodules are not taught, and not counted as background where they are."""
MIN_SLAB_MM = 12.0
"""Crops at least so thick also serve in their own surroundings."""
# Edges of the diameter classes that are drawn equally often: most nodules of the set are small.
_CLASSES_MM = (4.0, 6.0, 8.0, 12.0, 18.0, 100.0)


@dataclass(frozen=True)
class Batch:
    """A batch and what the network should say to it.

    Attributes:
        images: float32 [N, 1, D, H, W].
        labels: int64 [N, K]; 1, 0, or -1 for anchors that do not count.
        targets: float32 [P, 6], box offsets for the anchors with label 1, in the order of `labels`.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor


@dataclass
class _Patch:
    hu: np.ndarray  # float32 [D, H, W]
    boxes: np.ndarray  # [M, 6] nodules
    ignore: np.ndarray  # [I, 6]: anchors centred in one of these do not count
    valid: np.ndarray | None = None  # [6]: only anchors inside count


class TrainingBatches(torch.utils.data.Dataset[Batch]):
    """Batch i: nodules planted in whole scans or, every third time, real nodules where they were found.

    Args:
        crops: nodules to plant.
        backgrounds: scans to plant them in.
        config: of the network.
        batch_size: patches a batch.
        side: voxels along each axis of a patch, a multiple of 8.
        length: number of batches.
        seed: of everything.

    Raises:
        ValueError: if there is nothing to plant or nothing to plant it in.
    """

    def __init__(
        self,
        crops: Sequence[NoduleCrop],
        backgrounds: Sequence[Background],
        config: NoduleRPNConfig,
        *,
        batch_size: int,
        side: int,
        length: int,
        seed: int,
    ) -> None:
        nodules = [c for c in crops if c.readers >= 2 and c.diameter_mm >= MIN_DIAMETER_MM and len(c.hu) >= 3]
        if not nodules or not backgrounds:
            raise ValueError(f"nothing to train on: {len(nodules)} nodules, {len(backgrounds)} scans")
        self.config, self.batch_size, self.side = config, batch_size, side
        self.length, self.seed = length, seed
        self.classes = [
            [c for c in nodules if low <= c.diameter_mm < high]
            for low, high in itertools.pairwise(_CLASSES_MM)
        ]
        self.classes = [c for c in self.classes if c]
        self.slabs = [c for c in crops if len(c.hu) * c.spacing[0] >= MIN_SLAB_MM]
        self.neighbours: dict[str, list[NoduleCrop]] = {}
        for crop in crops:
            self.neighbours.setdefault(crop.series_uid, []).append(crop)
        self.backgrounds = list(backgrounds)
        self.lung_voxels = [np.argwhere(b.lung[::4, ::4, ::4]) * 4 for b in self.backgrounds]
        volume = np.array([len(v) for v in self.lung_voxels], dtype=np.float64)
        # The root, because the largest scan has the thinnest slices but is still one patient.
        self.weights = np.sqrt(volume) / np.sqrt(volume).sum()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        rng = np.random.default_rng((self.seed, index))
        if index % 3 == 2 and self.slabs:
            # Smaller patches, for the slabs are: little room for what is mirrored and does not count.
            shape = (self.side // 16 * 8, self.side // 12 * 8, self.side // 12 * 8)
            patches = [self._slab_patch(rng, shape) for _ in range(2 * self.batch_size)]
        else:
            shape = (self.side, self.side, self.side)
            patches = [self._planted_patch(rng, shape) for _ in range(self.batch_size)]
        return self._collate([self._finish(patch, rng) for patch in patches])

    def _planted_patch(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> _Patch:
        which = int(rng.choice(len(self.backgrounds), p=self.weights))
        background = self.backgrounds[which]
        size = np.asarray(shape)
        zoom = np.exp(rng.uniform(-0.18, 0.18, size=3)) if rng.random() < 0.5 else np.ones(3)
        window = np.round(size / zoom).astype(int)
        if rng.random() < 0.85:
            center = self.lung_voxels[which][rng.integers(len(self.lung_voxels[which]))]
        else:
            center = rng.integers(0, background.hu.shape)
        corner = center + rng.integers(-size // 3, size // 3 + 1) - window // 2
        hu = _window(background.hu, corner, window, -1024).astype(np.float32)
        lung = _window(background.lung, corner, window, False)
        if (window != size).any():
            hu = interpolate(torch.from_numpy(hu)[None, None], shape, mode="trilinear")[0, 0].numpy()
            nearest = interpolate(torch.from_numpy(lung).float()[None, None], shape, mode="nearest")
            lung = nearest[0, 0].numpy() > 0.5
        factor = np.tile(size / window, 2)
        ignore = (background.ignore - np.tile(corner, 2)) * factor

        taken = ignore
        boxes: list[np.ndarray] = []
        inside = np.argwhere(lung[::2, ::2, ::2]) * 2
        edge = inside[~lung_core(lung)[tuple(inside.T)]] if len(inside) else inside
        for _ in range(rng.integers(0, 5) if len(inside) else 0):
            group = self.classes[rng.integers(len(self.classes))]
            crop = group[rng.integers(len(group))]
            sprite = nodule_sprite(crop, rng, zoom=float(np.exp(rng.uniform(-0.2, 0.2))))
            places = edge if len(edge) and rng.random() < 0.35 else inside
            for _ in range(4):
                place = places[rng.integers(len(places))]
                box = plant(hu, lung, sprite, place, taken, brightest=bool(rng.random() < 0.6))
                if box is not None:
                    boxes.append(box)
                    taken = np.concatenate([taken, box[None]])
                    break
        for _ in range(rng.integers(0, 5) if len(inside) else 0):
            group = self.classes[rng.integers(len(self.classes))]
            control = control_sprite(group[rng.integers(len(group))], rng)
            place = inside[rng.integers(len(inside))]
            if control is None:
                continue
            corner = place - np.asarray(control.hu.shape) // 2
            high = corner + control.hu.shape
            if len(taken) and ((corner < taken[:, 3:]) & (high > taken[:, :3])).all(axis=1).any():
                continue
            paste(hu, control, corner, brightest=bool(rng.random() < 0.6))
        return _Patch(hu, np.array(boxes).reshape(-1, 6), ignore)

    def _slab_patch(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> _Patch:
        crop = self.slabs[rng.integers(len(self.slabs))]
        zoom = float(np.exp(rng.uniform(-0.15, 0.15)))
        scale = np.asarray(crop.spacing) * zoom
        size = np.maximum(np.round(np.asarray(crop.hu.shape) * scale), 4).astype(int)
        scale = size / np.asarray(crop.hu.shape)
        slab = interpolate(torch.from_numpy(crop.hu)[None, None], tuple(size), mode="trilinear")[0, 0].numpy()
        boxes: list[np.ndarray] = []
        ignore: list[np.ndarray] = []
        for other in self.neighbours[crop.series_uid]:
            shift = (np.asarray(other.corner) - np.asarray(crop.corner)) * scale
            box = other.box_mm() / np.tile(other.spacing, 2) * np.tile(scale, 2) + np.tile(shift, 2)
            whole = (box[:3] >= -0.5).all() and (box[3:] <= size + 0.5).all()
            known = other.readers >= 2 and other.diameter_mm * zoom >= MIN_DIAMETER_MM
            (boxes if whole and known else ignore).append(box)
        # Mirrored beyond the slab, where nothing counts; cut where the slab is larger than the patch.
        wanted = np.asarray(shape)
        before = np.maximum(wanted - size, 0) // 2
        after = np.maximum(wanted - size - before, 0)
        padded = np.pad(slab, list(zip(before, after, strict=True)), mode="symmetric")
        cut = np.array([rng.integers(0, n - m + 1) for n, m in zip(padded.shape, wanted, strict=True)])
        hu = _window(padded, cut, wanted, -1024)
        move = np.tile(before - cut, 2)
        valid = np.concatenate([np.maximum(before - cut, 0), np.minimum(before - cut + size, wanted)])
        nodules = np.array(boxes).reshape(-1, 6) + move
        seen = ((nodules[:, :3] >= valid[:3] - 0.5) & (nodules[:, 3:] <= valid[3:] + 0.5)).all(axis=1)
        others = np.concatenate([np.array(ignore).reshape(-1, 6) + move, nodules[~seen]])
        return _Patch(hu, nodules[seen], others, valid.astype(np.float64))

    def _finish(self, patch: _Patch, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        hu = random_appearance(patch.hu, rng)
        boxes, ignore, valid = patch.boxes, patch.ignore, patch.valid
        flips = [axis for axis in range(3) if rng.random() < 0.5]
        swap = bool(rng.random() < 0.5)

        def move(b: np.ndarray) -> np.ndarray:
            b = b.copy()
            for axis in flips:
                b[:, [axis, axis + 3]] = hu.shape[axis] - b[:, [axis + 3, axis]]
            return b[:, [0, 2, 1, 3, 5, 4]] if swap else b

        image = np.flip(hu, tuple(flips))
        image = image.swapaxes(1, 2) if swap else image
        boxes, ignore = move(boxes), move(ignore)
        image = normalize_hu(np.ascontiguousarray(image), self.config.window)
        grid = [n // ANCHOR_STRIDE for n in image.shape]
        anchors = anchor_boxes(grid, ANCHOR_STRIDE, self.config.anchor_sizes)
        truth = torch.from_numpy(boxes).float()
        match = match_anchors(anchors, truth)
        labels = torch.where(match >= 0, 1, torch.where(match == NEGATIVE, 0, -1))
        centers = (anchors[:, :3] + anchors[:, 3:]) / 2
        for box in torch.from_numpy(ignore).float():
            inside = ((centers >= box[:3] - 2) & (centers < box[3:] + 2)).all(dim=1)
            labels[inside & (match < 0)] = -1
        if valid is not None:
            limits = torch.from_numpy(move(valid[None])[0]).float()
            slack = anchors.clone()
            # A large anchor may stick out of a thin slab by half its side and still be judged by its middle.
            half = (anchors[:, 3:] - anchors[:, :3]) / 4
            slack[:, :3] += half
            slack[:, 3:] -= half
            contained = ((slack[:, :3] >= limits[:3]) & (slack[:, 3:] <= limits[3:])).all(dim=1)
            labels[~contained & (match < 0)] = -1
        positive = match >= 0
        targets = encode_boxes(truth[match[positive]], anchors[positive])
        return torch.from_numpy(image)[None], labels, targets

    def _collate(self, parts: list[tuple[Tensor, Tensor, Tensor]]) -> Batch:
        images, labels, targets = zip(*parts, strict=True)
        return Batch(torch.stack(images), torch.stack(labels), torch.cat(targets))


def lung_core(lung: np.ndarray) -> np.ndarray:
    """Lung farther than about 6 voxels from its edge: bool [D, H, W] -> bool [D, H, W]."""
    small = torch.from_numpy(~lung[::2, ::2, ::2]).float()[None, None]
    near = torch.nn.functional.max_pool3d(small, 7, stride=1, padding=3)[0, 0].numpy() > 0.5
    full = (~near).repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    return full[: lung.shape[0], : lung.shape[1], : lung.shape[2]] & lung


def _window(volume: np.ndarray, corner: np.ndarray, size: np.ndarray, fill: float) -> np.ndarray:
    """A copy of volume[corner : corner + size], filled where that lies outside."""
    out = np.full(size, fill, dtype=volume.dtype)
    low, high = np.maximum(corner, 0), np.minimum(corner + size, volume.shape)
    if (high > low).all():
        inner = tuple(slice(a, b) for a, b in zip(low - corner, high - corner, strict=True))
        out[inner] = volume[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return out
