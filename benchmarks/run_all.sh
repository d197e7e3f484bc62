#!/usr/bin/env bash
# Everything in one go on one GPU. Environment: TOKENIZER (folder of a Qwen tokenizer), DATA (the question set's
# selection.json), OUT (folder for the results), SECONDS (time box, default 540), PYTHON, WORK (twins and runs, kept),
# ROWS (default: all). More arguments go to benchmarks.run, as in: run_all.sh --tiny
limit=$SECONDS
[ "$limit" -gt 5 ] || limit=540 # bash's own counter: no SECONDS was given
set -euo pipefail
cd "$(dirname "$0")/.."
: "${TOKENIZER:?folder of a Qwen tokenizer}" "${DATA:?selection.json of the question set}" "${OUT:?folder for the results}"
python=${PYTHON:-python3}
work=${WORK:-/tmp/steph-benchmarks}
export PYTHONPATH="$PWD:$PWD/plugins${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$OUT"
status=0
"$python" -m benchmarks.run --tokenizer "$TOKENIZER" --data "$DATA" --out "$OUT" --work "$work" \
  --seconds "$limit" ${ROWS:+--rows "$ROWS"} "$@" || status=$?
"$python" -m benchmarks.table "$OUT/results.jsonl" --output "$OUT/README.md" || status=$?
tar -czf "$OUT/logs.tar.gz" -C "$work" logs
exit "$status"
