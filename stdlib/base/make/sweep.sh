#!/usr/bin/env bash
# Trains recipes/meatballs.rhai at several peak rates and seeds and prints the held-out loss after each.
#
#     bash stdlib/base/make/sweep.sh target/release/unslothify > sweep.md
#
# The rate of the lowest mean is what `model.learning_rate` gives for the built-in base.
set -euo pipefail
program=$(realpath "${1:?usage: sweep.sh PROGRAM [RECIPE]}")
recipe=${2:-$(dirname "$0")/../../../recipes/meatballs.rhai}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

echo "| learning_rate | held-out loss after, seeds 1337 / 1 / 2 | mean |"
echo "|---|---|---|"
for rate in 5e-4 1e-3 2e-3 3e-3 5e-3 8e-3; do
  losses=()
  for seed in 1337 1 2; do
    "$program" "$recipe" --set learning_rate=$rate --set seed=$seed --out "$out" --quiet >/dev/null 2>&1
    last=$(grep '"eval_loss"' "$out/latest/metrics.jsonl" | tail -n 1)
    losses+=("$(sed 's/.*"eval_loss": *\([0-9.]*\).*/\1/' <<<"$last")")
  done
  mean=$(printf '%s\n' "${losses[@]}" | awk '{ s += $1 } END { printf "%.4f", s / NR }')
  printf '| %s | %.4f / %.4f / %.4f | %s |\n' "$rate" "${losses[@]}" "$mean"
done
