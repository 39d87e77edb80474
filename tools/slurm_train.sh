#!/usr/bin/env bash
# Train under SLURM: tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
# By environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS, GRACE (120).
# GRACE seconds before its time is over, or when it is preempted, the job saves a checkpoint and ends; it is started
# again and continues from there.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
partition=$1 job=$2 config=$3 work_dir=$4
shift 4
export SRUN_ARGS="--signal=USR1@${GRACE:-120} ${SRUN_ARGS:-}"
resume=()
while :; do
    code=0
    "$(dirname "$0")/srun.sh" "$partition" "$job" train.py "$config" --work-dir "$work_dir" "$@" \
        ${resume[@]+"${resume[@]}"} || code=$?
    [ "$code" -eq 75 ] || exit "$code"
    if [ -n "${SLURM_JOB_ID:-}" ]; then
        exec scontrol requeue "$SLURM_JOB_ID" # a batch job; the training sees SLURM_RESTART_COUNT and resumes
    fi
    resume=(--resume)
done
