"""How long the production run takes, scaled from what was measured here.

Takes a record whose H-2 and H-3 ended well, gives seconds; None where nothing was measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from steph.base.terms import StageId
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, Record, TrainOutcome
from steph.tell.production import PRODUCTION_PARAMETERS, questions_of


@dataclass(frozen=True)
class Answering:
    """An evaluation's time on one card: a question's, and that of imports and loading, 0 where it is in the former."""

    loading_seconds: float
    seconds_per_question: float

    def seconds_for(self, questions: int) -> float:
        """So many questions in one go."""
        return self.loading_seconds + self.seconds_per_question * questions


@dataclass(frozen=True)
class TimeEstimate:
    """Durations of the production run at this card's speed, scaled by the parameter count alone.

    `tokens_per_second_here`: the measured rate that training's figure comes from, None where it comes from the time a
    row took, for lack of a rate or of the rows' lengths; `tokens_per_row` is what a row of the production run has.
    """

    training_seconds: float | None
    evaluation_seconds: float | None
    tokens_per_second_here: float | None
    parameter_ratio: float
    tokens_per_row: float | None = None
    answering_here: Answering | None = None


def time_estimate(record: Record, target: TrainSettings) -> TimeEstimate | None:
    """Scale measured tokens per second and seconds per question to the production model; None on the CPU."""
    choice, h3 = record.model, record.stages[StageId.H3]
    if record.context.environment.device is None or choice is None or not choice.parameters:
        return None
    ratio = PRODUCTION_PARAMETERS / choice.parameters
    trained = record.stages[StageId.H2].last_attempt
    rate, tokens_per_row = _rate_and_row(record, trained, target)
    seconds_per_row = tokens_per_row / rate if rate and tokens_per_row else _seconds_per_row(record, trained, target)
    rows = _rows_to_train(record) * target.num_epochs
    training_seconds = None if seconds_per_row is None else seconds_per_row * rows * ratio
    answering = _answering(h3.last_attempt)
    evaluation_seconds = answering.seconds_for(questions_of(record)) * ratio if answering else None
    return TimeEstimate(training_seconds, evaluation_seconds, rate, ratio, tokens_per_row, answering)


def _answering(evaluation: Attempt | None) -> Answering | None:
    """How long the evaluation took a question; all of its time where the questions have no time of their own."""
    found = evaluation.evaluation if evaluation else None
    if not evaluation or not evaluation.seconds or not found or not found.total:
        return None
    cards = evaluation.settings.num_processes if evaluation.settings else 1
    if not found.answering_seconds:
        return Answering(0.0, cards * evaluation.seconds / found.total)
    loading_seconds = max(0.0, evaluation.seconds - found.answering_seconds / cards)
    return Answering(loading_seconds, found.answering_seconds / found.total)


def _rate_and_row(
    record: Record, trained: Attempt | None, target: TrainSettings
) -> tuple[float, float] | tuple[None, None]:
    """Give the tokens per second measured on one card, and the tokens of a production row as that rate counts them.

    Where rows are padded to the maximum the padding is counted, else the rows' own tokens; both None where the rate or
    the rows' lengths are not known.
    """
    rate = trained.training.tokens_per_second if trained and trained.training else None
    if rate and trained and trained.settings:
        rate /= trained.settings.num_processes
    pads = record.context.trainer == "full"
    tokens = target.max_seq_length if pads else trained.mean_row_tokens if trained else None
    return (rate, min(tokens, target.max_seq_length)) if rate and tokens else (None, None)


def _seconds_per_row(record: Record, trained: Attempt | None, target: TrainSettings) -> float | None:
    """Give the time that a row took here; as much longer as the row where all are padded to the maximum."""
    training, settings = (trained.training, trained.settings) if trained else (None, None)
    if not isinstance(settings, TrainSettings) or not training:
        return None
    if not training.train_runtime_seconds or not training.steps_done:
        return None
    rows_done = training.steps_done * settings.effective_batch_size
    growth = target.max_seq_length / settings.max_seq_length if record.context.trainer == "full" else 1.0
    return (
        growth
        * settings.num_processes
        * training.train_runtime_seconds
        / min(rows_done, _rows_seen(training, rows_done))
    )


def _rows_to_train(record: Record) -> int:
    """Give the training file's rows where the data are the real ones, else one for each question."""
    rows = [file.rows for file in record.data if file.role == "train_file"]
    is_real = not any(file.is_sample for file in record.data)
    return rows[0] if rows and is_real else questions_of(record)


def _rows_seen(training: TrainOutcome, rows_done: int) -> int:
    """Give the rows that training went over: no more than its epochs hold."""
    if training.train_rows and training.epochs_done:
        return max(1, round(training.train_rows * training.epochs_done))
    return rows_done
