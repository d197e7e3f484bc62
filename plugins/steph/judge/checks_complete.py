"""Checks that a training did the steps that were due, as the Trainer itself counted them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.record.settings import TrainSettings
from steph.record.values import Check

LEAST_SHARE = 0.7  # of the steps that the file's rows make: a validation split, and some rows that are too long
EPOCH_SLACK = 0.02
# a pattern that begins with its own letters is looked for fast, in megabytes of log
_PACKING = re.compile(r"[Pp]ack(?:ing|ed)\b(?!['\"]?\s{0,9}(?:[=:]|is)?\s{0,9}(?i:false|off|no|none|0|disabled)\b)")
_NOT_PACKING = re.compile(r"(?:[a-z]|\b(?:no|not|without) )$", re.I)

STEPS_COMPLETE = CheckKind("steps_complete", "H-2", FAIL, core=True)


@dataclass(frozen=True)
class StepsEvidence:
    """Steps done, due by the rows of the file, and counted by the Trainer (`max_steps`); None where unknown."""

    done: int | None
    due: int | None
    counted: int | None
    epochs: float | None
    settings: TrainSettings
    says_packing: bool = False


def says_packing(output: str) -> bool:
    """Whether the program says that it packs several rows into one."""
    return any(not _NOT_PACKING.search(output[max(0, m.start() - 10) : m.start()]) for m in _PACKING.finditer(output))


def steps_check(evidence: StepsEvidence) -> Check:
    """All steps of the file's rows, or all that the Trainer counted over the rows that it was left with."""
    done, due, counted = evidence.done, evidence.due, evidence.counted
    if done is None or due is None:
        return STEPS_COMPLETE.check(None, "unknown", done=done, due=due)
    if done == counted and done < due and _lacks_a_step(evidence):
        epochs, asked = evidence.epochs, evidence.settings.num_epochs
        return STEPS_COMPLETE.check(False, "short_epoch", severity=WARN, done=done, due=due, epochs=epochs, asked=asked)
    if done == due or done != counted or done > due or not _is_through(evidence):
        return STEPS_COMPLETE.check(done == due, "counted", done=done, due=due)
    share, epochs = done / due, evidence.epochs
    if share >= LEAST_SHARE or evidence.says_packing:
        return STEPS_COMPLETE.check(True, "fewer_rows", done=done, due=due, epochs=epochs)
    return STEPS_COMPLETE.check(False, "few_rows", severity=WARN, done=done, due=due, epochs=epochs, share=share)


def _is_through(evidence: StepsEvidence) -> bool:
    """Whether the asked epochs are done, over whatever rows; a cap of steps ends them earlier, and is due as it is."""
    return evidence.epochs is not None and evidence.epochs >= evidence.settings.num_epochs - EPOCH_SLACK


def _lacks_a_step(evidence: StepsEvidence) -> bool:
    """Whether packed rows ended less than one step before the asked epochs: the rest did not fill a step."""
    if not (evidence.says_packing and evidence.epochs and evidence.done) or _is_through(evidence):
        return False
    return evidence.epochs * (1 + 1 / evidence.done) >= evidence.settings.num_epochs - EPOCH_SLACK
