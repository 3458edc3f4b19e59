"""`volnet.sliding_window`: a network over a volume that is larger than what it takes at once."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["sliding_window"]

LEAST_WEIGHT = 1e-3  # of a Gaussian window, as MONAI has it

Window = tuple[Any, ...]  # one slice a spatial dimension


def sliding_window(
    inputs: Tensor,
    roi_size: Sequence[int] | int,
    sw_batch_size: int,
    predictor: Callable[..., Any],
    overlap: Sequence[float] | float = 0.25,
    mode: str = "constant",
    sigma_scale: Sequence[float] | float = 0.125,
    padding_mode: str = "constant",
    cval: float = 0.0,
    sw_device: torch.device | str | None = None,
    device: torch.device | str | None = None,
    progress: bool | Callable[[int, int], None] = False,
    roi_weight_map: Tensor | None = None,
    process_fn: Callable[..., Any] | None = None,
    buffer_steps: int | None = None,
    buffer_dim: int = -1,
    with_coord: bool = False,
    *args: Any,
    skip: float | Tensor | None = None,
    condition: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """Signature and answers of MONAI's ``sliding_window_inference``, and windows outside the body left out.

    What the windows give is added up in place: beside the result there is one channel of weights (for all
    results of the same size together) and one batch of windows, whatever the number of windows. Sums are of
    float32 at least, so a bfloat16 volume is not rounded once for every window.

    Args:
        inputs: [N, C, ...], of two or three spatial dimensions or any other number; a ``MetaTensor`` gives
            one back.
        roi_size: of a window; components that are ``None`` or not positive are the volume's.
        sw_batch_size: windows that ``predictor`` gets at once.
        predictor: from [sw_batch_size, C, *roi_size] to a tensor, a sequence of them or a dictionary, each
            [sw_batch_size, channels, ...]; results may be of another resolution than their window.
        overlap: of neighbouring windows, as a part of ``roi_size``.
        mode: ``"constant"``, or ``"gaussian"``: less weight towards a window's faces.
        sigma_scale: of the Gaussian, as a part of ``roi_size``.
        padding_mode, cval: of a volume that is smaller than a window, see :func:`torch.nn.functional.pad`.
        sw_device, device: of the windows, and of the result; by default of ``inputs``.
        progress: ``True`` shows a bar (tqdm); a function is called with the windows that are done and with
            how many there are.
        roi_weight_map: weights of a window, in place of ``mode``'s; for volumes not smaller than a window.
        process_fn: gets the results of some windows, the windows and their weights, and gives results and
            weights. Unlike MONAI, which divides by the sum of the first windows' weights, it may weight each
            batch of windows differently.
        buffer_steps, buffer_dim: accepted; results are always added where they belong.
        with_coord: ``predictor`` gets the windows' slices as its second argument.
        skip: leaves windows out. A number: those in which no value of any channel is larger, for instance
            -900 for the air around a patient in a CT. A tensor of ``inputs``' size with one channel (or
            without batch and channels): those in which nothing is true. Where no window is left, the result
            is 0; elsewhere it is the mean of the windows that ran.
        condition: another volume, whose windows go to ``predictor`` as its keyword argument of that name.
        args, kwargs: more for ``predictor``.

    Returns:
        What ``predictor`` gives, for the whole volume, in the dtype of ``inputs``.

    Raises:
        ValueError: sizes that do not go together, or an argument out of range.

    >>> x = torch.randn(1, 1, 20, 24, 17)
    >>> y = sliding_window(x, (8, 8, 8), 4, torch.nn.ReLU(), overlap=0.5, mode="gaussian")
    >>> torch.allclose(y, x.relu(), atol=1e-6)
    True
    """
    spatial = inputs.dim() - 2
    size, roi, overlaps = _checked(inputs, roi_size, overlap, sw_batch_size, buffer_steps, buffer_dim)
    to_result = _meta(inputs)
    volume = inputs.as_subclass(Tensor)
    where = device or inputs.device
    sw_device = sw_device or inputs.device
    body = None if skip is None else _body(volume, skip)

    # What F.pad takes: the last dimension first, both sides of it.
    pads = [(max(r - n, 0) // 2, max(r - n, 0) - max(r - n, 0) // 2) for r, n in zip(roi, size, strict=True)]
    if any(map(any, pads)):
        flat = [side for pair in reversed(pads) for side in pair]
        volume = F.pad(volume, flat, mode=padding_mode, value=cval if padding_mode == "constant" else None)
        condition = None if condition is None else F.pad(condition, flat, mode=padding_mode, value=cval)
        body = None if body is None else F.pad(body, flat)
    padded = tuple(volume.shape[2:])

    grid = _windows(padded, roi, overlaps)
    chosen = [
        (image, window)
        for image in range(volume.shape[0])
        for window in grid
        if body is None or bool(body[(image % body.shape[0], 0, *window)].any())
    ]
    none_left = not chosen
    if none_left:  # one runs all the same: it alone tells what the result looks like
        chosen = [(0, grid[0])]

    dtype = torch.promote_types(volume.dtype, torch.float32)
    if roi_weight_map is not None and not any(map(any, pads)):
        weights = roi_weight_map.to(sw_device, dtype)
    else:
        weights = _weights(roi, mode, sigma_scale).to(sw_device, dtype)
    if weights.dim() == spatial and process_fn is None:
        weights = weights[None, None]

    sums = _Sums(volume.shape[0], padded, roi, dtype, where, each=skip is not None or process_fn is not None)
    keys: list[Any] | None = None
    with _progress(progress, len(chosen)) as step:
        for first in range(0, len(chosen), sw_batch_size):
            batch = chosen[first : first + sw_batch_size]
            places = [[slice(n, n + 1), slice(None), *window] for n, window in batch]
            given = _gather(volume, places).to(sw_device)
            if condition is not None:
                kwargs["condition"] = _gather(condition, places).to(sw_device)
            results = predictor(given, *([places] if with_coord else []), *args, **kwargs)
            keys, results = _flatten(results)
            of_batch = weights
            if process_fn is not None:
                results, of_batch = process_fn(results, given, weights)
                of_batch = of_batch.to(sw_device, dtype)
                of_batch = of_batch[None, None] if of_batch.dim() == spatial else of_batch
            sums.add(batch, results, of_batch)
            step(len(batch))
    if none_left:
        sums.clear()

    cropped = []
    for total in sums.means():
        scale = [n / r for n, r in zip(total.shape[2:], padded, strict=True)]
        window = tuple(
            slice(round(before * s), round((before + n) * s))
            for (before, _), n, s in zip(pads, size, scale, strict=True)
        )
        floating = inputs.dtype if inputs.dtype.is_floating_point else dtype
        cropped.append(to_result(total[(slice(None), slice(None), *window)].to(floating)))
    if keys is not None:
        return dict(zip(keys, cropped, strict=True))
    return cropped[0] if len(cropped) == 1 else tuple(cropped)


class _Sums:
    """Weighted sums of what windows give, and of the weights.

    Args:
        each: whether images have windows or weights of their own; otherwise the first one's serve all.
    """

    def __init__(
        self,
        images: int,
        size: tuple[int, ...],
        roi: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        each: bool,
    ) -> None:
        self.images, self.size, self.roi, self.dtype, self.device = images, size, roi, dtype, device
        self.each = each
        self.results: list[Tensor] = []
        self.weights: dict[tuple[int, ...], Tensor] = {}  # by the size of the result

    def add(self, batch: Sequence[tuple[int, Window]], results: Sequence[Tensor], weights: Tensor) -> None:
        """``results`` of a batch of windows: the image and the place of each."""
        if not self.results:
            for result in results:
                size = tuple(int(n * s) for n, s in zip(self.size, self._scale(result), strict=True))
                shape = (self.images, result.shape[1], *size)
                self.results.append(torch.zeros(shape, dtype=self.dtype, device=self.device))
                rows = self.images if self.each else 1
                self.weights[size] = torch.zeros((rows, 1, *size), dtype=self.dtype, device=self.device)
        added = set()
        for result, total in zip(results, self.results, strict=True):
            scale, size = self._scale(result), tuple(total.shape[2:])
            weight = weights
            if weights.shape[2:] != result.shape[2:]:
                weight = F.interpolate(weights, tuple(result.shape[2:]), mode="nearest-exact")
            weight = weight.to(self.device)
            result = result.to(self.device)
            for i, (image, window) in enumerate(batch):
                place: Window = tuple(
                    slice(int(part.start * s), int(part.stop * s))
                    for part, s in zip(window, scale, strict=True)
                )
                own = weight[i % len(weight)]
                total[(image, slice(None), *place)].addcmul_(result[i].to(self.dtype), own)
                if size not in added and (self.each or image == 0):
                    self.weights[size][(image, slice(None), *place)] += own[:1]
            added.add(size)

    def _scale(self, result: Tensor) -> list[float]:
        return [n / r for n, r in zip(result.shape[2:], self.roi, strict=True)]

    def clear(self) -> None:
        for total in (*self.results, *self.weights.values()):
            total.zero_()

    def means(self) -> Iterator[Tensor]:
        """The results; where no window was, 0."""
        if self.each:
            for weight in self.weights.values():
                weight.masked_fill_(weight == 0, 1)
        for total in self.results:
            total /= self.weights[tuple(total.shape[2:])]
            yield total


def _checked(
    inputs: Tensor,
    roi_size: Sequence[int] | int,
    overlap: Sequence[float] | float,
    sw_batch_size: int,
    buffer_steps: int | None,
    buffer_dim: int,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """Sizes of the volume and of a window, and the overlap, a number a dimension."""
    size = tuple(inputs.shape[2:])
    if isinstance(roi_size, Sequence) and len(roi_size) != len(size):
        raise ValueError(
            f"sliding_window: roi_size has {len(roi_size)} dimensions, but inputs are of shape "
            f"{tuple(inputs.shape)}: batch, channels and {len(size)} spatial dimensions"
        )
    roi = tuple(r if r and r > 0 else n for r, n in zip(_each(roi_size, len(size)), size, strict=True))
    overlaps = _each(overlap, len(size))
    if not all(0 <= part < 1 for part in overlaps):
        raise ValueError(f"sliding_window: overlap must be >= 0 and < 1, got {overlap}")
    if sw_batch_size < 1:
        raise ValueError(f"sliding_window: sw_batch_size must be positive, got {sw_batch_size}")
    if buffer_steps and not -len(size) <= buffer_dim <= len(size):
        raise ValueError(
            f"sliding_window: buffer_dim must be in [{-len(size)}, {len(size)}], got {buffer_dim}"
        )
    return size, roi, overlaps


def _each(value: Any, dimensions: int) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * dimensions
    if len(values) != dimensions:
        raise ValueError(f"sliding_window: {value} is not one value or {dimensions} of them")
    return values


def _meta(inputs: Tensor) -> Callable[[Tensor], Tensor]:
    """Makes results what ``inputs`` are: MONAI's tensors with metadata, where MONAI is in use."""
    meta = sys.modules.get("monai.data.meta_tensor")
    if meta is None or not isinstance(inputs, meta.MetaTensor):
        return lambda result: result
    return lambda result: meta.MetaTensor(result).copy_meta_from(inputs, copy_attr=False)


