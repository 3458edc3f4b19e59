"""The training loop: its arithmetic, its files, and that no interruption changes what it arrives at."""

from __future__ import annotations

import csv
import errno
import functools
import itertools
import math
import multiprocessing
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo  # which optimizers import at their first step: once, not in every process that is killed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("safetensors")

from volnet.train import (
    CheckpointWriteError,
    InvalidCheckpointError,
    NonFiniteError,
    fit,
    load_checkpoint,
    make_schedule,
    save_checkpoint,
    save_weights,
)
from volnet.train.checkpoints import previous_checkpoint
from volnet.train.loop import CHECKPOINT, METRICS


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Batches:
    """Batch i of a pass follows from the pass and i; its state is its place."""

    def __init__(self, length: int = 5) -> None:
        self.length, self.place = length, [0, 0]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.place[1] == self.length:
            self.place = [self.place[0] + 1, 0]
        while self.place[1] < self.length:
            self.place[1] += 1
            yield a_batch(self.place[0] * self.length + self.place[1])
        self.place = [self.place[0] + 1, 0]

    def state_dict(self) -> dict[str, Any]:
        return {"place": list(self.place)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = list(state["place"])


def a_batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, 1, 4, 4, 4, generator=generator)
    return image, (image[:, 0] > 0).long()


