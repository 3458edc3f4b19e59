from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.references import resample
from volnet import isa, ops

X = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0))
IDENTITY = ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0))
FINER = ((0.5, 0, 0, -0.25), (0, 0.8, 0, 0.13), (0, 0, 0.7, -0.31))
OBLIQUE = ((0.813, -0.307, 0.0211, 1.01703), (0.319, 0.907, -0.103, 0.52307), (-0.101, 0.149, 0.953, 2.01107))
MODES = ["nearest", "linear", "cubic"]
SITK = {"nearest": sitk.sitkNearestNeighbor, "linear": sitk.sitkLinear, "cubic": sitk.sitkBSpline}


def hounsfield(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-1024, 3072, shape, generator=generator, dtype=torch.int16)


@pytest.mark.parametrize("index_map", [FINER, OBLIQUE])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source", [torch.int16, torch.float32])
@pytest.mark.parametrize("target", [torch.int16, torch.float32])
@pytest.mark.parametrize("level", isa.available())
def test_every_pair_of_dtypes(level, target, source, mode, index_map):
    volume = hounsfield(9, 10, 41).to(source)
    with isa.limit(level):
        y = ops.resample(volume, index_map, (8, 11, 50), mode=mode, pad_value=-1024, dtype=target)
    expected = resample(volume, index_map, (8, 11, 50), mode, -1024)
    assert y.dtype == target
    # Oblique places are rounded to 4e-6 of a voxel, from which neighbours differ by up to 4096.
    assert float((y.double() - expected).abs().max()) < 0.02 + (0.5 if target == torch.int16 else 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("angle", [0.0, 0.3])
def test_agrees_with_simpleitk(angle, mode):
    volume = hounsfield(12, 20, 30)
    image = sitk.GetImageFromArray(volume.float().numpy())
    size, step = (17, 25, 33), np.array([0.6, 0.9, 1.1])
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    start = np.array([-0.31, 2.13, -0.22])
    sampler = sitk.ResampleImageFilter()
    sampler.SetInterpolator(SITK[mode])
    sampler.SetSize(size[::-1])
    sampler.SetOutputOrigin(start[::-1].tolist())
    sampler.SetOutputSpacing(step[::-1].tolist())
    sampler.SetOutputDirection(turn[::-1, ::-1].ravel().tolist())
    sampler.SetDefaultPixelValue(-2000)
    expected = sitk.GetArrayFromImage(sampler.Execute(image))
    index_map = np.concatenate([turn * step, start[:, None]], axis=1).tolist()
    y = ops.resample(volume, index_map, size, mode=mode, pad_value=-2000, dtype=torch.float32).numpy()
    # Oblique places are rounded differently: one that lies on the volume's edge may fall to either side.
    differs = np.abs(y - expected) > 0.02
    assert differs.mean() < (1e-3 if angle else 1e-9)


def test_int16_saturates_and_rounds_to_nearest_even():
    x = torch.tensor([[[40000.0, -40000.0, 0.5, 1.5, -0.6, 2.4]]])
    y = ops.resample(x, IDENTITY, (1, 1, 6), dtype=torch.int16)
    assert y.flatten().tolist() == [32767, -32768, 0, 2, -1, 2]


def test_the_identity_changes_nothing():
    volume = hounsfield(7, 8, 33)
    for mode in MODES:
        assert torch.equal(ops.resample(volume, IDENTITY, volume.shape, mode=mode), volume)


def test_views_are_read_where_they_lie():
    volume = hounsfield(7, 8, 33)
    expected = ops.resample(volume[::2, :, 1:].contiguous(), FINER, (5, 6, 40))
    assert torch.equal(ops.resample(volume[::2, :, 1:], FINER, (5, 6, 40)), expected)


@pytest.mark.parametrize(
    ("x", "changes", "error"),
    [
        (X, {"mode": "bspline"}, ValueError),
        (X, {"size": (4, 4)}, RuntimeError),
        (X, {"size": (4, -1, 4)}, RuntimeError),
        (X, {"size": 4.0}, TypeError),
        (X, {"index_map": IDENTITY[:2]}, RuntimeError),
        (X, {"index_map": 3}, TypeError),
        (X, {"index_map": ((float("nan"), 0, 0, 0), *IDENTITY[1:])}, RuntimeError),
        (X, {"dtype": torch.float64}, RuntimeError),
        (X.short(), {"pad_value": 1e6}, RuntimeError),
        (X.short(), {"pad_value": "0"}, TypeError),
        (X.double(), {}, RuntimeError),
        (X[0], {}, RuntimeError),
        (X.clone().requires_grad_(), {}, RuntimeError),
        (X.numpy(), {}, TypeError),
    ],
)
def test_bad_arguments_raise(x, changes, error):
    with pytest.raises(error, match="resample: "):
        ops.resample(x, **{"index_map": IDENTITY, "size": (4, 4, 4), **changes})


def test_direct_calls_are_checked_too():
    with pytest.raises(RuntimeError, match="mode must be"):
        torch.ops.volnet._resample_aligned(X, [4] * 3, [0.0] * 3, [1.0] * 3, "spline", 0.0, False)
    with pytest.raises(RuntimeError, match="three axes"):
        torch.ops.volnet._resample_aligned(X, [4] * 2, [0.0] * 3, [1.0] * 3, "linear", 0.0, False)
    with pytest.raises(RuntimeError, match="twelve numbers"):
        torch.ops.volnet._resample_affine(X, [4] * 3, [0.0] * 3, "linear", 0.0, False)
