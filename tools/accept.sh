#!/usr/bin/env bash
# Runs the acceptance where there is an NVIDIA card, else the rehearsal on the CPU. Arguments go to pytest.
set -uo pipefail
cd "$(dirname "$0")/.."
if compgen -G '/dev/nvidia[0-9]*' >/dev/null || [ -e /dev/dxg ]; then
  echo "accept: NVIDIA card found: acceptance on the GPU (profile rtx3080 unless you name another)"
  exec .venv/bin/python -m pytest tests/acceptance -m gpu "$@"
fi
echo "accept: no NVIDIA card on this machine: rehearsal on the CPU with a tiny random model, which is not an acceptance"
exec .venv/bin/python -m pytest tests/acceptance -m gpu --steph-profile cpu "$@"
