"""Where a record was made: machine, card, packages, branches and data, as the report's tables.

Takes a record, gives Markdown.
"""

from __future__ import annotations

from steph.base import units
from steph.base.messages import phrase, say, text
from steph.record.environment import Device, GitState
from steph.record.values import Record
from steph.tell import summary
from steph.tell.markdown import Markdown, code, inline, said, table
from steph.tell.pieces import facts


def machine_words(record: Record) -> Markdown:
    """Say machine, card and data in one line."""
    machine, card = record.context.environment, record.context.environment.device
    rows = next((file for file in record.data if file.role == "dataset"), None)
    parts: list[object] = [summary.card_words(record)]
    if card:
        parts.append(say("report.machine.driver", driver=card.driver_version, cuda=card.cuda_driver_version))
    parts += [machine.os, f"Python {machine.python}"]
    if rows:
        whose = "report.machine.sample_questions" if rows.is_sample else "report.machine.real_questions"
        parts.append(say(whose, questions=rows.rows))
    return inline(say("report.machine", parts=parts))


def machine_facts(record: Record) -> Markdown:
    """Give machine, card, driver and interpreter."""
    machine, card = record.context.environment, record.context.environment.device
    cap = record.context.vram_cap_bytes
    rows = [
        ("OS", said("report.machine.wsl", os=machine.os) if machine.is_wsl else machine.os),
        (
            text("report.machine.cpu"),
            said(
                "report.machine.cpu_value",
                cpu=machine.cpu,
                threads=machine.cpu_count,
                memory=units.gib(machine.ram_bytes),
            ),
        ),
        (text("report.machine.python"), machine.python),
        (text("report.machine.pipeline"), code(record.context.pipeline_root)),
        (text("report.machine.pipeline_python"), code(record.context.pipeline_python)),
        (
            text("report.machine.profile"),
            said(
                "report.machine.profile_value",
                profile=code(record.context.profile),
                digest=code(record.context.profile_sha256[:12]),
            ),
        ),
    ]
    if card is None:
        error = machine.device_error
        none = said("report.machine.no_gpu_because", reason=error) if error else text("report.none")
        return facts([*rows, ("GPU", none)])
    memory = units.gib(card.total_bytes)
    name = say("report.machine.mig", card=card.name, memory=memory) if card.is_mig else f"{card.name} {memory}"
    capability = [f"compute capability {card.compute_capability}"] if card.compute_capability else []
    return facts(
        [
            *rows,
            ("GPU", phrase("report.listed", parts=[name, *capability])),
            ("GPU UUID", code(card.uuid)),
            *((text("report.machine.further"), _further_words(further)) for further in machine.further_devices),
            (text("report.machine.used"), units.gib(card.used_bytes)),
            (text("report.machine.cap"), units.gib(cap) if cap else ""),
            (text("report.machine.driver_name"), f"{card.driver_version} / CUDA {card.cuda_driver_version}"),
        ]
    )


def _further_words(card: Device) -> Markdown:
    return Markdown(f"{inline(card.name)} {units.gib(card.total_bytes)} {code(card.uuid)}")


def packages_table(record: Record) -> Markdown:
    """Give the package versions: those that the pipeline's processes loaded, and the suite's."""
    loaded: dict[str, str] = {}
    for result in record.stages.values():
        for attempt in result.attempts:
            for probe in attempt.probes:
                loaded |= {_normal(name): version for name, version in probe.packages.items()}
    own = {_normal(name): version for name, version in record.context.environment.packages.items()}
    rows = [(code(name), loaded.get(name, ""), own.get(name, "")) for name in sorted(loaded.keys() | own.keys())]
    if not rows:
        return said("report.packages.none")
    return table((text("report.packages.package"), text("report.packages.loaded"), text("report.packages.suite")), rows)


def _normal(name: str) -> str:
    """A package's name as both pip and import lists can be held against each other (PEP 503)."""
    return name.lower().replace("_", "-")


def git_table(record: Record) -> Markdown:
    """Give branch, commit and cleanliness of suite and pipeline."""
    states = (
        (text("report.git.pipeline"), record.context.pipeline_git),
        (text("report.git.suite"), record.context.suite_git),
    )
    rows = [(name, code(s.branch or ""), code((s.commit or "")[:12]), _dirty(s)) for name, s in states]
    header = (
        text("report.git.what"),
        text("report.git.branch"),
        text("report.git.commit"),
        text("report.git.changes"),
    )
    return table(header, rows)


def _dirty(state: GitState) -> str:
    if state.dirty is None:
        return text("report.git.no_git" if state.commit is None else "report.git.unknown")
    return text("report.git.dirty" if state.dirty else "report.git.clean")


def data_table(record: Record) -> Markdown:
    """Give the data files with rows, sha256 and whether they are the bundled sample."""
    rows: list[tuple[str, str]] = []
    for file in record.data:
        whose = "report.data.sample_rows" if file.is_sample else "report.data.real_rows"
        role = text(f"report.data.{file.role}")
        rows.append((role, said(whose, path=code(file.path), rows=file.rows)))
        rows.append((said("report.data.sha256", role=role), code(file.sha256)))
    return facts(rows) if rows else said("report.data.none")
