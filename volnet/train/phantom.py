"""Something to train on where there is no data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


class PhantomBatches:
    """Bright balls in noise, without end: batch i follows from the seed and i.

    Args:
        size: voxels (d, h, w) of a patch.
        batch: patches in a batch.
        seed: of everything.

    Batches have ``image`` float32 [N, 1, D, H, W], about 0 to 1, and ``label`` uint8 [N, 1, D, H, W], 1 in
    the balls.

    >>> batch = next(iter(PhantomBatches((16, 16, 16), batch=2)))
    >>> batch["image"].shape, bool(batch["image"][batch["label"] == 1].mean() > 0.6)
    (torch.Size([2, 1, 16, 16, 16]), True)
    """

    def __init__(self, size: Sequence[int], batch: int = 1, seed: int = 0) -> None:
        self.size, self.batch, self.seed = tuple(size), batch, seed
        self._next = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            rng = np.random.default_rng((self.seed, self._next))
            self._next += 1
            label = np.stack([self._balls(rng) for _ in range(self.batch)])[:, None]
            image = 0.2 + 0.6 * label + rng.normal(0, 0.1, label.shape)
            yield {"image": torch.from_numpy(image).float(), "label": torch.from_numpy(label)}

    def _balls(self, rng: np.random.Generator) -> np.ndarray:
        label = np.zeros(self.size, np.uint8)
        for _ in range(rng.integers(1, 4)):
            radius = rng.uniform(0.1, 0.25) * min(self.size)
            center = [rng.uniform(0, n) for n in self.size]
            axes = np.ogrid[tuple(slice(n) for n in self.size)]
            label[sum((axis - c) ** 2 for axis, c in zip(axes, center, strict=True)) <= radius**2] = 1
        return label

    def state_dict(self) -> dict[str, int]:
        """The number of batches given out."""
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on after so many batches."""
        self._next = state["next"]
