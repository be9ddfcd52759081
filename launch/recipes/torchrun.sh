#!/usr/bin/env bash
# Ranks without MPI, on one host or several: what torchrun does, without PyTorch.
#
#   launch/recipes/torchrun.sh RANKS_HERE CONFIG OUT
#
# On several hosts it runs on each, with the same RANKS_HERE, NNODES (number of hosts), NODE_RANK
# (0 on the first), MASTER_ADDR (the first host) and MASTER_PORT. Where one rank fails, the
# others notice and end too.
set -euo pipefail
(($# == 3)) || { sed -n '4,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
export LOCAL_WORLD_SIZE=$1
config=$2 out=$3
export MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} MASTER_PORT=${MASTER_PORT:-29500}
export WORLD_SIZE=$((LOCAL_WORLD_SIZE * ${NNODES:-1}))
pids=()
for ((i = 0; i < LOCAL_WORLD_SIZE; ++i)); do
  RANK=$((${NODE_RANK:-0} * LOCAL_WORLD_SIZE + i)) LOCAL_RANK=$i \
    build/filigree train "$config" --out "$out" &
  pids+=($!)
done
# A stop is passed on: every rank saves and ends.
trap 'kill -USR1 "${pids[@]}" 2>/dev/null || true' TERM USR1
result=0
for pid in "${pids[@]}"; do
  # A signal ends the wait, not the rank that it waited for.
  while true; do
    code=0
    wait "$pid" || code=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  ((result != 0)) || result=$code
done
exit "$result"
