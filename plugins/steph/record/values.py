"""What a record holds: values of checks, attempts, stages and sessions.

Frozen pydantic models; nothing here reads a file, starts a process or knows pytest. Times are ISO 8601 in UTC, sizes
are bytes, durations are seconds; paths are strings as a person would paste them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from steph.base.messages import NOTHING, Message, Value
from steph.base.terms import (
    AnyStage,
    Cause,
    EndedBy,
    ExtendedId,
    FitVerdict,
    Phase,
    Purpose,
    Severity,
    StageId,
    Verdict,
)
from steph.base.units import highest
from steph.record.settings import Context, DataFile, EvalSettings, TrainSettings

RECORD_VERSION = 2  # 1: release 0.1.0, whose journals are read as well


class Check(Value):
    """One verified fact about a stage's output; `holds` is None where it could not be measured, or does not apply."""

    id: str
    severity: Severity
    holds: bool | None
    message: Message  # what was found, with the measured values
    trap: int | None = None  # number in the published pipeline's list of traps
    applies: bool = True  # False: the description rules it out, `message` says why


class OomNumbers(Value):
    """The figures of an out-of-memory message, each None where the message has none."""

    requested_bytes: int | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


class Diagnosis(Value):
    """Why an attempt ended as it did, with the lines that say so, what that means and what to do next."""

    cause: Cause
    case: str | None = None  # the form of the cause, where its fix is known
    confidence: Literal["certain", "likely", "guess"] | None = None
    phase: Phase | None = None
    rank: int | None = None  # the process that failed, where several ran
    evidence: tuple[str, ...] = ()
    oom: OomNumbers | None = None
    meaning: Message | None = None
    advice: tuple[Message, ...] = ()


class Probe(Value):
    """The facts that one process with torch wrote at its exit."""

    pid: int
    rank: int | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    device_uuid: str | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    allocator_retries: int | None = None
    memory_fraction: float | None = None
    peak_rss_bytes: int | None = None
    exception_type: str | None = None
    exception_message: str | None = None


class PredictedPeak(Value):
    """A predicted peak of a whole process, the interval that it lies in, and whether a card has room for it.

    `verdict` is None where no card was asked about. What was measured has no interval.
    """

    peak_bytes: int
    low_bytes: int
    high_bytes: int
    verdict: FitVerdict | None = None

    @property
    def is_measured(self) -> bool:
        """Whether it is a measurement that took a prediction's place."""
        return self.low_bytes == self.peak_bytes == self.high_bytes

    def widened(self, share: float) -> PredictedPeak:
        """The same peak in an interval wider by this share on each side."""
        low, high = round(self.low_bytes * (1 - share)), round(self.high_bytes * (1 + share))
        return self.changed(low_bytes=low, high_bytes=high)

    def moved(self, by_bytes: int, more_above_bytes: int = 0) -> PredictedPeak:
        """Peak and interval so much higher, and its upper end higher still by `more_above_bytes`."""
        low, high = max(0, self.low_bytes + by_bytes), self.high_bytes + by_bytes + more_above_bytes
        return self.changed(peak_bytes=self.peak_bytes + by_bytes, low_bytes=low, high_bytes=high)

    def reaching(self, others: Iterable[PredictedPeak]) -> PredictedPeak:
        """The same peak in the smallest interval that holds all of theirs and its own."""
        every = (self, *others)
        return self.changed(
            low_bytes=min(one.low_bytes for one in every), high_bytes=max(one.high_bytes for one in every)
        )


