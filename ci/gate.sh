#!/usr/bin/env bash
# The verdict on a change, for systems other than GitHub Actions.
#
#   ci/gate.sh BASE [OUT] [options of `moeproof gate`]
#
# BASE is the revision to compare with. OUT (default .moeproof/gate) gets summary.md, junit.xml and gate.sarif.
# Exit status: 0 pass, 1 fail, 2 usage, environment or a fault of the harness. docs/gate.md has the rest.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -lt 1 ]; then
  echo "gate.sh: BASE is missing; allowed: a revision, as in: ci/gate.sh origin/main" >&2
  exit 2
fi
base=$1
out=${2:-.moeproof/gate}
shift $(($# > 1 ? 2 : 1))

command -v moeproof >/dev/null || {
  echo "gate.sh: moeproof is not on PATH: pip install '.[cuda]'" >&2
  exit 2
}
git rev-parse --quiet --verify "$base^{commit}" >/dev/null || {
  echo "gate.sh: BASE is '$base'; allowed: a revision of this repository (fetch it first)" >&2
  exit 2
}
mkdir -p "$out"
exec moeproof gate --base "$base" --out "$out" --summary "$out/summary.md" --junit "$out/junit.xml" \
  --sarif "$out/gate.sarif" "$@"
