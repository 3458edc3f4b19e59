"""Ranks that work on different volumes: torch's DistributedDataParallel, told about slabs."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from volnet.train.distributed.spatial import SpatialParallel

__all__ = ["data_parallel"]


class _DataParallel(DistributedDataParallel):
    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        # Dynamo would cut the network at the buckets; volnet fuses across them, and AccumulateGrad's hooks
        # start the reduction of a bucket during the backward in any case.
        with torch._dynamo.config.patch(optimize_ddp=False):
            return super().forward(*inputs, **kwargs)


def data_parallel(
    model: nn.Module, group: dist.ProcessGroup | None = None, **options: Any
) -> DistributedDataParallel:
    """Averages gradients over ranks while the backward goes on.

    It is :class:`torch.nn.parallel.DistributedDataParallel`. Where ``model`` comes from
    :func:`volnet.train.distributed.spatial_parallel`, ``group`` is all of its ranks and all volumes: the
    gradients of the slabs of a volume are added, those of different volumes averaged.

    Args:
        model: also from :func:`volnet.optimize`. All ranks get the weights of the first.
        group: the ranks, all by default.
        options: of :class:`~torch.nn.parallel.DistributedDataParallel`, such as ``bucket_cap_mb``.

    Returns:
        The wrapped network; the one inside is its ``module``.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialised.
        ValueError: the ranks are no multiple of those that share a volume.

    >>> from volnet.train.distributed import single_process
    >>> with single_process():
    ...     model = data_parallel(torch.nn.Conv3d(1, 2, 3))
    ...     model(torch.zeros(1, 1, 4, 4, 4)).shape
    torch.Size([1, 2, 2, 2, 2])
    """
    if not dist.is_initialized():
        raise RuntimeError(
            "data_parallel: torch.distributed is not initialised; call volnet.train.distributed.init() "
            "under torchrun"
        )
    parallel = _DataParallel(model, process_group=group, **options)
    if isinstance(model, SpatialParallel):
        size, slabs = parallel.process_group.size(), model.group.size
        if size % slabs != 0:
            raise ValueError(f"data_parallel: {size} ranks for volumes of {slabs} slabs each")
        parallel.register_comm_hook((parallel.process_group, size // slabs), _sum_of_slabs)
    return parallel


# DistributedDataParallel looks at the annotations themselves: this file has none that are put off.
def _sum_of_slabs(
    state: tuple[dist.ProcessGroup, int], bucket: dist.GradBucket
) -> torch.futures.Future[Tensor]:
    group, volumes = state
    buffer = bucket.buffer().div_(volumes)
    work = dist.all_reduce(buffer, group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])
