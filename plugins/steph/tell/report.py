"""Renders the report, one Markdown page, from a record and its templates, and writes it to disk.

`parts` is pure: a record and its history in, text out. `write_report` alone touches files: it draws the
pictures, renews the generated parts and keeps every byte that a person wrote.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from steph.base import units
from steph.base.messages import LANGUAGES, Language, language, phrase, say, text
from steph.base.terms import ExtendedId, RecordKind, StageId
from steph.base.units import MISSING
from steph.judge.verdict import in_flight
from steph.record.values import Record
from steph.tell import advice, attempts, drawings, keep, markdown, wording
from steph.tell import outlook as memory
from steph.tell.drawings import VramSample, draw, write_figures
from steph.tell.markdown import Markdown, code, details, finalize, joined, said, table
from steph.tell.outlook import Outlook

if TYPE_CHECKING:
    from jinja2 import Environment, Template

ACCEPTANCE_REPORT = "StepH_結果まとめ.md"
REHEARSAL_REPORT = "StepH_予行.md"
SPEC_FOLDER = "LLM_ファインチューニング"
HISTORY = "history"
MOST_OPEN_ROWS = 20
_ROW = re.compile(r"^\| (?P<start>[^|]+) \| (?P<record>[^|]+) \| .*\|$")
SECTIONS = ("summary", "h1", "h2", "h3", "extended", "environment", HISTORY, "advice")  # in the page's order


def report_path(record: Record, reports_dir: Path) -> Path:
    """The report's place: as its last session named it; else rehearsals go apart, acceptances to the spec's folder."""
    named = record.sessions[-1].report_name if record.sessions else None
    if named is not None:
        return reports_dir / _on_disk(named)
    if record.context.kind is RecordKind.REHEARSAL:
        return reports_dir / _on_disk(REHEARSAL_REPORT)
    folder = Path(record.context.pipeline_root) / _on_disk(SPEC_FOLDER)
    return (folder if folder.is_dir() else reports_dir) / _on_disk(ACCEPTANCE_REPORT)


def _on_disk(name: str) -> str:
    """The name as paths hold it: the same bytes on the disk in every locale, where ASCII could not spell it."""
    return os.fsdecode(name.encode())


def parts(
    record: Record,
    history: Sequence[Record] = (),
    *,
    figures: Mapping[str, str] | None = None,
    old_rows: Sequence[str] = (),
    outlook: Outlook | None = None,
) -> tuple[keep.Part, ...]:
    """The generated parts in the page's order.

    `figures` maps names of pictures to paths relative to the report, `old_rows` are a file's history rows, kept where
    not known here.
    """
    values = {
        "record": record,
        "figures": dict(figures or {}),
        "advice": _or_trouble(lambda: advice.advise(record, outlook)),
        "history_rows": _or_trouble(lambda: history_rows(record, history, old_rows)),
    }
    every = []
    for name in SECTIONS:
        # where a part fell away, several blank lines are left; fenced text has none in a row to lose
        tidy = re.sub(r"\n{3,}", "\n\n", _section(name, values).strip()) + "\n"
        notes = tuple(_notes(name, one) for one in LANGUAGES)
        every.append(keep.Part(name, tidy, _notes(name, language()), notes))
    return tuple(every)


def _notes(name: str, spoken: Language) -> str:
    title = text(f"report.notes.{name}", spoken)
    return f"\n<!-- {text('report.notes.invitation', spoken)} -->\n\n#### {title}\n\n"


def _section(name: str, values: Mapping[str, object]) -> str:
    """One section's text, or its title and why it can't be computed: no other section is lost by it."""
    templates = _templates()
    try:
        return templates.get_template(f"{name}.md.j2").render(values)
    except Exception as error:
        return f"{'#' if name == 'summary' else '##'} {text(f'report.{name}.title')}\n\n{not_computed(error)}\n"


def _or_trouble(compute: Callable[[], object]) -> object:
    """The computed value, else one that tells why not wherever a template uses it."""
    try:
        return compute()
    except Exception as error:
        return _templates().undefined(hint=f"{type(error).__name__}: {error}")


def not_computed(error: Exception) -> Markdown:
    """The line in the place of a part that could not be computed."""
    name = "" if type(error).__name__ == "UndefinedError" else f"{type(error).__name__}: "
    return said("report.not_computed", error=f"{name}{error}")


class _Guarded:
    """The functions of a module, or the macros of a template, for other templates.

    One that gives text, and fails, gives the reason in that text's place, so that nothing beside it is lost.
    """

    def __init__(self, source: ModuleType | Template) -> None:
        self._source = source

    def __getattr__(self, name: str) -> object:
        is_macro = not isinstance(self._source, ModuleType)
        found = getattr(self._source.module if is_macro else self._source, name)
        if not is_macro and getattr(found, "__annotations__", {}).get("return") not in ("Markdown", "str"):
            return found

        def guarded(*arguments: object, **named: object) -> object:
            try:
                given = found(*arguments, **named)
            except Exception as error:
                return not_computed(error)
            return Markdown(given.strip()) if is_macro else given

        return guarded


def _safely(function: Callable[..., object], *arguments: object) -> object:
    """The function's values for a template, or one line that says why they can't be computed."""
    try:
        return function(*arguments)
    except Exception as error:
        return (not_computed(error),)


@cache
def _templates() -> Environment:
    """The templates, in which every expression that is not `Markdown` is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("steph.tell"),
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - the output is Markdown: `finalize` escapes every expression for it
    )
    words = ("cell", "code", "details", "facts", "fence", "inline", "joined", "picture", "prose", "said", "Markdown")
    modules = {
        **{"attempts": attempts, "decision": advice, "drawings": drawings, "memory": memory, "units": units},
        "wording": wording,
    }
    macros = {"blocks": "stage_blocks", "machine_blocks": "machine_blocks", "advice_blocks": "advice_blocks"}
    environment.globals.update(
        {
            **{name: getattr(markdown, name) for name in words},
            **{name: _Guarded(module) for name, module in modules.items()},
            **{name: _Guarded(environment.get_template(f"{file}.md.j2")) for name, file in macros.items()},
            **{"t": text, "say": say, "phrase": phrase, "safely": _safely, "in_flight": in_flight},
            **{"StageId": StageId, "ExtendedId": ExtendedId, "MISSING": MISSING},
        }
    )
    return environment


