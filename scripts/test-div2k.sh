#!/usr/bin/env bash
# PSNR on the validation images of DIV2K at x2, x3, x4, x6, x12, x18, x24 and x30 (paper, Table 1):
#   bash scripts/test-div2k.sh MODEL [GPU]
root=$(dirname "$0")/.. && PATH=$root/.venv/bin:$PATH
exec "${PYTHON:-python3}" "$root/test.py" --suite div2k --data "$root/load" --model ${1:+"$1"} ${2:+--gpu "$2"}
