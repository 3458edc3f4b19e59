"""The processes of a run: started by torchrun, mpirun or srun, or one alone."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

__all__ = ["Ranks", "cleanup", "init", "mesh", "ranks", "shard", "single_process"]

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Who this process is among those of the run."""

    rank: int
    size: int
    local_rank: int  # on its host
    restarts: int  # how often torchrun has started all processes again

    @property
    def is_main(self) -> bool:
        """The one that writes files and shows progress."""
        return self.rank == 0


def init(backend: str = "gloo", timeout_seconds: float = 600.0) -> Ranks:
    """Joins the processes that torchrun has started; a process that was started alone stays alone.

    Args:
        backend: ``"gloo"``, or ``"mpi"`` or ``"ccl"`` where torch has been built with it or its plugin is
            imported.
        timeout_seconds: a rank that waits longer for another raises; torchrun then restarts all.

    Returns:
        Who this process is.

    Raises:
        RuntimeError: the others did not come, or the backend is not there.

    >>> init()
    Ranks(rank=0, size=1, local_rank=0, restarts=0)
    """
    if dist.is_initialized():
        return ranks()
    timeout = timedelta(seconds=timeout_seconds)
    if backend == "mpi":
        dist.init_process_group(backend, timeout=timeout)
    elif "RANK" in os.environ:
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = _store_of_this_start(store, rank, size, timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    return ranks()


def _store_of_this_start(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.Store:
    """A part of torchrun's store that no earlier start of the processes has written to.

    torchrun keeps one store over its restarts, in which ranks would find the addresses of dead ones, and its
    count of restarts is not the same on all hosts. So the first rank names the start, and answers whoever
    asks under this name; who has read the name of an earlier start gets no answer, and reads again.
    """
    if rank == 0:
        start = uuid.uuid4().hex
        store.set("volnet/start", start)
        for other in range(1, size):
            question = store.get(f"{start}/{other}").decode()
            store.set(f"{start}/{other}/{question}", "")
        return dist.PrefixStore(start, store)
    question, deadline = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    while True:
        start = store.get("volnet/start").decode()
        store.set(f"{start}/{rank}", question)
        try:
            store.wait([f"{start}/{rank}/{question}"], timedelta(seconds=0.5))
        except dist.DistStoreError:
            if time.monotonic() > deadline:
                raise
        else:
            return dist.PrefixStore(start, store)


def ranks() -> Ranks:
    """Who this process is, whether or not :func:`init` has been called."""
    local, restarts = (int(os.environ.get(n, 0)) for n in ("LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"))
    if not dist.is_initialized():
        return Ranks(0, 1, local, restarts)
    return Ranks(dist.get_rank(), dist.get_world_size(), local, restarts)


def cleanup() -> None:
    """Leaves the other processes; does nothing where there are none."""
    if dist.is_initialized():
        # A thread of gloo drops its last work under Python's lock, which whoever destroys the group holds
        # while it waits for the thread: it gets the time to finish.
        time.sleep(0.1)
        dist.destroy_process_group()


@contextmanager
def single_process() -> Iterator[None]:
    """A run of this process alone, for examples and tests."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        cleanup()


def mesh(data: int, spatial: int) -> DeviceMesh:
    """``data`` volumes at a time, each on ``spatial`` neighbouring ranks.

    Returns:
        A mesh of which ``mesh["data"]`` and ``mesh["spatial"]`` have this rank's groups (``get_group()``).

    Raises:
        ValueError: there are not ``data * spatial`` ranks.
    """
    if data * spatial != ranks().size:
        raise ValueError(f"mesh: {data} x {spatial} ranks asked for, but there are {ranks().size}")
    return init_device_mesh("cpu", (data, spatial), mesh_dim_names=("data", "spatial"))


def shard(batch: Sequence[T], rank: int, size: int) -> tuple[Sequence[T], float]:
    """This rank's samples of a batch, and what its mean loss has to be multiplied with.

    With the factor, the mean of the ranks' gradients is the gradient of the mean over the whole batch, also
    where the last batch of an epoch cannot be divided. A rank without a sample computes the first one with
    factor 0, since all ranks must take part in every step.

    Args:
        batch: what identifies the samples, the same on all ranks.
        rank, size: of the data-parallel ranks.

    Raises:
        ValueError: the batch is empty.

    >>> [shard([10, 11, 12], rank, 2) for rank in range(2)]
    [([10, 11], 1.3333333333333333), ([12], 0.6666666666666666)]
    >>> shard([10], 1, 2)
    ([10], 0.0)
    """
    if len(batch) == 0:
        raise ValueError("shard: the batch has no samples")
    lo, hi = (-(-len(batch) * r // size) for r in (rank, rank + 1))
    if lo == hi:
        return batch[:1], 0.0
    return batch[lo:hi], (hi - lo) * size / len(batch)
