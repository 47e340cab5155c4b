#!/usr/bin/env bash
# Make .venv and install requirement files into it:
#   bash scripts/setup.sh                              requirements.txt alone: enough to train, test and upscale
#   bash scripts/setup.sh requirements.txt requirements-dev.txt
# or, in a script, `source scripts/setup.sh FILE...`, after which "$PYTHON" is the .venv's Python.
#
# A second run with the same files changes nothing and needs no network. PYTHON, when set before, names the Python
# (3.10 or newer) to build on; pip's own settings (PIP_INDEX_URL and the like) hold.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 2
}

find_python() {
  local name names=(python3 python3.13 python3.12 python3.11 python3.10 python)
  [ -z "${PYTHON:-}" ] || names=("$PYTHON")
  for name in "${names[@]}"; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null; then
      command -v "$name"
      return
    fi
  done
  fail "found no Python of version 3.10 or newer (tried ${names[*]}): install one, or name it, as in" \
    "PYTHON=/usr/bin/python3.12 bash $0"
}

make_venv() {
  local python
  python=$(find_python)
  # Debian and Ubuntu keep the part of Python that puts pip into a virtual environment in a separate package.
  "$python" -c 'import ensurepip, venv' 2> /dev/null || fail "$python lacks the venv or ensurepip module, so it" \
    "cannot make .venv: install it (Debian, Ubuntu: apt install python3-venv), or name another Python, as in" \
    "PYTHON=/usr/bin/python3.12 bash $0"
  echo "making .venv with $("$python" --version)" >&2
  "$python" -m venv --clear .venv
}

install_files() {
  local stamp file arguments=(--disable-pip-version-check)
  for file; do
    [ -f "$file" ] || fail "requirement file $file does not exist"
    arguments+=(-r "$file")
  done
  stamp=.venv/installed-$({ echo "$@" && cat requirements*.txt; } | cksum | cut -d ' ' -f 1)
  [ ! -f "$stamp" ] || return 0
  [ -t 2 ] || arguments+=(--quiet)  # progress bars only where someone sees them
  echo "installing $* into .venv; PyTorch is large, so this takes minutes" >&2
  .venv/bin/python -m pip install "${arguments[@]}" >&2 || fail "pip could not install $*, for the reason above" \
    "(the network, disk space, its settings): fix that and run this again"
  touch "$stamp"
}

# An interrupted run, and some tools, leave a .venv without pip; a Python that was removed, one that does not start.
.venv/bin/python -c 'import pip' 2> /dev/null || .venv/bin/python -m ensurepip > /dev/null 2>&1 || make_venv
install_files "${@:-requirements.txt}"
PYTHON=.venv/bin/python
