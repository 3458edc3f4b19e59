"""Volumes in host memory, once, for every thread and process that trains on them."""

from __future__ import annotations

import itertools
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volnet.data.compressed import Chunks, compress
from volnet.data.errors import InvalidScanError
from volnet.data.read import read_ct, read_labels
from volnet.data.volume import CTVolume

Spacing = tuple[float, float, float]

_SLAB_BYTES = (16 << 20, 1 << 30)  # the first, and the largest that is taken ahead of need
_ALIGNMENT = 64
_MIN_SPAN = 100  # of values with fractions: what is flatter would not survive rounding


@dataclass(frozen=True)
class StoredVolume:
    """One volume of a store: views of its memory, not copies.

    Attributes:
        name: of the file or what it was called.
        shape: voxels (d, h, w).
        spacing: mm (d, h, w); 1 where nothing was known.
        label: uint8 ``[D, H, W]``, or None.
        boxes: float32 ``[K, 6]`` (d1, h1, w1, d2, h2, w2), voxels, half-open.
    """

    name: str
    shape: tuple[int, int, int]
    spacing: Spacing
    label: Tensor | None
    boxes: np.ndarray
    _image: Tensor | Chunks

    @property
    def voxels(self) -> Tensor:
        """int16 ``[D, H, W]``; of a compressed store a decompressed copy."""
        return self._image if isinstance(self._image, Tensor) else self._image.region((0, 0, 0), self.shape)

    def region(self, start: Sequence[int], stop: Sequence[int]) -> Tensor:
        """int16 voxels ``[start, stop)`` on each axis, within the volume: a view, or decompressed.

        Only the chunks of a compressed volume that the region meets are decompressed.
        """
        if isinstance(self._image, Tensor):
            view: Tensor = self._image[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
            return view
        return self._image.region(start, stop)

    @property
    def is_compressed(self) -> bool:
        return isinstance(self._image, Chunks)


@dataclass(frozen=True)
class _Place:
    slab: int
    begin: int
    end: int


@dataclass(frozen=True)
class _Record:
    name: str
    shape: tuple[int, int, int]
    spacing: Spacing
    image: _Place
    chunk_ends: np.ndarray | None  # int64, of a compressed image
    label: _Place | None
    boxes: np.ndarray


@dataclass(frozen=True)
class _Read:
    """A volume on its way into the store."""

    name: str
    spacing: Spacing
    shape: tuple[int, int, int]
    image: np.ndarray  # int16 [D, H, W], or uint8 [N] compressed
    chunk_ends: np.ndarray | None
    label: np.ndarray | None
    boxes: np.ndarray


class VolumeStore:
    """int16 volumes in memory, with a uint8 label volume and boxes beside each where there are any.

    Threads read the same memory; with ``shared=True`` so do other processes, however they are started
    (``fork``, ``spawn``, a ``torch.utils.data.DataLoader``'s workers): only names and places are sent.
    Nothing is left behind in ``/dev/shm`` when the processes end, however they end.

    Args:
        shared: keep the volumes in shared memory.
        compressed: keep the images as blosc2-compressed chunks of 32³ voxels (LZ4HC, lossless): about half
            the memory for CTs; a patch decompresses the chunks that it meets. Needs ``pip install blosc2``.

    Attributes:
        skipped: (name, reason) of what :meth:`fill` could not read.

    >>> store = VolumeStore()
    >>> store.add(np.zeros((8, 16, 16), np.int16), boxes=[[0, 2, 2, 4, 6, 6]], name="first")
    >>> len(store), store[0].name, store[0].shape, store.nbytes
    (1, 'first', (8, 16, 16), 4096)
    """

    def __init__(self, *, shared: bool = False, compressed: bool = False) -> None:
        self.shared = shared
        self.compressed = compressed
        self.skipped: list[tuple[str, str]] = []
        self._records: list[_Record] = []
        self._slabs: list[Tensor] = []  # uint8
        self._used = 0  # bytes of the last slab

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> StoredVolume:
        record = self._records[index]
        image: Tensor | Chunks
        if record.chunk_ends is None:
            image = self._view(record.image, torch.int16, record.shape)
        else:
            image = Chunks(self._bytes(record.image).numpy(), record.chunk_ends, record.shape)
        label = None if record.label is None else self._view(record.label, torch.uint8, record.shape)
        return StoredVolume(record.name, record.shape, record.spacing, label, record.boxes, image)

    def __iter__(self) -> Iterator[StoredVolume]:
        return (self[i] for i in range(len(self)))

    @property
    def nbytes(self) -> int:
        """Bytes of images and labels."""
        places = [p for r in self._records for p in (r.image, r.label) if p is not None]
        return sum(p.end - p.begin for p in places)

    @property
    def has_labels(self) -> bool:
        """Whether any volume has a label volume."""
        return any(record.label is not None for record in self._records)

    def add(
        self,
        image: Any,
        *,
        label: Any = None,
        boxes: Any = None,
        name: str | None = None,
        spacing: Sequence[float] | None = None,
    ) -> None:
        """Copy one volume into the store.

        Args:
            image: a path that :func:`volnet.data.read_ct` reads; a :class:`volnet.data.CTVolume`; an array or
                tensor ``[D, H, W]`` or ``[1, D, H, W]``, of int16 or of numbers that are rounded to it; a
                MONAI dictionary (``image``, and ``label``, ``box`` or ``boxes`` where it has them; paths or
                arrays, whose axes are taken as they are); or a TorchIO subject (its first image and label
                map, ``[1, W, H, D]``, turned to ``[D, H, W]``).
            label: path, array or tensor of the image's shape, whole numbers 0 to 255.
            boxes: ``[K, 6]`` (d1, h1, w1, d2, h2, w2), voxels, half-open.
            name: to be called by in errors; the file's name or ``volume N`` if not given.
            spacing: mm (d, h, w); the image's own, or 1, if not given.

        Raises:
            InvalidScanError: a file cannot be read, or voxels or labels do not fit into their type.
            ValueError: a shape or box does not fit; the message begins with the name.
            RuntimeError, MemoryError: there is not enough (shared) memory.
        """
        item = _Item(image, label, boxes, name or _name_of(image, len(self)), spacing)
        self._put(item.read(self.compressed))

    def fill(
        self,
        items: Iterable[Any],
        *,
        threads: int | None = None,
        on_error: str = "stop",
        progress: bool = True,
    ) -> VolumeStore:
        """Read many volumes in parallel; they are stored in the order of ``items``.

        Args:
            items: each what ``image`` may be in :meth:`add`; labels and boxes come in dictionaries.
            threads: readers; one for each core this process may use if not given.
            on_error: what is done about an item that cannot be read. ``"stop"`` raises, naming it; ``"skip"``
                goes on, warns with its name, and adds it to ``skipped``.
            progress: show a bar (tqdm) on standard error.

        Returns:
            The store itself.

        Raises:
            InvalidScanError: with ``"stop"``, an item cannot be read. What came before it stays.
            ValueError: ``on_error`` is neither, or ``threads`` is below 1.

        >>> arrays = [np.full((4, 4, 4), i, np.int16) for i in range(3)]
        >>> store = VolumeStore().fill([{"image": a, "label": a > 1} for a in arrays], progress=False)
        >>> [int(volume.label.sum()) for volume in store]
        [0, 0, 64]
        """
        if on_error not in ("stop", "skip"):
            raise ValueError(f'on_error must be "stop" or "skip", got {on_error!r}')
        threads = len(os.sched_getaffinity(0)) if threads is None else threads
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        items = list(items)
        first = len(self)
        tasks = [_Item(x, None, None, _name_of(x, first + i), None) for i, x in enumerate(items)]
        with ThreadPoolExecutor(threads, thread_name_prefix="volnet-read") as pool:
            # As many as there are readers wait to be stored: memory is bounded, whatever the number of items.
            results = _in_order(pool, [task.reader(self.compressed) for task in tasks], 2 * threads)
            for task, result in zip(_with_bar(tasks, progress), results, strict=True):
                try:
                    read = result.result()
                except (ValueError, OSError, EOFError, RuntimeError) as error:
                    if on_error == "stop":
                        raise
                    reason = error.reason if isinstance(error, InvalidScanError) else str(error)
                    self.skipped.append((task.name, reason))
                    warnings.warn(f"{task.name} was skipped: {reason}", stacklevel=2)
                    continue
                self._put(read)
        return self

    def __getstate__(self) -> dict[str, Any]:
        if not self.shared:
            raise TypeError(
                "this VolumeStore is private to its process (and to those forked from it); one that is sent "
                "to other processes is made with VolumeStore(shared=True)"
            )
        return self.__dict__

    def _put(self, read: _Read) -> None:
        image = self._copy(read.image)
        label = None if read.label is None else self._copy(read.label)
        self._records.append(
            _Record(read.name, read.shape, read.spacing, image, read.chunk_ends, label, read.boxes)
        )

    def _copy(self, array: np.ndarray) -> _Place:
        free = len(self._slabs[-1]) - self._used if self._slabs else 0
        if array.nbytes > free:
            smallest, largest = _SLAB_BYTES
            ahead = min(2 * len(self._slabs[-1]), largest) if self._slabs else smallest
            self._slabs.append(self._slab(max(array.nbytes, ahead)))
            self._used = 0
        place = _Place(len(self._slabs) - 1, self._used, self._used + array.nbytes)
        np.copyto(self._bytes(place).numpy().view(array.dtype), array.reshape(-1))
        self._used = -(-place.end // _ALIGNMENT) * _ALIGNMENT
        return place

    def _slab(self, size: int) -> Tensor:
        size = -(-size // _ALIGNMENT) * _ALIGNMENT
        if self.shared:
            # Its pages are reserved at once: too little room in /dev/shm is an error here, not a bus error
            # later.
            storage = torch.UntypedStorage._new_shared(size)
            return torch.empty(0, dtype=torch.uint8).set_(storage)
        # NumPy asks for huge pages, and a page costs memory when it is first written.
        return torch.from_numpy(np.empty(size, np.uint8))

    def _bytes(self, place: _Place) -> Tensor:
        return self._slabs[place.slab][place.begin : place.end]

    def _view(self, place: _Place, dtype: torch.dtype, shape: tuple[int, int, int]) -> Tensor:
        return self._bytes(place).view(dtype).view(shape)


@dataclass(frozen=True)
class _Item:
    source: Any
    label: Any
    boxes: Any
    name: str
    spacing: Sequence[float] | None

    def reader(self, compressed: bool) -> Callable[[], _Read]:
        return lambda: self.read(compressed)

    def read(self, compressed: bool) -> _Read:
        image, label, boxes, spacing = self.source, self.label, self.boxes, self.spacing
        if isinstance(image, Mapping):  # a TorchIO subject is one too
            found = _from_torchio(image) if hasattr(image, "get_images_dict") else _from_monai(image)
            image, own_label, own_boxes, own_spacing = found
            label = own_label if label is None else label
            boxes = own_boxes if boxes is None else boxes
            spacing = own_spacing if spacing is None else spacing
            if image is None:
                raise ValueError(f"{self.name}: has no image, only {', '.join(map(str, self.source))}")
        if isinstance(image, str | os.PathLike):
            image = read_ct(image)
        if isinstance(image, CTVolume):
            spacing = image.geometry.spacing if spacing is None else spacing
            image = image.voxels
        voxels = self._to_int16(self._volume("image", image))
        shape: tuple[int, int, int] = (voxels.shape[0], voxels.shape[1], voxels.shape[2])
        labels = None if label is None else self._to_labels(label, shape)
        chunk_ends = None
        if compressed:
            voxels, chunk_ends = compress(voxels)
        return _Read(
            self.name, self._spacing(spacing), shape, voxels, chunk_ends, labels, self._to_boxes(boxes)
        )

    def _volume(self, what: str, value: Any) -> np.ndarray:
        array = _plain(value)
        if array.ndim == 4 and array.shape[0] == 1:
            array = array[0]
        if array.ndim != 3 or array.size == 0:
            raise ValueError(
                f"{self.name}: {what} must be [D, H, W] or [1, D, H, W] with voxels, got {array.shape}"
            )
        return array

    def _to_int16(self, array: np.ndarray) -> np.ndarray:
        if array.dtype == np.int16:
            return np.ascontiguousarray(array)
        if array.dtype.kind not in "iuf":
            raise InvalidScanError(self.name, f"voxels of type {array.dtype} are no numbers for int16")
        low, high = float(array.min()), float(array.max())
        limits = np.iinfo(np.int16)
        if not (limits.min <= low and high <= limits.max):  # NaN as well
            raise InvalidScanError(self.name, f"voxels from {low:g} to {high:g} do not fit into int16")
        if array.dtype.kind == "f" and high - low < _MIN_SPAN and (np.rint(array) != array).any():
            raise InvalidScanError(
                self.name, f"voxels from {low:g} to {high:g} would be lost in rounding to int16; scale them"
            )
        return np.rint(array).astype(np.int16) if array.dtype.kind == "f" else array.astype(np.int16)

    def _to_labels(self, label: Any, shape: tuple[int, int, int]) -> np.ndarray:
        if isinstance(label, str | os.PathLike):
            label = read_labels(label)[0]
        array = self._volume("label", label)
        if array.shape != shape:
            raise ValueError(f"{self.name}: label has shape {array.shape}, the image has {shape}")
        if array.dtype in (np.uint8, np.bool_):
            return np.ascontiguousarray(array).view(np.uint8)
        result = array.astype(np.uint8)
        if (result != array).any():
            raise InvalidScanError(
                self.name, f"labels must be whole numbers 0 to 255, got {array.min():g} to {array.max():g}"
            )
        return np.ascontiguousarray(result)

    def _to_boxes(self, boxes: Any) -> np.ndarray:
        if boxes is None:
            return np.empty((0, 6), np.float32)
        array = np.array(_plain(boxes), np.float32)
        array = array.reshape(-1, 6) if array.size == 0 else array
        if array.ndim != 2 or array.shape[1] != 6:
            raise ValueError(f"{self.name}: boxes must be [K, 6], got shape {array.shape}")
        wrong = ~(np.isfinite(array).all(axis=1) & (array[:, :3] < array[:, 3:]).all(axis=1))
        if wrong.any():
            raise ValueError(f"{self.name}: a box must end after it begins, got {array[wrong][0].tolist()}")
        return array

    def _spacing(self, spacing: Sequence[float] | None) -> Spacing:
        values = [1.0] * 3 if spacing is None else [float(s) for s in spacing]
        if len(values) != 3 or not all(np.isfinite(s) and s > 0 for s in values):
            raise ValueError(f"{self.name}: spacing must be three positive mm, got {spacing!r}")
        return values[0], values[1], values[2]


def _plain(value: Any) -> np.ndarray:
    # MONAI's tensors are a subclass, which NumPy does not convert without a warning.
    tensor = isinstance(value, Tensor)
    return value.detach().cpu().as_subclass(Tensor).numpy() if tensor else np.asarray(value)


_Parts = tuple[Any, Any, Any, Any]  # image, label, boxes, spacing


def _from_monai(item: Mapping[str, Any]) -> _Parts:
    image = item.get("image")
    boxes = item["box"] if "box" in item else item.get("boxes")
    spacing = item.get("spacing")
    pixdim = getattr(image, "pixdim", None)
    if spacing is None and pixdim is not None:
        spacing = np.asarray(pixdim).tolist()
    return image, item.get("label"), boxes, spacing


def _from_torchio(subject: Any) -> _Parts:
    image = label = spacing = None
    for entry in subject.get_images_dict(intensity_only=False).values():
        # [C, W, H, D], as a file's voxels run
        array = entry.data.numpy().transpose(0, 3, 2, 1)
        if type(entry).__name__ == "LabelMap":
            label = array if label is None else label
        elif image is None:
            image, spacing = array, entry.spacing[::-1]
    boxes = subject.get("boxes", None)
    return image, label, boxes, spacing


def _name_of(source: Any, index: int) -> str:
    if isinstance(source, Mapping):
        if "name" in source:
            return str(source["name"])
        images = [source.get("image")]
        if hasattr(source, "get_images_dict"):
            images = [image.path for image in source.get_images_dict().values()]
        return _name_of(images[0], index)
    if isinstance(source, str | os.PathLike):
        return str(Path(source))
    if isinstance(source, CTVolume):
        return source.source
    return f"volume {index}"


def _in_order(
    pool: ThreadPoolExecutor, tasks: Sequence[Callable[[], _Read]], ahead: int
) -> Iterator[Future[_Read]]:
    """The tasks' results in their order, `ahead` of them begun before they are asked for."""
    pending: deque[Future[_Read]] = deque()
    remaining = iter(tasks)
    try:
        for task in itertools.islice(remaining, ahead):
            pending.append(pool.submit(task))
        while pending:
            yield pending.popleft()
            for task in itertools.islice(remaining, 1):
                pending.append(pool.submit(task))
    finally:
        for future in pending:
            future.cancel()


def _with_bar(tasks: Sequence[_Item], progress: bool) -> Iterable[_Item]:
    if not progress:
        return tasks
    from tqdm import tqdm

    return tqdm(tasks, desc="Volumes", unit="volume")