def _with_prediction(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a value of version 1, which had a prediction's figures and verdict side by side, as they are now."""
    peak, low, high = (fields.get(f"predicted_{name}_bytes") for name in ("peak", "low", "high"))
    kept = {
        name: value for name, value in fields.items() if not re.fullmatch("predicted_(?:peak|low|high)_bytes", name)
    }
    verdict = kept.pop("verdict", None)
    if peak is not None:
        bounds = {"low_bytes": peak if low is None else low, "high_bytes": peak if high is None else high}
        kept["predicted"] = {"peak_bytes": peak, **bounds, "verdict": verdict}
    return kept


class RejectedCandidate(Value):
    """A model candidate that was passed over, and why."""

    name: str
    cause: Cause
    message: Message


class ModelChoice(Value):
    """The model under test; `name` is what the pipeline gets as its model name (an id on the Hub or a folder)."""

    name: str
    source: Literal["hub", "cache", "local", "twin"]
    reason: Message  # why this one was chosen
    automatic_substitute: bool = False
    parameters: int | None = None
    revision: str | None = None
    licence: str | None = None
    download_bytes: int | None = None
    free_disk_bytes: int | None = None
    snapshot_path: str | None = None
    rejected: tuple[RejectedCandidate, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _of_older_records(cls, fields: object) -> object:
        """Without a predicted peak, which nothing read: the candidate of this name has it with its interval."""
        if not isinstance(fields, Mapping):
            return fields
        return {name: value for name, value in fields.items() if name != "predicted_peak_bytes"}


class Candidate(Value):
    """A model that H-1 could choose, with the predicted peak of training it at the profile's settings on this card.

    Without a prediction `unpredicted_reason` says why.
    """

    name: str
    outcome: Literal["chosen", "rejected", "not_tried"]
    parameters: int | None = None
    settings: str = ""  # as in `512/b2/4bit`
    predicted: PredictedPeak | None = None
    unpredicted_reason: Message = NOTHING

    @model_validator(mode="before")
    @classmethod
    def _of_version_1(cls, fields: object) -> object:
        return _with_prediction(fields) if isinstance(fields, Mapping) else fields


class Artifact(Value):
    """A file that an attempt wrote: path as the pipeline names it, size and sha256."""

    path: str
    size_bytes: int
    sha256: str


class TrainOutcome(Value):
    """The figures of a training attempt, read from its files and lines."""

    output_dir: str
    steps_done: int | None = None
    steps_due: int | None = None
    epochs_done: float | None = None
    train_loss: float | None = None
    train_runtime_seconds: float | None = None
    losses: tuple[float, ...] = ()
    step_seconds: tuple[float, ...] = ()
    tokens_per_second: float | None = None
    train_rows: int | None = None
    weight_bits: Literal[4, 8, 16, 32] | None = None  # of the base's linear layers as seen; from 16 on not quantised
    adapter_sha256: str | None = None
    adapter_dir: str | None = None  # where it is not the output folder itself
    checkpoint: str | None = None

    @property
    def adapter_folder(self) -> str:
        """The folder of the adapter's two files, from the pipeline root."""
        return self.adapter_dir or self.output_dir


class AnswerComparison(Value):
    """The same questions asked twice, without and with the adapter; the counts say what the adapter changed."""

    questions: int
    same_responses: int  # to the letter
    changed_answers: int
    right_to_wrong: int
    wrong_to_right: int


class EvalOutcome(Value):
    """The figures that an evaluation attempt printed and wrote."""

    output_path: str
    total: int | None = None
    correct: int | None = None
    accuracy: float | None = None  # 0 to 1
    score: float | None = None  # as the results give it, of `metric`; of a format that has no accuracy
    metric: str | None = None
    backend: str | None = None
    model_name: str | None = None
    lora_path: str | None = None
    key_lines: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    questions: int | None = None  # of the whole data set, as the results or the file that has these questions say
    answering_seconds: float | None = None  # of all questions together, without loading; None: not recorded
    with_adapter: AnswerComparison | None = None  # of an evaluation without one: what H-3's adapter changes


class DevicePeak(Value):
    """One card's highest used memory over an attempt, of all processes and of the attempt's own.

    `peak_own_bytes` is without `used_before_bytes`, what was used before the attempt, and without what other programs
    took meanwhile, as far as the driver shows that. Records of version 1 do not name the card where it is the only one.
    """

    uuid: str | None
    peak_device_bytes: int | None = None
    peak_own_bytes: int | None = None
    used_before_bytes: int | None = None


class ProductionCall(Value):
    """A command of the production run, as H-4 gives it to paste: from the pipeline root on another machine.

    `config`: the text of the file of settings `config_file`. `to_edit`: settings that the program has inside and that
    the production run changes, as `name = value`. `said`: the option, variable or key by which the program is told each
    setting, empty where it has the value inside; no other setting can be advised on. None in older records.
    """

    commands: tuple[tuple[str, ...], ...]
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str = "."
    config_file: str | None = None
    config: str | None = None
    to_edit: tuple[str, ...] = ()
    said: dict[str, str] | None = None


class Attempt(Value):
    """One child process of a stage at one setting, complete; verdicts stand on those of purpose `stage` alone."""

    stage: AnyStage
    number: int
    label: Message  # what tells it from the stage's other attempts: its settings, or what it was for
    purpose: Purpose = Purpose.STAGE
    model_name: str | None = None  # as the pipeline was given it
    settings: TrainSettings | EvalSettings | None = None
    argv: tuple[str, ...] = ()
    before: tuple[tuple[str, ...], ...] = ()  # commands that ran before it in the same attempt
    after: tuple[tuple[str, ...], ...] = ()
    env: dict[str, str] = Field(default_factory=dict)  # what the description sets for them
    cwd: str = ""
    folder: str = ""
    started_at: str
    seconds: float | None = None
    returncode: int | None = None  # negative: the signal that ended it
    ended_by: EndedBy | None = None
    diagnosis: Diagnosis | None = None
    traceback: str | None = None
    last_lines: tuple[str, ...] = ()
    probes: tuple[Probe, ...] = ()
    device_peaks: tuple[DevicePeak, ...] = ()
    memory_returned: bool | None = None
    limit_seconds: float | None = None  # after which it is ended; None: an older record
    predicted: PredictedPeak | None = None
    longest_row_tokens: int | None = None  # of the rows that it may train on, not cut, with the template; None: unknown
    mean_row_tokens: float | None = None  # of the same
    longest_answer_tokens: int | None = None  # of the same; with the tokens that close it
    checks: tuple[Check, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    training: TrainOutcome | None = None
    evaluation: EvalOutcome | None = None
    production: ProductionCall | None = None  # what it is in the production run; None in older records

    @model_validator(mode="before")
    @classmethod
    def _of_version_1(cls, fields: object) -> object:
        if not isinstance(fields, Mapping):
            return fields
        kept = _with_prediction(fields)
        peaks = {name: kept.pop(name, None) for name in ("peak_device_bytes", "peak_own_bytes")}
        if not kept.get("device_peaks") and peaks["peak_device_bytes"] is not None:
            kept["device_peaks"] = ({"uuid": None, **peaks},)
        return kept

    @property
    def peak_device_bytes(self) -> int | None:
        """Used memory of the fullest card, of all processes."""
        return highest(peak.peak_device_bytes for peak in self.device_peaks)

    @property
    def peak_own_bytes(self) -> int | None:
        """The most that any card's use rose above what it was before."""
        return highest(peak.peak_own_bytes for peak in self.device_peaks)

    @property
    def ended_well(self) -> bool:
        """Whether it ended by itself with exit status 0 and no cause of failure in its log; its checks say the rest."""
        is_clean = self.diagnosis is not None and self.diagnosis.cause is Cause.NONE
        return self.ended_by is EndedBy.EXIT and self.returncode == 0 and is_clean

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether the card's memory was what it failed by."""
        return self.diagnosis is not None and self.diagnosis.cause is Cause.CUDA_OOM


class SkippedRung(Value):
    """A rung that was not tried, and why."""

    label: Message
    reason: Message


class StageResult(Value):
    """One stage's outcome; `attempts[-1]` is the one that counts."""

    stage: AnyStage
    verdict: Verdict
    explanation: Message
    started_at: str
    ended_at: str | None = None
    seconds: float | None = None
    attempts: tuple[Attempt, ...] = ()
    deep_attempts: tuple[Attempt, ...] = ()  # of records of 0.1.0: what its option `--steph-deep` ran after them
    calibration_attempts: tuple[Attempt, ...] = ()  # beside them too: what `--steph-calibrate` ran at another length
    skipped_rungs: tuple[SkippedRung, ...] = ()
    given_up: tuple[Message, ...] = ()  # settings that a degraded pass gave up
    checks: tuple[Check, ...] = ()  # those of the last attempt and of the stage itself
    model: ModelChoice | None = None
    candidates: tuple[Candidate, ...] = ()
    stale: bool = False  # a stage it was built on has been replaced since
    earlier: StageResult | None = None  # what stood here before, where this one began nothing

    @property
    def held(self) -> frozenset[str]:
        """Ids of the checks that were measured and hold."""
        return frozenset(check.id for check in self.checks if check.holds)

    @property
    def unbroken(self) -> frozenset[str]:
        """Ids of the checks that were measured and hold, or whose breaking is no more than a warning."""
        return self.held | {
            check.id for check in self.checks if check.holds is False and check.severity is not Severity.FAIL
        }

    @property
    def not_applicable(self) -> frozenset[str]:
        """Ids of the checks that the description or the training rules out; never a core check's."""
        return frozenset(check.id for check in self.checks if not check.applies)

    @property
    def findings(self) -> tuple[Check, ...]:
        """Checks that do not hold, hardest first."""
        order = list(Severity)
        return tuple(sorted((c for c in self.checks if c.holds is False), key=lambda c: order.index(c.severity)))

    @property
    def last_attempt(self) -> Attempt | None:
        """The attempt whose outcome the stage stands on."""
        return self.attempts[-1] if self.attempts else None

    @property
    def newest_attempt(self) -> Attempt | None:
        """The attempt that was begun last, whatever its purpose."""
        newest = (*self.attempts[-1:], *self.deep_attempts[-1:], *self.calibration_attempts[-1:])
        return max(newest, key=lambda attempt: attempt.number, default=None)


class Session(Value):
    """One pytest run that wrote into the record."""

    started_at: str
    command: tuple[str, ...]
    stages: tuple[AnyStage, ...]
    report_name: str | None = None  # of the Markdown file beside `runs/`; None: the one of the record's kind
    ended_at: str | None = None
    exit_status: int | None = None
    verdicts: dict[AnyStage, Verdict] = Field(default_factory=dict)


class Record(Value):
    """Everything known about one acceptance or rehearsal; a pure function of the journal's events."""

    version: int = RECORD_VERSION
    id: str
    context: Context
    data: tuple[DataFile, ...] = ()
    stages: dict[StageId, StageResult] = Field(default_factory=dict)
    extended: dict[ExtendedId, StageResult] = Field(default_factory=dict)  # beside them; never part of an acceptance
    sessions: tuple[Session, ...] = ()
    live: bool = False  # a conductor still writes into it

    @property
    def results(self) -> dict[AnyStage, StageResult]:
        """Every stage that has run, the extended ones after the three."""
        return {result.stage: result for result in (*self.stages.values(), *self.extended.values())}

    @property
    def model(self) -> ModelChoice | None:
        """The model under test: the one that training went to where H-1's was too large, else H-1's."""
        chosen = (self.stages[stage].model for stage in (StageId.H2, StageId.H1) if stage in self.stages)
        return next((model for model in chosen if model is not None), None)

    def verdict_of(self, stage: AnyStage) -> Verdict:
        """The stage's verdict, NOT_RUN where the record has none."""
        result = self.results.get(stage)
        return result.verdict if result else Verdict.NOT_RUN