def a_model() -> nn.Module:
    """With everything that has a state: weights in both layouts, running statistics, random numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv3d(4, 2, 1),
    )
    return model.to(memory_format=torch.channels_last_3d)


def train(
    out: Path, steps: int = 12, batches: Any = None, **options: Any
) -> tuple[nn.Module, AveragedModel, torch.optim.Optimizer]:
    model = a_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    fit(
        model,
        Batches() if batches is None else batches,
        options.pop("loss", cross_entropy),
        optimizer,
        steps=steps,
        out=out,
        schedule=make_schedule(optimizer, "cosine", steps, warmup=min(3, steps - 1)),
        average=average,
        **options,
    )
    return model, average, optimizer


def after(count: int) -> Callable[[], bool]:
    asked = itertools.count(1)
    return lambda: next(asked) == count


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / METRICS).read_text().splitlines()))


def assert_same(a: Any, b: Any) -> None:
    for x, y in zip(a, b, strict=True):
        left, right = dict(flat(x.state_dict())), dict(flat(y.state_dict()))
        assert left.keys() == right.keys()
        for name, value in left.items():
            same = torch.equal(value, right[name]) if isinstance(value, Tensor) else value == right[name]
            assert same, name


def flat(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(state, (dict, list, tuple)):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from flat(value, f"{name}.{key}")
    else:
        yield name, state


# --- arithmetic


def test_a_step_is_torchs(tmp_path: Path) -> None:
    """Against the loop written out, with the moving average by its formula and clipping by its definition."""
    model = a_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    average = None
    for step, (image, label) in enumerate(itertools.islice(itertools.chain(Batches(), Batches(0)), 5)):
        for group in optimizer.param_groups:
            rise = min(1.0, (step + 1) / 3)
            group["lr"] = 1e-2 * rise * 0.5 * (1 + math.cos(math.pi * max(step - 3, 0) / 2))
        optimizer.zero_grad()
        cross_entropy(model(image), label).backward()
        norm = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in model.parameters()))
        for p in model.parameters():
            p.grad *= min(1.0, 0.5 / norm)
        optimizer.step()
        weights = [p.detach().clone() for p in model.parameters()]
        average = (
            weights if average is None else [0.9 * a + 0.1 * w for a, w in zip(average, weights, strict=True)]
        )
    ours, ema, _ = train(tmp_path, 5, clip_norm=0.5)
    for p, q in zip(ours.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    for p, q in zip(ema.module.parameters(), average, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-4, atol=1e-6)
    last = rows(tmp_path)[-1]
    assert float(last["gradient_norm"]) == pytest.approx(norm, rel=1e-4)
    assert float(last["learning_rate"]) == pytest.approx(1e-2 * 0.5)


def test_accumulation_equals_the_whole_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = [a_batch(seed) for seed in range(8)]
    wholes = [
        tuple(torch.cat(tensors) for tensors in zip(*parts[i : i + 4], strict=True)) for i in range(0, 8, 4)
    ]
    trained = []
    for name, batches, accumulate in (("parts", parts, 4), ("wholes", wholes, 1)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.InstanceNorm3d(4, affine=True), nn.Conv3d(4, 2, 1))
        # SGD: Adam would turn a rounding error of a small gradient into a step of another direction.
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        loss = lambda output, label: cross_entropy(output, label[:, 1:-1, 1:-1, 1:-1])  # noqa: E731
        fit(model, batches, loss, optimizer, steps=6, out=tmp_path / name, accumulate=accumulate)
        trained.append(model)
    for p, q in zip(*(model.parameters() for model in trained), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    for a, b in zip(rows(tmp_path / "parts"), rows(tmp_path / "wholes"), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-5)


def test_bfloat16_is_of_the_model_and_not_of_its_weights(tmp_path: Path) -> None:
    seen = []

    def loss(output: Tensor, label: Tensor) -> Tensor:
        seen.append(output.dtype)
        return cross_entropy(output.float(), label)

    model, _, _ = train(tmp_path, 2, loss=loss, bfloat16=True)
    assert seen == [torch.bfloat16] * 2
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["constant", "cosine", "poly"])
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_schedules_equal_their_formulas(name: str, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = make_schedule(optimizer, name, 12, warmup=warmup, power=0.7)
    for step in range(12):
        share = (step - warmup) / (12 - warmup)
        fall = {
            "constant": 1.0,
            "cosine": 0.5 * (1 + math.cos(math.pi * share)),
            "poly": (1 - max(share, 0)) ** 0.7,
        }
        expected = (step + 1) / warmup if step < warmup else fall[name]
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0 * expected), step
        optimizer.step()
        schedule.step()


def test_wrong_schedules_are_refused() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    with pytest.raises(ValueError, match="constant, cosine, poly, got 'linear'"):
        make_schedule(optimizer, "linear", 10)
    with pytest.raises(ValueError, match="10 steps, got 10"):
        make_schedule(optimizer, "poly", 10, warmup=10)


# --- going on


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*a_batch(3)), batch_size=1, shuffle=True)


def no_state() -> list[Any]:
    return [a_batch(seed) for seed in range(5)]


@pytest.mark.parametrize("make", [Batches, loader, no_state])
@pytest.mark.parametrize("interrupted", [(1,), (5, 5), (3, 4, 1)])
def test_going_on_gives_the_same_bits(
    tmp_path: Path, make: Callable[[], Any], interrupted: tuple[int, ...]
) -> None:
    """After any step, also the last of a pass, with random numbers of torch, NumPy and Python in use."""

    def loss(output: Tensor, label: Tensor) -> tuple[Tensor, dict[str, float]]:
        noise = {"numpy": np.random.random(), "python": random.random()}
        return cross_entropy(output, label), noise

    np.random.seed(0)
    random.seed(0)
    expected = train(tmp_path / "whole", batches=make(), loss=loss, accumulate=2)
    np.random.seed(0)
    random.seed(0)
    for count in interrupted:
        train(tmp_path / "parts", batches=make(), loss=loss, accumulate=2, stop=after(count))
        np.random.seed(7)
        random.seed(7)
        torch.rand(3)
    result = train(tmp_path / "parts", batches=make(), loss=loss, accumulate=2)
    assert_same(result, expected)
    table, whole = rows(tmp_path / "parts"), rows(tmp_path / "whole")
    assert [row["step"] for row in table] == [str(step) for step in range(1, 13)]
    for a, b in zip(table, whole, strict=True):
        assert {**a, "seconds": ""} == {**b, "seconds": ""}


def test_rows_after_the_checkpoint_are_not_kept_twice(tmp_path: Path) -> None:
    train(tmp_path, stop=after(4))
    with open(tmp_path / METRICS, "a") as file:
        file.write("5,1.0,0.1,0.5,1.0\n6,1.0,0.1,0.5,1.0\n7,1.")
    train(tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [str(step) for step in range(1, 13)]


def test_a_finished_training_is_left_alone(tmp_path: Path) -> None:
    expected = train(tmp_path)
    before = (tmp_path / CHECKPOINT).stat().st_mtime_ns
    assert_same(train(tmp_path), expected)
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns == before


def test_time_is_counted_over_resumptions(tmp_path: Path) -> None:
    train(tmp_path, minutes=1e-9)
    assert len(rows(tmp_path)) == 1
    train(tmp_path, minutes=60)
    seconds = [float(row["seconds"]) for row in rows(tmp_path)]
    assert len(seconds) == 12
    assert seconds == sorted(seconds)


def killed_training(out: Path, drawn: Connection, last: int | None) -> None:
    """Tells of each batch that is drawn, and waits to be killed after the last it may draw."""

    class Told(Batches):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for count, batch in enumerate(super().__iter__(), start=1):
                if last is not None and count > last:
                    time.sleep(600)
                drawn.send_bytes(b".")
                yield batch

    torch.set_num_threads(1)
    np.random.seed(0)
    random.seed(0)
    # One pass: what was drawn is counted in it.
    train(out, KILLED_STEPS, batches=Told(KILLED_STEPS), checkpoint_minutes=0.0)


KILLS = 20
KILLED_STEPS = 3 * KILLS + 4


def test_killed_at_random_moments_it_arrives_at_the_same_weights(tmp_path: Path) -> None:
    """Twenty times kill -9, at any moment of any of the first three steps, a checkpoint after every step."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    rng = random.Random(0)

    def run(out: Path, last: int | None = None, seconds: float = 0.0) -> int | None:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=killed_training, args=(out, sending, last))
        process.start()
        sending.close()
        try:
            for _ in itertools.count() if last is None else range(last):
                receiving.recv_bytes()
            time.sleep(seconds)
            process.kill()
        except EOFError:
            pass
        process.join()
        return process.exitcode

    assert run(tmp_path / "whole") == 0
    seconds = [float(row["seconds"]) for row in rows(tmp_path / "whole")]
    a_step = (seconds[-1] - seconds[0]) / (KILLED_STEPS - 1)
    for _ in range(KILLS):
        assert run(tmp_path / "killed", rng.randint(1, 3), rng.uniform(0, 1.5 * a_step)) == -9
    assert run(tmp_path / "killed") == 0
    whole, killed = (load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("whole", "killed"))
    assert whole["step"] == killed["step"] == KILLED_STEPS
    for part in ("model", "average", "optimizer", "schedule", "ranks"):
        left, right = dict(flat(whole[part])), dict(flat(killed[part]))
        assert left.keys() == right.keys()
        for name, value in left.items():
            if isinstance(value, (Tensor, np.ndarray)):
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(right[name])), name
            else:
                assert value == right[name], name
    assert [row["step"] for row in rows(tmp_path / "killed")] == [str(i + 1) for i in range(KILLED_STEPS)]


