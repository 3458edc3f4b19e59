"""The training of nodule_rpn: one plain loop."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from volnet.data.read import read_ct
from volnet.models.nodule_rpn import NoduleRPN, NoduleRPNConfig, save_nodule_rpn
from volnet.train.checkpoints import load_checkpoint, save_checkpoint
from volnet.train.losses import box_regression_loss, hard_negative_bce
from volnet.train.nodule_rpn.crops import NoduleCrop, is_held_out, read_nodule_crops
from volnet.train.nodule_rpn.patches import Batch, TrainingBatches
from volnet.train.nodule_rpn.scans import Background, make_background

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "nodule_rpn.safetensors"
METRICS = "metrics.csv"


@dataclass(frozen=True)
class StepMetrics:
    """One row of `metrics.csv`.

    Attributes:
        step: 1 for the first.
        seconds: of training so far, over all resumptions.
        learning_rate: of this step.
        score_loss: see `hard_negative_bce`.
        box_loss: see `box_regression_loss`.
        positives: anchors with a nodule in the batch.
        recall: share of them that score over 0.5.
        false_share: share of 64 hardest negatives that score over 0.5.
    """

    step: int
    seconds: float
    learning_rate: float
    score_loss: float
    box_loss: float
    positives: int
    recall: float
    false_share: float


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


def _learning_rate(peak: float, warmup: int, step: int, share: float) -> float:
    """Linear warm-up, then half a cosine down to a hundredth: `share` 0..1 of the training is done."""
    fall = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return peak * min(1.0, (step + 1) / warmup) * fall


def _average(average: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
    """Moving average over about 200 steps, over a tenth of all steps while those are fewer than 2,000."""
    if not value.is_floating_point():
        return value
    return torch.lerp(average, value, max(0.005, 10 / (10 + float(count))))


def train_step(
    model: NoduleRPN, optimizer: torch.optim.Optimizer, batch: Batch, *, bfloat16: bool
) -> tuple[float, float, int, float, float]:
    """One step of the optimizer.

    Returns:
        score loss, box loss, number of positives, recall, share of false positives.
    """
    images = batch.images.contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        logits, offsets = model(images)
    logits = logits.permute(0, 2, 3, 4, 1).reshape(-1).float()
    offsets = offsets.permute(0, 3, 4, 5, 1, 2).reshape(-1, 6).float()
    labels = batch.labels.reshape(-1)
    score_loss = hard_negative_bce(logits, labels)
    box_loss = box_regression_loss(offsets[labels == 1], batch.targets)
    optimizer.zero_grad(set_to_none=True)
    (score_loss + box_loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    with torch.no_grad():
        positive, negative = logits[labels == 1], logits[labels == 0]
        recall = float((positive > 0).float().mean()) if len(positive) else math.nan
        hardest = negative.topk(min(64, len(negative))).values
        return float(score_loss), float(box_loss), len(positive), recall, float((hardest > 0).float().mean())


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
    log: Callable[[StepMetrics], None] | None = None,
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
    return fit(
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


def fit(
    batches: TrainingBatches,
    out: Path,
    *,
    minutes: float | None,
    seed: int,
    peak_learning_rate: float = 1e-3,
    bfloat16: bool = True,
    workers: int = 0,
    checkpoint_minutes: float = 3.0,
    log: Callable[[StepMetrics], None] | None = None,
    stop_after: int | None = None,
) -> Path:
    """The loop of `train` over given batches.

    Args:
        batches: one item a step.
        stop_after: leave after this step as an interruption would, checkpoint written, schedule unfinished.

    The other arguments, the result and the errors are those of `train`.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = NoduleRPN(batches.config).train()
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = AveragedModel(model, avg_fn=_average, use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_learning_rate, weight_decay=1e-2)
    checkpoint, metrics = out / CHECKPOINT, out / METRICS
    first, before = 0, 0.0
    if checkpoint.exists():
        numbers = load_checkpoint(checkpoint, model, average, optimizer)
        first, before = int(numbers["step"]), numbers["seconds"]
    _keep_rows(metrics, first)

    def save(step: int, seconds: float) -> None:
        save_checkpoint(checkpoint, model, average, optimizer, {"step": step, "seconds": seconds})
        aside = out / (WEIGHTS + ".partial")
        assert isinstance(average.module, NoduleRPN)
        save_nodule_rpn(average.module, aside)
        os.replace(aside, out / WEIGHTS)

    loader = torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, len(batches)),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    start = last_save = time.monotonic()
    step, seconds = first, before
    with open(metrics, "a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(StepMetrics)])
        if first == 0:
            writer.writeheader()
        for step, batch in enumerate(loader, start=first + 1):
            share = max((step - 1) / len(batches), seconds / 60 / minutes if minutes else 0.0)
            rate = _learning_rate(peak_learning_rate, 100, step - 1, share)
            for group in optimizer.param_groups:
                group["lr"] = rate
            measured = train_step(model, optimizer, batch, bfloat16=bfloat16)
            average.update_parameters(model)
            now = time.monotonic()
            seconds = before + now - start
            row = StepMetrics(step, round(seconds, 2), rate, *measured)
            writer.writerow(asdict(row))
            if log:
                log(row)
            if now - last_save > 60 * checkpoint_minutes:
                file.flush()
                save(step, seconds)
                last_save = now
            if step == stop_after or (minutes is not None and seconds >= 60 * minutes):
                break
    save(step, seconds)
    return out / WEIGHTS


def _keep_rows(metrics: Path, steps: int) -> None:
    """Drop rows of steps that came after the checkpoint."""
    if not metrics.exists():
        return
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[: steps + 1] if steps else []))


def describe(metrics: StepMetrics) -> str:
    """A metrics row as one line of JSON, for a log."""
    return json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in asdict(metrics).items()})
