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
    checks_setup,
    checks_text,
    checks_trained_use,
    checks_training,
    checks_witness,
)
from steph.judge.kinds import CheckKind

# a module comes before those that take rows from it, so that the page of checks does not depend on imports
_MODULES = (
    *(checks_process, checks_adapter, checks_progress, checks_figures, checks_training),
    *(checks_seen, checks_setup, checks_rows, checks_row_answers, checks_witness),
    *(checks_trained_use, checks_answers, checks_evaluation, checks_prompts, checks_results, checks_text),
    checks_extended,
)

CATALOG: dict[str, CheckKind] = {
    kind.id: kind for module in _MODULES for kind in vars(module).values() if isinstance(kind, CheckKind)
}
