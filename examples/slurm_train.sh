#!/bin/bash
# Training with volnet on a SLURM cluster: a rank on every NUMA node of every host.
#
#   sbatch examples/slurm_train.sh examples/distributed_train.py --out run --spatial 2
#
# docs/distributed.md says what to change for another cluster.
#SBATCH --job-name=volnet
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

# What every host does; srun hands the arguments on.
if [[ ${1:-} == --host ]]; then
  shift
  numa_nodes=$(ls -d /sys/devices/system/node/node[0-9]* | wc -l)
  cores=$(lscpu -p=CORE,SOCKET | grep -v '^#' | sort -u | wc -l)
  export OMP_NUM_THREADS=$((cores / numa_nodes))
  # The rank that torchrun has given a process says which NUMA node it gets.
  pinned='exec numactl --cpunodebind="$LOCAL_RANK" --membind="$LOCAL_RANK" python "$@"'
  exec torchrun --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --nproc-per-node "$numa_nodes" \
    --rdzv-backend c10d --rdzv-endpoint "$VOLNET_HEAD:${VOLNET_PORT:-29500}" --rdzv-id "$SLURM_JOB_ID" \
    --max-restarts 3 --no-python bash -c "$pinned" pinned "$@"
fi

# The interface of the fast network; `ip -br link` shows their names.
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-ib0}
VOLNET_HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export VOLNET_HEAD
srun --kill-on-bad-exit=0 bash "$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=\([^ ]*\).*/\1/p')" --host "$@"
