#!/usr/bin/env bash
# Sets up what the tests need and runs them: about 12 minutes on 2 CPU cores after installation.
#   bash launch/test.sh              all but the slow ones
#   bash launch/test.sh -m slow      the slow ones
#   bash launch/test.sh tests/test_losses.py -k marginal
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment "[dev]"
export JAX_PLATFORMS=cpu
ruff check .
ruff format --check --quiet .
mypy
if [[ $# -eq 0 ]]; then
  # Most of their time is that of processes which start. In the order of their names: else the longest files come last.
  set -- -m "not slow" --numprocesses=2 --dist=loadfile --no-loadscope-reorder
fi
exec python -m pytest "$@"
