"""From a CT to findings: weights, whole scans in exact blocks, and the way back to the scan's voxels."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from volnet.data.geometry import Geometry
from volnet.data.preprocess import lung_box, normalize_hu, resample
from volnet.data.volume import CTVolume
from volnet.detection import Finding, anchor_boxes, decode_boxes, select_boxes
from volnet.models.nodule_rpn.config import NoduleRPNConfig
from volnet.models.nodule_rpn.model import (
    ANCHOR_STRIDE,
    INPUT_MULTIPLE,
    RECEPTIVE_RADIUS,
    NoduleRPN,
    fold_batch_norm,
)

MODEL_NAME = "nodule_rpn"
DEFAULT_WEIGHTS = Path(__file__).with_name("nodule_rpn.safetensors")
"""The weights that come with the package."""
MAX_BLOCK_VOXELS = 24_000_000
"""Input voxels per block, halo included: the network needs about 140 bytes for each."""

# Candidates of less than this are not worth a suppression test; millions of anchors are below it.
_CANDIDATE_SCORE = 0.02
_MAX_CANDIDATES = 20_000
# Between the gas of the gut and tissue: aerated lung, with its small vessels.
_LUNG_HU = (-950.0, -500.0)
_LUNG_MARGIN_MM = 6.0
_MIN_LUNG_SHARE = 0.2


class InvalidWeightsError(ValueError):
    """A file that does not hold weights of this network; the message names the file and the reason."""


def save_nodule_rpn(model: NoduleRPN, path: str | Path) -> None:
    """Write weights and configuration as one safetensors file.

    Args:
        model: the network.
        path: file to write; an existing one is replaced.
    """
    from safetensors.torch import save

    metadata = {"model": MODEL_NAME, "config": model.config.to_json()}
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    Path(path).write_bytes(save(tensors, metadata))


def load_nodule_rpn(path: str | Path | None = None) -> NoduleRPN:
    """Read weights that `save_nodule_rpn` wrote.

    Args:
        path: a safetensors file; without one, the weights that come with the package.

    Returns:
        The network in eval mode.

    Raises:
        InvalidWeightsError: if the file cannot be read, is no safetensors file, or is another network's.
    """
    from safetensors import SafetensorError, safe_open

    path = DEFAULT_WEIGHTS if path is None else Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise InvalidWeightsError(f"{path}: cannot be read as safetensors: {error}") from error
    if metadata.get("model") != MODEL_NAME:
        raise InvalidWeightsError(
            f"{path}: holds weights of {metadata.get('model')!r}, not of {MODEL_NAME!r}"
        )
    try:
        model = NoduleRPN(NoduleRPNConfig.from_json(metadata.get("config", "")))
        model.load_state_dict(state)
    except (ValueError, RuntimeError) as error:
        raise InvalidWeightsError(f"{path}: weights and configuration do not fit: {error}") from error
    return model.eval()


def _pieces(length: int, count: int) -> Iterator[tuple[int, int]]:
    step = math.ceil(length / count / INPUT_MULTIPLE) * INPUT_MULTIPLE
    for start in range(0, length, step):
        yield start, min(start + step, length)


def plan_blocks(
    shape: tuple[int, int, int], max_voxels: int = MAX_BLOCK_VOXELS
) -> list[tuple[tuple[tuple[int, int], tuple[int, int]], ...]]:
    """Cut a volume into blocks whose halos give the network everything it can see.

    Of all regular grids whose largest block, halo included, has at most `max_voxels`, the one with the least
    to compute. A volume that no grid fits is cut as finely as the network allows.

    Args:
        shape: (D, H, W), multiples of 8.
        max_voxels: of one block with its halo.

    Returns:
        One entry a block: for each axis ((start, stop) to keep, (start, stop) to compute).

    Example:
        >>> plan_blocks((16, 16, 16))
        [(((0, 16), (0, 16)), ((0, 16), (0, 16)), ((0, 16), (0, 16)))]
    """

    def axis(length: int, count: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        return [
            ((start, stop), (max(start - RECEPTIVE_RADIUS, 0), min(stop + RECEPTIVE_RADIUS, length)))
            for start, stop in _pieces(length, count)
        ]

    best: tuple[int, list[tuple[tuple[tuple[int, int], tuple[int, int]], ...]]] | None = None
    counts = [range(1, min(length // INPUT_MULTIPLE, 12) + 1) for length in shape]
    for grid in itertools.product(*counts):
        axes = [axis(length, count) for length, count in zip(shape, grid, strict=True)]
        sides = [[stop - start for _, (start, stop) in pieces] for pieces in axes]
        if math.prod(max(side) for side in sides) > max_voxels:
            continue
        work = math.prod(sum(side) for side in sides)
        if best is None or work < best[0]:
            best = work, list(itertools.product(*axes))
    if best is None:
        finest = [axis(length, length // INPUT_MULTIPLE) for length in shape]
        return list(itertools.product(*finest))
    return best[1]


@contextlib.contextmanager
def _watched(model: NoduleRPN, voxels: int, progress: Callable[[int, int], None] | None) -> Iterator[None]:
    """Report after every convolution, in multiplications of all there are for so many voxels."""
    if progress is None:
        yield
        return
    done, counting = 0, True

    def after(layer: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal done
        assert isinstance(layer, torch.nn.Conv3d)
        done += layer.weight.numel() * output[0, 0].numel()
        if not counting:
            progress(done, total)

    hooks = [m.register_forward_hook(after) for m in model.modules() if isinstance(m, torch.nn.Conv3d)]
    try:
        # The smallest input tells what 8³ voxels cost.
        with torch.inference_mode():
            model(torch.zeros(1, 1, *[INPUT_MULTIPLE] * 3))
        total, done, counting = done * (voxels // INPUT_MULTIPLE**3), 0, False
        progress(0, total)
        yield
    finally:
        for hook in hooks:
            hook.remove()


def predict_blocks(
    model: NoduleRPN,
    image: Tensor,
    *,
    max_voxels: int = MAX_BLOCK_VOXELS,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the network over a volume of any size, block by block, with the result of a single pass.

    Args:
        model: in eval mode.
        image: float [D, H, W], sides multiples of 8, as the network takes it.
        max_voxels: of one block with its halo; bounds the memory.
        progress: called with (done, total), in units of work, at the start and after every convolution.

    Returns:
        logits [A, D/4, H/4, W/4] and offsets [A, 6, D/4, H/4, W/4], float32.
    """
    blocks = plan_blocks((image.shape[0], image.shape[1], image.shape[2]), max_voxels)
    anchors = len(model.config.anchor_sizes)
    grid = [n // ANCHOR_STRIDE for n in image.shape]
    logits = torch.empty(anchors, *grid)
    offsets = torch.empty(anchors, 6, *grid)
    voxels = sum(math.prod(high - low for _, (low, high) in block) for block in blocks)
    with torch.inference_mode(), _watched(model, voxels, progress):
        for block in blocks:
            window = tuple(slice(*compute) for _, compute in block)
            x = image[window][None, None].contiguous(memory_format=torch.channels_last_3d)
            block_logits, block_offsets = model(x)
            target = tuple(slice(a // ANCHOR_STRIDE, b // ANCHOR_STRIDE) for (a, b), _ in block)
            inner = tuple(
                slice((a - low) // ANCHOR_STRIDE, (b - low) // ANCHOR_STRIDE) for (a, b), (low, _) in block
            )
            logits[(slice(None), *target)] = block_logits[0][(slice(None), *inner)].float()
            offsets[(slice(None), slice(None), *target)] = block_offsets[0][
                (slice(None), slice(None), *inner)
            ].float()
    return logits, offsets


def _best_candidates(logits: Tensor, offsets: Tensor, sizes: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Boxes [K, 6] and scores [K] of the anchors worth a look, in voxels of the image."""
    scores = logits.permute(1, 2, 3, 0).reshape(-1).sigmoid()
    anchors = anchor_boxes(logits.shape[1:], ANCHOR_STRIDE, sizes)
    index = torch.nonzero(scores >= _CANDIDATE_SCORE)[:, 0]
    if len(index) > _MAX_CANDIDATES:
        index = index[scores[index].topk(_MAX_CANDIDATES).indices]
    deltas = offsets.permute(2, 3, 4, 0, 1).reshape(-1, 6)[index]
    return decode_boxes(deltas, anchors[index]), scores[index]


def _lung_share(image: Tensor, boxes: Tensor, config: NoduleRPNConfig) -> Tensor:
    """How much of each box, widened by 6 mm on every side, is aerated lung.

    What looks like a nodule in the gut, in the neck or on a rib's far side has little or none around it.

    Args:
        image: float [D, H, W], the network's input, even sides.
        boxes: [K, 6] voxels of the image.
        config: for window and spacing.

    Returns:
        float [K], 0..1.
    """
    low, high = normalize_hu(np.array(_LUNG_HU), config.window).tolist()
    # Means of 2³ voxels, so that noise does not carry gas and tissue into the range.
    cells = torch.nn.functional.avg_pool3d(image[None], 2)[0]
    lung = (cells > low) & (cells < high)
    # A summed-volume table: the count in any box from its eight corners.
    table = torch.nn.functional.pad(lung.long().cumsum(0).cumsum(1).cumsum(2), (1, 0, 1, 0, 1, 0))
    margin = torch.tensor([_LUNG_MARGIN_MM / s for s in config.spacing])
    limits = torch.tensor(cells.shape)
    first = ((boxes[:, :3] - margin) / 2).round().long().clamp(min=0)
    first = torch.minimum(first, limits - 1)
    last = torch.minimum(((boxes[:, 3:] + margin) / 2).round().long(), limits)
    last = torch.maximum(last, first + 1)
    count = torch.zeros(len(boxes), dtype=torch.long)
    for corner in itertools.product((0, 1), repeat=3):
        d, h, w = (last[:, i] if upper else first[:, i] for i, upper in enumerate(corner))
        count += (-1) ** (3 - sum(corner)) * table[d, h, w]
    return count / (last - first).prod(dim=1)


def _finding(box: np.ndarray, score: float, grid: Geometry, scan: Geometry) -> Finding:
    """A box in voxels of the resampled grid, as a finding in voxels of the scan."""
    # Boxes are half-open, points are voxel centres: half a voxel apart.
    corners = scan.lps_to_voxel(grid.voxel_to_lps(box.reshape(2, 3) - 0.5)) + 0.5
    center = scan.lps_to_voxel(grid.voxel_to_lps(box.reshape(2, 3).mean(axis=0) - 0.5))
    sides_mm = (box[3:] - box[:3]) * np.asarray(grid.spacing)
    low, high = corners.min(axis=0), corners.max(axis=0)
    d, h, w = (float(v) for v in center)
    x, y, z = (float(v) for v in scan.voxel_to_lps(center))
    return Finding(
        center_voxel=(d, h, w),
        center_lps=(x, y, z),
        box_voxel=tuple(float(v) for v in (*low, *high)),
        diameter_mm=float(np.prod(sides_mm) ** (1 / 3)),
        score=score,
    )


def detect_nodules(
    ct: CTVolume,
    model: NoduleRPN | None = None,
    *,
    score_threshold: float = 0.3,
    max_findings: int = 20,
    progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Find nodules in a chest CT.

    The scan is cut to the box around the lungs, resampled to the model's spacing and read in one piece or in
    a few exact blocks. A finding needs aerated lung in or around it: a fifth of its box, widened by 6 mm.
    For research use only.

    Args:
        ct: the scan.
        model: from `load_nodule_rpn`; without one, the weights that come with the package.
        score_threshold: findings that score less are left out.
        max_findings: at most so many.
        progress: called with (done, total), in units of work, on the calling thread.

    Returns:
        Findings, best first.

    Raises:
        ValueError: if the threshold is not in 0..1 or `max_findings` is not positive.
        InvalidWeightsError: if the weights that come with the package cannot be read.
    """
    if not 0.0 <= score_threshold <= 1.0:
        raise ValueError(f"score_threshold must lie between 0 and 1, got {score_threshold}")
    if max_findings <= 0:
        raise ValueError(f"max_findings must be positive, got {max_findings}")
    model = fold_batch_norm((load_nodule_rpn() if model is None else model).eval())
    start, stop = lung_box(ct)
    window = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    chest = CTVolume(
        voxels=ct.voxels[window],
        geometry=ct.geometry.cropped(start, stop),
        series_uid=ct.series_uid,
        source=ct.source,
        metadata=ct.metadata,
        identity=ct.identity,
        notes=ct.notes,
    )
    chest = resample(chest, model.config.spacing)
    image = torch.from_numpy(normalize_hu(chest.voxels, model.config.window))
    # Padding with 0 is air, and what the convolutions themselves assume beyond the edge.
    padding = [n for side in reversed(image.shape) for n in (0, -side % INPUT_MULTIPLE)]
    image = torch.nn.functional.pad(image, padding)
    logits, offsets = predict_blocks(model, image, progress=progress)
    boxes, scores = _best_candidates(logits, offsets, model.config.anchor_sizes)
    in_lung = _lung_share(image, boxes, model.config) >= _MIN_LUNG_SHARE
    boxes, scores = boxes[in_lung], scores[in_lung]
    # Suppression first sees every candidate, so that the threshold changes how many are listed, not which.
    boxes, scores = select_boxes(boxes, scores, score_threshold=score_threshold, max_boxes=max_findings)
    return [
        _finding(box, float(score), chest.geometry, ct.geometry)
        for box, score in zip(boxes.double().numpy(), scores, strict=True)
    ]
