"""The closed lists that every room speaks in: stages, kinds, causes, phases, severities, verdicts. Values only."""

from __future__ import annotations

from enum import StrEnum


class StageId(StrEnum):
    """The three stages that run something; H-4 is computed from them."""

    H1 = "H-1"
    H2 = "H-2"
    H3 = "H-3"


class ExtendedId(StrEnum):
    """Stages beyond the spec's three, run only where asked for; no acceptance stands on them."""

    COT_TRAINING = "H-2cot"
    COT = "H-3cot"
    RAG = "H-3rag"
    BASE = "H-3base"
    ONE_STEP = "H-2step"
    HEART = "H-3heart"


AnyStage = StageId | ExtendedId

# What a stage is built on: it runs only where all of these are green, and is stale where one of them was replaced.
NEEDS: dict[AnyStage, tuple[AnyStage, ...]] = {
    StageId.H1: (),
    StageId.H2: (StageId.H1,),
    StageId.H3: (StageId.H1, StageId.H2),
    ExtendedId.COT_TRAINING: (StageId.H1, StageId.H2),
    ExtendedId.COT: (StageId.H1, StageId.H2, ExtendedId.COT_TRAINING),
    ExtendedId.RAG: (StageId.H1, StageId.H2, StageId.H3),
    ExtendedId.BASE: (StageId.H1, StageId.H2, StageId.H3),
    ExtendedId.ONE_STEP: (StageId.H1, StageId.H2),
    ExtendedId.HEART: (StageId.H1, StageId.H2, StageId.H3),
}


class RecordKind(StrEnum):
    """The kind of a record; a rehearsal never counts as an acceptance."""

    ACCEPTANCE = "acceptance"
    REHEARSAL = "rehearsal"


class Cause(StrEnum):
    """Why an attempt failed: a closed list."""

    CUDA_OOM = "cuda_oom"
    HOST_OOM = "host_oom"
    BNB_SETUP = "bnb_setup"
    IMPORT_ERROR = "import_error"
    API_DRIFT = "api_drift"
    BAD_DATA = "bad_data"
    HUB_UNREACHABLE = "hub_unreachable"
    HUB_GATED = "hub_gated"
    HUB_NOT_FOUND = "hub_not_found"
    DISK_FULL = "disk_full"
    NAN_LOSS = "nan_loss"
    CUDA_ASSERT = "cuda_assert"
    CUDA_DRIVER = "cuda_driver"
    TIMEOUT = "timeout"
    OTHER = "other"
    NONE = "none"


class Phase(StrEnum):
    """How far a pipeline script had come."""

    LOAD = "load"
    PREPARE = "prepare"
    FIRST_STEP = "first_step"
    STEP = "step"
    SAVE = "save"
    EVAL = "eval"


class Severity(StrEnum):
    """The weight of a check that does not hold: FAIL can't be green, WARN is shown first, INFO is kept."""

    FAIL = "fail"
    WARN = "warn"
    INFO = "info"


class Purpose(StrEnum):
    """The purpose of an attempt; a stage's verdict stands on those of `STAGE` alone."""

    STAGE = "stage"
    CALIBRATE = "calibrate"  # another length, for the memory model's constants
    DEEP = "deep"  # in records of 0.1.0 alone: its option `--steph-deep`


class TrainerName(StrEnum):
    """How a pipeline's trainer uses memory: the rows of `steph.memory.terms.TRAINERS`, or that nobody named one."""

    FULL = "full"
    ANSWER = "answer"
    REFERENCE = "reference"
    TRL = "trl"
    LIGER = "liger"
    UNSLOTH = "unsloth"
    UNKNOWN = "unknown"  # asked of `steph fit`: whichever it is
    UNDESCRIBED = "undescribed"  # of a record: its steph.toml names none


NAMED_TRAINERS = tuple(name for name in TrainerName if name not in (TrainerName.UNKNOWN, TrainerName.UNDESCRIBED))


class FitVerdict(StrEnum):
    """Whether a predicted peak has room: FITS only where the upper end of its interval does.

    UNKNOWN: nothing that was measured says anything; `steph fit` alone answers so.
    """

    FITS = "fits"
    TOO_CLOSE = "too_close"
    DOES_NOT_FIT = "does_not_fit"
    UNKNOWN = "unknown"


class Verdict(StrEnum):
    """The outcome of a stage: only PASS and PASS_DEGRADED are green.

    NOT_RUN: nothing was measured; it never counts as passed.
    """

    PASS = "PASS"
    PASS_DEGRADED = "PASS_DEGRADED"
    FAIL = "FAIL"
    TIMEOUT = "TIMEOUT"
    CRASHED = "CRASHED"
    BLOCKED = "BLOCKED"
    NOT_RUN = "NOT_RUN"

    @property
    def is_green(self) -> bool:
        """Whether a test of this stage may pass."""
        return self in (Verdict.PASS, Verdict.PASS_DEGRADED)


class EndedBy(StrEnum):
    """The cause of the end of an attempt's process."""

    EXIT = "exit"  # the child exited or was killed by a signal that is not ours
    DEADLINE = "deadline"  # the suite ended it at its limit
    INTERRUPTED = "interrupted"  # Ctrl-C or a signal to pytest
    SUPERVISOR_LOST = "supervisor_lost"  # the supervisor died before its child
    SUITE_ERROR = "suite_error"  # the suite could not start it, or not watch it any longer
