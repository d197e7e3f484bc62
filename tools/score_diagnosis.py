"""How well `diagnose` does on a folder of labelled logs: causes, phases, and the advice beside the recorded fix.

`PYTHONPATH=plugins python tools/score_diagnosis.py FOLDER [ja|en]` reads FOLDER/index.tsv with the columns file and
label (or kind), and also_ok, expected_phase and fix where it has them. Whether advice names the fix is for a reader
to judge.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

from steph.base.messages import Language, use_language
from steph.base.text import encoding_of
from steph.diagnose.engine import diagnose

# the labels' words for phases, and ours
PHASES = {"train": {"first_step", "step"}, "data": {"prepare"}}


def score(folder: Path) -> Counter[str]:
    """Print each log's answer, wrong ones marked, and return the counts."""
    counts: Counter[str] = Counter()
    with (folder / "index.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    for row in rows:
        data = (folder / row["file"]).read_bytes()
        found = diagnose(data.decode(encoding_of(data), "replace"))
        label = row.get("label") or row["kind"]
        accepted = {label, *filter(None, (row.get("also_ok") or "").split(","))}
        phase, expected = found.phase.value if found.phase else "", row.get("expected_phase") or ""
        is_right = found.cause.value in accepted
        has_phase = not expected or phase in PHASES.get(expected, {expected})
        counts.update(
            logs=1,
            causes=is_right,
            clear_phases=bool(expected),
            phases=bool(expected) and has_phase,
            wrong_phases=bool(expected and phase) and not has_phase,
            failing=label != "none",
            with_case=found.case is not None,
        )
        mark = ("" if is_right else " WRONG CAUSE") + ("" if has_phase else f" PHASE {expected}?")
        print(f"{row['file']}: {found.cause.value} {found.case or '-'} {found.confidence or '-'} {phase or '-'}{mark}")
        if row.get("fix", "-") not in ("-", None):
            print(f"   fix     {row['fix']}\n   meaning {found.meaning}")
            print("\n".join(f"   step    {step}" for step in found.advice))
    return counts


if __name__ == "__main__":
    languages = get_args(Language)
    if len(sys.argv) not in (2, 3) or (sys.argv[2:] and sys.argv[2] not in languages):
        sys.exit(__doc__)
    use_language(next((one for one in languages if one in sys.argv[2:]), "ja"))
    total = score(Path(sys.argv[1]))
    print(
        f"causes {total['causes']}/{total['logs']}, phases {total['phases']}/{total['clear_phases']} of the clear ones"
        f" ({total['wrong_phases']} wrong, the rest blank), with a case {total['with_case']}/{total['failing']}"
    )
