"""One patch, from the volume in the store to what the network gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from volnet.data.augment import Patch, Pointwise, PointwiseTransform, SpatialTransform, Transform
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
    _sample(volume, place, pad_value, image, label)
    boxes, box_ids = _move_boxes(volume.boxes, place, image.shape)

    patch = Patch(image, label, boxes, box_ids, volume.spacing)
    waiting: list[Pointwise] = []
    for transform in transforms:
        if isinstance(transform, PointwiseTransform):
            step_of_voxels = transform.draw(rng)
            if step_of_voxels is not None:
                waiting.append(step_of_voxels)
        elif isinstance(transform, Transform):
            _apply(waiting, patch.image, rng)
            waiting = []
            transform(patch, rng)
    _apply(waiting, patch.image, rng)
    return patch.boxes, patch.box_ids


def _sample(
    volume: StoredVolume, place: _Map, pad_value: float, image: np.ndarray, label: np.ndarray | None
) -> None:
    corner = place.corner()
    if corner is not None:
        _copy_voxels(volume, place.matrix, corner, pad_value, image, label)
        return
    from volnet.data.patch_kernels import nearest

    start, stop = place.region(image.shape, volume.shape)
    parallel = (np.count_nonzero(place.matrix, axis=0) == 1).all()
    if volume.is_compressed or parallel:
        source, offset = volume.region(start, stop), place.offset - start
    else:
        source, offset = volume.voxels, place.offset  # read where it is, not copied
    rows = np.column_stack([place.matrix, offset]).tolist()
    sampled = resample(source, rows, image.shape, pad_value=pad_value, dtype=torch.float32)
    torch.from_numpy(image).copy_(sampled)
    if label is not None:
        if volume.label is None:
            label[:] = 0
        else:
            nearest(volume.label.numpy(), place.matrix, place.offset, np.uint8(0), label)


def _copy_voxels(
    volume: StoredVolume,
    matrix: np.ndarray,
    corner: np.ndarray,
    pad_value: float,
    image: np.ndarray,
    label: np.ndarray | None,
) -> None:
    """The patch with its axes permuted and mirrored: whole voxels."""
    from volnet.data.patch_kernels import copy_strided

    signed = matrix.astype(np.int64)
    last = np.array(image.shape) - 1
    first = corner + np.minimum(signed * last, 0).sum(axis=1)
    size = (np.abs(signed) @ np.array(image.shape)).tolist()
    strides = np.array([size[1] * size[2], size[2], 1])
    base, steps = int((corner - first) @ strides), (strides @ signed).tolist()

    crop = _crop(volume, first, size, pad_value)
    copy_strided(crop.view(-1).numpy(), base, *steps, image)
    if label is None:
        return
    if volume.label is None:
        label[:] = 0
        return
    middle = torch.from_numpy(first + np.array(size) // 2)[None]
    source = sample_patches(volume.label, middle, size).view(-1).numpy()
    flipped = np.lib.stride_tricks.as_strided(source[base:], label.shape, steps)
    np.copyto(label, flipped)


def _crop(volume: StoredVolume, first: np.ndarray, size: Sequence[int], pad_value: float) -> Tensor:
    start = np.clip(first, 0, volume.shape)
    stop = np.clip(first + size, start, volume.shape)
    source, origin = volume.voxels if not volume.is_compressed else volume.region(start, stop), start
    if not volume.is_compressed:
        origin = np.zeros(3, np.int64)
    middle = torch.from_numpy(first - origin + np.array(size) // 2)[None]
    return sample_patches(source, middle, size, pad_value)[0]


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


def _apply(steps: Sequence[Pointwise], image: np.ndarray, rng: np.random.Generator) -> None:
    """All steps, in as few passes as their order allows: linear ones are folded into the next that is not."""
    from volnet.data import patch_kernels as kernels

    x = image.reshape(-1)
    scale, shift = 1.0, 0.0
    f = np.float32
    for number, step in enumerate(steps):
        scale, shift = scale * step.scale, shift * step.scale + step.shift
        if step.clips:
            # A power that follows clips to the same range.
            if step.gamma == 1 and number + 1 < len(steps) and steps[number + 1].clips:
                following = steps[number + 1]
                if following.scale == 1 and following.shift == 0:
                    continue
            if step.gamma == 1:
                kernels.clip(x, f(scale), f(shift))
            else:
                kernels.clip_power(x, f(scale), f(shift), f(step.gamma))
            scale, shift = 1.0, 0.0
        if step.noise:
            keys = rng.integers(1 << 32, size=2, dtype=np.uint32)
            kernels.add_noise(x, f(scale), f(shift), f(step.noise), keys[0], keys[1])
            scale, shift = 1.0, 0.0
    if scale != 1 or shift != 0:
        kernels.scale_shift(x, f(scale), f(shift))
