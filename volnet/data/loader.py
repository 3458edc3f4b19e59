"""Batches of patches from a store, made by threads ahead of the training step."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from volnet.data.augment import PointwiseTransform, SpatialTransform, Transform
from volnet.data.patches import AnyTransform, make_patch
from volnet.data.samplers import Sampler
from volnet.data.store import VolumeStore

Batch = dict[str, Any]

_ORDER, _PATCH = 0, 1  # what a random stream is for


class PatchLoader:
    """Iterates over batches of patches, as a ``torch.utils.data.DataLoader`` does, an epoch at a time.

    Threads of this process make the patches; the loops run without the GIL and each on one core. Patch ``k``
    of epoch ``e`` depends on the seed, ``e`` and ``k`` alone: batches are the same for any number of threads.

    An iteration that is left early goes on there the next time, and so does a loader that is given the
    ``state_dict`` of another, in another process, in the middle of an epoch.

    Args:
        store: the volumes.
        sampler: where patches are taken: one of :mod:`volnet.data.samplers`, made for the same store.
        transforms: of :mod:`volnet.data.augment`, spatial ones first.
        batch_size: patches in a batch.
        threads: that make patches.
        seed: of everything random; not negative.
        prefetch: batches that are made ahead of the one in use.
        pad_value: HU outside of a volume.
        drop_last: leave out the last batch of an epoch where it is smaller than ``batch_size``.
        rank, ranks: this process is one of several that share each epoch: it gets batches
            ``rank, rank + ranks, ...``, as many as the others; batches at the end that would not go round are
            left out.

    Yields:
        A dictionary: ``image`` float32 ``[B, 1, D, H, W]``; ``label`` uint8 ``[B, 1, D, H, W]`` where the
        store has labels; ``boxes``, for each patch float32 ``[K, 6]`` (d1, h1, w1, d2, h2, w2) in its voxels,
        half-open, and ``box_ids`` int64 ``[K]``, their numbers in the volume, -1 for pasted ones; ``volume``
        and ``center``, int64 ``[B]`` and ``[B, 3]``, where the patches come from.

    Raises:
        ValueError: an argument is out of range, or, on the way, a batch of different shapes.

    >>> from volnet.data import RandomFlip, UniformSampler, Window
    >>> store = VolumeStore()
    >>> store.add(np.full((8, 16, 16), -300, np.int16))
    >>> loader = PatchLoader(store, UniformSampler(store, 8), [RandomFlip(), Window(-1000, 400)])
    >>> for batch in loader:
    ...     print(batch["image"].shape, batch["image"].mean().item())
    torch.Size([1, 1, 8, 8, 8]) 0.5
    """

    def __init__(
        self,
        store: VolumeStore,
        sampler: Sampler,
        transforms: Sequence[AnyTransform] = (),
        batch_size: int = 1,
        *,
        threads: int = 2,
        seed: int = 0,
        prefetch: int = 2,
        pad_value: float = -1024,
        drop_last: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("threads", threads, 1),
            ("prefetch", prefetch, 1),
            ("seed", seed, 0),
            ("ranks", ranks, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= rank < ranks:
            raise ValueError(f"rank must be 0 to {ranks - 1}, got {rank}")
        _check_transforms(transforms)
        self.store, self.sampler, self.transforms = store, sampler, tuple(transforms)
        self.batch_size, self.threads, self.seed, self.prefetch = batch_size, threads, seed, prefetch
        self.pad_value, self.drop_last, self.rank, self.ranks = pad_value, drop_last, rank, ranks
        self._patches = len(sampler.volumes(self._random(_ORDER, 0, 0)))
        self._epoch = 0
        self._batch = 0  # the next of this epoch, of this rank

    def __len__(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(self._patches, self.batch_size)
        batches = whole + (rest > 0 and not self.drop_last)
        return batches // self.ranks

    @property
    def epoch(self) -> int:
        """Epochs that have been gone through to their end."""
        return self._epoch

    def state_dict(self) -> dict[str, int]:
        """Where the iteration is: after the batch that was yielded last."""
        return {
            "seed": self.seed,
            "epoch": self._epoch,
            "batch": self._batch,
            "patches": self._patches,
            "batch_size": self.batch_size,
            "ranks": self.ranks,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where a loader with the same store, sampler, transforms and batch size was.

        Raises:
            ValueError: the epochs of that loader were of another size.
        """
        for name, own in (
            ("patches", self._patches),
            ("batch_size", self.batch_size),
            ("ranks", self.ranks),
        ):
            if state[name] != own:
                raise ValueError(f"the state has {name} {state[name]}, this loader {own}")
        self.seed, self._epoch, self._batch = state["seed"], state["epoch"], state["batch"]

    def __iter__(self) -> Iterator[Batch]:
        epoch = self._epoch
        order = self.sampler.volumes(self._random(_ORDER, epoch, 0))
        numbers = iter(range(self._batch, len(self)))
        with _single_threaded_pool(self.threads) as pool:
            pending: deque[_Pending] = deque()
            try:
                for number in itertools.islice(numbers, self.prefetch + 1):
                    pending.append(self._begin(pool, order, number))
                while pending:
                    batch = pending.popleft().result()
                    for number in itertools.islice(numbers, 1):
                        pending.append(self._begin(pool, order, number))
                    self._batch += 1
                    yield batch
            finally:
                for unfinished in pending:
                    unfinished.cancel()
        self._epoch, self._batch = epoch + 1, 0

    def _begin(self, pool: ThreadPoolExecutor, order: np.ndarray, number: int) -> _Pending:
        first = (number * self.ranks + self.rank) * self.batch_size
        indices = range(first, min(first + self.batch_size, len(order)))
        volumes = [int(order[index]) for index in indices]
        sizes = {self.sampler.size or self.store[volume].shape for volume in volumes}
        if len(sizes) > 1:
            raise ValueError(
                f"a batch needs volumes of one shape, got {sorted(sizes)}; use a batch_size of 1 or patches"
            )
        shape = (len(volumes), 1, *sizes.pop())
        image = _empty(shape, np.float32)
        label = _empty(shape, np.uint8) if self.store.has_labels else None

        def make(slot: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            index, stored = indices[slot], self.store[volumes[slot]]
            rng = self._random(_PATCH, self._epoch, index)
            center = np.asarray(self.sampler.center(index, volumes[slot], rng), np.int64)
            boxes, box_ids = make_patch(
                stored,
                center,
                self.transforms,
                rng,
                self.pad_value,
                image[slot, 0],
                None if label is None else label[slot, 0],
            )
            return center, boxes, box_ids

        futures = [pool.submit(make, slot) for slot in range(len(volumes))]
        return _Pending(image, label, volumes, futures)

    def _random(self, purpose: int, epoch: int, index: int) -> np.random.Generator:
        key = np.array([self.seed, (epoch << 1) | purpose], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, index]))


