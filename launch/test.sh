#!/usr/bin/env bash
# Every test: installs what is missing, builds everything, runs ctest.
#
#   bash launch/test.sh [--long]     # --long adds the tests labelled long
#
# CUDA code is compiled where nvcc is found; what was skipped is said at the end. Exit code 0 only
# if every test passed.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/lib.sh
. launch/lib.sh

LABELS='quick|full'
case ${1:-} in
  '') ;;
  --long) LABELS='quick|full|long' ;;
  *)
    echo "usage: bash launch/test.sh [--long]" >&2
    exit 2
    ;;
esac

# One line a thing that this machine cannot test.
skipped() {
  [ -n "$(find_nvcc)" ] || echo "CUDA code: not compiled, no nvcc here"
  gpu_works || echo "GPU tests: not run, no working GPU here"
  python3 -c 'import torch, transformers' 2>/dev/null ||
    echo "loading exports in Hugging Face transformers: not run, it is not installed"
  [[ $LABELS == *long* ]] || echo "tests labelled long: not run, ask with --long"
}

main() {
  local cuda=OFF result=0
  SECONDS=0
  say "set-up"
  bash launch/setup.sh
  [ -n "$(find_nvcc)" ] && cuda=AUTO
  say "build"
  # One architecture is enough to know that device code compiles.
  configure_build "$cuda" -DFILIGREE_CUDA_ARCHITECTURES=90-real
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
