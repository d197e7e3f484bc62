"""What single sections of the report show: the stage table, the model, training and evaluation facts.

Takes a record, gives Markdown rows and tables; the words around them are in `templates/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from steph.base import units
from steph.base.messages import Message, phrase, say, text
from steph.base.terms import AnyStage, ExtendedId, RecordKind, StageId
from steph.base.units import MISSING
from steph.judge import verdict
from steph.record.values import Attempt, EvalOutcome, ModelChoice, Record, StageResult, TrainOutcome
from steph.tell import summary, wording
from steph.tell.commands import pasteable
from steph.tell.markdown import Markdown, code, fence, inline, joined, prose, said, table
from steph.tell.pieces import facts, measured


def about(record: Record) -> Markdown:
    """Say in one line what the verdict is about: card, model and profile."""
    choice = record.model
    model = said("report.about.undecided")
    if choice:
        name = code(short_name(choice.name))
        model = said("report.about.model", model=name, size=wording.size_class(choice.parameters))
    return said("report.about", card=summary.card_words(record), model=model, profile=code(record.context.profile))


def started(record: Record) -> str:
    """Say when the record's first session began, in UTC and in local time."""
    return units.moment_here(record.sessions[0].started_at) if record.sessions else MISSING


def short_name(model: str) -> str:
    """Give a model's id on the Hub as it is, and of a folder the last part alone."""
    return model.rstrip("/").rpartition("/")[2] if model.startswith(("/", "~", ".")) else model


def stage_table(record: Record) -> Markdown:
    """Give the first screen's table of the three stages, and of the extended ones that have run."""
    extended = [stage for stage in ExtendedId if stage in record.extended]
    rows = [_stage_row(record, stage) for stage in (*StageId, *extended)]
    header = (
        text("report.stages.stage"),
        text("report.stages.verdict"),
        text("report.stages.time"),
        text("report.stages.peak"),
        text("report.stages.attempts"),
        text("report.started"),
    )
    return table(header, rows, align="llrrrl")


def _stage_row(record: Record, stage: AnyStage) -> Sequence[str]:
    result = record.results.get(stage)
    title = wording.stage_title(stage)
    name = f"{stage} {title}"
    if isinstance(stage, ExtendedId):
        name = phrase("report.stages.extended", stage=stage, title=title)
    if result is None:
        return name, summary.stage_word(record, stage), "", "", "0", ""
    peak = measured(summary.peak_bytes(result), record) if result.attempts else MISSING
    attempts = str(len(result.attempts)) if result.attempts or stage is not StageId.H1 else MISSING
    seconds = units.duration(result.seconds)
    return name, summary.stage_word(record, stage), seconds, peak, attempts, units.moment(result.started_at)


def model_facts(choice: ModelChoice) -> Markdown:
    """Give what H-1 records of the chosen model."""
    disk = f"{units.gib(choice.download_bytes)} / {units.gib(choice.free_disk_bytes)}"
    return facts(
        [
            (text("report.model.name"), code(choice.name)),
            (text("report.model.parameters"), wording.parameters(choice.parameters)),
            (
                text("report.model.substitute"),
                code(choice.name) if choice.automatic_substitute else text("report.none"),
            ),
            (text("report.model.why"), prose(choice.reason)),
            (text("report.model.source"), wording.source_word(choice.source)),
            (text("report.model.revision"), code(choice.revision or "")),
            (text("report.model.licence"), choice.licence or text("report.not_recorded")),
            (text("report.model.disk"), disk),
            (text("report.model.folder"), code(choice.snapshot_path or "")),
        ]
    )


def rejected_table(choice: ModelChoice) -> Markdown:
    """Give the candidates that were passed over; empty where there are none."""
    if not choice.rejected:
        return Markdown()
    rows = [(code(r.name), wording.cause_name(r.cause), inline(r.message)) for r in choice.rejected]
    return table((text("report.rejected.model"), text("report.rejected.cause"), text("report.rejected.message")), rows)


def training_facts(record: Record, attempt: Attempt | None) -> Markdown:
    """Give what the spec asks to be recorded of the training run."""
    if attempt is None:
        return Markdown()
    outcome = attempt.training
    rows = [
        (text("report.training.completed"), _completion(record, attempt)),
        (text("report.training.time"), _time_words(record.results[attempt.stage], attempt)),
        (text("report.training.peak"),
         f"{measured(attempt.peak_device_bytes, record)} / {measured(attempt.peak_own_bytes, record)}"),
        (text("report.training.capacity"), units.gib(summary.capacity_bytes(record))),
    ]  # fmt: skip
    return facts(
        rows + (_training_rows(outcome) if outcome else []) + [(text("report.logs"), log_folder(record, attempt))]
    )


