"""The example reports, by the code of this release: `python tools/examples.py` writes them all from their records.

    python tools/examples.py                    # every page of reports/examples, in Japanese and in English
    python tools/examples.py RECORD NAME        # first takes a run's record (its folder) as the example NAME

A record is taken with its journal and its memory samples alone. The card's serial number, the kernel's build and the
state of the clone are taken out; how each record was made stands in reports/examples/README.md.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from pathlib import Path

CLONE = Path(__file__).parents[1]
sys.path.insert(0, str(CLONE / "plugins"))

from steph.base.messages import LANGUAGES, speaking  # noqa: E402 - found in this clone
from steph.conduct.session import tell_apart  # noqa: E402
from steph.run.journal import read_record, record_folders  # noqa: E402
from steph.tell.report import report_path  # noqa: E402

EXAMPLES = CLONE / "reports" / "examples"
KEPT = ("events.jsonl", "*/vram.txt")
MASKED = (
    (re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "GPU-00000000-0000-0000-0000-000000000000"),
    (re.compile(r'"(branch|commit)": "[^"]*"'), r'"\1": null'),
    (re.compile(r'"steph": "[^"]*", '), ""),
    (re.compile(r'("os": "\w+ [\d.]+)[^"]*"'), r'\1"'),
)


def take(record: Path, name: str, examples: Path = EXAMPLES) -> Path:
    """Copy what a report needs of a record, masked, into the example's folder in the place of the one there.

    Gives the new folder; raises FileNotFoundError where `record` has no journal.
    """
    runs = examples / name / "runs"
    files = [file for pattern in KEPT for file in sorted(record.glob(pattern))]
    if not (record / "events.jsonl").is_file():
        raise FileNotFoundError(f"{record}: no events.jsonl; name the folder of a record, reports/runs/ID")
    shutil.rmtree(examples / name, ignore_errors=True)
    for file in files:
        text = file.read_text(encoding="utf-8")
        for pattern, word in MASKED:
            text = pattern.sub(word, text)
        target = runs / record.name / file.relative_to(record)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return runs / record.name


def write(runs: Path, place: Path) -> list[Path]:
    """Write the one record's report with its pictures below `place`, in a folder for each language; give the pages."""
    record = read_record(record_folders(runs)[0])
    pages = []
    for language in LANGUAGES:
        page = place / language / report_path(record, place).name
        page.unlink(missing_ok=True)
        shutil.rmtree(page.parent / "figures", ignore_errors=True)
        page.parent.mkdir(parents=True, exist_ok=True)
        with speaking(language):
            pages.append(tell_apart(runs, record, page, as_html=False))
    return pages


def main(*words: str) -> None:
    """Take a record where one is named; then write every example again."""
    os.environ["TZ"] = "UTC"  # pages show local time as well
    time.tzset()
    if words:
        record, name = words
        take(Path(record).resolve(), name)
    for runs in sorted(EXAMPLES.glob("*/runs")):
        for page in write(runs, runs.parent):
            print(page.relative_to(CLONE))


if __name__ == "__main__":
    main(*sys.argv[1:])
