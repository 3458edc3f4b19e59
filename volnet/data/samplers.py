"""Where in the volumes of a store patches are taken.

A sampler says how many patches an epoch has, of which volumes, and where. It holds no random state: it is
given a generator that belongs to the epoch or to the patch, so patch ``k`` of an epoch is the same whoever
draws it, in whatever order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from volnet.data.store import VolumeStore

Size = tuple[int, int, int]


class Sampler(Protocol):
    """What :class:`volnet.data.PatchLoader` asks of a sampler; write your own with these three."""

    @property
    def size(self) -> Size | None:
        """Voxels (d, h, w) of a patch; None: that of the whole volume."""

    def volumes(self, rng: np.random.Generator) -> np.ndarray:
        """int64 ``[P]``: the volume of each patch of an epoch; always equally many."""

    def center(self, index: int, volume: int, rng: np.random.Generator) -> np.ndarray:
        """int64 ``[3]``: voxel (d, h, w) about which patch ``index``, of ``volume``, lies, as
        :func:`volnet.ops.sample_patches` has it."""


class _Shuffled:
    """Every volume equally often in an epoch, in an order of its own each time."""

    def __init__(self, store: VolumeStore, size: int | Sequence[int], patches_per_volume: int) -> None:
        if len(store) == 0:
            raise ValueError("the store has no volumes")
        if patches_per_volume < 1:
            raise ValueError(f"patches_per_volume must be at least 1, got {patches_per_volume}")
        self.store = store
        self.size: Size | None = _size(size)
        self.patches_per_volume = patches_per_volume

    def volumes(self, rng: np.random.Generator) -> np.ndarray:
        every = np.repeat(np.arange(len(self.store)), self.patches_per_volume)
        return rng.permutation(every)

    def _clamped(self, center: Sequence[int] | np.ndarray, shape: Size) -> np.ndarray:
        """The centre nearest to this one whose patch lies within the volume, or about its middle where it is
        larger."""
        low, high = self._range(shape)
        return np.minimum(np.maximum(np.asarray(center, np.int64), low), high)

    def _range(self, shape: Size) -> tuple[np.ndarray, np.ndarray]:
        """The first and last centre on each axis."""
        assert self.size is not None
        size, extent = np.array(self.size), np.array(shape)
        beyond = np.maximum(size - extent, 0) // 2
        return size // 2 - beyond, np.maximum(extent - size, 0) - beyond + size // 2


class UniformSampler(_Shuffled):
    """Any patch that lies within its volume, all equally often.

    Args:
        store: the volumes; at least one.
        size: voxels (d, h, w) of a patch, or one number for all axes. Along an axis on which a volume is
            smaller, the patch has it in its middle.
        patches_per_volume: in an epoch.

    Raises:
        ValueError: an argument is out of range.

    >>> store = VolumeStore()
    >>> store.add(np.zeros((8, 8, 8), np.int16))
    >>> UniformSampler(store, 8).center(0, 0, np.random.default_rng(0))
    array([4, 4, 4])
    """

    def __init__(self, store: VolumeStore, size: int | Sequence[int], *, patches_per_volume: int = 1) -> None:
        super().__init__(store, size, patches_per_volume)

    def center(self, index: int, volume: int, rng: np.random.Generator) -> np.ndarray:
        low, high = self._range(self.store[volume].shape)
        return rng.integers(low, high, endpoint=True)


class BalancedSampler(_Shuffled):
    """Patches about positive and negative voxels in a given proportion, as MONAI's RandCropByPosNegLabel.

    A centre is drawn from all voxels of its kind with equal probability, then moved until the patch lies
    within the volume. A volume without voxels of the kind that was drawn gives one of the other.
    Positive are the voxels whose label is not 0; in a volume without a label, those of its boxes, each box
    equally often, and negative are those of no box.

    What is held for a label volume is a number for each 32³ voxels, not the voxels' indices.

    Args:
        store: the volumes; at least one.
        size: as :class:`UniformSampler`.
        positive: share of patches about a positive voxel, 0 to 1.
        patches_per_volume: in an epoch.

    Raises:
        ValueError: an argument is out of range.

    >>> store = VolumeStore()
    >>> label = np.zeros((64, 64, 64), np.uint8)
    >>> label[40, 30, 20] = 1
    >>> store.add(np.zeros((64, 64, 64), np.int16), label=label)
    >>> BalancedSampler(store, 16, positive=1).center(0, 0, np.random.default_rng(0))
    array([40, 30, 20])
    """

    def __init__(
        self,
        store: VolumeStore,
        size: int | Sequence[int],
        *,
        positive: float = 0.5,
        patches_per_volume: int = 1,
    ) -> None:
        super().__init__(store, size, patches_per_volume)
        if not 0 <= positive <= 1:
            raise ValueError(f"positive must be 0 to 1, got {positive}")
        self.positive = positive
        self._index: list[_BlockCounts | None] = []
        for volume in store:
            self._index.append(None if volume.label is None else _BlockCounts(volume.label.numpy()))

    def center(self, index: int, volume: int, rng: np.random.Generator) -> np.ndarray:
        stored = self.store[volume]
        positive = bool(rng.random() < self.positive)
        counts = self._index[volume]
        if counts is not None:
            assert stored.label is not None
            return self._clamped(counts.draw(stored.label.numpy(), positive, rng), stored.shape)
        if positive and len(stored.boxes):
            box = stored.boxes[rng.integers(len(stored.boxes))]
            return self._clamped(np.floor(rng.uniform(box[:3], box[3:])), stored.shape)
        return self._clamped(_outside(stored.boxes, stored.shape, rng), stored.shape)


class WeightedSampler(_Shuffled):
    """Patches about voxels drawn in proportion to a weight, as MONAI's RandWeightedCrop.

    A centre is moved, after it is drawn, until the patch lies within the volume. What is held beside the
    weights is a number for each 32³ voxels.

    Args:
        store: the volumes; at least one.
        size: as :class:`UniformSampler`.
        weights: for each volume an array of its shape, numbers of at least 0 that are not all 0. They are
            read where they are, not copied: a small dtype or a memory map will do.
        patches_per_volume: in an epoch.

    Raises:
        ValueError: an argument is out of range; the message names the volume.

    >>> store = VolumeStore()
    >>> store.add(np.zeros((4, 4, 8), np.int16))
    >>> weights = np.zeros((4, 4, 8), np.float32)
    >>> weights[2, 2, 5] = 0.1
    >>> WeightedSampler(store, 2, [weights]).center(0, 0, np.random.default_rng(0))
    array([2, 2, 5])
    """

    def __init__(
        self,
        store: VolumeStore,
        size: int | Sequence[int],
        weights: Sequence[np.ndarray],
        *,
        patches_per_volume: int = 1,
    ) -> None:
        super().__init__(store, size, patches_per_volume)
        if len(weights) != len(store):
            raise ValueError(f"weights of {len(weights)} volumes, the store has {len(store)}")
        self.weights = weights
        self._index = []
        for stored, array in zip(store, weights, strict=True):
            if array.shape != stored.shape:
                raise ValueError(
                    f"{stored.name}: weights have shape {array.shape}, the volume has {stored.shape}"
                )
            self._index.append(_BlockSums(array, stored.name))

    def center(self, index: int, volume: int, rng: np.random.Generator) -> np.ndarray:
        center = self._index[volume].draw(self.weights[volume], rng)
        return self._clamped(center, self.store[volume].shape)


class GridSampler:
    """Patches that cover each volume, in order: the same in every epoch.

    Args:
        store: the volumes.
        size: voxels (d, h, w) of a patch, or one number for all axes.
        overlap: voxels that neighbours share at least, below ``size``. The last patch along an axis ends with
            the volume; one that is larger than the volume has it in its middle.

    Raises:
        ValueError: an argument is out of range.

    >>> store = VolumeStore()
    >>> store.add(np.zeros((4, 4, 10), np.int16))
    >>> sampler = GridSampler(store, 4)
    >>> [sampler.center(i, 0, None).tolist() for i in range(len(sampler.volumes(None)))]
    [[2, 2, 2], [2, 2, 6], [2, 2, 8]]
    """

    def __init__(
        self, store: VolumeStore, size: int | Sequence[int], *, overlap: int | Sequence[int] = 0
    ) -> None:
        self.size: Size | None = _size(size)
        shared = np.broadcast_to(np.asarray(overlap), 3)
        if (shared < 0).any() or (shared >= self.size).any():
            raise ValueError(f"overlap must be at least 0 and below the size {self.size}, got {overlap}")
        step = np.array(self.size) - shared
        centers, volumes = [], []
        for number, stored in enumerate(store):
            axes = [self._along(n, s, d) for n, s, d in zip(stored.shape, self.size, step, strict=True)]
            grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
            centers.append(grid)
            volumes.append(np.full(len(grid), number))
        self._centers = np.concatenate(centers) if centers else np.empty((0, 3), np.int64)
        self._volumes = np.concatenate(volumes) if volumes else np.empty(0, np.int64)

    def volumes(self, rng: np.random.Generator | None) -> np.ndarray:
        return self._volumes

    def center(self, index: int, volume: int, rng: np.random.Generator | None) -> np.ndarray:
        center: np.ndarray = self._centers[index]
        return center

    @staticmethod
    def _along(extent: int, size: int, step: int) -> np.ndarray:
        if size >= extent:
            return np.array([size // 2 - (size - extent) // 2])
        starts = np.append(np.arange(0, extent - size, step), extent - size)
        return starts + size // 2


class WholeVolumeSampler:
    """Each volume as a whole, in an order of its own in every epoch; a batch needs volumes of one shape.

    >>> store = VolumeStore()
    >>> store.add(np.zeros((4, 5, 6), np.int16))
    >>> WholeVolumeSampler(store).center(0, 0, np.random.default_rng(0))
    array([2, 2, 3])
    """

    size: Size | None = None

    def __init__(self, store: VolumeStore) -> None:
        self.store = store

    def volumes(self, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(len(self.store))

    def center(self, index: int, volume: int, rng: np.random.Generator) -> np.ndarray:
        return np.array(self.store[volume].shape) // 2


class _BlockCounts:
    """How many voxels of each block are positive: draws one of them, or of the others, uniformly."""

    def __init__(self, label: np.ndarray) -> None:
        from volnet.data.patch_kernels import BLOCK, count_blocks

        blocks = [-(-n // BLOCK) for n in label.shape]
        positive = np.zeros(blocks, np.int64)
        count_blocks(label, positive)
        sides = [
            np.minimum(BLOCK, n - BLOCK * np.arange(b)) for n, b in zip(label.shape, blocks, strict=True)
        ]
        voxels = sides[0][:, None, None] * sides[1][:, None] * sides[2]
        self._cumulative = (np.cumsum(voxels - positive), np.cumsum(positive))
        self._blocks = blocks

    def draw(self, label: np.ndarray, positive: bool, rng: np.random.Generator) -> np.ndarray:
        from volnet.data.patch_kernels import find_in_block

        kind = positive if self._cumulative[positive][-1] else not positive
        cumulative = self._cumulative[kind]
        rank = int(rng.integers(cumulative[-1]))
        block = int(np.searchsorted(cumulative, rank, side="right"))
        before = int(cumulative[block - 1]) if block else 0
        corner, voxels = _block(label, block, self._blocks)
        where = np.empty(3, np.int64)
        find_in_block(voxels, rank - before, kind, where)
        return corner + where


class _BlockSums:
    """The sum of the weights of each block: draws a voxel in proportion to its weight."""

    def __init__(self, weights: np.ndarray, name: str) -> None:
        from volnet.data.patch_kernels import BLOCK, sum_blocks

        self._blocks = [-(-n // BLOCK) for n in weights.shape]
        sums = np.zeros(self._blocks, np.float64)
        least = sum_blocks(weights, sums)
        self._cumulative = np.cumsum(sums)
        total = self._cumulative[-1]
        if not (least >= 0 and 0 < total < np.inf):
            raise ValueError(
                f"{name}: weights must be at least 0, finite and not all 0; the least is {least:g}, "
                f"the sum {total:g}"
            )

    def draw(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        from volnet.data.patch_kernels import find_weight

        cumulative = self._cumulative
        # Rounding may bring the product to the sum itself; side="right" passes over blocks of weight 0.
        at = min(rng.random() * cumulative[-1], np.nextafter(cumulative[-1], 0))
        block = int(np.searchsorted(cumulative, at, side="right"))
        corner, voxels = _block(weights, block, self._blocks)
        where = np.empty(3, np.int64)
        find_weight(voxels, rng.random(), where)
        return corner + where


def _block(array: np.ndarray, block: int, blocks: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    from volnet.data.patch_kernels import BLOCK

    corner = np.array(np.unravel_index(block, blocks)) * BLOCK
    return corner, array[tuple(slice(a, a + BLOCK) for a in corner)]


def _outside(boxes: np.ndarray, shape: Size, rng: np.random.Generator) -> np.ndarray:
    """A voxel of no box; of any, where a hundred tries find none."""
    for _ in range(100):
        voxel = rng.integers(shape)
        middle = voxel + 0.5
        if not ((boxes[:, :3] < middle) & (middle < boxes[:, 3:])).all(axis=1).any():
            break
    return voxel


def _size(size: int | Sequence[int] | Any) -> Size:
    values = [size] * 3 if isinstance(size, int) else [int(n) for n in size]
    if len(values) != 3 or min(values) < 1:
        raise ValueError(f"size must be three numbers of at least 1, or one, got {size!r}")
    return values[0], values[1], values[2]
