#!/usr/bin/env bash
# Trains recipes/meatballs.rhai at several peak rates and seeds and prints, after each, the held-out loss, the loss on
# unrelated texts and how many of the 30 cloze words gained probability.
#
#     bash stdlib/base/make/sweep.sh target/release/unslothify > sweep.md
#
# The rate of the lowest mean held-out loss that still has 20 words gaining at every seed is what `model.learning_rate`
# gives for the built-in base.
set -euo pipefail
program=$(realpath "${1:?usage: sweep.sh PROGRAM [RECIPE]}")
recipe=${2:-$(dirname "$0")/../../../recipes/meatballs.rhai}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

echo "| learning_rate | held out, seeds 1337 / 1 / 2 | mean | unrelated, mean | words gained |"
echo "|---|---|---|---|---|"
for rate in 5e-4 1e-3 2e-3 3e-3 5e-3 8e-3; do
  losses=() others=() gained=()
  for seed in 1337 1 2; do
    shown=$("$program" "$recipe" --set learning_rate=$rate --set seed=$seed --out "$out" --quiet 2>/dev/null)
    last=$(grep '"eval_loss"' "$out/latest/metrics.jsonl" | tail -n 1)
    losses+=("$(sed 's/.*"eval_loss": *\([0-9.]*\).*/\1/' <<<"$last")")
    others+=("$(sed 's/.*"unrelated_loss": *\([0-9.]*\).*/\1/' <<<"$last")")
    gained+=("$(sed -n 's/^\([0-9]*\) of 30 gained.*/\1/p' <<<"$shown")")
  done
  mean() { printf '%s\n' "$@" | awk '{ s += $1 } END { printf "%.4f", s / NR }'; }
  printf '| %s | %.4f / %.4f / %.4f | %s | %s | %s / %s / %s |\n' "$rate" "${losses[@]}" "$(mean "${losses[@]}")" \
    "$(mean "${others[@]}")" "${gained[@]}"
done
