"""The published JSON Schema of `record.json`, made from the record's values.

`PYTHONPATH=plugins python tools/record_schema.py` prints docs/record.schema.json; with a path it writes it there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from steph.record.values import RECORD_VERSION, Record
from steph.tell.machine_summary import DIALECT


def record_schema() -> dict[str, Any]:
    """The schema of a written record: every key is there, no other key is allowed, the version is this one."""
    schema = Record.model_json_schema(mode="serialization")
    schema["properties"]["version"] = {"const": RECORD_VERSION, "title": "Version", "type": "integer"}
    return {"$schema": DIALECT, "$id": f"urn:steph:record:{RECORD_VERSION}", **schema}


def schema_text() -> str:
    """The schema as docs/record.schema.json."""
    return json.dumps(record_schema(), ensure_ascii=False, indent=2) + "\n"


if __name__ == "__main__":
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(schema_text(), encoding="utf-8")
    else:
        sys.stdout.write(schema_text())
