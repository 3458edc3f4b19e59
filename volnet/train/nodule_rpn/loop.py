"""The training of nodule_rpn: what `volnet.train.fit` is given for it."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from volnet.data.read import read_ct
from volnet.models.nodule_rpn import NoduleRPN, NoduleRPNConfig, save_nodule_rpn
from volnet.train.loop import fit
from volnet.train.losses import box_regression_loss, hard_negative_bce
from volnet.train.metrics import Shows
from volnet.train.nodule_rpn.crops import NoduleCrop, is_held_out, read_nodule_crops
from volnet.train.nodule_rpn.patches import Batch, TrainingBatches
from volnet.train.nodule_rpn.scans import Background, make_background

WEIGHTS = "nodule_rpn.safetensors"
_WARMUP = 100


def load_training_data(
    data_dir: Path, extra_scans: Sequence[tuple[Path, Path]] = ()
) -> tuple[list[NoduleCrop], list[Background]]:
    """Nodules and scans to train on; LIDC-IDRI-0001 and the held-out patients are in neither.

    Args:
        data_dir: with `lidc_nodule_crops`, `lidc_scans` and `totalsegmentator_ct_samples`.
        extra_scans: more scans to plant in, each with a mask of its tumour (an image on the same grid).

    Returns:
        Nodule crops and backgrounds.

    Raises:
        FileNotFoundError: if a file is missing.
    """
    every = read_nodule_crops(data_dir / "lidc_nodule_crops")
    crops = [crop for crop in every if crop.shows_lung and not is_held_out(crop.patient_id)]
    marked = [crop for crop in every if crop.patient_id == "LIDC-IDRI-0002"]
    boxes = [c.box_mm() / np.tile(c.spacing, 2) + np.tile(c.corner, 2) for c in marked]
    scan = read_ct(data_dir / "lidc_scans" / "LIDC-IDRI-0002.nii.gz")
    backgrounds = [make_background(scan, "LIDC-IDRI-0002", boxes)]
    for path in sorted((data_dir / "totalsegmentator_ct_samples").glob("*.nii.gz")):
        backgrounds.append(make_background(read_ct(path), path.name))
    for path, mask_path in extra_scans:
        backgrounds.append(make_background(read_ct(path), path.name, [_mask_box(mask_path)]))
    return crops, backgrounds


def _mask_box(path: Path) -> list[float]:
    import SimpleITK as sitk

    points = np.argwhere(sitk.GetArrayFromImage(sitk.ReadImage(str(path))) > 0)
    if len(points) == 0:
        raise ValueError(f"{path}: the mask is empty")
    return [*points.min(axis=0), *(points.max(axis=0) + 1)]


class _FallingRate:
    """Linear warm-up, then half a cosine down to a hundredth.

    Over the steps or the minutes, whichever end first. Used as torch's schedules are, which know no clock.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, minutes: float | None) -> None:
        self._optimizer, self._steps, self._minutes = optimizer, steps, minutes
        self._peak: float = optimizer.param_groups[0]["lr"]
        self._done, self._seconds, self._then = 0, 0.0, time.monotonic()
        self._set()

    def _set(self) -> None:
        used = self._seconds / 60 / self._minutes if self._minutes else 0.0
        share = min(1.0, max(self._done / self._steps, used))
        fall = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak * min(1.0, (self._done + 1) / _WARMUP) * fall

    def step(self) -> None:
        now = time.monotonic()
        self._seconds += now - self._then
        self._then = now
        self._done += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        return {"done": self._done, "seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._done, self._seconds = state_dict["done"], state_dict["seconds"]
        self._set()


def _average(average: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
    """Moving average over about 200 steps, over a tenth of all steps while those are fewer than 2,000."""
    if not value.is_floating_point():
        return value
    return torch.lerp(average, value, max(0.005, 10 / (10 + float(count))))


class _Loader:
    """The batches as pairs for `fit`, made by worker processes; it goes on where its state was taken."""

    def __init__(self, batches: TrainingBatches, workers: int) -> None:
        self._batches, self._workers, self._next = batches, workers, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Batch]]:
        loader = torch.utils.data.DataLoader(
            self._batches,
            batch_size=None,
            sampler=range(self._next, len(self._batches)),
            num_workers=self._workers,
            prefetch_factor=4 if self._workers else None,
        )
        for batch in loader:
            self._next += 1
            yield batch.images.contiguous(memory_format=torch.channels_last_3d), batch

    def state_dict(self) -> dict[str, int]:
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._next = state["next"]


