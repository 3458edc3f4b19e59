"""Training state on disk: tensors in safetensors, everything else as JSON in its header, never pickle.

A file is written aside, synced and renamed, and the one before is kept, so whatever happens at whatever
moment, one of the two is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

_FORMAT = "volnet checkpoint 1"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class InvalidCheckpointError(ValueError):
    """A file that does not hold a checkpoint of this training; the message names the file and the reason."""


class CheckpointWriteError(OSError):
    """A file that could not be written; the message names it, its size and the room on its disk."""


def save_checkpoint(
    path: str | Path, state: Mapping[str, Any], *, other: Callable[[Any], Any] | None = None
) -> None:
    """Write a state in such a way that an interruption at any moment leaves a whole checkpoint.

    What was in ``path`` is kept beside it (:func:`previous_checkpoint`). Nothing is pickled.

    Args:
        path: file to write, in a folder that exists.
        state: dictionaries, lists and tuples, nested, of tensors, NumPy arrays, numbers, strings, booleans
            and None; what ``state_dict()`` of modules, optimizers and schedules gives. Dataclasses come back
            as dictionaries.
        other: makes something of the above of anything else.

    Raises:
        TypeError: something in ``state`` is none of these; the message says where and what.
        CheckpointWriteError: the disk is full or the folder not writable. What was there before is untouched.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "checkpoint.safetensors")
    ...     save_checkpoint(path, {"step": 3, "betas": (0.9, 0.999), "weights": torch.ones(2)})
    ...     load_checkpoint(path)
    {'step': 3, 'betas': (0.9, 0.999), 'weights': tensor([1., 1.])}
    """
    path = Path(path)
    packer = _Packer(other)
    structure = {name: packer.pack(value, name) for name, value in state.items()}
    header = {"format": _FORMAT, "state": json.dumps(structure)}
    write_safetensors(path, packer.tensors, header, keep=previous_checkpoint(path))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote; where that is damaged, the checkpoint before it.

    A damaged file is renamed to ``*.damaged``, with a warning that names it, so that it does not take the
    place of the good one before it.

    Returns:
        The state; tensors have their dtype, shape, strides and bits.

    Raises:
        FileNotFoundError: there is no checkpoint.
        InvalidCheckpointError: none can be read.
    """
    path = Path(path)
    previous = previous_checkpoint(path)
    if not path.exists() and not previous.exists():
        raise FileNotFoundError(2, "no checkpoint", str(path))
    if path.exists():
        try:
            return _read(path)
        except InvalidCheckpointError as error:
            if not previous.exists():
                raise
            state = _read(previous)
            os.replace(path, path.with_name(path.name + ".damaged"))
            warnings.warn(f"{error}; going on from the one before, {previous.name}", stacklevel=2)
            return state
    # Interrupted between the two renames.
    return _read(previous)


def has_checkpoint(path: str | Path) -> bool:
    """Whether :func:`load_checkpoint` has something to read."""
    return Path(path).exists() or previous_checkpoint(path).exists()


def previous_checkpoint(path: str | Path) -> Path:
    """Where the checkpoint before the last one is.

    >>> previous_checkpoint("run/checkpoint.safetensors").name
    'checkpoint.previous.safetensors'
    """
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_weights(path: str | Path, model: nn.Module, metadata: Mapping[str, str] | None = None) -> None:
    """Write a model's weights and buffers as a safetensors file that any reader of the format understands.

    Args:
        path: file to write; an existing one is replaced when the new one is whole.
        model: its ``state_dict()`` is written.
        metadata: strings for the file's header.

    Raises:
        CheckpointWriteError: the disk is full or the folder not writable.

    >>> from tempfile import TemporaryDirectory
    >>> from safetensors.torch import load_file
    >>> with TemporaryDirectory() as folder:
    ...     save_weights(Path(folder, "weights.safetensors"), torch.nn.Linear(2, 1))
    ...     sorted(load_file(Path(folder, "weights.safetensors")))
    ['bias', 'weight']
    """
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    write_safetensors(Path(path), tensors, metadata)


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None, keep: Path | None = None
) -> None:
    """Write aside, sync and rename.

    Args:
        path: file to write.
        tensors: contiguous, on the CPU.
        header: strings.
        keep: what was in ``path`` gets this name.

    Raises:
        CheckpointWriteError: it cannot be written. What was there before is untouched.
    """
    aside = path.with_name(path.name + ".partial")
    try:
        with open(aside, "wb") as file:
            _write(file, tensors, header)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(aside, path)
        _sync_folder(path.parent)
    except OSError as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise CheckpointWriteError(
            f"{path}: cannot be written: {error.strerror}; it has {size / 1e6:.1f} MB, "
            f"its disk {free / 1e6:.1f} MB free"
        ) from error


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None) -> None:
    """The format, tensor by tensor.

    The library's own writer takes either a copy of everything in memory, or temporary files of names of its
    own, one of which would be left behind, as large as a checkpoint, by every kill.
    """
    # Largest items first, so that each is aligned.
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    entries: dict[str, Any] = {"__metadata__": dict(header)} if header else {}
    end = 0
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.nbytes
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in names:
        file.write(tensors[name].reshape(-1).view(torch.uint8).numpy().data)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise InvalidCheckpointError(
                    f"{path}: cannot be read as a checkpoint: its format is {header.get('format')!r}, "
                    f"not {_FORMAT!r}"
                )
            state: dict[str, Any] = _unpack(json.loads(header["state"]), file.get_tensor)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, InvalidCheckpointError):
            raise
        raise InvalidCheckpointError(f"{path}: cannot be read as a checkpoint: {error}") from error
    return state


