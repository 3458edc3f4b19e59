"""Training state on disk: tensors in safetensors, numbers in its header, never a half-written file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

_MODEL, _AVERAGE, _OPTIMIZER = "model.", "average.", "optimizer."


class InvalidCheckpointError(ValueError):
    """A file that does not hold a checkpoint of this training; the message names the file and the reason."""


def save_checkpoint(
    path: Path,
    model: torch.nn.Module,
    average: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    numbers: dict[str, float],
) -> None:
    """Write everything that a later `load_checkpoint` needs to go on with the same bits.

    Args:
        path: file to write; it is written aside and renamed, so that an interruption leaves the old one.
        model: being trained.
        average: the moving average of its weights.
        optimizer: one whose state per parameter is tensors (SGD, Adam, AdamW).
        numbers: step, seconds and the like; read back as floats.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {_MODEL + name: value for name, value in model.state_dict().items()}
    tensors |= {_AVERAGE + name: value for name, value in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{_OPTIMIZER}{index}.{name}": value for name, value in state.items()}
    aside = path.with_suffix(".partial")
    header = {name: repr(float(value)) for name, value in numbers.items()}
    # Copies: safetensors refuses tensors that share memory, and stores plain layout only.
    aside.write_bytes(
        save({name: value.detach().clone().contiguous() for name, value in tensors.items()}, header)
    )
    os.replace(aside, path)


def load_checkpoint(
    path: Path,
    model: torch.nn.Module,
    average: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> dict[str, float]:
    """Put a checkpoint back into objects made as they were made when it was written.

    Returns:
        The numbers given to `save_checkpoint`.

    Raises:
        InvalidCheckpointError: if the file cannot be read or belongs to something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise InvalidCheckpointError(f"{path}: cannot be read as a checkpoint: {error}") from error

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}

    state: dict[int, dict[str, Tensor]] = {}
    for name, value in part(_OPTIMIZER).items():
        index, field = name.split(".", 1)
        state.setdefault(int(index), {})[field] = value
    try:
        model.load_state_dict(part(_MODEL))
        average.load_state_dict(part(_AVERAGE))
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    except (RuntimeError, ValueError) as error:
        raise InvalidCheckpointError(f"{path}: belongs to another model: {error}") from error
    return {name: float(value) for name, value in header.items()}
