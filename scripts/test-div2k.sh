#!/usr/bin/env bash
# PSNR of a model on the validation images of DIV2K at x2, x3, x4, x6, x12, x18, x24 and x30 (the paper's Table 1).
#
#   bash scripts/test-div2k.sh MODEL [GPU]
#
# GPU: a number, or cpu; the first GPU there is when absent. A scale whose folders are missing is skipped by name.
# $PYTHON chooses the interpreter; otherwise .venv is used when there is one.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: bash scripts/test-div2k.sh MODEL [GPU]" >&2
    exit 2
fi
here=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"  # the configs name their folders from here
case $1 in /*) model=$1 ;; *) model=$here/$1 ;; esac
if [ ! -f "$model" ]; then
    echo "error: $1 is not a file; give the checkpoint to measure, such as save/_NAME/epoch-last.pth" >&2
    exit 2
fi
gpu=()
if [ $# -eq 2 ]; then gpu=(--gpu "$2"); fi
python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi

measured=0
for scale in 2 3 4 6 12 18 24 30; do
    config=configs/test/test-div2k-$scale.yaml
    missing=
    while read -r folder; do
        if [ ! -d "$folder" ]; then missing=$folder; fi
    done < <(sed -n 's/^ *root_path[_12]*: *//p' "$config")
    if [ -n "$missing" ]; then
        echo "== div2k x$scale: skipped, there is no $missing"
        continue
    fi
    echo "== div2k x$scale"
    "$python" test.py --config "$config" --model "$model" ${gpu[@]+"${gpu[@]}"}
    measured=$((measured + 1))
done
if [ "$measured" -eq 0 ]; then
    echo "error: the images of DIV2K are not there; get them with: python scripts/prepare_data.py div2k" >&2
    exit 2
fi
