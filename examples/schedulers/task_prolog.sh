#!/usr/bin/env bash
# A prologue for tasks (TaskProlog in slurm.conf, or srun --task-prolog): whoever submits a job with
# RANKWISE_STUDY_ID=… finds the recommended settings as variables in its tasks.
#
# Slurm reads standard output: "export NAME=value" sets a variable, "print …" writes to the task's output. Values go to the
# end of the line and are not quoted. A prologue must not keep jobs from running: whatever fails is said, and that is all.
set -uo pipefail
[ -n "${RANKWISE_STUDY_ID:-}" ] || exit 0

if ! answer=$(timeout "${PROLOG_SECONDS:-20}" rankwise client recommend "$RANKWISE_STUDY_ID" --format env 2>&1); then
  why=$(head -n 1 <<< "${answer:-no answer in time}")
  echo "print rankwise: no settings for study $RANKWISE_STUDY_ID: $why"
  exit 0
fi
# In a shell without exports: what it then has is what rankwise said.
eval "$answer"
for name in ${!RANKWISE_@}; do
  case "$name" in
    RANKWISE_TOKEN* | RANKWISE_URL | RANKWISE_HOME | RANKWISE_LOCAL | RANKWISE_DATABASE_URL) ;;
    *) echo "export $name=${!name}" ;;
  esac
done
