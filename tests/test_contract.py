"""The contract that every operator keeps, checked over the case tables in ``tests/cases``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from tests.cases import EPSILON, Case, Sample, all_cases
from volnet import isa, set_precision

LAYOUTS = {"plain": torch.contiguous_format, "channels_last": torch.channels_last_3d}
CASES = all_cases()
SAMPLES = [(case, sample) for case in CASES for sample in case.samples()]
# What exists of each: dtypes the operator takes, and both layouts where it takes volumes.
VARIANTS = [
    (case, sample, dtype, layout)
    for case, sample in SAMPLES
    for dtype in case.dtypes
    for layout in (LAYOUTS if case.volumes else ["plain"])
]


@pytest.fixture(autouse=True)
def precision_of_the_case(request: pytest.FixtureRequest) -> Iterator[None]:
    set_precision(request.node.callspec.params["case"].precision)
    yield
    set_precision("high")


def kernel_levels(case: Case) -> list[str]:
    """The levels of this machine at which the operator has a kernel of its own."""
    prefix = case.kernels or f"{case.name}_"
    own = {level for name, level, _ in isa.kernels() if name.startswith(prefix)}
    return [level for level in isa.available() if level in own]


def ids(values: Any) -> str | None:
    if isinstance(values, (Case, Sample)):
        return values.name
    if isinstance(values, torch.dtype):
        return str(values).removeprefix("torch.")
    return None


def in_layout(x: Tensor, layout: str) -> Tensor:
    """A volume [N, C, D, H, W], or [C, D, H, W], dense in the layout."""
    batch = x if x.dim() == 5 else x.unsqueeze(0)
    return batch.contiguous(memory_format=LAYOUTS[layout]).reshape_as(x)


def is_in_layout(x: Tensor, layout: str) -> bool:
    batch = x if x.dim() == 5 else x.unsqueeze(0)
    return batch.is_contiguous(memory_format=LAYOUTS[layout])


def prepare(case: Case, sample: Sample, dtype: torch.dtype, layout: str = "plain") -> list[Tensor]:
    result = []
    for index, value in enumerate(sample.inputs):
        cast = value.to(dtype) if value.is_floating_point() else value
        if index in case.volumes:
            cast = in_layout(cast, layout)
        result.append(cast.detach().clone(memory_format=torch.preserve_format))
    return result


def differentiable(case: Case, inputs: list[Tensor]) -> list[int]:
    """Optional inputs, such as a bias, come last and may be missing."""
    return [i for i in case.differentiable if i < len(inputs)]


def tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, tolerance: float, what: str) -> None:
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} != {tuple(expected.shape)}"
    if not actual.is_floating_point():
        assert torch.equal(actual, expected.to(actual.dtype)), what
        return
    actual64, expected64 = actual.detach().double(), expected.detach().double()
    finite = expected64[expected64.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    torch.testing.assert_close(
        actual64,
        expected64,
        rtol=0.0,
        atol=tolerance * EPSILON[dtype] * scale,
        equal_nan=True,
        msg=lambda m: f"{what}: {m}",
    )


def reference_of(case: Case, sample: Sample, inputs: list[Tensor]) -> list[Tensor]:
    exact = [x.double() if x.is_floating_point() else x for x in inputs]
    return tensors(case.reference(*exact, **sample.arguments))


@pytest.mark.parametrize(("case", "sample", "dtype", "layout"), VARIANTS, ids=ids)
def test_matches_reference_on_every_isa(case: Case, sample: Sample, dtype: torch.dtype, layout: str) -> None:
    inputs = prepare(case, sample, dtype, layout)
    expected = reference_of(case, sample, inputs)
    for level in kernel_levels(case):
        with isa.limit(level):
            actual = tensors(case.function(*inputs, **sample.arguments))
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, dtype, case.tolerance, f"{case.name} {sample.name} at {level}")
        both_ways = all(inputs[0].is_contiguous(memory_format=f) for f in LAYOUTS.values())
        if case.same_layout and case.volumes and actual[0].numel() > 0 and not both_ways:
            assert is_in_layout(actual[0], layout), f"layout changed at {level}"


@pytest.mark.parametrize(
    ("case", "sample", "dtype", "layout"), [v for v in VARIANTS if v[0].differentiable], ids=ids
)
def test_gradients_match_reference_on_every_isa(
    case: Case, sample: Sample, dtype: torch.dtype, layout: str
) -> None:

    def gradients(function: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
        leaves = [
            x.detach().clone(memory_format=torch.preserve_format).requires_grad_(i in case.differentiable)
            for i, x in enumerate(inputs)
        ]
        output = tensors(function(*leaves, **sample.arguments))[0]
        weight = torch.linspace(-1, 1, max(output.numel(), 1), dtype=torch.float64)[: output.numel()]
        output.backward(weight.reshape(output.shape).to(output.dtype))
        grads = []
        for i in differentiable(case, inputs):
            grad = leaves[i].grad
            assert grad is not None
            grads.append(grad)
        return grads

    inputs = prepare(case, sample, dtype, layout)
    exact = [x.double() if x.is_floating_point() else x for x in inputs]
    expected = gradients(case.reference, exact)
    tolerance = case.tolerance if case.gradient_tolerance is None else case.gradient_tolerance
    for level in kernel_levels(case):
        with isa.limit(level):
            actual = gradients(case.function, inputs)
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, dtype, tolerance, f"gradient of {case.name} {sample.name} at {level}")


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_every_isa_of_the_machine_runs(case: Case) -> None:
    prefix = case.kernels or f"{case.name}_"
    levels = kernel_levels(case)
    if "avx2" in isa.available():
        assert levels[0] == "scalar"
        assert len(levels) > 1, f"{case.name} has no kernel beyond scalar: {levels}"
    for level in levels:
        before = {name: calls for name, _, calls in isa.kernels()}
        with isa.limit(level):
            for sample in case.samples():
                for dtype in case.dtypes:
                    case.function(*prepare(case, sample, dtype), **sample.arguments)
        ran = {
            (name, of)
            for name, of, calls in isa.kernels()
            if calls > before[name] and name.startswith(prefix)
        }
        assert any(of == level for _, of in ran), f"capped at {level}, {case.name} ran {sorted(ran)}"
        above = [name for name, of in ran if isa.available().index(of) > isa.available().index(level)]
        assert not above, f"capped at {level}, {case.name} ran {above}"


@pytest.mark.parametrize(("case", "sample"), [(c, s) for c, s in SAMPLES if c.volumes], ids=ids)
def test_strided_views_are_read_correctly(case: Case, sample: Sample) -> None:
    inputs = prepare(case, sample, case.dtypes[0])
    expected = tensors(case.function(*inputs, **sample.arguments))
    views = [
        torch.stack([x, torch.full_like(x, 7)], dim=-1)[..., 0] if i in case.volumes else x
        for i, x in enumerate(inputs)
    ]
    for a, e in zip(tensors(case.function(*views, **sample.arguments)), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("case", "sample", "dtype", "layout"), VARIANTS, ids=ids)
def test_thread_count_does_not_change_a_bit(
    case: Case, sample: Sample, dtype: torch.dtype, layout: str
) -> None:
    inputs = prepare(case, sample, dtype, layout)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            leaves = [x.clone().requires_grad_(i in case.differentiable) for i, x in enumerate(inputs)]
            output = tensors(case.function(*leaves, **sample.arguments))
            if case.differentiable:
                output[0].sum().backward()
            results.append(
                [t.detach() for t in output] + [leaves[i].grad for i in differentiable(case, inputs)]
            )
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*results, strict=True):
        torch.testing.assert_close(one, three, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("case", "sample"), [(c, c.samples()[0]) for c in CASES], ids=ids)
def test_compiles_and_exports_as_one_graph(case: Case, sample: Sample) -> None:
    inputs = prepare(case, sample, case.dtypes[0])

    class Call(torch.nn.Module):
        def forward(self, *values: Tensor) -> Any:
            return case.function(*values, **sample.arguments)

    expected = tensors(Call()(*inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own deprecations
        torch._dynamo.reset()  # every case compiles the same forward, which would count as recompiling it
        compiled = torch.compile(Call(), fullgraph=True, backend="aot_eager")(*inputs)
        exported = torch.export.export(Call(), tuple(inputs)).module()(*inputs)
    for result in (compiled, exported):
        for a, e in zip(tensors(result), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True)


SMALL = [
    (case, sample)
    for case, sample in SAMPLES
    if case.differentiable and torch.float64 in case.dtypes and sample.inputs[0].numel() <= 500
]


@pytest.mark.parametrize(("case", "sample"), SMALL, ids=ids)
def test_gradcheck(case: Case, sample: Sample) -> None:
    """Finite differences in float64, on samples small enough for them."""
    inputs = prepare(case, sample, torch.float64)
    leaves = [x.requires_grad_(i in case.differentiable) for i, x in enumerate(inputs)]
    assert gradcheck(lambda *v: tensors(case.function(*v, **sample.arguments))[0], leaves, fast_mode=True)


@pytest.mark.parametrize(("case", "sample"), SAMPLES, ids=ids)
def test_fake_tensors_have_the_real_shapes(case: Case, sample: Sample) -> None:
    """What ``torch.compile`` believes of a result, strides included, is what the kernel returns."""
    for layout in LAYOUTS if case.volumes else ["plain"]:
        inputs = prepare(case, sample, case.dtypes[0], layout)
        real = tensors(case.function(*inputs, **sample.arguments))
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake_inputs = [mode.from_tensor(x) for x in inputs]
            try:
                fake = tensors(case.function(*fake_inputs, **sample.arguments))
            except torch._subclasses.fake_tensor.DynamicOutputShapeException:
                continue  # the size of the result depends on the values
        for f, r in zip(fake, real, strict=True):
            assert (f.dtype, f.device) == (r.dtype, r.device)
            if all(isinstance(size, int) for size in f.shape):
                assert f.shape == r.shape
                if r.numel() > 0:
                    assert f.stride() == r.stride()
