from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradgradcheck

from tests import references
from volnet import isa
from volnet.ops import sample_patches

CENTER = torch.tensor([[1, 1, 1]])


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    size=st.tuples(*[st.integers(1, 12)] * 3),
    centers=st.lists(st.tuples(*[st.integers(-12, 20)] * 3), max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_any_patch_of_any_volume(
    shape: tuple[int, int, int], size: tuple[int, int, int], centers: list[tuple[int, int, int]]
) -> None:
    volume = torch.arange(int(np.prod(shape)), dtype=torch.int16).reshape(shape)
    at = torch.tensor(centers, dtype=torch.int64).reshape(-1, 3)
    actual = sample_patches(volume, at, size, pad_value=-1)
    assert torch.equal(actual, references.sample_patches(volume, at, size, pad_value=-1))


@pytest.mark.parametrize("level", isa.available())
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float64], ids=str)
def test_large_results_that_are_stored_past_the_caches(level: str, dtype: torch.dtype) -> None:
    volume = torch.arange(60 * 61 * 130).reshape(60, 61, 130).to(dtype)
    centers = torch.randint(-10, 140, (18, 3), generator=torch.Generator().manual_seed(0))
    size = (101, 99, 97)  # rows that end anywhere in a cache line
    with isa.limit(level):
        actual = sample_patches(volume, centers, size, pad_value=7)
    assert actual.numel() * actual.element_size() > 2**24
    for one, center in zip(actual, centers, strict=True):
        assert torch.equal(one, references.sample_patches(volume, center[None], size, pad_value=7)[0])


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[1:, 2:7, 3:11],
        lambda x: x.transpose(0, 1),
        lambda x: x.transpose(1, 2),
        lambda x: x[..., ::2],
        lambda x: x.flip(0),
        lambda x: x[:1].expand(9, -1, -1),
    ],
    ids=["crop", "rows_dense", "rows_strided", "step", "flip", "expand"],
)
def test_views_are_read_where_they_are(view: object) -> None:
    volume = view(torch.arange(9 * 10 * 12, dtype=torch.int32).reshape(9, 10, 12))  # type: ignore[operator]
    centers = torch.tensor([[2, 3, 4], [0, 0, 0], [8, 9, 11]])
    actual = sample_patches(volume, centers.repeat(1, 2)[:, :3], (4, 5, 6), pad_value=-1)
    assert torch.equal(actual, references.sample_patches(volume, centers, (4, 5, 6), pad_value=-1))


@pytest.mark.parametrize("far", [2**63 - 1, -(2**63), 2**40, -(2**40)])
def test_centers_out_of_sight_give_padding(far: int) -> None:
    for axis in range(3):
        center = CENTER.clone()
        center[0, axis] = far
        volume = torch.ones(3, 3, 3, requires_grad=True)
        patches = sample_patches(volume, center, (2, 3, 4), pad_value=5)
        assert torch.equal(patches, torch.full((1, 2, 3, 4), 5.0))
        patches.sum().backward()
        assert torch.equal(volume.grad, torch.zeros(3, 3, 3))  # type: ignore[arg-type]


def test_every_bit_of_a_value_survives() -> None:
    bits = torch.randint(-(2**63), 2**63 - 1, (3, 3, 3), generator=torch.Generator().manual_seed(1))
    assert torch.equal(sample_patches(bits, CENTER, 3)[0], bits)
    floats = bits.view(torch.float64)  # not-a-numbers with a payload among them
    assert torch.equal(sample_patches(floats, CENTER, 3)[0].view(torch.int64), bits)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_padding_with_nan_and_infinity(value: float, dtype: torch.dtype) -> None:
    patches = sample_patches(torch.zeros(1, 1, 1, dtype=dtype), torch.tensor([[9, 9, 9]]), 2, value)
    torch.testing.assert_close(patches, torch.full((1, 2, 2, 2), value, dtype=dtype), equal_nan=True)


def test_twice_differentiable() -> None:
    volume = torch.rand(3, 4, 5, dtype=torch.float64, requires_grad=True)
    centers = torch.tensor([[1, 1, 1], [2, 2, 4]])
    assert gradgradcheck(lambda x: sample_patches(x, centers, (2, 3, 4)) ** 2, (volume,), fast_mode=True)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(3, 3), CENTER, 2), RuntimeError, r"volume must be .* got shape \(3, 3\)"),
        ((torch.zeros(1, 1, 3, 3, 3), CENTER, 2), RuntimeError, r"volume must be .* got shape"),
        ((torch.zeros(3, 3, 3, dtype=torch.complex64), CENTER, 2), RuntimeError, "volume .* got complex64"),
        ((np.zeros((3, 3, 3)), CENTER, 2), TypeError, "volume must be a Tensor, got ndarray"),
        ((torch.zeros(3, 3, 3), CENTER.int(), 2), RuntimeError, "centers must be one of int64, got int32"),
        ((torch.zeros(3, 3, 3), CENTER[0], 2), RuntimeError, r"centers must be \[P, 3\], got shape \(3,\)"),
        ((torch.zeros(3, 3, 3), CENTER[:, :2], 2), RuntimeError, r"centers .* got shape \(1, 2\)"),
        (
            (torch.zeros(3, 3, 3), CENTER, (2, 0, 2)),
            RuntimeError,
            r"size must be at least 1.*\(2, 0, 2\)|\[2, 0",
        ),
        (
            (torch.zeros(3, 3, 3), CENTER, (2, 2)),
            RuntimeError,
            r"size must be one int or three, got \(2, 2\)",
        ),
    ],
)
def test_wrong_arguments(arguments: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sample_patches(*arguments)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.uint8, -1),
        (torch.uint8, 256),
        (torch.int16, 40000),
        (torch.int16, 0.5),
        (torch.int32, float("nan")),
        (torch.int64, 2**53 + 2),
        (torch.float32, 1e39),
        (torch.bfloat16, -3.4e38 * 2),
    ],
)
def test_padding_that_the_dtype_cannot_hold(dtype: torch.dtype, value: float) -> None:
    volume: Tensor = torch.zeros(2, 2, 2, dtype=dtype)
    with pytest.raises(RuntimeError, match=r"pad_value .* is no value of the volume's dtype"):
        sample_patches(volume, CENTER, 2, value)


def test_padding_must_be_a_number() -> None:
    with pytest.raises(TypeError, match="pad_value must be a number, got str"):
        sample_patches(torch.zeros(2, 2, 2), CENTER, 2, "edge")  # type: ignore[arg-type]


def test_the_operator_guards_itself() -> None:
    with pytest.raises(RuntimeError, match="pad_value 300"):
        torch.ops.volnet.sample_patches(torch.zeros(2, 2, 2, dtype=torch.uint8), CENTER, [2, 2, 2], 300.0)
    with pytest.raises(RuntimeError, match="size must be three positive"):
        torch.ops.volnet.sample_patches(torch.zeros(2, 2, 2), CENTER, [2, -1, 2], 0.0)
