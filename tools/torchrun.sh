#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: torchrun.sh SCRIPT CONFIG GPUS [further arguments of the script]
set -euo pipefail
script=$(dirname "$0")/$1 config=$2 gpus=$3
shift 3
python=${PYTHON:-python}
exec "$python" -m torch.distributed.run \
    --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" --nproc_per_node "$gpus" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}" \
    "$script" "$config" "$@" --launcher pytorch