class _Packer:
    """JSON of a state, with its tensors put aside under the names of their places."""

    def __init__(self, other: Callable[[Any], Any] | None) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._other = other
        self._names: dict[tuple[Any, ...], str] = {}

    def pack(self, value: Any, place: str) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Tensor):
            return self._tensor(value, place)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return {"$array": self._tensor(torch.from_numpy(np.ascontiguousarray(value)), place)}
        if isinstance(value, np.generic) and value.dtype.kind in "biuf":
            return value.item()
        if isinstance(value, (list, tuple)):
            packed = [self.pack(item, f"{place}.{index}") for index, item in enumerate(value)]
            return {"$tuple": packed} if isinstance(value, tuple) else packed
        if isinstance(value, Mapping):
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: self.pack(item, f"{place}.{key}") for key, item in value.items()}
            return {
                "$items": [
                    [self.pack(key, place), self.pack(item, f"{place}.{key}")] for key, item in value.items()
                ]
            }
        if is_dataclass(value) and not isinstance(value, type):
            return self.pack({field.name: getattr(value, field.name) for field in fields(value)}, place)
        if self._other is not None:
            return self.pack(self._other(value), place)
        raise TypeError(f"{place}: a checkpoint cannot hold a {type(value).__qualname__}")

    def _tensor(self, value: Tensor, place: str) -> dict[str, Any]:
        if value.dtype not in _DTYPES:
            raise TypeError(f"{place}: a checkpoint cannot hold a tensor of {value.dtype}")
        value = value.detach().as_subclass(Tensor).cpu()
        stride = list(value.stride())
        same = (value.data_ptr(), value.dtype, tuple(value.shape), tuple(stride))
        if value.data_ptr() and same in self._names:
            return {"$tensor": self._names[same], "stride": stride}
        name = place
        while name in self.tensors:
            name += "'"
        self._names[same] = name
        self.tensors[name] = value.contiguous()
        return {"$tensor": name, "stride": stride}


def _unpack(packed: Any, tensor: Callable[[str], Tensor]) -> Any:
    if isinstance(packed, list):
        return [_unpack(item, tensor) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if "$tensor" in packed:
        value = tensor(packed["$tensor"])
        stride = packed["stride"]
        # Copies: what is read is a map of the file.
        if _overlaps(value.shape, stride):
            return value.clone()
        return torch.empty_strided(value.shape, stride, dtype=value.dtype).copy_(value)
    if "$array" in packed:
        return _unpack(packed["$array"], tensor).numpy()
    if "$tuple" in packed:
        return tuple(_unpack(item, tensor) for item in packed["$tuple"])
    if "$items" in packed:
        return {_unpack(key, tensor): _unpack(item, tensor) for key, item in packed["$items"]}
    return {key: _unpack(item, tensor) for key, item in packed.items()}


def _overlaps(shape: torch.Size, stride: list[int]) -> bool:
    """Whether the strides are those of a view that is expanded or has gaps: such is read as contiguous."""
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size > 1 and step != expected:
            return True
        expected *= size
    return False
