#!/usr/bin/env bash
# From nothing to a trained, measured LIIF and an enlarged photograph, in minutes, on a CPU:
#   bash scripts/quickstart.sh
# A second run skips what is done; after an interruption it goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

echo '== 1. Python environment (.venv)'
source scripts/setup.sh requirements.txt requirements-photos.txt

echo '== 2. Photographs (load/sample)'
"$PYTHON" scripts/sample_photos.py

echo '== 3. Training (save/_quickstart): a small LIIF on five photographs'
if [ -e save/_quickstart ]; then
  "$PYTHON" train_liif.py --config configs/quickstart.yaml --resume
else
  "$PYTHON" train_liif.py --config configs/quickstart.yaml
fi

echo '== 4. Measuring and enlarging photographs it has not seen (out/quickstart)'
"$PYTHON" scripts/quickstart_report.py --model save/_quickstart/epoch-last.pth --output out/quickstart