def _body(volume: Tensor, skip: float | Tensor) -> Tensor:
    """Where something is to be found, [N or 1, 1, ...]."""
    if not isinstance(skip, Tensor):
        return (volume > skip).any(dim=1, keepdim=True)
    mask = skip.as_subclass(Tensor).bool()
    mask = mask[None, None] if mask.dim() == volume.dim() - 2 else mask
    if mask.dim() != volume.dim() or mask.shape[1:] != (1, *volume.shape[2:]):
        raise ValueError(
            f"sliding_window: a mask to skip by must be of size {tuple(volume.shape[2:])} with one channel, "
            f"got {tuple(skip.shape)}"
        )
    if len(mask) not in (1, len(volume)):
        raise ValueError(f"sliding_window: {len(mask)} masks for {len(volume)} volumes")
    return mask


def _windows(size: Sequence[int], roi: Sequence[int], overlap: Sequence[float]) -> list[Window]:
    """The last one of each dimension is moved back into the volume."""
    starts = []
    for n, r, part in zip(size, roi, overlap, strict=True):
        step = max(int(r * (1 - part)), 1)
        starts.append([min(start, n - r) for start in range(0, n - r + step, step)])
    return [
        tuple(slice(start, start + r) for start, r in zip(corner, roi, strict=True))
        for corner in itertools.product(*starts)
    ]