def rank_of_two(out: Path, rank: int, stop: int | None) -> None:
    """One of two processes with gradients exchanged by DistributedDataParallel, each with its own batches."""
    torch.set_num_threads(1)
    np.random.seed(rank)
    random.seed(rank)
    store = torch.distributed.FileStore(str(out.with_suffix(f".store{stop}")), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = a_model()
    torch.manual_seed(rank)  # for the dropout, which differs between ranks
    batches = Batches()
    batches.place = [100 * rank, 0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    fit(
        nn.parallel.DistributedDataParallel(model),
        batches,
        cross_entropy,
        optimizer,
        steps=6,
        out=out,
        accumulate=2,
        # One rank alone wants to stop: both do.
        stop=after(stop) if stop is not None and rank == 1 else None,
    )
    torch.distributed.destroy_process_group()


def test_ranks_go_on_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    for name, stop in (("whole", None), ("parts", 2), ("parts", None)):
        ranks = [context.Process(target=rank_of_two, args=(tmp_path / name, rank, stop)) for rank in (0, 1)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
            assert process.exitcode == 0
        if stop is not None:
            assert load_checkpoint(tmp_path / name / CHECKPOINT)["step"] == stop
    whole, parts = (load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("whole", "parts"))
    for state in (whole, parts):
        del state["seconds"]
    left, right = dict(flat(whole)), dict(flat(parts))
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, (Tensor, np.ndarray)):
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(right[name])), name
        else:
            assert value == right[name], name
    assert not any(name.startswith(".model.module") for name in left)
    assert [row["step"] for row in rows(tmp_path / "parts")] == [*"123456"]


# --- what goes wrong


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """The file written aside is a device that is always full."""
    train(tmp_path, stop=after(3))
    aside = tmp_path / (CHECKPOINT + ".partial")
    aside.symlink_to("/dev/full")
    with pytest.raises(
        CheckpointWriteError, match=rf"step 5: .*{CHECKPOINT}.*No space left.*MB free.*as it was"
    ):
        train(tmp_path, stop=after(2))
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == 3
    assert not aside.is_symlink()
    assert_same(train(tmp_path), train(tmp_path / "whole"))


def test_a_disk_that_fills_up_halfway_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    save_checkpoint(path, {"step": 1, "weights": torch.zeros(100)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointWriteError, match=r"File too large.*it has 4\.0 MB"):
            save_checkpoint(path, {"step": 2, "weights": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(path)["step"] == 1
    assert os.listdir(tmp_path) == [CHECKPOINT]


def test_a_full_disk_is_named_for_the_metrics_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"No space left.*{METRICS}"):
        train(tmp_path, checkpoint_minutes=0.0)


def test_a_damaged_checkpoint_is_put_aside_for_the_one_before(tmp_path: Path) -> None:
    expected = train(tmp_path / "whole")
    out = tmp_path / "damaged"
    train(out, stop=after(3), checkpoint_minutes=0.0)
    path = out / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=rf"{CHECKPOINT}: cannot be read.*checkpoint\.previous"):
        assert load_checkpoint(path)["step"] == 2
    assert not path.exists()
    assert_same(train(out), expected)
    path.write_bytes(b"cut off")
    previous_checkpoint(path).unlink()
    with pytest.raises(InvalidCheckpointError, match=rf"{CHECKPOINT}.*cannot be read"):
        load_checkpoint(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=CHECKPOINT):
        load_checkpoint(path)


def test_nan_stops_and_can_be_looked_into(tmp_path: Path) -> None:
    bad = a_batch(1)
    bad[0][1, 0, 2, 2, 2] = math.nan
    batches = [a_batch(0), a_batch(2), a_batch(3), bad]
    with pytest.raises(
        NonFiniteError, match=r"step 2: the loss is nan; .*non_finite_step_2_rank_0"
    ) as caught:
        train(tmp_path, batches=batches, accumulate=2, checkpoint_minutes=0.0)
    assert caught.value.step == 2
    saved = load_checkpoint(caught.value.path)
    for (image, label), (kept, kept_label) in zip(batches[2:], saved["batches"], strict=True):
        assert torch.equal(kept.nan_to_num(99), image.nan_to_num(99))
        assert torch.equal(kept_label, label)
    last = load_checkpoint(tmp_path / CHECKPOINT)
    assert last["step"] == 1
    for name, weights in a_model().named_parameters():
        assert torch.equal(saved["model"][name], last["model"][name]), name
        assert weights.isfinite().all()


def test_a_gradient_that_overflows_stops_before_the_weights(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = lambda output, label: (output * 0.0 + label).abs().sqrt().sum()  # noqa: E731 - infinite slope at 0
    with pytest.raises(NonFiniteError, match="step 1: the norm of the gradient is"):
        fit(model, [(torch.ones(1, 1), torch.zeros(1, 1))], loss, optimizer, steps=1, out=tmp_path)
    assert torch.equal(model.weight, before)


def test_checkpoints_of_another_training_are_refused(tmp_path: Path) -> None:
    train(tmp_path, 2)
    refused = pytest.raises(InvalidCheckpointError, match="belongs to another training")
    other = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(other.parameters())
    with refused as caught:
        fit(other, [], cross_entropy, optimizer, steps=3, out=tmp_path)
    assert "trained with schedule" in str(caught.value)
    average = AveragedModel(other)
    schedule = make_schedule(optimizer, "constant", 3)
    with pytest.raises(InvalidCheckpointError, match="Missing key"):
        fit(other, [], cross_entropy, optimizer, steps=3, out=tmp_path, schedule=schedule, average=average)
    with pytest.raises(
        InvalidCheckpointError, match="had a state_dict when the state was taken, and have none"
    ):
        train(tmp_path, 3, batches=no_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"clip_norm": 0.0}, r"clip_norm must be over 0, got 0\.0"),
        ({"batches": []}, "batches: there are none"),
        ({"batches": iter([a_batch(0)])}, "iterator, which can be passed through only once"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    model = a_model()
    given = {"batches": Batches(), "steps": 3, **options}
    with pytest.raises(ValueError, match=message):
        fit(
            model,
            given.pop("batches"),
            cross_entropy,
            torch.optim.SGD(model.parameters()),
            out=tmp_path,
            **given,
        )


def test_batches_of_another_shape_are_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="image and label, got a mapping with img, seg"):
        train(tmp_path, batches=[{"img": 1, "seg": 2}])
    image, label = a_batch(0)
    train(tmp_path, 2, batches=[{"image": image, "label": label, "name": "scan"}])


# --- what is stored


def test_anything_a_state_holds_comes_back(tmp_path: Path) -> None:
    shared = torch.arange(24.0).reshape(2, 3, 4)
    rng = np.random.default_rng(0)
    state = {
        "tensors": [shared, shared, shared[1], shared.permute(2, 0, 1), torch.tensor(3), torch.empty(0, 2)],
        "dtypes": [torch.ones(2, dtype=d) for d in (torch.bfloat16, torch.bool, torch.int64, torch.uint8)],
        "numbers": (1, -2.5, math.inf, 2**100, True, None, "text", np.float32(0.5), np.int64(7)),
        "by number": {0: {"step": 1.0}, 1: {}},
        "$odd": {"$tensor": 1, "a.b": torch.ones(1), "a": {"b": torch.zeros(1)}},
        "random": {
            "numpy": np.random.get_state(),
            "python": random.getstate(),
            "rng": rng.bit_generator.state,
        },
    }
    save_checkpoint(tmp_path / "state", state)
    found = load_checkpoint(tmp_path / "state")
    left, right = dict(flat(state)), dict(flat(found))
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, Tensor):
            assert value.dtype == right[name].dtype
            assert value.stride() == right[name].stride()
            assert torch.equal(value, right[name]), name
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, right[name], strict=True)
        else:
            assert value == right[name], name
    random.setstate(found["random"]["python"])
    rng.bit_generator.state = found["random"]["rng"]
    with pytest.raises(TypeError, match=r"outer\.1\.x: a checkpoint cannot hold a function"):
        save_checkpoint(tmp_path / "state", {"outer": [0, {"x": after}]})


