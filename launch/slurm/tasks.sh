#!/bin/bash
# `python "$@"` in every task of a job, and one exit code for all: that of a fault, if a task has one; else 42, if one has
# said that it may be started again. What a signal or a node took away (128 and more) is no fault.

# srun itself tells the highest code of all tasks, and a task that was killed (137) would hide the 42 of the others.
codes=$(mktemp -d "$PWD/.curia2-$SLURM_JOB_ID.XXXX") || exit

# The shell around a task hands signals on and notes the code.
# shellcheck disable=SC2016
task='.venv/bin/python "${@:2}" & child=$!
  trap "kill -TERM $child" TERM; trap "kill -USR1 $child" USR1
  wait "$child"; while kill -0 "$child" 2> /dev/null; do wait "$child"; done
  wait "$child"; code=$?
  echo "$code" > "$1/$SLURM_PROCID"; exit "$code"'

# Tasks that stop early end within moments of each other, and the first must not kill the rest. If one dies, the others
# stop by themselves.
srun --kill-on-bad-exit=0 bash -c "$task" task "$codes" "$@" &
step=$!
wait "$step"
code=$?

said=$(cat "$codes"/* 2> /dev/null | awk '$1 == 42 { stopped = 42 } $1 && $1 != 42 && $1 < 128 { fault = $1 }
  END { print fault ? fault : stopped }')
rm -rf "$codes"
exit "${said:-$code}"