def history_rows(record: Record, history: Sequence[Record], old_rows: Sequence[str]) -> Markdown:
    """The run history, newest first: every session of this kind of record, and rows that only the old file has."""
    known = {item.id: item for item in (*history, record) if item.context.kind is record.context.kind}
    rows = {_row_key(line): line for item in known.values() for line in _rows_of(item)}
    kept = {_row_key(line): line for line in old_rows if _row_key(line) not in rows}
    ordered = [line for _, line in sorted({**kept, **rows}.items(), reverse=True)]
    newest, older = ordered[:MOST_OPEN_ROWS], ordered[MOST_OPEN_ROWS:]
    return joined(
        (_table_of(newest), details(said("report.history.older", runs=len(older)), _table_of(older)) if older else "")
    )


def _table_of(lines: Sequence[str]) -> Markdown:
    names = ("started", "record", "stages.verdict", "stages.time", "history.exit", "history.command")
    header = [text(f"report.{name}") for name in names]
    return Markdown("\n".join([table(header, (), align="lllrrl"), *lines]))


def kept_rows(existing: bytes) -> tuple[str, ...]:
    """The history rows of a report on disk as they stand there, whatever language it was written in."""
    headers = tuple(f"| {text('report.started', language)} |" for language in LANGUAGES)
    return tuple(
        line.rstrip()
        for block in keep.blocks_in(existing)
        if block.id == HISTORY
        for line in block.text.split("\n")
        if _ROW.match(line.rstrip()) and not line.startswith(headers)
    )


def _row_key(line: str) -> tuple[str, str]:
    match = _ROW.match(line)
    return (match["start"].strip(), match["record"].strip()) if match else (line, "")


def _rows_of(record: Record) -> Iterator[str]:
    for session in record.sessions:
        verdicts = "<br>".join(f"{stage} {session.verdicts[stage].value}" for stage in sorted(session.verdicts))
        cells = (
            units.moment_to_second(session.started_at),
            code(record.id),
            Markdown(verdicts) or text("report.running" if record.live else "report.history.lost"),
            units.clock(wording.seconds_between(session.started_at, session.ended_at)),
            "" if session.exit_status is None else str(session.exit_status),
            code(" ".join(session.command)) if session.command else "",
        )
        yield table(("",) * len(cells), [cells]).split("\n")[-1]


def write_report(
    record: Record,
    history: Sequence[Record],
    path: Path,
    *,
    samples: Sequence[VramSample] = (),
    with_figures: bool = True,
    outlook: Outlook | None = None,
) -> Path:
    """Write or renew the report and its pictures, keeping what people wrote; give the file's real path.

    Drawing takes a second or two: `with_figures` False leaves the pictures for a later call. Raises OSError where the
    file can't be read or replaced.
    """
    target = path.resolve()
    figures = write_figures(record, samples, target.parent / "figures") if with_figures else {}
    relative = {name: os.path.relpath(file, target.parent) for name, file in figures.items()}

    def renewed(existing: bytes | None) -> bytes:
        rows = kept_rows(existing or b"")
        return keep.merge(existing, parts(record, history, figures=relative, old_rows=rows, outlook=outlook))

    return keep.renew(target, renewed)


def write_page(
    record: Record,
    history: Sequence[Record],
    path: Path,
    *,
    markdown: Path,
    samples: Sequence[VramSample] = (),
    outlook: Outlook | None = None,
) -> Path:
    """Write the report as one page of HTML, with what people wrote into `markdown`; its path. Raises OSError."""
    from steph.tell.page import GENERATOR, as_page  # with markdown_it, which a session's own report has no use for

    drawn = draw(record, samples)
    existing = markdown.read_bytes() if markdown.exists() else None
    made = parts(
        record,
        history,
        figures={name: name for name in drawn},
        old_rows=kept_rows(existing or b""),
        outlook=outlook,
    )
    whole = keep.merge(existing, made).decode("utf-8", "replace").replace("\r\n", "\n")
    titles = {text(f"report.notes.{name}", one) for name in SECTIONS for one in LANGUAGES}
    empty = rf"^#### (?:{'|'.join(map(re.escape, sorted(titles)))})\n+(?=<!-- steph:begin |\Z)"
    whole = re.sub(empty, "", whole, flags=re.M)  # notes that nobody wrote
    shown = as_page(f"{text('report.summary.title')} {record.id}", whole, drawn).encode("utf-8", "replace")

    def replaced(before: bytes | None) -> bytes:
        if before is not None and GENERATOR.encode() not in before:
            raise FileExistsError(say("report.no_page", path=path))
        return shown

    return keep.renew(path, replaced)