def _weights(roi: Sequence[int], mode: str, sigma_scale: Sequence[float] | float) -> Tensor:
    if mode == "constant":
        return torch.ones(tuple(roi))
    if mode != "gaussian":
        raise ValueError(f'sliding_window: mode must be "constant" or "gaussian", got {mode!r}')
    weights = torch.ones(())
    for n, scale in zip(roi, _each(sigma_scale, len(roi)), strict=True):
        x = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
        weights = weights[..., None] * torch.exp(x**2 / (-2 * (scale * n) ** 2))
    return weights.clamp_(min=max(float(weights.min()), LEAST_WEIGHT))


def _gather(volume: Tensor, places: Sequence[Sequence[slice]]) -> Tensor:
    parts = [volume[tuple(place)] for place in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _flatten(results: Any) -> tuple[list[Any] | None, Sequence[Tensor]]:
    """The keys of a dictionary, and the tensors."""
    if isinstance(results, Tensor):
        return None, (results,)
    if isinstance(results, Mapping):
        keys = sorted(results)
        return keys, tuple(results[key] for key in keys)
    return None, tuple(results)


@contextmanager
def _progress(asked: bool | Callable[[int, int], None], windows: int) -> Iterator[Callable[[int], object]]:
    """What to call with the number of windows that were done since."""
    if asked is True:
        from tqdm import tqdm

        with tqdm(total=windows, unit="window") as bar:
            yield bar.update
    elif callable(asked):
        done = 0

        def step(more: int) -> None:
            nonlocal done
            asked(done := done + more, windows)

        yield step
    else:
        yield lambda more: None
