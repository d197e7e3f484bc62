"""The report's pictures as Markdown, each with words that say what it shows.

Takes a record and the path of a picture, gives Markdown. The tables beside hold the same figures.
"""

from __future__ import annotations

from urllib.parse import quote

from steph.base import units
from steph.base.messages import phrase, say, text
from steph.base.terms import StageId
from steph.record.values import Attempt, Record
from steph.tell import summary
from steph.tell.markdown import Markdown, details, inline, said, table
from steph.tell.views import loss_words

MOST_ATTEMPTS = 8
MOST_LOSSES = 100


def picture(path: str | None, words: str) -> Markdown:
    """Give a picture with its words; empty where there is no picture."""
    if not path:
        return Markdown()
    return Markdown(f"![{inline(words)}]({quote(path, safe='/._-~')})\n\n{inline(words)}")


def loss_alternative(record: Record) -> str:
    """Say in words what the loss picture shows."""
    result = record.stages.get(StageId.H2)
    outcome = result.last_attempt.training if result and result.last_attempt else None
    count = len(outcome.losses) if outcome else 0
    return phrase("report.picture.loss", values=count, loss=loss_words(outcome))


def loss_table(record: Record) -> Markdown:
    """Give the losses of the training that counts, folded; empty where there are none or too many to read."""
    result = record.stages.get(StageId.H2)
    attempt = result.last_attempt if result else None
    losses = attempt.training.losses if attempt and attempt.training else ()
    if not 2 <= len(losses) <= MOST_LOSSES:
        return Markdown()
    every = getattr(attempt.settings, "logging_steps", 1) if attempt else 1
    rows = [(str(every * (at + 1)), f"{loss:.4g}") for at, loss in enumerate(losses)]
    header = (text("report.picture.step"), text("report.training.loss"))
    return details(said("report.picture.loss_table", values=len(losses)), table(header, rows, align="rr"))


def vram_alternative(record: Record) -> str:
    """Say in words what the memory picture shows."""
    peaks = [
        say(
            "report.picture.attempt_peak",
            stage=attempt.stage,
            number=attempt.number,
            label=attempt.label,
            peak=units.gib(attempt.peak_device_bytes),
        )
        for attempt in _drawn(record)
    ]
    limit = units.gib(summary.ceiling_bytes(record))
    return phrase("report.picture.vram", limit=limit, peaks=peaks or text("report.unmeasured"))


def _drawn(record: Record) -> list[Attempt]:
    attempts = (a for result in record.stages.values() for a in result.attempts)
    return [a for a in attempts if a.peak_device_bytes is not None and a.settings][:MOST_ATTEMPTS]
