#!/usr/bin/env bash
# Train with several processes: tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# On several machines, the same command on each, with NNODES, NODE_RANK (0, 1, …), MASTER_ADDR and PORT set.
# With MAX_RESTARTS set, a run of which a process dies starts again, so many times, from its last checkpoint.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
exec "$(dirname "$0")/torchrun.sh" train.py "$@"
