#!/usr/bin/env bash
# A night of fuzzing on this machine, for schedulers other than GitHub Actions (cron, systemd, Jenkins, GitLab, Slurm).
#
#   ci/nightly.sh [options of `moeproof nightly`]
#
# Run it again with the same --out after a reboot: it goes on where it was. Exit status: 0 nothing new, 1 new findings,
# 2 usage or a fault of the harness.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v moeproof >/dev/null || {
  echo "nightly.sh: moeproof is not on PATH: pip install '.[cuda,nightly]'" >&2
  exit 2
}
# With CI set, Hypothesis would load its own profile, which neither explores nor remembers; nightly overrides that for
# all that it runs itself.
exec moeproof nightly --lanes "${LANES:-ci/lanes.toml}" "$@"
