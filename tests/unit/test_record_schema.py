"""The schemas in docs are what the models say, and written records and summaries keep to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import record_factory as factory
from schemas import schema, schema_text
from steph.record.values import RECORD_VERSION, Record
from steph.run.journal import write_record
from steph.tell import machine_summary
from steph.tell.outlook import production_outlook

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA, SUMMARY_SCHEMA = schema("record"), schema("summary")
DEFINITIONS = {**SCHEMA["$defs"], **SUMMARY_SCHEMA["$defs"]}
TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def complaints(value: Any, schema: dict[str, Any], where: str = "record") -> list[str]:  # noqa: ANN401 - any JSON
    """What of a JSON value the schema forbids; knows the keywords that pydantic writes for these models, no others."""
    unknown = set(schema) - {*KEYWORDS, "title", "description", "default", "$schema", "$id", "$defs"}
    assert not unknown, unknown
    return [line for key, check in KEYWORDS.items() if key in schema for line in check(value, schema, where)]


def _reference(value: Any, schema: dict[str, Any], where: str) -> list[str]:  # noqa: ANN401
    return complaints(value, DEFINITIONS[schema["$ref"].removeprefix("#/$defs/")], where)


def _any_of(value: Any, schema: dict[str, Any], where: str) -> list[str]:  # noqa: ANN401
    tried = [complaints(value, option, where) for option in schema["anyOf"]]
    return [] if [] in tried else [line for lines in tried for line in lines]


def _type(value: Any, schema: dict[str, Any], where: str) -> list[str]:  # noqa: ANN401
    if schema["type"] == "array":
        if not isinstance(value, list):
            return [f"{where}: no array"]
        return [line for n, item in enumerate(value) for line in complaints(item, schema["items"], f"{where}[{n}]")]
    if schema["type"] == "object":
        return _object(value, schema, where)
    is_number_that_is_bool = isinstance(value, bool) and schema["type"] != "boolean"
    fits = isinstance(value, TYPES[schema["type"]]) and not is_number_that_is_bool
    return [] if fits else [f"{where}: {value!r} is no {schema['type']}"]


def _object(value: Any, schema: dict[str, Any], where: str) -> list[str]:  # noqa: ANN401
    if not isinstance(value, dict):
        return [f"{where}: no object"]
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    found = [f"{where}.{key}: missing" for key in schema.get("required", ()) if key not in value]
    for key, item in value.items():
        if key in known:
            found += complaints(item, known[key], f"{where}.{key}")
        elif others is False:
            found.append(f"{where}.{key}: unknown key")
        elif isinstance(others, dict):
            found += complaints(item, others, f"{where}.{key}")
            found += complaints(key, schema.get("propertyNames", {}), f"{where}: key {key}")
    return found


def _const(value: Any, schema: dict[str, Any], where: str) -> list[str]:  # noqa: ANN401
    return [] if value == schema["const"] else [f"{where}: not {schema['const']!r}"]


def _enum(value: Any, schema: dict[str, Any], where: str) -> list[str]:  # noqa: ANN401
    return [] if value in schema["enum"] else [f"{where}: {value!r} not allowed"]


def _read_by_type(_value: Any, _schema: dict[str, Any], _where: str) -> list[str]:  # noqa: ANN401
    return []


KEYWORDS: dict[str, Callable[[Any, dict[str, Any], str], list[str]]] = {
    "$ref": _reference,
    "anyOf": _any_of,
    "type": _type,
    "const": _const,
    "enum": _enum,
    **dict.fromkeys(("properties", "required", "additionalProperties", "items", "propertyNames"), _read_by_type),
}


def test_the_published_schema_is_current() -> None:
    """docs/record.schema.json is what the models generate, for this version of the record; so is the summary's."""
    assert (DOCS / "record.schema.json").read_text(encoding="utf-8") == schema_text("record")
    assert json.loads(schema_text("record"))["properties"]["version"]["const"] == RECORD_VERSION
    assert (DOCS / "summary.schema.json").read_text(encoding="utf-8") == schema_text("summary")
    shared = SCHEMA["$defs"].keys() & SUMMARY_SCHEMA["$defs"].keys()
    assert {name for name in shared if SCHEMA["$defs"][name] != SUMMARY_SCHEMA["$defs"][name]} == set()


@pytest.mark.parametrize("made", factory.ALL_SAMPLES, ids=lambda made: made.__name__)
def test_a_written_record_keeps_to_the_schema(made: Callable[[], Record], tmp_path: Path) -> None:
    """`record.json` as the journal writes it validates, whether the run passed, crashed, was blocked or is live."""
    record = made()
    write_record(tmp_path, record)
    written = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert complaints(written, SCHEMA) == []
    assert Record.model_validate(written) == record


@pytest.mark.parametrize("made", factory.ALL_SAMPLES, ids=lambda made: made.__name__)
def test_a_written_summary_keeps_to_the_schema(made: Callable[[], Record], tmp_path: Path) -> None:
    """Whether the run passed, crashed, was blocked or is live; and a summary of another version is none."""
    record = made()
    found = machine_summary.summary_of(
        record, production_outlook(record), report=tmp_path / "r.md", folder=tmp_path / "runs" / record.id
    )
    written = json.loads(machine_summary.write_summary(found, tmp_path).read_text(encoding="utf-8"))
    assert complaints(written, SUMMARY_SCHEMA, "summary") == []
    assert complaints(written | {"schema": 0}, SUMMARY_SCHEMA, "summary") == ["summary.schema: not 1"]


def test_what_is_no_record_is_refused() -> None:
    """Another version, a missing key, an unknown key, a wrong type and an unknown verdict are each named."""
    sound = factory.green_acceptance().model_dump(mode="json")
    stage = sound["stages"]["H-1"]
    for spoilt, said in (
        (sound | {"version": 1}, "record.version: not 2"),
        ({key: item for key, item in sound.items() if key != "data"}, "record.data: missing"),
        (sound | {"note": ""}, "record.note: unknown key"),
        (sound | {"live": "no"}, "record.live: 'no' is no boolean"),
        (sound | {"stages": {"H-1": stage | {"verdict": "GREEN"}}}, "record.stages.H-1.verdict: 'GREEN' not allowed"),
    ):
        assert complaints(spoilt, SCHEMA) == [said]