class _Pending:
    """A batch in the making."""

    def __init__(
        self,
        image: np.ndarray,
        label: np.ndarray | None,
        volumes: list[int],
        futures: list[Future[tuple[np.ndarray, np.ndarray, np.ndarray]]],
    ) -> None:
        self._image, self._label, self._volumes, self._futures = image, label, volumes, futures

    def result(self) -> Batch:
        centers, boxes, box_ids = zip(*(future.result() for future in self._futures), strict=True)
        batch: Batch = {"image": torch.from_numpy(self._image)}
        if self._label is not None:
            batch["label"] = torch.from_numpy(self._label)
        batch["boxes"] = [torch.from_numpy(b) for b in boxes]
        batch["box_ids"] = [torch.from_numpy(b) for b in box_ids]
        batch["volume"] = torch.tensor(self._volumes)
        batch["center"] = torch.from_numpy(np.stack(centers))
        return batch

    def cancel(self) -> None:
        for future in self._futures:
            future.cancel()


def _empty(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.empty(shape, dtype)  # NumPy asks for huge pages, torch does not


def _single_threaded_pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose operators of torch and volnet run on the thread itself.

    torch keeps the number for each thread, and the last one set for threads that are yet to come: so the
    caller's is set again once all have begun.
    """
    all_begun = threading.Barrier(threads + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        all_begun.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="volnet-patches", initializer=begin)
    own = torch.get_num_threads()
    for _ in range(threads):
        pool.submit(lambda: None)
    all_begun.wait()
    torch.set_num_threads(own)
    return pool


def _check_transforms(transforms: Sequence[AnyTransform]) -> None:
    spatial = True
    for transform in transforms:
        if isinstance(transform, SpatialTransform):
            if not spatial:
                raise ValueError(
                    f"spatial transforms come before the others, got {type(transform).__name__} after one"
                )
        elif isinstance(transform, PointwiseTransform | Transform):
            spatial = False
        else:
            raise TypeError(f"not a transform of volnet.data.augment: {transform!r}")
