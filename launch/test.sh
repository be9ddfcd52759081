#!/usr/bin/env bash
# Every test: installs what is missing, builds everything, runs ctest.
#
#   bash launch/test.sh
#
# CUDA code is compiled where nvcc is found; what was skipped is said at the end. Exit code 0 only
# if every test passed.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/lib.sh
. launch/lib.sh

if [ $# -gt 0 ]; then
  echo "usage: bash launch/test.sh" >&2
  exit 2
fi
LABELS='quick|full'
if [ -n "$(find_nvcc)" ] && gpu_works; then
  LABELS+='|gpu'
  (($(gpu_count) > 1)) && LABELS+='|gpu_multi'
fi
readonly LABELS

# One line a thing that this machine cannot test.
skipped() {
  [ -n "$(find_nvcc)" ] || echo "CUDA code: not compiled, no nvcc here"
  gpu_works || echo "GPU tests: not run, no working GPU here"
  python3 -c 'import torch, transformers' 2>/dev/null ||
    echo "loading exports in Hugging Face transformers: not run, it is not installed"
}

main() {
  local cuda=OFF result=0
  SECONDS=0
  say "set-up"
  bash launch/setup.sh
  [ -n "$(find_nvcc)" ] && cuda=AUTO
  say "build"
  # Without a GPU, one architecture is enough to know that device code compiles.
  local architectures='80;90-real'
  gpu_works || architectures=90-real
  configure_build "$cuda" "-DFILIGREE_CUDA_ARCHITECTURES=$architectures"
  cmake --build build -j "$(build_jobs)"
  say "tests"
  # The system tests and MPI tests know how many cores they take.
  (cd build && ctest -L "^($LABELS)\$" --output-on-failure --no-tests=error -j "$(usable_cores)") ||
    result=$?
  say "skipped"
  skipped
  if ((result == 0)); then
    say "every test passed, in $((SECONDS / 60)) min $((SECONDS % 60)) s"
  else
    say "FAILED: ctest ended with $result, see above; build/Testing/Temporary/LastTest.log has all"
  fi
  return "$result"
}

main
