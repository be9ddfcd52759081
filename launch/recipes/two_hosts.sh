#!/usr/bin/env bash
# Several hosts with Open MPI's mpirun over ssh, one rank a GPU (or a few CPU ranks a host).
#
#   launch/recipes/two_hosts.sh HOSTFILE INTERFACE CONFIG OUT [RANKS_A_HOST]
#
# HOSTFILE has a line "name slots=8" a host; INTERFACE is the network between them as `ip -brief
# addr` lists it (eth0, ib0). The build, the data and OUT have the same paths on all hosts.
set -euo pipefail
(($# >= 4)) || { sed -n '4,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
hostfile=$1 interface=$2 config=$3 out=$4 ranks=${5:-8}
hosts=$(grep -cEv '^[[:space:]]*(#|$)' "$hostfile")
# mpirun refuses root, as which containers run, unless told so.
((EUID == 0)) && export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# Open MPI hands no variable but its own to other hosts: those that the run needs are named. Each
# rank's threads share the cores of a NUMA node.
exec mpirun -np $((hosts * ranks)) --hostfile "$hostfile" --map-by "ppr:$ranks:node" \
  --bind-to numa \
  --mca btl_tcp_if_include "$interface" --mca oob_tcp_if_include "$interface" \
  -x "NCCL_SOCKET_IFNAME=$interface" -x PATH \
  $(compgen -e | grep -E '^(NCCL_|LD_LIBRARY_PATH$|OMP_)' | grep -v '^NCCL_SOCKET_IFNAME$' | sed 's/^/-x /') \
  build/filigree train "$config" --out "$out"
