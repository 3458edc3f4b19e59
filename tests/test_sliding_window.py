"""`volnet.sliding_window` against MONAI's `sliding_window_inference`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import volnet
from volnet.bench.networks import import_torchvision

import_torchvision()
monai = pytest.importorskip("monai.inferers")
pytestmark = pytest.mark.filterwarnings("ignore:.*(SWIG|swig|pkg_resources|Using a non-tuple).*")


@pytest.fixture(autouse=True)
def _from_scratch() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # quicker for such small volumes
    yield
    torch.set_num_threads(threads)


WEIGHT = torch.randn(3, 2, 3, 3, 3, generator=torch.Generator().manual_seed(1))


def blur(x: Tensor) -> Tensor:
    """What a voxel becomes depends on where in its window it lies."""
    return F.conv3d(x, WEIGHT, padding=1)


def compare(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    result = volnet.sliding_window(x, *args, **kwargs)
    expected = monai.sliding_window_inference(x, *args, **kwargs)
    assert type(result) is type(expected)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    return result


SIZES = [(16, 19, 17), (8, 8, 8), (5, 30, 9), (6, 5, 7), (16, 9, 8)]
OVERLAPS = [0.0, 0.25, (0.5, 0.0, 0.7)]
MODES = ["constant", "gaussian"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("mode", MODES)
def test_sizes_overlaps_and_modes(size: tuple[int, ...], overlap: Any, mode: str) -> None:
    x = torch.randn(2, 2, *size)
    compare(x, (8, 8, 8), 3, blur, overlap, mode)


def test_windows_are_at_least_a_voxel_apart() -> None:
    compare(torch.randn(1, 2, 6, 5, 4), 4, 3, blur, 0.99)


@pytest.mark.parametrize("roi", [8, (8, -1, 6), (None, 8, 8), (9, 7, 0)])
@pytest.mark.parametrize("sw_batch_size", [1, 4, 1000])
def test_rois_and_batches(roi: Any, sw_batch_size: int) -> None:
    compare(torch.randn(2, 2, 11, 16, 13), roi, sw_batch_size, blur, 0.4, "gaussian", (0.1, 0.2, 0.3))


@pytest.mark.parametrize("padding_mode", ["constant", "reflect", "replicate", "circular"])
def test_padding(padding_mode: str) -> None:
    cval = 2.0 if padding_mode == "constant" else 0.0
    compare(torch.randn(1, 2, 6, 12, 5), 8, 2, blur, padding_mode=padding_mode, cval=cval)


def several(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return blur(x), F.avg_pool3d(blur(x), 2), F.interpolate(x, scale_factor=2.0)


RESULTS = {
    "tuple": several,
    "list": lambda x: list(several(x)),
    "dictionary": lambda x: dict(zip("acb", several(x), strict=True)),
    "tuple of one": lambda x: (blur(x),),
    "dictionary of one": lambda x: {"x": blur(x)},
    "smaller only": lambda x: F.avg_pool3d(blur(x), (2, 1, 4)),
}


@pytest.mark.parametrize("predictor", RESULTS.values(), ids=RESULTS)
@pytest.mark.parametrize("size", [(16, 20, 12), (8, 12, 4)])
@pytest.mark.parametrize("mode", MODES)
def test_several_results_and_resolutions(predictor: Any, size: tuple[int, ...], mode: str) -> None:
    compare(torch.randn(2, 2, *size), 8, 2, predictor, 0.5, mode)


def test_results_in_any_order() -> None:
    """MONAI has no weights for a result as large as its window after a smaller one."""
    x = torch.randn(1, 2, 16, 12, 8)
    forwards = volnet.sliding_window(x, 8, 2, several, 0.5, "gaussian")
    backwards = volnet.sliding_window(x, 8, 2, lambda w: several(w)[::-1], 0.5, "gaussian")
    torch.testing.assert_close(backwards[::-1], forwards)


def test_two_dimensions() -> None:
    compare(torch.randn(2, 3, 20, 9), (8, 6), 2, torch.sigmoid, 0.3, "gaussian")


def test_what_is_passed_on() -> None:
    seen: list[Any] = []

    def predictor(x: Tensor, places: Any, shift: float, *, condition: Tensor, scale: float) -> Tensor:
        seen.append(places)
        return scale * x + shift * condition

    def process(results: Any, windows: Tensor, weights: Tensor) -> Any:
        return tuple(result + windows for result in results), weights * 0.5

    x, other = torch.randn(2, 2, 11, 9, 8), torch.randn(2, 1, 11, 9, 8)
    # In MONAI's order: overlap ... cval, devices, progress, roi_weight_map, process_fn, buffers, with_coord.
    named = (0.5, "constant", 0.125, "constant", 0.0, None, None, False, torch.rand(8, 8, 8) + 0.1, process)
    compare(x, 8, 3, predictor, *named, None, -1, True, 4.0, condition=other, scale=2.0)
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]


def test_weights_may_differ_from_window_to_window() -> None:
    """Against the mean itself: MONAI divides by the sum of the first weights."""
    x = torch.randn(1, 1, 12, 8, 8)

    def process(results: Any, windows: Tensor, weights: Tensor) -> Any:
        own = float(windows.mean().exp())
        return (torch.full_like(windows, own),), weights * own

    result = volnet.sliding_window(x, 8, 1, lambda w: w, 0.5, process_fn=process)
    a, b = (float(x[:, :, at].mean().exp()) for at in (slice(0, 8), slice(4, 12)))
    expected = torch.tensor([a] * 4 + [(a * a + b * b) / (a + b)] * 4 + [b] * 4)
    torch.testing.assert_close(result, expected[None, None, :, None, None].expand_as(x))


def test_buffers_make_no_difference() -> None:
    x = torch.randn(2, 2, 20, 12, 9)
    compare(x, 8, 2, blur, 0.5, "gaussian", buffer_steps=1, buffer_dim=0)


def test_metadata_is_kept() -> None:
    from monai.data import MetaTensor

    x = MetaTensor(torch.randn(1, 2, 9, 9, 9), affine=2 * torch.eye(4), meta={"name": "scan"})
    result = compare(x, 8, 2, blur)
    assert result.meta["name"] == "scan"
    assert torch.equal(result.affine, x.affine)


def test_half_precision_is_summed_in_single() -> None:
    x = torch.randn(1, 2, 16, 16, 16).bfloat16()
    given = dict(roi_size=8, sw_batch_size=4, overlap=0.75, mode="gaussian")
    result = volnet.sliding_window(x, predictor=lambda w: w, **given)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, x)  # MONAI's sums are off by 2e-2
    exact = volnet.sliding_window(x.double(), predictor=lambda w: w, **given)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact, x.double(), rtol=1e-12, atol=1e-12)
    assert volnet.sliding_window((x * 9).int(), predictor=lambda w: w, **given).dtype == torch.float32


def test_gradients_pass() -> None:
    x = torch.randn(1, 2, 12, 8, 8, requires_grad=True)
    ours = torch.autograd.grad(volnet.sliding_window(x, 8, 2, blur, 0.5).square().sum(), x)
    theirs = torch.autograd.grad(monai.sliding_window_inference(x, 8, 2, blur, 0.5).square().sum(), x)
    torch.testing.assert_close(ours, theirs)


class Counting:
    def __init__(self) -> None:
        self.windows = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.windows += len(x)
        return blur(x)


def body() -> Tensor:
    """Air but for a box in one corner of the first of two volumes, and a voxel of the second."""
    x = torch.full((2, 2, 24, 24, 24), -1000.0)
    x[0, :, :6, :7, 2:8] = torch.randn(2, 6, 7, 6)
    x[1, 1, 20, 20, 20] = 100.0
    return x


@pytest.mark.parametrize("mode", MODES)
def test_windows_outside_the_body_are_left_out(mode: str) -> None:
    x, count = body(), Counting()
    mask = (x > -900).any(dim=1, keepdim=True)
    result = volnet.sliding_window(x, 8, 2, count, 0.0, mode, skip=-900.0)
    assert count.windows == 2
    assert torch.equal(volnet.sliding_window(x, 8, 2, blur, 0.0, mode, skip=mask), result)
    expected = monai.sliding_window_inference(x, 8, 2, blur, 0.0, mode)
    for image, corner in ((0, 0), (1, 16)):
        at = (image, slice(None), *[slice(corner, corner + 8)] * 3)
        torch.testing.assert_close(result[at], expected[at])
        result[at] = 0
    assert not result.any()


def test_where_windows_overlap_those_that_ran_count() -> None:
    x = torch.zeros(1, 1, 12, 8, 8)
    mask = torch.zeros(12, 8, 8)
    mask[1] = 1
    result = volnet.sliding_window(x, 8, 1, lambda w: w + 3, 0.5, skip=mask)
    assert result[0, 0, :, 0, 0].tolist() == [3.0] * 8 + [0.0] * 4


def test_nothing_but_air_gives_nothing() -> None:
    x, count = torch.full((2, 2, 9, 9, 20), -1000.0), Counting()
    result = volnet.sliding_window(x, 8, 2, count, skip=-900)
    assert result.shape == (2, 3, 9, 9, 20)
    assert not result.any()
    assert count.windows == 1  # which tells the number of channels


def test_a_padded_volume_can_be_skipped_in() -> None:
    x = torch.full((1, 2, 5, 24, 5), -1000.0)
    x[:, :, :, :8] = 1
    count = Counting()
    result = volnet.sliding_window(x, 8, 2, count, 0.0, skip=-900)
    assert (count.windows, result.shape) == (1, (1, 3, 5, 24, 5))


def test_progress() -> None:
    x, steps = torch.randn(1, 2, 24, 8, 8), []
    volnet.sliding_window(x, 8, 2, blur, 0.0, progress=lambda done, windows: steps.append((done, windows)))
    assert steps == [(2, 3), (3, 3)]


def test_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    volnet.sliding_window(torch.randn(1, 2, 24, 8, 8), 8, 2, blur, 0.0, progress=True)
    assert "3/3" in capsys.readouterr().err


X = torch.zeros(2, 1, 8, 8, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"roi_size": (8, 8)}, r"roi_size has 2 dimensions, but inputs are of shape \(2, 1, 8, 8, 8\)"),
        ({"overlap": 1.0}, "overlap must be >= 0 and < 1"),
        ({"overlap": (0.1, -0.1, 0)}, "overlap must be >= 0 and < 1"),
        ({"overlap": (0.1, 0.1)}, "not one value or 3"),
        ({"sw_batch_size": 0}, "sw_batch_size must be positive"),
        ({"mode": "linear"}, '"constant" or "gaussian", got \'linear\''),
        ({"buffer_steps": 1, "buffer_dim": 7}, r"buffer_dim must be in \[-3, 3\], got 7"),
        ({"skip": torch.ones(8, 8)}, r"must be of size \(8, 8, 8\) with one channel, got \(8, 8\)"),
        ({"skip": torch.ones(3, 1, 8, 8, 8)}, "3 masks for 2 volumes"),
    ],
)
def test_bad_input_raises(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        volnet.sliding_window(**{"inputs": X, "roi_size": 4, "sw_batch_size": 1, "predictor": blur, **given})


def test_memory_is_bounded() -> None:
    """Beside the result and the weights, no tensor is larger than a batch of windows."""
    from torch.utils._python_dispatch import TorchDispatchMode

    made: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and not any(result is arg for arg in args) and not func.is_view:
                made.append(result.numel())
            return result

    x = torch.randn(1, 1, 48, 40, 32)
    with Sizes():
        volnet.sliding_window(x, 8, 2, lambda w: torch.cat([w, w], 1), 0.5, "gaussian")
    large = sorted(n for n in made if n > 2 * 2 * 8**3)
    assert large == [x.numel(), 2 * x.numel()]
