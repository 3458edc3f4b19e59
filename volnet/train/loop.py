"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from volnet.train.batches import EndlessBatches, random_state, set_random_state
from volnet.train.checkpoints import (
    CheckpointWriteError,
    InvalidCheckpointError,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from volnet.train.metrics import MetricsFile, Shows, progress_bar, tensorboard

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.csv"


class Schedule(Protocol):
    """What `fit` asks of a schedule; torch's have it."""

    def step(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


Loss = Callable[[Any, Any], Tensor | tuple[Tensor, Mapping[str, float]]]


class NonFiniteError(ArithmeticError):
    """The loss or its gradient became NaN or infinite.

    Attributes:
        step: in which it did.
        path: of the file with that step's batches and the weights they met; :func:`load_checkpoint` reads it.
    """

    def __init__(self, what: str, step: int, path: Path) -> None:
        super().__init__(f"step {step}: {what}; its batches and the weights are in {path}")
        self.step, self.path = step, path


def fit(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    optimizer: Optimizer,
    *,
    steps: int,
    out: str | Path,
    schedule: Schedule | None = None,
    average: AveragedModel | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    bfloat16: bool = False,
    minutes: float | None = None,
    checkpoint_minutes: float = 5.0,
    stop: Callable[[], bool] | None = None,
    log: Shows | None = None,
    use_tensorboard: bool = False,
    progress: bool = False,
) -> int:
    """Train a model, or go on where an earlier call with the same folder was interrupted, to the same bits.

    A step is ``loss(model(image), label).backward()`` for each of its batches, then ``optimizer.step()``,
    ``schedule.step()`` and ``average.update_parameters(model)``. Everything is made by the caller, as for the
    first call, also when going on; what the checkpoint holds (weights, optimizer, schedule, average, the
    place among the batches, the random generators) is put into it. With the same number of threads and ranks,
    weights then depend on nothing but the arguments, however often the process was killed.

    Under torch.distributed every rank calls it, with its share of the batches and a model that exchanges
    gradients (DistributedDataParallel, say); rank 0 writes the files, which hold the state of every rank.

    Args:
        model: in the mode in which it is to be trained; optimized or not.
        batches: iterated again and again. Each is a pair ``(image, label)`` or a mapping with these keys, of
            tensors or whatever ``model`` and ``loss`` take. With ``state_dict()`` and ``load_state_dict()``
            it is asked where it is; without, a resumption draws the batches of the interrupted pass again.
        loss: takes what ``model`` gave, in bfloat16 if so asked, and the label. Returns a scalar, or that and
            more numbers by name for the metrics, averaged over the batches of a step.
        optimizer: of the parameters of ``model``.
        steps: of the optimizer, those of earlier calls counted.
        out: folder for ``checkpoint.safetensors``, the one before it, ``metrics.csv`` with a row a step, and
            TensorBoard's files; made if needed.
        schedule: stepped after each step of the optimizer; see :func:`make_schedule`.
        average: of the weights over the steps, an exponential one for example; see the example.
        accumulate: batches a step; the gradient is that of the mean of their losses.
        clip_norm: gradients with a larger L2 norm over all parameters are scaled down to it.
        bfloat16: run the model under autocast: volumes in half the memory, weights stay in float32.
        minutes: stop, with a checkpoint, after so much time, that of earlier calls counted.
        checkpoint_minutes: between checkpoints; 0 for one after every step. There is always one at the end.
        stop: asked after each step whether to stop there, with a checkpoint.
        log: called with each row of the metrics: step, seconds, learning_rate, loss, gradient_norm (before
            clipping) and what ``loss`` adds.
        use_tensorboard: show the metrics there too; needs the package tensorboard.
        progress: show a bar with the time left on stderr; needs the package rich.

    Returns:
        The number of steps done, earlier calls counted: ``steps``, unless ``minutes`` or ``stop`` ended it.

    Raises:
        ValueError: an argument is out of range, or ``batches`` is empty.
        TypeError: a batch is neither a pair nor a mapping with ``image`` and ``label``.
        NonFiniteError: the loss or the gradient is NaN or infinite; the weights are those before the step.
        InvalidCheckpointError: the folder holds a checkpoint of something else.
        CheckpointWriteError: the disk is full, for example; the last good checkpoint is still there.

    >>> from tempfile import TemporaryDirectory
    >>> from torch.optim.swa_utils import get_ema_multi_avg_fn
    >>> model = nn.Conv3d(1, 2, 3, padding=1)
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> batches = [(torch.randn(1, 1, 8, 8, 8), torch.zeros(1, 8, 8, 8, dtype=torch.long)) for _ in range(4)]
    >>> average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    >>> with TemporaryDirectory() as folder:
    ...     fit(model, batches, nn.functional.cross_entropy, optimizer, steps=6, out=folder, average=average)
    6
    """
    if steps < 1:
        raise ValueError(f"fit: steps must be at least 1, got {steps}")
    if accumulate < 1:
        raise ValueError(f"fit: accumulate must be at least 1, got {accumulate}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"fit: clip_norm must be over 0, got {clip_norm}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / CHECKPOINT
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    stream = EndlessBatches(batches)
    parts = {"model": plain, "optimizer": optimizer, "schedule": schedule, "average": average}
    first, before = 0, 0.0
    if has_checkpoint(checkpoint):
        first, before = _restore(checkpoint, parts, stream)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    forward = torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16)

    with _shows(out, first, steps, log, use_tensorboard, progress) as (metrics, shows):
        start = last_save = time.monotonic()
        step, ended = first, first >= steps
        while not ended:
            step += 1
            optimizer.zero_grad(set_to_none=True)
            used, numbers = [], {"loss": 0.0}
            for part in range(accumulate):
                batch = next(stream)
                used.append(batch)
                image, label = _pair(batch)
                with _without_exchange(model) if part + 1 < accumulate else nullcontext():
                    with forward:
                        given = model(image)
                    found = loss(given, label)
                    value, more = found if isinstance(found, tuple) else (found, {})
                    value = value / accumulate
                    numbers["loss"] += value.item()
                    if not math.isfinite(numbers["loss"]):
                        raise _non_finite(f"the loss is {value.item()}", step, out, used, plain)
                    value.backward()
                for name, number in more.items():
                    numbers[name] = numbers.get(name, 0.0) + float(number) / accumulate
            gradients = [p.grad for p in parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            if not norm.isfinite():
                raise _non_finite(f"the norm of the gradient is {norm.item()}", step, out, used, plain)
            if clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
            rate = optimizer.param_groups[0]["lr"]
            optimizer.step()
            if schedule is not None:
                schedule.step()
            if average is not None:
                average.update_parameters(plain)

            now = time.monotonic()
            seconds = before + now - start
            ended = minutes is not None and seconds >= 60 * minutes
            ended = ended or step >= steps or (stop is not None and stop())
            save = now - last_save >= 60 * checkpoint_minutes
            numbers["loss"], ended, save = _agreed(numbers["loss"], ended, save)
            row = {"step": step, "seconds": round(seconds, 3), "learning_rate": rate}
            row |= {"loss": numbers.pop("loss"), "gradient_norm": norm.item(), **numbers}
            for show in shows:
                show(row)
            if save or ended:
                if metrics is not None:
                    metrics.sync()  # before the checkpoint, which counts on its rows
                _save(checkpoint, step, seconds, parts, stream)
                last_save = time.monotonic()
    return step


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Mapping) and "image" in batch and "label" in batch:
        return batch["image"], batch["label"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    what = (
        f"a mapping with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
    )
    raise TypeError(f"fit: a batch must be a pair or a mapping with image and label, got {what}")


def _without_exchange(model: nn.Module) -> AbstractContextManager[Any]:
    """Gradients of all but the last batch of a step stay on their rank."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _agreed(loss: float, ended: bool, save: bool) -> tuple[float, bool, bool]:
    """The mean of the ranks' losses, and whether any of them wants to end or save: clocks differ."""
    if not _is_distributed():
        return loss, ended, save
    said = torch.tensor([loss, ended, save], dtype=torch.float64)
    dist.all_reduce(said)
    return said[0].item() / dist.get_world_size(), bool(said[1]), bool(said[2])


def _save(path: Path, step: int, seconds: float, parts: Mapping[str, Any], stream: EndlessBatches) -> None:
    """Write a checkpoint, on rank 0, with what differs between ranks gathered."""
    own = {"batches": stream.state_dict(), "random": random_state()}
    ranks: list[Any] = [own]
    if _is_distributed():
        ranks = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, own)
        if dist.get_rank() > 0:
            return
    states = {name: part.state_dict() for name, part in parts.items() if part is not None}
    try:
        save_checkpoint(path, {"step": step, "seconds": seconds, "ranks": ranks, **states})
    except CheckpointWriteError as error:
        kept = "the last checkpoint is as it was" if has_checkpoint(path) else "there is no earlier one"
        raise CheckpointWriteError(f"step {step}: {error}; {kept}") from error


def _restore(path: Path, parts: Mapping[str, Any], stream: EndlessBatches) -> tuple[int, float]:
    """Put a checkpoint into what the caller made; the number of steps and seconds done."""
    state = load_checkpoint(path)
    world, rank = (dist.get_world_size(), dist.get_rank()) if _is_distributed() else (1, 0)
    try:
        for name, part in parts.items():
            if (part is not None) != (name in state):
                raise ValueError(f"it was trained {'with' if name in state else 'without'} {name}")
        if len(state["ranks"]) != world:
            raise ValueError(f"it is of {len(state['ranks'])} ranks, not {world}")
        for name, part in parts.items():
            if part is not None:
                part.load_state_dict(state[name])
        own = state["ranks"][rank]
        stream.load_state_dict(own["batches"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise InvalidCheckpointError(f"{path}: belongs to another training: {error}") from error
    set_random_state(own["random"])
    return state["step"], state["seconds"]


def _non_finite(what: str, step: int, out: Path, used: list[Any], model: nn.Module) -> NonFiniteError:
    rank = dist.get_rank() if _is_distributed() else 0
    path = out / f"non_finite_step_{step}_rank_{rank}.safetensors"
    save_checkpoint(path, {"step": step, "batches": used, "model": model.state_dict()}, other=repr)
    return NonFiniteError(what, step, path)


@contextmanager
def _shows(
    out: Path, first: int, steps: int, log: Shows | None, use_tensorboard: bool, progress: bool
) -> Iterator[tuple[MetricsFile | None, list[Shows]]]:
    """Everything that takes the metrics: of rank 0 only."""
    if _is_distributed() and dist.get_rank() > 0:
        yield None, []
        return
    with ExitStack() as stack:
        metrics = stack.enter_context(MetricsFile(out / METRICS, first))
        shows: list[Shows] = [metrics.write]
        if use_tensorboard:
            shows.append(stack.enter_context(tensorboard(out, first)))
        if progress:
            shows.append(stack.enter_context(progress_bar(first, steps)))
        if log is not None:
            shows.append(log)
        yield metrics, shows
