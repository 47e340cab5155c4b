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
"$PYTHON" train_liif.py --config configs/quickstart.yaml --resume

echo '== 4. Measuring and enlarging photographs it has not seen (out/quickstart)'
"$PYTHON" test.py --suite samples --model bicubic LIIF=save/_quickstart/epoch-last.pth --output out/quickstart
"$PYTHON" scripts/compare.py load/sample/valid/chelsea.png --model save/_quickstart/epoch-last.pth --scale 4 \
  --output out/quickstart/chelsea_x4.png

echo
echo '== 5. A photograph three times as large, by the full-size weights that come with the project (weights/)'
"$PYTHON" demo.py --input load/sample/valid/coffee.png --scale 3 --output out/quickstart/coffee_x3.png

cat <<'END'

Where things are:
  out/quickstart             PSNR of the small model and of bicubic (samples.md), chelsea_x4.png and coffee_x3.png
  weights                    the weights that demo.py uses when none are named
  load/sample                the photographs, with their licences
  configs/quickstart.yaml    what was trained here, commented
  save/_quickstart           its checkpoints, log.txt, curves for tensorboard
Next:
  your own image     .venv/bin/python demo.py IMAGE --scale 4 --output large.png
  your own images    configs/train-your-images.yaml, then .venv/bin/python train_liif.py --config that.yaml
  the paper          configs/train-div2k, README.md
END
