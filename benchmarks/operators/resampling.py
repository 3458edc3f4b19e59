"""Interpolation, sampling at places, smoothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from operators.work import BOTH, LAYOUTS, Shape, Work, nbytes, operator, partial, random, relative_l2, uniform
from volnet import ops


@operator(*BOTH)
def interpolate(shape: Shape) -> Work:
    dtype = getattr(torch, shape.get("dtype", "float32"))
    arguments = {n: shape[n] for n in ("size", "scale_factor", "mode", "align_corners") if n in shape}
    x = random(1, shape["channels"], *shape["size_in"]).to(dtype)
    expected = F.interpolate(x.double(), **arguments)
    implementations = {}
    for layout, memory_format in LAYOUTS.items():
        y = x.contiguous(memory_format=memory_format)
        implementations[f"volnet {layout}"] = partial(ops.interpolate, y, **arguments)
        implementations[f"torch {layout}"] = partial(F.interpolate, y, **arguments)
    return Work(
        implementations,
        error=lambda y: relative_l2(y, expected),
        tolerance=5e-6 if dtype == torch.float32 else 4e-3,  # torch's float32 places, which ours are too
        bytes=float(nbytes(x) + expected.numel() * x.element_size()),
    )


@operator(*BOTH, shapes="interpolate")
@torch.inference_mode(False)
def interpolate_backward(shape: Shape) -> Work:
    dtype = getattr(torch, shape.get("dtype", "float32"))
    arguments = {n: shape[n] for n in ("size", "scale_factor", "mode", "align_corners") if n in shape}
    x = random(1, shape["channels"], *shape["size_in"]).to(dtype)
    with torch.enable_grad():
        exact = x.double().requires_grad_()
        y = F.interpolate(exact, **arguments)
        dy = random(*y.shape, seed=1).to(dtype)
        (expected,) = torch.autograd.grad(y, exact, dy.double())
    implementations = {}
    for layout, memory_format in LAYOUTS.items():
        leaf = x.contiguous(memory_format=memory_format).clone(memory_format=memory_format).requires_grad_()
        grad = dy.contiguous(memory_format=memory_format)
        for name, function in (("volnet", ops.interpolate), ("torch", F.interpolate)):
            with torch.enable_grad():
                y = function(leaf, **arguments)
            gradient = partial(torch.autograd.grad, y, leaf, grad, retain_graph=True)
            implementations[f"{name} {layout}"] = torch.inference_mode(False)(gradient)
    return Work(
        implementations,
        error=lambda gradients: relative_l2(gradients[0], expected),
        # torch sums bfloat16 gradients in bfloat16 in some of its kernels.
        tolerance=5e-6 if dtype == torch.float32 else 2e-2,
        bytes=float(nbytes(x, dy)),
    )


@operator(*BOTH)
def grid_sample(shape: Shape) -> Work:
    """A small rotation, as augmentations make them."""
    dtype = getattr(torch, shape.get("dtype", "float32"))
    x = random(1, shape["channels"], *shape["size"]).to(dtype)
    theta = torch.eye(3, 4)[None] + 0.1 * (uniform(1, 3, 4) - 0.5)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False).to(dtype)
    arguments = {"mode": shape.get("mode", "bilinear"), "align_corners": False}
    expected = F.grid_sample(x.double(), grid.double(), **arguments)
    implementations = {}
    for layout, memory_format in LAYOUTS.items():
        y = x.contiguous(memory_format=memory_format)
        implementations[f"volnet {layout}"] = partial(ops.grid_sample, y, grid, **arguments)
        implementations[f"torch {layout}"] = partial(F.grid_sample, y, grid, **arguments)
    return Work(
        implementations,
        error=lambda y: relative_l2(y, expected),
        # Places are rounded to an epsilon of the extent; torch's bfloat16 computes them in bfloat16.
        tolerance=(2e-4 if arguments["mode"] == "bilinear" else 2e-2) if dtype == torch.float32 else 1.0,
        bytes=float(nbytes(x, grid) + expected.numel() * x.element_size()),
    )


@operator("volnet", "torch", "SimpleITK")
def resample(shape: Shape) -> Work:
    """A CT in int16 to another spacing; with ``angle``, turned about the body's axis too."""
    size, mode, angle = shape["size"], shape["mode"], shape.get("angle", 0.0)
    spacing, target = np.array(shape["spacing"]), np.array(shape["target"])
    out = [int(v) for v in np.maximum(1, np.ceil(np.array(size) * spacing / target - 0.5))]
    volume = (random(*size) * 300).clamp(-1024, 3071).to(torch.int16)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    start = (target / spacing - 1) / 2
    matrix = np.diag(1 / spacing) @ turn @ np.diag(target)
    index_map = np.concatenate([matrix, start[:, None]], axis=1).tolist()
    implementations: dict[str, Any] = {
        "volnet": partial(ops.resample, volume, index_map, out, mode=mode, pad_value=-1024)
    }

    image = sitk.GetImageFromArray(volume.numpy())
    image.SetSpacing(spacing[::-1].tolist())
    sampler = sitk.ResampleImageFilter()
    sampler.SetInterpolator(
        {"nearest": sitk.sitkNearestNeighbor, "linear": sitk.sitkLinear, "cubic": sitk.sitkBSpline}[mode]
    )
    sampler.SetSize(out[::-1])
    sampler.SetOutputSpacing(target[::-1].tolist())
    sampler.SetOutputOrigin((start * spacing)[::-1].tolist())
    sampler.SetOutputDirection(turn[::-1, ::-1].ravel().tolist())
    sampler.SetDefaultPixelValue(-1024)
    sampler.SetNumberOfThreads(torch.get_num_threads())
    implementations["SimpleITK"] = lambda: torch.from_numpy(sitk.GetArrayFromImage(sampler.Execute(image)))

    if mode == "linear" and angle == 0:

        def with_torch() -> Tensor:
            x = volume.float()[None, None]
            y = F.interpolate(x, size=out, mode="trilinear", align_corners=False)
            return y[0, 0].round_().to(torch.int16)

        # Its sides are whole voxels on both grids: within a voxel of the same volume.
        implementations["torch"] = with_torch

    voxels = [np.random.default_rng(0).integers(0, n, 4096) for n in out]
    places = np.einsum("ij,jp->ip", matrix, np.array(voxels)) + start[:, None]
    ends = np.array(size)[:, None] - 0.5
    inside = ((places >= -0.5) & (places < ends)).all(axis=0)
    exact = volume.double().numpy()
    if mode == "nearest":
        nearest = np.clip(np.floor(places + 0.5).astype(int), 0, np.array(size)[:, None] - 1)
        values = exact[tuple(nearest)]
    else:
        kind = {"order": 1, "mode": "nearest"} if mode == "linear" else {"order": 3, "mode": "mirror"}
        values = ndimage.map_coordinates(exact, places, **kind)
    expected = torch.from_numpy(np.where(inside, values, -1024.0))

    def error(y: Tensor) -> float:
        return float((y[tuple(voxels)].double() - expected).abs().median()) / 300

    return Work(
        implementations,
        error,
        tolerance=0.2 if "torch" in implementations else 0.005,  # medians in units of the noise
        bytes=float(nbytes(volume) + 2 * np.prod(out)),
    )


