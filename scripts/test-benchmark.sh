#!/usr/bin/env bash
# PSNR on Set5, Set14, B100 and Urban100 at x2, x3, x4, x6 and x8 (paper, Table 2):
#   bash scripts/test-benchmark.sh MODEL [GPU]
root=$(dirname "$0")/.. && PATH=$root/.venv/bin:$PATH
exec "${PYTHON:-python3}" "$root/test.py" --suite benchmark --data "$root/load" --model ${1:+"$1"} ${2:+--gpu "$2"}
