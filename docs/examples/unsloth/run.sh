#!/bin/bash
# What to run on a machine with a GPU, from anywhere: a rehearsal on a twin, or --steph-model for a real model.
#   docs/examples/unsloth/run.sh ENVIRONMENT [pytest options]
# ENVIRONMENT: a virtual environment with unsloth (and trl, peft, bitsandbytes, which it brings).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
environment=$1
shift
cd "$here/../../.."
python=${PYTHON:-.venv/bin/python}   # of StepH
"$python" -m steph.cli check "$here" --steph-pipeline-python "$environment/bin/python"
exec "$python" -m pytest -m gpu \
  --steph-pipeline-root="$here" \
  --steph-pipeline-python="$environment/bin/python" \
  "${@:---steph-twin}"