def _time_words(result: StageResult, attempt: Attempt) -> str:
    last = units.duration(attempt.seconds)
    if result.seconds is None:
        return phrase("report.time.last", attempt=last)
    return phrase("report.time.last_and_stage", attempt=last, stage=units.duration(result.seconds))


def _completion(record: Record, attempt: Attempt) -> str:
    stage = attempt.stage
    if verdict.in_flight(record, stage):
        return text("report.running")
    if attempt.ended_well and not record.verdict_of(stage).is_green:
        return phrase("report.completion.but_verdict", verdict=record.verdict_of(stage).value)
    return wording.outcome_words(attempt)


def _training_rows(outcome: TrainOutcome) -> list[tuple[str, str]]:
    steps = f"{_or_missing(outcome.steps_done)} / {_or_missing(outcome.steps_due)}"
    epochs = f"{outcome.epochs_done:g}" if outcome.epochs_done is not None else MISSING
    rate = (
        f"{outcome.tokens_per_second:,.0f} tokens/s"
        if outcome.tokens_per_second is not None
        else text("report.unmeasured")
    )
    return [
        (text("report.training.steps"), steps),
        (text("report.training.epochs"), epochs),
        (text("report.training.rows"), _or_missing(outcome.train_rows)),
        (text("report.training.loss"), loss_words(outcome)),
        (text("report.training.speed"), rate),
        (text("report.training.runtime"), units.duration(outcome.train_runtime_seconds)),
        (text("report.training.folder"), code(outcome.output_dir)),
        (text("report.training.sha256"), code(outcome.adapter_sha256 or "")),
        (text("report.training.checkpoint"), code(_inside(outcome.output_dir, outcome.checkpoint))),
    ]


def _inside(folder: str, name: str | None) -> str:
    return "" if name is None else name if "/" in name else f"{folder.rstrip('/')}/{name}"


def log_folder(record: Record, attempt: Attempt) -> Markdown:
    """Give an attempt's folder, below the folder of runs where the record has its name alone."""
    return code(_inside(f"runs/{record.id}", attempt.folder) if attempt.folder else "")


def loss_words(outcome: TrainOutcome | None) -> str:
    """Say the loss: first and last logged value, and the Trainer's mean."""
    if outcome is None or (not outcome.losses and outcome.train_loss is None):
        return text("report.nothing_recorded")
    losses, mean = outcome.losses, outcome.train_loss
    parts = [say("report.loss.course", first=losses[0], last=losses[-1])] if losses else []
    if mean is not None:
        parts.append(say("report.loss.mean", mean=mean))
    return phrase("report.listed", parts=parts)


def _or_missing(count: int | None) -> str:
    return MISSING if count is None else f"{count:,}"


def evaluation_facts(record: Record, attempt: Attempt | None) -> Markdown:
    """Give what the spec asks to be recorded of the evaluation run."""
    if attempt is None:
        return Markdown()
    outcome = attempt.evaluation
    rows = [
        (text("report.evaluation.completed"), _completion(record, attempt)),
        (text("report.evaluation.time"), units.duration(attempt.seconds)),
        (text("report.evaluation.peak"), measured(attempt.peak_device_bytes, record)),
    ]
    return facts(
        rows + (_evaluation_rows(outcome) if outcome else []) + [(text("report.logs"), log_folder(record, attempt))]
    )


def _evaluation_rows(outcome: EvalOutcome) -> list[tuple[str, str]]:
    return [
        (text("report.evaluation.accuracy"), Markdown(f"**{inline(wording.score_words(outcome))}**")),
        ("backend", code(outcome.backend or "")),
        ("model_name", code(outcome.model_name or "")),
        ("lora_path", code(outcome.lora_path or "")),
        (text("report.evaluation.json"), code(outcome.output_path)),
        (text("report.evaluation.answers"), code(" ".join(outcome.answers[:40])) if outcome.answers else ""),
    ]


def key_lines(attempt: Attempt | None) -> Markdown:
    """Give the lines of the evaluation's log that the spec asks for; empty where there are none."""
    lines = attempt.evaluation.key_lines if attempt and attempt.evaluation else ()
    return joined((said("report.evaluation.key_lines"), fence("\n".join(lines)))) if lines else Markdown()


def reasons(items: Iterable[Message]) -> Markdown:
    """Give reasons as a list."""
    return Markdown("\n".join(f"- {prose(item)}" for item in items))


def listed(items: Iterable[Message]) -> Markdown:
    """Give reasons in one line, or that there are none on record."""
    return joined((prose(item) for item in items), text("list.separator")) or said("report.nothing_recorded")


def kind_is_rehearsal(record: Record) -> bool:
    """Whether the record is a rehearsal."""
    return record.context.kind is RecordKind.REHEARSAL


def shell(argv: Sequence[str]) -> Markdown:
    """Give a command to paste."""
    return fence(pasteable(argv), "bash")
