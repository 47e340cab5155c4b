#!/usr/bin/env bash
# What to run on a machine with a GPU when there are 30 minutes: tests, measurements, a check of two ranks, a training.
#
#   bash benchmarks/gpu.sh FOLDER [--output out/gpu] [--device cuda] [--quick]
#
# FOLDER holds DIV2K_train_HR and DIV2K_valid_HR, or folders train and valid with images of any kind. Everything is
# written to --output; a second call skips what is done and resumes the training. --quick runs all of it at tiny sizes.
# Uses .venv (bash scripts/setup.sh requirements.txt requirements-dev.txt), or the Python that $PYTHON names.
set -euo pipefail

usage() {
  echo "error: $1; usage: bash benchmarks/gpu.sh FOLDER [--output out/gpu] [--device cuda|cpu] [--quick]" >&2
  exit 2
}

data='' output=out/gpu device=cuda quick=''
while [ $# -gt 0 ]; do
  case $1 in
    --output) output=${2:?}; shift ;;
    --device) device=${2:?}; shift ;;
    --quick) quick=1 ;;
    -*) usage "unknown flag $1" ;;
    *) data=$1 ;;
  esac
  shift
done
[ -n "$data" ] || usage 'no folder of images'
for train in "$data/DIV2K_train_HR" "$data/train" ''; do [ ! -d "$train" ] || break; done
for valid in "$data/DIV2K_valid_HR" "$data/valid" ''; do [ ! -d "$valid" ] || break; done
[ -n "$train" ] && [ -n "$valid" ] || usage "$data holds no DIV2K_train_HR and DIV2K_valid_HR, nor train and valid"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
train=$(cd "$train" && pwd) valid=$(cd "$valid" && pwd)
mkdir -p "$output"
output=$(cd "$output" && pwd)
python=${PYTHON:-$root/.venv/bin/python}
gpus=0
[ "$device" = cpu ] || gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
[ "$device" = cpu ] || [ "$gpus" -gt 0 ] || usage 'torch sees no GPU'
one=0 two=0,1
[ "$device" != cpu ] || one=cpu two=cpu,cpu

step() {  # NAME COMMAND...: run a command once; its output goes to NAME.log too
  local name=$1
  shift
  if [ -e "$output/$name.done" ]; then
    echo "== $name: done before"
    return
  fi
  echo "== $name"
  "$@" 2>&1 | tee -a "$output/$name.log"
  touch "$output/$name.done"
}

training() {  # NAME ARGUMENTS...: begin or resume a run in $output/save/NAME
  local name=$1
  shift
  local keys=("train_dataset.dataset.args.root_path=$train" "val_dataset.dataset.args.root_path=$valid")
  if [ -n "$quick" ]; then
    local small=(batch_size=2 dataset.args.repeat=2 wrapper.args.inp_size=8 wrapper.args.sample_q=32)
    keys+=("${small[@]/#/train_dataset.}" "${small[@]/#/val_dataset.}" epoch_max=1 epoch_val=1
      lr_scheduler.args.decay_epochs=0.5 model.args.encoder_spec.args.n_resblocks=1
      model.args.imnet_spec.args.hidden_list='[16,16]')
  fi
  (cd "$output" && "$python" "$root/train_liif.py" --config "$root/configs/budget/gpu-20min.yaml" --name "$name" \
    --resume "${keys[@]/#/--set=}" "$@")
}

ranks() {  # two processes make the same steps as one, in float32
  local short=(--set precision=float32 --set epoch_max=1 --set epoch_val=1 --set train_dataset.dataset.args.repeat=1
    --set lr_scheduler.args.decay_epochs=0.5)
  training one --gpu $one "${short[@]}"
  training two --gpu $two "${short[@]}"
  "$python" - "$output" <<'END'
import re, sys
one, two = (re.findall(r'^epoch 1/1:.* loss ([0-9.]+)', open(f'{sys.argv[1]}/save/{name}/log.txt').read(), re.M)[-1]
            for name in ('one', 'two'))
print(f'loss of one process {one}, of two processes {two}')
sys.exit(abs(float(one) - float(two)) > 1e-3 * float(one))
END
}

cd "$root"
step tests env LIIF_TEST_DEVICE="$device" "$python" -m pytest -q tests/test_gpu.py
sections=(decode train data memory lattice)
[ -z "$quick" ] || sections=(decode,train,data,memory,lattice)
for section in "${sections[@]}"; do
  step "measure-$section" "$python" benchmarks/run.py --device "$device" --output "$output/speed.json" --only $section \
    ${quick:+--quick}
done
step precision "$python" benchmarks/accuracy.py --only precision --device "$device" --sets valid="$valid" \
  --output "$output"
if [ "$device" = cpu ] || [ "$gpus" -gt 1 ]; then
  step ranks ranks
else
  echo '== ranks: left out, there is one GPU'
fi
step training training gpu-20min --gpu $one
tail -n 3 "$output/save/gpu-20min/log.txt"
echo "== all is in $output: speed.json, precision.json, *.log, save/gpu-20min"