def test_weights_are_read_by_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = a_model()
    model.tied = model[0]
    save_weights(tmp_path / "weights.safetensors", model)
    for name, value in load_file(tmp_path / "weights.safetensors").items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_metrics_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, use_tensorboard=True, stop=after(4))
    train(tmp_path, use_tensorboard=True)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    shown = events.Scalars("loss")
    assert [event.step for event in shown] == [*range(1, 13)]
    for event, row in zip(shown, rows(tmp_path), strict=True):
        assert event.value == pytest.approx(float(row["loss"]), rel=1e-6)


def test_progress_is_shown_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    train(tmp_path, progress=True)
    printed = capsys.readouterr()
    assert "12/12" in printed.err
    assert printed.out == ""


def test_an_optimized_network_trains_to_the_same_bits(tmp_path: Path) -> None:
    """Interrupted or not; the weights are those of the network it was made from."""
    import volnet

    def run(out: Path, stop: Callable[[], bool] | None = None) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, 1)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        loss = functools.partial(cross_entropy, weight=torch.tensor([0.3, 0.7]))
        fit(volnet.optimize(model), Batches(), loss, optimizer, steps=6, out=out, average=average, stop=stop)
        return model

    expected = run(tmp_path / "whole")
    run(tmp_path / "parts", after(2))
    assert_same([run(tmp_path / "parts")], [expected])
