"""Patches a second: PatchLoader beside MONAI's RandCropByPosNegLabeld and TorchIO's Queue, two threads each.

Everything is in memory before the clock starts. The peers are at their best: MONAI with cached windowing and
indices, no deep copies, no metadata, eager and lazy, worker processes and worker threads, of which the
fastest counts; TorchIO with its Queue over two worker processes, transforms on whole volumes that give many
patches, or by threads on patches: the faster counts. Contenders take turns; the table has medians of rounds.

    python benchmarks/data.py [--rounds 5] [--patches 64] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import monai.transforms as mt
import numpy as np
import torch
import torchio as tio
from monai.data import CacheDataset, DataLoader, ThreadDataLoader, set_track_meta

from volnet.data import (
    BalancedSampler,
    PatchLoader,
    RandomAffine,
    RandomFlip,
    RandomNoise,
    RandomRotate90,
    RandomScaleShift,
    VolumeStore,
    Window,
    chest_phantom,
)

SIZE = 96
WINDOW = (-1000.0, 400.0)
BATCH = 2
QUEUE = 32  # patches that TorchIO's queue holds
Case = tuple[np.ndarray, np.ndarray]  # int16 and uint8 [D, H, W]
Patches = Callable[[], Iterator[int]]  # yields how many patches came


def phantoms(count: int) -> list[Case]:
    """Chest phantoms at 1.25 x 0.9 x 0.9 mm, nodules labelled by a ball about each."""
    cases = []
    for seed in range(count):
        ct, nodules = chest_phantom(seed, shape=(240, 320, 320), spacing=(1.25, 0.9, 0.9))
        label = np.zeros(ct.voxels.shape, np.uint8)
        for nodule in nodules:
            grid = np.ogrid[tuple(slice(n) for n in label.shape)]
            parts = zip(grid, nodule.center_voxel, ct.geometry.spacing, strict=True)
            label[sum(((g - c) * s) ** 2 for g, c, s in parts) < (nodule.diameter_mm / 2) ** 2] = 1
        cases.append((ct.voxels, label))
    return cases


def volnet_patches(cases: list[Case], affine: bool, threads: int) -> Patches:
    store = VolumeStore()
    for image, label in cases:
        store.add(image, label=label)
    spatial = [RandomAffine(15, (0.9, 1.1), p=1)] if affine else [RandomRotate90((1, 2), p=0.5)]
    transforms = [
        RandomFlip(p=0.5),
        *spatial,
        Window(*WINDOW),
        RandomScaleShift((0.9, 1.1), (-0.1, 0.1), p=1),
        RandomNoise((0.05, 0.05), p=1),
    ]
    sampler = BalancedSampler(store, SIZE, positive=0.5, patches_per_volume=1000)

    def run() -> Iterator[int]:
        for batch in PatchLoader(store, sampler, transforms, BATCH, threads=threads):
            assert batch["image"].dtype == torch.float32
            assert batch["label"].dtype == torch.uint8
            yield len(batch["image"])

    return run


def monai_patches(cases: list[Case], affine: bool, threads: int, lazy: bool, processes: bool) -> Patches:
    set_track_meta(lazy)  # lazy transforms are kept in the metadata
    keys = ["image", "label"]
    modes = ("bilinear", "nearest")
    spatial = (
        mt.RandAffined(
            keys,
            prob=1,
            rotate_range=(np.deg2rad(15),) * 3,
            scale_range=((-0.1, 0.1),) * 3,
            mode=modes,
            padding_mode="zeros",
        )
        if affine
        else mt.RandRotate90d(keys, prob=0.5, max_k=3, spatial_axes=(1, 2))
    )
    transform = mt.Compose(
        [
            mt.ScaleIntensityRanged("image", *WINDOW, 0, 1, clip=True),
            mt.FgBgToIndicesd("label"),
            mt.RandCropByPosNegLabeld(
                keys,
                "label",
                (SIZE,) * 3,
                pos=1,
                neg=1,
                num_samples=1,
                fg_indices_key="label_fg_indices",
                bg_indices_key="label_bg_indices",
            ),
            *(mt.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
            spatial,
            mt.RandScaleIntensityd("image", factors=0.1, prob=1),
            mt.RandShiftIntensityd("image", offsets=0.1, prob=1),
            mt.RandGaussianNoised("image", prob=1, std=0.05, sample_std=False),
        ],
        lazy=lazy,
        overrides={"image": {"mode": "bilinear"}, "label": {"mode": "nearest"}} if lazy else None,
    )
    data = [
        {"image": torch.from_numpy(image[None].astype(np.float32)), "label": torch.from_numpy(label[None])}
        for image, label in cases
    ]
    dataset = CacheDataset(
        data, transform, cache_rate=1.0, num_workers=None, progress=False, copy_cache=False
    )
    order = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=4000)
    kwargs: dict[str, Any] = {"batch_size": BATCH, "num_workers": threads, "sampler": order}

    def run() -> Iterator[int]:
        set_track_meta(lazy)
        loader = (
            DataLoader(dataset, **kwargs)
            if processes
            else ThreadDataLoader(dataset, use_thread_workers=True, buffer_size=2, **kwargs)
        )
        for batch in loader:
            assert batch["image"].shape[-3:] == (SIZE,) * 3
            yield len(batch["image"])

    return run


def torchio_patches(cases: list[Case], affine: bool, threads: int, whole: bool) -> Patches:
    spatial = (
        tio.RandomAffine(scales=(0.9, 1.1), degrees=15, isotropic=True)
        if affine
        # It has no quarter turns; an exchange of axes costs as much.
        else tio.OneOf({tio.Lambda(_turn): 0.5, tio.Lambda(_same): 0.5})
    )
    transform = tio.Compose(
        [
            tio.RandomFlip((0, 1, 2), flip_probability=0.5),
            spatial,
            tio.Lambda(_scale_shift, types_to_apply=[tio.INTENSITY]),
            tio.RandomNoise(0, (0.05, 0.05)),
        ]
    )
    low, high = WINDOW
    subjects = [
        tio.Subject(
            image=tio.ScalarImage(
                tensor=torch.from_numpy(((image[None].astype(np.float32) - low) / (high - low)).clip(0, 1))
            ),
            label=tio.LabelMap(tensor=torch.from_numpy(label[None])),
        )
        for image, label in cases
    ]
    dataset = tio.SubjectsDataset(subjects * 100, transform if whole else None)
    sampler = tio.data.LabelSampler(SIZE, "label", {0: 1, 1: 1})

    def run() -> Iterator[int]:
        # Every volume gives as many patches as MONAI's documentation and TorchIO's take at most.
        queue = tio.Queue(dataset, QUEUE, 16, sampler, num_workers=threads, shuffle_subjects=True)
        if whole:
            for batch in tio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0):
                yield len(batch["image"][tio.DATA])
            return
        # The queue itself must stay in this process; its patches are transformed by threads, ahead of use.
        with ThreadPoolExecutor(threads) as pool:
            pending = deque(pool.submit(transform, queue[0]) for _ in range(2 * threads))
            while True:
                pending.popleft().result()
                pending.append(pool.submit(transform, queue[0]))
                yield 1

    return run


def _turn(x: torch.Tensor) -> torch.Tensor:
    return torch.rot90(x, int(torch.randint(1, 4, ())), (2, 3)).contiguous()


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _scale_shift(x: torch.Tensor) -> torch.Tensor:
    a, b = torch.rand(2).tolist()
    return x * (0.9 + 0.2 * a) + (0.2 * b - 0.1)


def rate(run: Patches, patches: int) -> float:
    """Patches a second once workers have started: after the first QUEUE patches, of which a queue is full, so
    that as many are made as are taken."""
    batches = run()
    count = 0
    while count < QUEUE:
        count += next(batches)
    start, count = time.perf_counter(), 0
    while count < patches:
        count += next(batches)
    seconds = time.perf_counter() - start
    batches.close()  # type: ignore[attr-defined]
    return count / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--patches", type=int, default=2 * QUEUE, help="of a peer in a round; volnet makes ten times as many"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--volumes", type=int, default=4)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # one core for each worker, whoever's it is
    cases = phantoms(options.volumes)
    print(
        f"{SIZE}^3 patches a second, {options.threads} threads, {options.volumes} volumes {cases[0][0].shape}"
    )
    for affine in (False, True):
        contenders: dict[str, tuple[str, Patches]] = {
            "volnet": ("volnet", volnet_patches(cases, affine, options.threads))
        }
        for lazy in (False, True):
            for processes in (True, False):
                name = f"MONAI, {'lazy' if lazy else 'eager'}, {'processes' if processes else 'threads'}"
                run = monai_patches(cases, affine, options.threads, lazy, processes)
                contenders[name] = ("MONAI", run)
        for whole in (True, False):
            name = f"TorchIO, transforms of {'volumes' if whole else 'patches'}"
            contenders[name] = ("TorchIO", torchio_patches(cases, affine, options.threads, whole))
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(options.rounds):
            for name, (_, run) in contenders.items():
                count = options.patches * (10 if name == "volnet" else 1)
                rates[name].append(rate(run, count))
        own = statistics.median(rates["volnet"])
        print(f"\n{'affine' if affine else 'flips and quarter turns'}, scale and shift, noise")
        print("| | patches/s | volnet is faster by |\n| --- | --- | --- |")
        for name, values in rates.items():
            median = statistics.median(values)
            print(f"| {name} | {median:.1f} ({min(values):.1f}-{max(values):.1f}) | {own / median:.1f} |")


if __name__ == "__main__":
    main()
