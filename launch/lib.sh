# Functions shared by setup.sh, quickstart.sh and test.sh; sourced, never run.
# shellcheck shell=bash

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
# Without a terminal, escape codes would only be noise in a log.
[ -t 1 ] || say() { printf '==> %s\n' "$*"; }
die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# Cores this process may use: its affinity and its container's quota, whichever is smaller.
usable_cores() {
  local cores quota period
  cores=$(nproc)
  if [ -r /sys/fs/cgroup/cpu.max ]; then
    read -r quota period </sys/fs/cgroup/cpu.max
  elif [ -r /sys/fs/cgroup/cpu/cpu.cfs_quota_us ]; then
    quota=$(cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us)
    period=$(cat /sys/fs/cgroup/cpu/cpu.cfs_period_us)
  fi
  if [[ ${quota:-max} =~ ^[0-9]+$ && ${period:-0} -gt 0 ]]; then
    quota=$(((quota + period - 1) / period))
    ((quota < cores)) && cores=$quota
  fi
  echo $((cores > 0 ? cores : 1))
}

# Compilers at once: as many as cores, but no more than memory bears (a gigabyte each).
build_jobs() {
  local cores gigabytes
  cores=$(usable_cores)
  gigabytes=$(awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo)
  ((gigabytes < 1)) && gigabytes=1
  echo $((cores < gigabytes ? cores : gigabytes))
}

# The compiler of CUDA code, in the path or where NVIDIA's packages put it.
find_nvcc() { command -v nvcc || { [ -x /usr/local/cuda/bin/nvcc ] && echo /usr/local/cuda/bin/nvcc; }; }

# How many GPUs a driver answers for.
gpu_count() {
  if have nvidia-smi; then nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true; else echo 0; fi
}
gpu_works() { (($(gpu_count) > 0)); }

# Fills the array MPIRUN with a launcher for $1 ranks on this machine that works with Open MPI and
# MPICH, in a container, as root, and with fewer cores than ranks.
set_mpirun() {
  local ranks=$1
  MPIRUN=(mpirun -np "$ranks")
  if mpirun --version 2>/dev/null | grep -Eq 'Open MPI|OpenRTE|PRRTE'; then
    MPIRUN+=(--oversubscribe --bind-to none)
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    # Containers forbid the system call behind single copies, and each attempt prints a warning.
    export OMPI_MCA_btl_vader_single_copy_mechanism=none
    (($(usable_cores) < ranks)) && export OMPI_MCA_mpi_yield_when_idle=1
  fi
  return 0
}

# Configures build/ for a release, reusing what is there. $1: AUTO, ON or OFF for CUDA; the rest goes
# to cmake.
configure_build() {
  local cuda=$1
  shift
  local generator=()
  [ -f build/CMakeCache.txt ] || generator=(-G Ninja)
  cmake -S . -B build "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DFILIGREE_CUDA="$cuda" "$@"
}
