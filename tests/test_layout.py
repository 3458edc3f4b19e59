"""Changing between plain and channels_last_3d memory, against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import volnet.ops._layout  # noqa: F401 - the fake and the gradient of the operator
from volnet import isa

FORMATS = {False: torch.contiguous_format, True: torch.channels_last_3d}
DTYPES = [torch.bfloat16, torch.float32, torch.int64]  # 2, 4 and 8 bytes
LEVELS = [level for level in isa.available() if level in ("scalar", "avx2", "avx512")]
CHANNELS = [1, 2, 3, 5, 8, 9, 15, 16, 17, 32, 33, 65, 320]
# Fewer voxels than a tile, a tile, one more, several, more than a strip of tiles.
SPATIAL = [(1, 1, 2), (1, 1, 3), (1, 3, 5), (2, 2, 4), (1, 1, 17), (4, 4, 4), (3, 5, 7), (5, 8, 9)]


def distinct(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Bits that differ from element to element; NaN among them, so compare as integers."""
    count = int(torch.tensor(shape).prod())
    integer = bits(torch.empty(0, dtype=dtype)).dtype
    mixed = torch.arange(count, dtype=torch.int64) * 0x5851F42D4C957F2D + 0x14057B7EF767814F
    narrow = mixed >> (64 - 8 * integer.itemsize)
    return narrow.to(integer).view(dtype).reshape(shape)


def bits(x: Tensor) -> Tensor:
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def check(x: Tensor, channels_last: bool, what: str) -> None:
    before = bits(x).clone()
    actual = torch.ops.volnet._to_layout(x, channels_last)
    expected = x.contiguous(memory_format=FORMATS[channels_last])
    assert actual.shape == x.shape, what
    assert actual.is_contiguous(memory_format=FORMATS[channels_last]), what
    assert torch.equal(bits(actual), bits(expected)), what
    assert torch.equal(bits(x), before), f"{what}: the input changed"
    assert actual.data_ptr() != x.data_ptr() or x.numel() == 0, what


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
def test_both_directions_are_torchs(level: str, dtype: torch.dtype, channels: int) -> None:
    with isa.limit(level):
        for spatial in SPATIAL:
            plain = distinct((2, channels, *spatial), dtype)
            last = plain.contiguous(memory_format=torch.channels_last_3d)
            check(plain, True, f"{spatial} to channels_last")
            check(last, False, f"{spatial} to plain")


@given(
    channels=st.integers(1, 70),
    spatial=st.tuples(*[st.integers(1, 12)] * 3),
    batch=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
    level=st.sampled_from(LEVELS),
)
@settings(deadline=None, max_examples=100)
def test_any_shape(
    channels: int, spatial: tuple[int, int, int], batch: int, dtype: torch.dtype, level: str
) -> None:
    plain = distinct((batch, channels, *spatial), dtype)
    with isa.limit(level):
        check(plain, True, "to channels_last")
        check(plain.contiguous(memory_format=torch.channels_last_3d), False, "to plain")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("channels", "dtype"),
    [(3, torch.bfloat16), (3, torch.float32), (32, torch.bfloat16), (33, torch.float32), (32, torch.float64)],
    ids=str,
)
def test_large_results_that_are_stored_past_the_caches(level: str, dtype: torch.dtype, channels: int) -> None:
    for extra in (0, 1):  # with rows that start cache lines, and rows that do not
        depth = 2**25 // (channels * 64 * 32 * dtype.itemsize) + 1
        plain = distinct((1, channels, depth, 64, 32 + extra), dtype)
        assert plain.numel() * plain.element_size() >= 2**25
        with isa.limit(level):
            check(plain, True, "to channels_last")
            check(plain.contiguous(memory_format=torch.channels_last_3d), False, "to plain")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("offset", [1, 3, 9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_views_and_memory_that_starts_anywhere(dtype: torch.dtype, offset: int, channels_last: bool) -> None:
    shape = (1, 19, 4, 5, 6)
    flat = distinct((19 * 120 + offset,), dtype)[offset:]
    check(flat.view(shape), channels_last, "plain at an offset")
    last = flat.view(1, 4, 5, 6, 19).permute(0, 4, 1, 2, 3)
    check(last, channels_last, "channels_last at an offset")
    check(flat.view(shape)[:, 2:9, :, 1:4], channels_last, "a crop")
    check(flat.view(shape)[:, :1, :, :, ::2], channels_last, "one channel, every other voxel")
    check(flat.view(shape).transpose(2, 4), channels_last, "transposed")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_one_image_of_a_batch_does_not_reach_into_the_next(level: str, dtype: torch.dtype) -> None:
    """Images lie end to end, so a kernel that writes too far spoils the image that another thread wrote."""
    for channels, spatial in ((3, (1, 3, 5)), (7, (1, 1, 33)), (17, (1, 1, 17)), (33, (3, 5, 7))):
        plain = distinct((64, channels, *spatial), dtype)
        with isa.limit(level):
            check(plain, True, "to channels_last")
            check(plain.contiguous(memory_format=torch.channels_last_3d), False, "to plain")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_kernel_of_the_level_runs(level: str, dtype: torch.dtype, channels_last: bool) -> None:
    source = torch.zeros(1, 17, 3, 4, 5, dtype=dtype).contiguous(memory_format=FORMATS[not channels_last])
    before = {name: calls for name, _, calls in isa.kernels()}
    with isa.limit(level):
        torch.ops.volnet._to_layout(source, channels_last)
    ran = {n for n, _, calls in isa.kernels() if calls > before[n] and n.startswith("layout_")}
    assert ran == {f"layout_b{dtype.itemsize}_{level}"}


@pytest.mark.parametrize("channels_last", [False, True])
def test_thread_count_does_not_change_a_bit(channels_last: bool) -> None:
    source = distinct((1, 65, 9, 20, 21), torch.float32).contiguous(memory_format=FORMATS[not channels_last])
    threads = torch.get_num_threads()
    try:
        for count in (1, 3, 7):
            torch.set_num_threads(count)
            check(source, channels_last, f"{count} threads")
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (1, 1, 2, 3, 4), (2, 5, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_operator_keeps_torchs_rules(shape: tuple[int, ...], channels_last: bool) -> None:
    """Schema (no alias of the input), fake strides, gradient."""
    for source_last in (False, True):
        x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x = x.contiguous(memory_format=FORMATS[source_last]).requires_grad_()
        torch.library.opcheck(torch.ops.volnet._to_layout.default, (x, channels_last))


@pytest.mark.parametrize("shape", [(0, 3, 2, 2, 2), (1, 0, 2, 2, 2), (1, 3, 2, 0, 2)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    for channels_last in (False, True):
        assert torch.ops.volnet._to_layout(torch.empty(shape), channels_last).shape == shape


def test_wrong_arguments() -> None:
    with pytest.raises(RuntimeError, match=r"x must be \[N, C, D, H, W\], got \[3, 4\]"):
        torch.ops.volnet._to_layout(torch.zeros(3, 4), True)
    with pytest.raises(RuntimeError, match="elements of 1 bytes"):
        torch.ops.volnet._to_layout(torch.zeros(1, 3, 2, 2, 2, dtype=torch.uint8), True)
