#!/usr/bin/env bash
# Makes .venv with everything that the suite and the reference pipeline need. Says what it will install before it does.
# PYTHON: the interpreter to build on (3.11 or newer). TORCH_INDEX: where to take torch from (README, Installation).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
say() { printf 'setup: %s\n' "$*"; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
  say "needs Python 3.11 or newer; $python is $("$python" --version 2>&1 || true). Remedy: make setup PYTHON=/path/to/python3.11" >&2
  exit 1
}

fitting_torch() { # prints the version of a torch that the reference pipeline can use
  "$1" - <<'PY' 2>/dev/null
from importlib.metadata import version
number = version("torch")
assert tuple(map(int, number.split("+")[0].split(".")[:2])) >= (2, 10)
print(number)
PY
}

if [ ! -x .venv/bin/python ]; then
  if found=$(fitting_torch "$python"); then
    say "torch $found of $python is used as it is (.venv sees that interpreter's packages)"
    "$python" -m venv --system-site-packages .venv
  else
    "$python" -m venv .venv
  fi
fi

constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
cp constraints.txt "$constraints"
if found=$(fitting_torch .venv/bin/python); then
  say "torch $found is already there and stays; the rest is about 300 MB"
  grep -v '^torch==' constraints.txt >"$constraints"
else
  if [ -n "${TORCH_INDEX:-}" ]; then
    say "torch from $TORCH_INDEX"
    .venv/bin/python -m pip install --no-compile --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
  elif [ -e /dev/nvidia0 ] || [ -e /dev/dxg ]; then
    say "$(grep '^torch==' constraints.txt), the build that pip's index offers: with CUDA about 3 GB to download, 7 GB on disk"
    say "driver: $(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 || echo unknown); CUDA 13 builds need driver 580 or newer"
    say "an older driver: make setup TORCH_INDEX=https://download.pytorch.org/whl/cu126"
  else
    say "$(grep '^torch==' constraints.txt); no NVIDIA card here. pip's index may offer the CUDA build (about 3 GB);"
    say "for the CPU build (about 200 MB): make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu"
  fi
fi
.venv/bin/python -m pip install --quiet --no-compile --constraint "$constraints" --editable ".[pipeline,dev]"
# pip compiles one file after the other, which takes half of its time; what can't be compiled is no program of ours
.venv/bin/python -m compileall -q -j 0 "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" >/dev/null || true
.venv/bin/python - <<'PY'
from importlib.metadata import version
names = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "pytest")
print("setup: ready:", ", ".join(f"{name} {version(name)}" for name in names))
PY
touch .venv/.ready
