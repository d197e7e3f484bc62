#!/usr/bin/env bash
# Runs the acceptance where there is an NVIDIA card, else the rehearsal on the CPU. Arguments go to pytest.
# The doctor looks first, and stops only what is certain to fail; STEPH_SKIP_DOCTOR=1 leaves it out.
set -uo pipefail
cd "$(dirname "$0")/.."
if compgen -G '/dev/nvidia[0-9]*' >/dev/null || [ -e /dev/dxg ]; then
  echo "accept: NVIDIA card found: acceptance on the GPU (profile rtx3080 unless you name another)"
else
  echo "accept: no NVIDIA card on this machine: rehearsal on the CPU with a tiny random model, which is not an acceptance"
  set -- --steph-profile cpu "$@"
fi
if [ -z "${STEPH_SKIP_DOCTOR:-}" ]; then
  .venv/bin/python -m steph.cli doctor --gate "$@"
  if [ $? -eq 3 ]; then
    echo "accept: nothing was started, because a run is certain to fail (see above)" >&2
    echo "accept: to run it all the same: STEPH_SKIP_DOCTOR=1 make accept" >&2
    exit 4
  fi
fi
exec .venv/bin/python -m pytest tests/acceptance -m gpu "$@"