def detection_loss(outputs: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """The detector's loss: `hard_negative_bce` of the scores and `box_regression_loss` of the boxes.

    Args:
        outputs: the network's logits [N, A, D, H, W] and offsets [N, A, 6, D, H, W].
        batch: with labels and targets.

    Returns:
        The sum of both, and for the metrics: both; the number of anchors with a nodule; the share of them
        that score over 0.5 (recall); the share of the 64 hardest negatives that do (false_share).
    """
    logits, offsets = outputs
    logits = logits.permute(0, 2, 3, 4, 1).reshape(-1).float()
    offsets = offsets.permute(0, 3, 4, 5, 1, 2).reshape(-1, 6).float()
    labels = batch.labels.reshape(-1)
    score_loss = hard_negative_bce(logits, labels)
    box_loss = box_regression_loss(offsets[labels == 1], batch.targets)
    with torch.no_grad():
        positive, negative = logits[labels == 1], logits[labels == 0]
        hardest = negative.topk(min(64, len(negative))).values
        metrics = {
            "score_loss": float(score_loss),
            "box_loss": float(box_loss),
            "positives": len(positive),
            "recall": float((positive > 0).float().mean()) if len(positive) else math.nan,
            "false_share": float((hardest > 0).float().mean()),
        }
    return score_loss + box_loss, metrics


def train(
    data_dir: str | Path,
    out: str | Path,
    *,
    minutes: float | None = 55.0,
    steps: int = 6000,
    seed: int = 0,
    batch_size: int = 4,
    side: int = 96,
    peak_learning_rate: float = 1e-3,
    bfloat16: bool = True,
    workers: int = 1,
    checkpoint_minutes: float = 3.0,
    extra_scans: Sequence[tuple[Path, Path]] = (),
    config: NoduleRPNConfig | None = None,
    log: Shows | None = None,
) -> Path:
    """Train the detector, or go on where an earlier run in the same folder stopped.

    The learning rate falls to its end when `steps` or `minutes` are used up, whichever comes first. With
    `minutes=None` and the same number of threads the weights depend on the arguments alone.

    Args:
        data_dir: see `load_training_data`.
        out: folder for the weights (a moving average, `nodule_rpn.safetensors`), the checkpoint and
            `metrics.csv`; made if needed.
        minutes: wall clock of the training itself, over all resumptions; None for no limit.
        steps: batches at most.
        seed: of weights and patches.
        batch_size: patches a step.
        side: voxels along each axis of a patch, a multiple of 24.
        peak_learning_rate: of AdamW.
        bfloat16: autocast, several times faster where the CPU has AMX; weights stay float32. Otherwise
            everything is float32.
        workers: processes that make patches; 0 makes them in this one.
        checkpoint_minutes: between checkpoints.
        extra_scans: see `load_training_data`.
        config: of the network.
        log: called with the metrics of each step.

    Returns:
        The path of the weights.

    Raises:
        FileNotFoundError: if data are missing.
        InvalidCheckpointError: if the folder holds a checkpoint of something else.
    """
    crops, backgrounds = load_training_data(Path(data_dir), extra_scans)
    return train_on_batches(
        TrainingBatches(
            crops,
            backgrounds,
            config or NoduleRPNConfig(),
            batch_size=batch_size,
            side=side,
            length=steps,
            seed=seed,
        ),
        Path(out),
        minutes=minutes,
        seed=seed,
        peak_learning_rate=peak_learning_rate,
        bfloat16=bfloat16,
        workers=workers,
        checkpoint_minutes=checkpoint_minutes,
        log=log,
    )


def train_on_batches(
    batches: TrainingBatches,
    out: Path,
    *,
    minutes: float | None,
    seed: int,
    peak_learning_rate: float = 1e-3,
    bfloat16: bool = True,
    workers: int = 0,
    checkpoint_minutes: float = 3.0,
    log: Shows | None = None,
    stop: Callable[[], bool] | None = None,
) -> Path:
    """The loop of `train` over given batches.

    Args:
        batches: one item a step.
        stop: see `volnet.train.fit`.

    The other arguments, the result and the errors are those of `train`.
    """
    torch.manual_seed(seed)
    model = NoduleRPN(batches.config).train()
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = AveragedModel(model, avg_fn=_average, use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_learning_rate, weight_decay=1e-2)
    fit(
        model,
        _Loader(batches, workers),
        detection_loss,
        optimizer,
        steps=len(batches),
        out=out,
        schedule=_FallingRate(optimizer, len(batches), minutes),
        average=average,
        clip_norm=5.0,
        bfloat16=bfloat16,
        minutes=minutes,
        checkpoint_minutes=checkpoint_minutes,
        stop=stop,
        log=log,
    )
    assert isinstance(average.module, NoduleRPN)
    aside = out / (WEIGHTS + ".partial")
    save_nodule_rpn(average.module, aside)
    os.replace(aside, out / WEIGHTS)
    return out / WEIGHTS


def describe(metrics: Mapping[str, Any]) -> str:
    """A metrics row as one line of JSON, for a log."""
    return json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in metrics.items()})