@operator(*BOTH, "SciPy")
def gaussian_filter3d(shape: Shape) -> Work:
    dtype, sigma = getattr(torch, shape.get("dtype", "float32")), shape["sigma"]
    x = random(1, shape["channels"], *shape["size"]).to(dtype)
    expected = torch.from_numpy(ndimage.gaussian_filter(x.double().numpy(), sigma, axes=(2, 3, 4)))
    radius = int(4 * sigma + 0.5)
    steps = torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma
    kernel = torch.exp(-0.5 * steps**2)
    kernel = (kernel / kernel.sum()).to(dtype)

    def with_torch(x: Tensor) -> Tensor:
        channels = x.shape[1]
        for axis in range(3):
            sides = [radius if a == axis else 0 for a in (2, 2, 1, 1, 0, 0)]
            size = [1 if a != axis else -1 for a in range(3)]
            weight = kernel.reshape(1, 1, *size).expand(channels, *([-1] * 4))
            # SciPy's default boundary, which mirrors the last voxel too, is none of torch's.
            x = F.conv3d(F.pad(x, sides, mode="replicate"), weight, groups=channels)
        return x

    implementations: dict[str, Any] = {}
    for layout, memory_format in LAYOUTS.items():
        y = x.contiguous(memory_format=memory_format)
        implementations[f"volnet {layout}"] = partial(ops.gaussian_filter3d, y, sigma)
        implementations[f"torch {layout}"] = partial(with_torch, y)
    if dtype == torch.float32:
        array = x.numpy()
        implementations["SciPy"] = lambda: torch.from_numpy(
            ndimage.gaussian_filter(array, sigma, axes=(2, 3, 4))
        )
    inner = (..., *[slice(radius, max(n - radius, radius + 1)) for n in shape["size"]])
    return Work(
        implementations,
        error=lambda y: relative_l2(y[inner], expected[inner]),
        tolerance=2e-6 if dtype == torch.float32 else 2e-2,
        bytes=float(2 * nbytes(x)),
    )
