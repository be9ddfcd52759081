#!/usr/bin/env bash
# Installs what Filigree needs and this machine lacks (Debian 12, Ubuntu 24.04; root or sudo).
#
#   bash launch/setup.sh
#
# Says what it installs, asks nothing, and is done at once where nothing is missing. An MPI or a
# tool that is already in the path is taken as it is: MPICH serves as well as Open MPI. The plain
# text that quickstart.sh trains on comes with Python's documentation; FILIGREE_TEXT names other
# text and leaves that package out.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/lib.sh
. launch/lib.sh

# Command and the package it comes in.
TOOLS=(g++:g++ cmake:cmake ninja:ninja-build pkg-config:pkg-config make:make git:git
  python3:python3 ip:iproute2)
LIBRARIES=(ca-certificates protobuf-compiler libprotobuf-dev libgtest-dev libgmock-dev
  libsentencepiece-dev libopenblas-pthread-dev libcli11-dev nlohmann-json3-dev libspdlog-dev
  libfmt-dev libzstd-dev libxxhash-dev zlib1g-dev)

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Reads package names, prints those that are not installed. One dpkg-query for all of them.
not_installed() {
  local present
  present=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "$@" 2>/dev/null |
    sed -n 's/ installed$//p') || true
  printf '%s\n' "$@" | grep -Fxv -f <(printf '%s\n' "$present") || true
}

missing_packages() {
  local tool
  for tool in "${TOOLS[@]}"; do
    have "${tool%%:*}" || echo "${tool##*:}"
  done
  if ! have mpicc || ! have mpirun; then
    if installed libmpich-dev; then echo mpich; else printf '%s\n' libopenmpi-dev openmpi-bin; fi
  fi
  if { cudnn_frontend_is_missing || cusparselt_is_missing; } && ! python3 -m pip --version >/dev/null 2>&1; then
    echo python3-pip
  fi
  not_installed "${LIBRARIES[@]}"
}

text_is_there() { compgen -G '/usr/share/doc/python3*/html/_sources/*.txt' >/dev/null; }

# The documentation of the distribution's Python 3: python3.11-doc on Debian 12, python3.12-doc on
# Ubuntu 24.04.
text_package() {
  local name
  name=$(apt-cache search --names-only '^python3\.[0-9]+-doc$' | cut -d' ' -f1 | sort -V | tail -1)
  [ -n "$name" ] || die "no package python3.*-doc; name text files in FILIGREE_TEXT instead"
  echo "$name"
}

# cuDNN's C++ front end, headers only, with which attention on a GPU is built (see
# cmake/FiligreeCudnn.cmake). Without it the build takes its own, slower attention.
CUDNN_FRONTEND=nvidia-cudnn-frontend==1.32.0

cudnn_frontend_is_missing() {
  [ -n "$(find_nvcc)" ] && [ -z "${CUDNN_FRONTEND_ROOT:-}" ] &&
    [ ! -f /usr/include/cudnn_frontend.h ] &&
    [ ! -f build/_deps/cudnn_frontend/include/cudnn_frontend.h ]
}

# 2:4 products on sparse tensor cores, header and library (see cmake/FiligreeCusparselt.cmake).
# Without it they are dense.
CUSPARSELT=nvidia-cusparselt-cu13==0.10.0

cusparselt_is_missing() {
  [ -n "$(find_nvcc)" ] && [ -z "${CUSPARSELT_ROOT:-}" ] &&
    [ ! -f /usr/include/cusparseLt.h ] &&
    [ ! -f build/_deps/cusparselt/nvidia/cu13/include/cusparseLt.h ]
}

# Puts the folder $3 of the Python wheel $2 into $1.
unpack_wheel() {
  local scratch=$1/scratch
  rm -rf "$scratch" && mkdir -p "$scratch" &&
    python3 -m pip -q --disable-pip-version-check download --retries 1 --timeout 20 --no-deps \
      --only-binary :all: -d "$scratch" "$2" &&
    python3 -m zipfile -e "$scratch"/*.whl "$scratch" &&
    mv "$scratch/$3" "$1/$3" && rm -rf "$scratch"
}

install_cudnn_frontend() {
  local target=build/_deps/cudnn_frontend
  say "set-up: installing the headers of $CUDNN_FRONTEND into $target"
  unpack_wheel "$target" "$CUDNN_FRONTEND" include ||
    say "set-up: $CUDNN_FRONTEND could not be installed, so attention on a GPU takes slower kernels;" \
      "CUDNN_FRONTEND_ROOT may name a copy"
}

install_cusparselt() {
  local target=build/_deps/cusparselt
  say "set-up: installing $CUSPARSELT (170 MB) into $target"
  unpack_wheel "$target" "$CUSPARSELT" nvidia ||
    say "set-up: $CUSPARSELT could not be installed, so 2:4 weights are multiplied densely;" \
      "CUSPARSELT_ROOT may name a copy"
}

# Runs apt-get as root.
apt() {
  local sudo=()
  ((EUID == 0)) || sudo=(sudo)
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y "$@" </dev/null
}

require_root() {
  ((EUID == 0)) && return 0
  have sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; } && return 0
  die "needs root to install packages, and neither root nor sudo is here. Have an administrator run
    apt-get update && apt-get install -y --no-install-recommends $*"
}

main() {
  local packages=() text=()
  have dpkg-query || die "this is neither Debian nor Ubuntu; install the packages named in $0"
  mapfile -t packages < <(missing_packages)
  local want_text=
  if [ -z "${FILIGREE_TEXT:-}" ] && ! text_is_there; then want_text=1; fi
  if [ ${#packages[@]} -eq 0 ] && [ -z "$want_text" ]; then
    say "set-up: nothing is missing"
  else
    require_root "${packages[@]}" ${want_text:+"'python3.*-doc'"}
    say "set-up: installing ${packages[*]}${want_text:+ and the documentation of Python 3}"
    apt update
    if [ -n "$want_text" ]; then text=("$(text_package)"); fi
    # Container images leave documentation out of every package; this one's is what we come for.
    apt install --no-install-recommends -o 'Dpkg::Options::=--path-include=/usr/share/doc/python3*' \
      ${text:+--reinstall} "${packages[@]}" "${text[@]}"
  fi
  if [ -z "${FILIGREE_TEXT:-}" ] && ! text_is_there; then
    die "${text[*]} is installed but its text is not in /usr/share/doc/python3*/html/_sources;" \
      "name text files in FILIGREE_TEXT instead"
  fi
  if cudnn_frontend_is_missing; then install_cudnn_frontend; fi
  if cusparselt_is_missing; then install_cusparselt; fi
  local cmake_version
  cmake_version=$(cmake --version | sed -n '1s/[^0-9]*//p')
  printf '3.25\n%s\n' "$cmake_version" | sort -VC ||
    die "CMake $cmake_version ($(command -v cmake)) is too old; 3.25 or newer is needed"
}

main
