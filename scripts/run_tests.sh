#!/usr/bin/env bash
# Set up .venv and run the tests, in two processes (or LIIF_TEST_PROCESSES). Arguments go to pytest:
#   bash scripts/run_tests.sh
#   bash scripts/run_tests.sh tests/models/test_models.py -k golden -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source scripts/setup.sh requirements.txt requirements-dev.txt

export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}  # busy cores: small jobs with two threads run many times faster
export MPLBACKEND=Agg  # no window system needed
exec "$PYTHON" -m pytest -n "${LIIF_TEST_PROCESSES:-2}" --dist loadfile "$@"
