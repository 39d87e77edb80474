#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: torchrun.sh SCRIPT CONFIG GPUS [further arguments of the script]
set -euo pipefail
script=$(dirname "$0")/$1 config=$2 gpus=$3
shift 3
python=${PYTHON:-python}
nodes=${NNODES:-1} restarts=${MAX_RESTARTS:-0} address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500}
if [ "$restarts" != 0 ]; then
    # The agents of several machines have to agree on a restart, and each start needs a store of its own: in one that
    # outlives it, processes would find where those before them had listened.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    meeting=(--rdzv_backend c10d --rdzv_endpoint "$address:$port" --rdzv_id "${RUN_ID:-$port}")
    [ "$nodes" != 1 ] || meeting+=(--local_addr 127.0.0.1)
else
    meeting=(--node_rank "${NODE_RANK:-0}" --master_addr "$address" --master_port "$port")
fi
exec "$python" -m torch.distributed.run \
    --nnodes "$nodes" --nproc_per_node "$gpus" --max_restarts "$restarts" "${meeting[@]}" \
    "$script" "$config" "$@" --launcher pytorch
