#!/usr/bin/env bash
# From a bare machine to a small sparse language model: installs what is missing, builds, and
# trains on real text.
#
#   bash launch/quickstart.sh [OUT]      # OUT: runs/quickstart
#
# Needs Debian 12 or Ubuntu 24.04 with root or sudo, and no GPU. Prepares Python's documentation
# (or the text files, directories or globs in FILIGREE_TEXT), trains configs/quickstart.textproto
# under `mpirun -np 2` (one rank where there is one GPU), evaluates, exports a dense Hugging Face checkpoint, writes a sentence and a
# report. Under ten minutes on two cores; started again, it goes on from what is there.
#
# Leaves OUT/data, OUT/run (see `filigree inspect`), OUT/hf and OUT/report.html.
set -euo pipefail
if [ $# -gt 1 ] || [[ ${1:-} == -* ]]; then
  echo "usage: bash launch/quickstart.sh [OUT]" >&2
  exit 2
fi
# OUT and FILIGREE_TEXT are relative to where the user stands.
OUT=${1:-}
[ -z "$OUT" ] || OUT=$(realpath -m -- "$OUT")
STARTED_IN=$PWD
cd "$(dirname "$0")/.."
# shellcheck source=launch/lib.sh
. launch/lib.sh
OUT=${OUT:-runs/quickstart}
readonly CONFIG=configs/quickstart.textproto VOCABULARY=2048
RANKS=2
(($(gpu_count) >= 1)) && RANKS=1  # one GPU is plenty for a model of this size
readonly RANKS
readonly FILIGREE=build/filigree
readonly PROMPT='The function returns'

build() {
  local cuda=OFF
  gpu_works && cuda=AUTO
  mkdir -p build
  if ! configure_build "$cuda" >build/configure.log 2>&1; then
    cat build/configure.log >&2
    die "cmake could not configure build/; its output is above"
  fi
  cmake --build build --target filigree -j "$(build_jobs)"
}

# The words of FILIGREE_TEXT (one path that exists may hold spaces), else Python's documentation.
inputs() {
  local word words=()
  if [ -z "${FILIGREE_TEXT:-}" ]; then
    printf '%s\n' /usr/share/doc/python3*/html/_sources
  else
    if [[ -e $STARTED_IN/$FILIGREE_TEXT || -e $FILIGREE_TEXT ]]; then
      words=("$FILIGREE_TEXT")
    else
      read -r -d '' -a words <<<"$FILIGREE_TEXT" || true
    fi
    for word in "${words[@]}"; do
      [[ $word == /* ]] || word=$STARTED_IN/$word
      printf '%s\n' "$word"
    done
  fi
}

prepare() {
  local files
  mapfile -t files < <(inputs)
  "$FILIGREE" prepare --input "${files[@]}" --tokenizer "train-sentencepiece:$VOCABULARY" \
    --val-fraction 0.02 --out "$OUT/data"
}

# Ranks share the cores; a container's quota counts, which a rank cannot see.
train() {
  local threads path
  threads=$(($(usable_cores) / RANKS))
  path=${OUT//\\/\\\\}/data
  path=${path//\"/\\\"}
  set_mpirun "$RANKS"
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))} \
    "${MPIRUN[@]}" "$FILIGREE" train "$CONFIG" --out "$OUT/run" \
    --override "data { prepared: \"$path\" }"
}

# Writes the export and the report where the run is newer than they are.
publish() {
  local run=$OUT/run/metrics.jsonl
  [ "$OUT/hf/config.json" -nt "$run" ] || "$FILIGREE" export "$OUT/run" --out "$OUT/hf"
  [ "$OUT/report.html" -nt "$run" ] || "$FILIGREE" report "$OUT/run" --out "$OUT/report.html"
}

# Of JSON lines on standard input, the last one's (or with "first", the first one's) field $1.
field() {
  local take="tail"
  [ "${2:-last}" = first ] && take="head"
  sed -n "s/.*\"$1\":\([-+0-9.eE]*\).*/\1/p" | "$take" -n 1
}

# The end of the sparse phase is the evaluation before the next phase begins.
summary() {
  local metrics=$OUT/run/metrics.jsonl sparse first_step
  first_step=$(grep '"phase":' "$metrics" | sed -n 2p | field step)
  sparse=$(grep '"val_loss":' "$metrics" |
    awk -v end="$first_step" -F'"step":' '{ split($2, s, /[,}]/); if (s[1] == end) { print; exit } }')
  local before after entropy at_end sparsity speed minutes
  before=$(grep '"val_loss":' "$metrics" | field val_loss first)
  at_end=$(field val_loss <<<"$sparse")
  after=$(grep '"val_loss":' "$metrics" | field val_loss)
  entropy=$(grep '"val_loss":' "$metrics" | field val_unigram_entropy)
  sparsity=$(grep '"tokens_per_second":' "$metrics" | field sparsity first)
  speed=$(sed -n 's/.*"tokens_per_second":\([0-9.eE+]*\).*/\1/p' "$metrics" |
    awk '{ s += 1 / $1; n++ } END { printf "%.0f", n / s }')
  minutes=$(awk -v s="$SECONDS" 'BEGIN { printf "%.1f", s / 60 }')
  printf '\n'
  printf 'held-out loss      %.3f nats a token before training\n' "$before"
  printf '                   %.3f after the sparse phase (%.1f %% of the weights are zeros)\n' \
    "$at_end" "$(awk -v s="$sparsity" 'BEGIN { print 100 * s }')"
  printf '                   %.3f after dense fine-tuning\n' "$after"
  printf 'unigram entropy    %.3f nats a token of the same text: token frequencies alone\n' "$entropy"
  printf 'speed              %s tokens a second, %d ranks\n' "$speed" "$RANKS"
  printf 'run                %s  (filigree inspect, eval, generate)\n' "$OUT/run"
  printf 'Hugging Face       %s  (AutoModelForCausalLM.from_pretrained)\n' "$OUT/hf"
  printf 'report             %s\n' "$OUT/report.html"
  printf 'this took          %s minutes\n' "$minutes"
}

main() {
  SECONDS=0
  say "1/6 set-up"
  bash launch/setup.sh
  say "2/6 build"
  build
  say "3/6 text to tokens"
  prepare
  say "4/6 training, $RANKS ranks"
  train
  say "5/6 export, report, evaluation"
  publish
  "$FILIGREE" eval "$OUT/run" --data "$OUT/data/val_*.bin"
  say "6/6 a sentence"
  "$FILIGREE" generate "$OUT/run" --prompt "$PROMPT" --tokens 40 --seed 1
  summary
}

# On one line with its end: bash reads no further, whatever becomes of this file meanwhile.
main; exit
