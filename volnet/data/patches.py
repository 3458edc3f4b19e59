"""One patch, from the volume in the store to what the network gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volnet.data.augment import Patch, PointwiseTransform, SpatialTransform, Transform
from volnet.data.store import StoredVolume
from volnet.ops import resample, sample_patches

AnyTransform = SpatialTransform | PointwiseTransform | Transform

_MIN_VISIBLE = 0.5  # of a box's volume; with less of it in the patch the box is left out


@dataclass(frozen=True)
class _Map:
    """Where a patch's voxels come from: ``source = matrix @ voxel + offset``, in voxels of the volume."""

    matrix: np.ndarray  # [3, 3]
    offset: np.ndarray  # [3]

    @classmethod
    def about(cls, center: np.ndarray, size: Sequence[int], matrix: np.ndarray) -> _Map:
        extent = np.asarray(size)
        middle = (extent - 1) / 2
        return cls(matrix, center - extent // 2 + middle - matrix @ middle)

    def corner(self) -> np.ndarray | None:
        """int64 ``[3]``, the source of voxel (0, 0, 0), if all voxels come from whole voxels."""
        signs = np.abs(self.matrix)
        if not (((signs == 0) | (signs == 1)).all() and (signs.sum(axis=0) == 1).all()):
            return None
        whole = np.rint(self.offset)
        return whole.astype(np.int64) if (np.abs(whole - self.offset) < 1e-6).all() else None

    def region(self, size: Sequence[int], shape: Sequence[int]) -> tuple[list[int], list[int]]:
        """The voxels of the volume that the patch is interpolated from: [start, stop), not empty."""
        last = np.asarray(size) - 1
        reach = self.matrix * last
        low = self.offset + np.minimum(reach, 0).sum(axis=1)
        high = self.offset + np.maximum(reach, 0).sum(axis=1)
        start = np.clip(np.floor(low) - 1, 0, np.asarray(shape) - 1).astype(int)
        stop = np.clip(np.ceil(high) + 2, start + 1, shape).astype(int)
        return start.tolist(), stop.tolist()


def make_patch(
    volume: StoredVolume,
    center: np.ndarray,
    transforms: Sequence[AnyTransform],
    rng: np.random.Generator,
    pad_value: float,
    image: np.ndarray,
    label: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Take a patch and change it.

    Args:
        volume: of the store.
        center: int64 ``[3]``, voxel (d, h, w), as :func:`volnet.ops.sample_patches` has it.
        transforms: spatial ones first.
        rng: source of all that they draw.
        pad_value: what lies outside of the volume; its label there is 0.
        image: float32 ``[D, H, W]``, written.
        label: uint8 ``[D, H, W]``, written; 0 for a volume without; or None.

    Returns:
        Boxes float32 ``[K, 6]``, voxels of the patch, clipped to it, of which at least half is inside; and
        their numbers in the volume, int64 ``[K]``, -1 for added ones.
    """
    matrix = np.eye(3)
    for transform in transforms:
        if isinstance(transform, SpatialTransform):
            step = transform.matrix(rng, volume.spacing)
            matrix = matrix if step is None else matrix @ step
    place = _Map.about(center, image.shape, matrix)

    # The changes of voxels up to the first that sees the patch as a whole are made while it is sampled.
    others: list[AnyTransform] = [t for t in transforms if not isinstance(t, SpatialTransform)]
    passes, others = _leading_passes(others, rng)
    _sample(volume, place, pad_value, image, label, passes[0] if passes else _UNCHANGED)
    patch = Patch(image, label, *_move_boxes(volume.boxes, place, image.shape), volume.spacing)
    while True:
        for change in passes[1:]:
            _finish(image, change)
        if not others:
            return patch.boxes, patch.box_ids
        others[0](patch, rng)  # type: ignore[operator]
        passes, others = _leading_passes(others[1:], rng)
        passes = [_UNCHANGED, *passes]


@dataclass(frozen=True)
class _Pass:
    """Pointwise changes that are made in one pass: see `patch_kernels.finish`."""

    change: np.ndarray  # float32 [7]
    keys: np.ndarray  # uint32 [2]


_UNCHANGED = _Pass(np.array([1, 0, 0, 1, 1, 0, 0], np.float32), np.zeros(2, np.uint32))


def _leading_passes(
    transforms: Sequence[AnyTransform], rng: np.random.Generator
) -> tuple[list[_Pass], list[AnyTransform]]:
    """The pointwise transforms at the beginning in as few passes as their order allows, and the rest."""
    steps, rest = [], list(transforms)
    while rest and isinstance(rest[0], PointwiseTransform):
        step = rest.pop(0).draw(rng)  # type: ignore[union-attr]
        if step is not None:
            steps.append(step)
    passes: list[_Pass] = []
    current = _UNCHANGED.change.copy()
    for step in steps:
        clips, deviation = bool(current[2]), float(current[6])
        only_clips = clips and (current[3:] == _UNCHANGED.change[3:]).all()
        if only_clips and step.clips and (step.scale, step.shift) == (1, 0):
            current[3] = step.gamma  # what is within 0 to 1 stays there
            continue
        if deviation or (clips and step.clips):
            passes.append(_keyed(current, rng))
            current, clips = _UNCHANGED.change.copy(), False
        scale, shift = (4, 5) if clips else (0, 1)
        current[scale], current[shift] = current[scale] * step.scale, current[shift] * step.scale + step.shift
        if step.clips:
            current[2], current[3] = 1, step.gamma
        current[6] = step.noise
    if steps:
        passes.append(_keyed(current, rng))
    return passes, rest


def _keyed(change: np.ndarray, rng: np.random.Generator) -> _Pass:
    keys = rng.integers(1 << 32, size=2, dtype=np.uint32) if change[6] else _UNCHANGED.keys
    return _Pass(change, keys)


def _finish(image: np.ndarray, change: _Pass) -> None:
    if change is not _UNCHANGED:
        kernels().finish(image, change.change, change.keys)


def _sample(
    volume: StoredVolume,
    place: _Map,
    pad_value: float,
    image: np.ndarray,
    label: np.ndarray | None,
    change: _Pass,
) -> None:
    start, stop = place.region(image.shape, volume.shape)
    corner = place.corner()
    if label is not None:
        label[:] = 0
        if volume.label is not None:
            _sample_label(volume.label.numpy(), place, corner is not None, start, stop, label)
    if corner is not None:
        first = corner + np.minimum(place.matrix * (np.array(image.shape) - 1), 0).sum(axis=1).astype(
            np.int64
        )
        size = (np.abs(place.matrix) @ np.array(image.shape)).astype(np.int64)
        source, origin = _voxels(volume, first, size, pad_value)
        flat, base, steps = _walk(source.numpy(), place.matrix, corner - origin)
    else:
        # An oblique map reads the volume where it is; what is not, or along its axes, is cut out first.
        cut = volume.is_compressed or (np.count_nonzero(place.matrix, axis=0) == 1).all()
        source = volume.region(start, stop) if cut else volume.voxels
        offset = place.offset - start if cut else place.offset
        rows = np.column_stack([place.matrix, offset]).tolist()
        sampled = resample(source, rows, image.shape, pad_value=pad_value, dtype=torch.float32)
        flat, base, steps = _walk(sampled.numpy(), np.eye(3), np.zeros(3))
    kernels().copy_and_finish(flat, base, *steps, image, change.change, change.keys)


def _voxels(
    volume: StoredVolume, first: np.ndarray, size: np.ndarray, pad_value: float
) -> tuple[Tensor, np.ndarray]:
    """A dense volume that has the voxels [first, first + size), and where in ``volume`` it begins."""
    start = np.clip(first, 0, volume.shape)
    stop = np.clip(first + size, start, volume.shape)
    if volume.is_compressed:
        source, origin = volume.region(start.tolist(), stop.tolist()), start
    else:
        source, origin = volume.voxels, np.zeros(3, np.int64)
    if (stop - start == size).all():
        return source, origin
    middle = torch.from_numpy(first - origin + size // 2)[None]
    return sample_patches(source, middle, size.tolist(), pad_value)[0], first


def _walk(source: np.ndarray, matrix: np.ndarray, corner: np.ndarray) -> tuple[np.ndarray, int, list[int]]:
    """The voxels of a dense ``source`` in a row, where `corner` is, and the steps to the next on each axis of
    what `matrix` makes of it."""
    strides = np.array([source.shape[1] * source.shape[2], source.shape[2], 1])
    return source.reshape(-1), int(corner @ strides), (strides @ matrix).astype(np.int64).tolist()


def _sample_label(
    source: np.ndarray,
    place: _Map,
    whole_voxels: bool,
    start: Sequence[int],
    stop: Sequence[int],
    label: np.ndarray,
) -> None:
    """The nearest voxels, into zeros. Labels are mostly 0: only the box that the others fall into is done."""
    low, high = np.empty(3, np.int64), np.empty(3, np.int64)
    kernels().extent(source[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))], low, high)
    if (high == 0).any():
        return
    inverse = np.linalg.inv(place.matrix)
    middle = inverse @ ((low + high - 1) / 2 + start - place.offset)
    reach = np.abs(inverse) @ ((high - low) / 2)
    # In voxels' edges, as boxes are; a whole voxel more where the map is oblique.
    margin = 0 if whole_voxels else 1
    first = np.clip(np.rint(middle - reach + 0.5) - margin, 0, label.shape).astype(np.int64)
    last = np.clip(np.rint(middle + reach + 0.5) + margin, first, label.shape).astype(np.int64)
    part = label[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
    offset = place.offset + place.matrix @ first
    if whole_voxels:
        flat, base, steps = _walk(source, place.matrix, np.rint(offset))
        kernels().copy_strided(flat, base, *steps, part)
    else:
        kernels().nearest(source, place.matrix, offset, np.uint8(0), part)


def kernels() -> Any:
    """numba is loaded with the first patch."""
    from volnet.data import patch_kernels

    return patch_kernels


def _move_boxes(boxes: np.ndarray, place: _Map, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The boxes in the patch. A box that is turned stands for the ellipsoid it holds: the box of its turned
    corners would grow with every turn, while nodules do not."""
    numbers = np.arange(len(boxes))
    if len(boxes) == 0:
        return np.empty((0, 6), np.float32), numbers
    inverse = np.linalg.inv(place.matrix)
    # Box coordinates are the voxels' edges, half a voxel before their centres.
    middle = (boxes[:, :3] + boxes[:, 3:]).astype(np.float64) / 2 - 0.5
    half = (boxes[:, 3:] - boxes[:, :3]).astype(np.float64) / 2
    moved = (middle - place.offset) @ inverse.T + 0.5
    reach = np.sqrt((half**2) @ (inverse.T**2))
    whole = np.concatenate([moved - reach, moved + reach], axis=1)
    clipped = np.clip(whole, 0, np.tile(size, 2))
    inside = (clipped[:, 3:] - clipped[:, :3]).prod(axis=1) >= _MIN_VISIBLE * (2 * reach).prod(axis=1)
    return clipped[inside].astype(np.float32), numbers[inside]
