"""The table of all checks, collected from the modules in which each row stands beside its check."""

from __future__ import annotations

from steph.judge import (
    checks_adapter,
    checks_answers,
    checks_evaluation,
    checks_extended,
    checks_figures,
    checks_process,
    checks_progress,
    checks_prompts,
    checks_results,
    checks_row_answers,
    checks_rows,
    checks_seen,
    checks_text,
    checks_training,
    checks_witness,
)
from steph.judge.kinds import CheckKind

_OF_BOTH = (checks_process, checks_seen)
_OF_TRAINING = (
    *(checks_training, checks_adapter, checks_progress, checks_figures),
    *(checks_witness, checks_rows, checks_row_answers),
)
_OF_EVALUATION = (checks_answers, checks_evaluation, checks_results, checks_prompts, checks_text, checks_extended)

CATALOG: dict[str, CheckKind] = {
    kind.id: kind
    for module in (*_OF_BOTH, *_OF_TRAINING, *_OF_EVALUATION)
    for kind in vars(module).values()
    if isinstance(kind, CheckKind)
}
