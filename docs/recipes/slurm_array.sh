#!/usr/bin/env bash
# A study on a SLURM cluster: every task of the array is one machine's worth of workers on one PostgreSQL study.
#
#   export STUDY_STORAGE='postgresql://study@dbhost/studies'    # the password in ~/.pgpass, not here
#   export STUDY_ARTIFACTS='s3://studies/wide'                  # or a folder that all nodes see
#   sbatch --array=0-7 docs/recipes/slurm_array.sh --study-name wide --n-trials 2000 --data-dir /shared/data/5m
#
# Submit from the repository's folder, which all nodes see, with the keys of the store in the environment (boto3's
# variables). Results are written to the node's own disk and sent to the store, so a node may lose them. Tasks end when
# the study has its trials. A task that is preempted, times out or is resubmitted loses no finished trial.
#SBATCH --job-name=study
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --requeue
# SIGTERM two minutes before the limit: the running trials are marked failed and queued again for other tasks.
#SBATCH --signal=B:TERM@120
#SBATCH --output=logs/study_%A_%a.log
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit with sbatch}"
: "${STUDY_STORAGE:?set it to postgresql://user@host/database}"
: "${STUDY_ARTIFACTS:?set it to s3://bucket/prefix, or to a folder that all nodes see}"
# shellcheck disable=SC1091 # made by scripts/setup/environment.sh
source .venv/bin/activate

gpus=-1
if [[ -n "${CUDA_VISIBLE_DEVICES:-}" ]]; then # SLURM's own GPUs are numbered from 0 again
    IFS=, read -r -a visible <<<"$CUDA_VISIBLE_DEVICES"
    gpus=$(seq -s, 0 $((${#visible[@]} - 1)))
fi
workers="${STUDY_WORKERS:-${SLURM_CPUS_PER_TASK:-1}}" # one thread each

results="${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/train_results"

command=(python scripts/training/1_optimize_unified.py --storage "$STUDY_STORAGE" --artifacts "$STUDY_ARTIFACTS")
command+=(--results-dir "$results" --workers "$workers" --gpu "$gpus" "$@")
echo "task ${SLURM_ARRAY_TASK_ID:-0} on $(hostname): ${command[*]//"$STUDY_STORAGE"/\$STUDY_STORAGE}"
# The trainer runs in the background while bash waits, so that bash forwards signals immediately.
"${command[@]}" &
trainer=$!
trap 'kill -TERM "$trainer"' TERM INT
code=0
wait "$trainer" || code=$?
if ((code > 128)) && kill -0 "$trainer" 2>/dev/null; then # the wait was interrupted, the trainer is ending
    code=0
    wait "$trainer" || code=$?
fi
exit "$code"
