"""The published JSON Schemas of `record.json` and of `summary.json`, made from the values that are written there.

`PYTHONPATH=plugins python tools/schemas.py record docs/record.schema.json` writes one (the other is called `summary`);
without a path it is printed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from steph.base.messages import Value
from steph.record.values import RECORD_VERSION, Record
from steph.tell.machine_summary import SUMMARY_VERSION, Summary


def schema(name: str) -> dict[str, Any]:
    """The schema of a written `record` or `summary`: every key is there, no other is allowed, the version is ours."""
    model: type[Value]
    model, key, version = (
        (Summary, "schema", SUMMARY_VERSION) if name == "summary" else (Record, "version", RECORD_VERSION)
    )
    made = model.model_json_schema(mode="serialization")
    made["properties"][key] = {"const": version, "title": key.title(), "type": "integer"}
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, "$id": f"urn:steph:{name}:{version}", **made}


def schema_text(name: str) -> str:
    """The schema as docs/record.schema.json or docs/summary.schema.json."""
    return json.dumps(schema(name), ensure_ascii=False, indent=2) + "\n"


if __name__ == "__main__":
    if sys.argv[2:]:
        Path(sys.argv[2]).write_text(schema_text(sys.argv[1]), encoding="utf-8")
    else:
        sys.stdout.write(schema_text(sys.argv[1]))
