"""Training on several processes and machines, on torch.distributed: volumes over ranks, one volume over
ranks, or both."""

from volnet.train.distributed.data import data_parallel
from volnet.train.distributed.exchange import Traffic, sum_over_ranks
from volnet.train.distributed.processes import Ranks, cleanup, init, mesh, ranks, shard, single_process
from volnet.train.distributed.spatial import SpatialParallel, spatial_parallel

__all__ = [
    "Ranks",
    "SpatialParallel",
    "Traffic",
    "cleanup",
    "data_parallel",
    "init",
    "mesh",
    "ranks",
    "shard",
    "single_process",
    "spatial_parallel",
    "sum_over_ranks",
]
