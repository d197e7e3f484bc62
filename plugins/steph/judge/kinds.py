"""What one row of the table of checks says, and the rows that both stages share. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from steph.record import Severity

FAIL, WARN, INFO = Severity.FAIL, Severity.WARN, Severity.INFO


@dataclass(frozen=True)
class CheckKind:
    """One row of the table; `quality` rows are INFO in rehearsals, `optional` rows are INFO where unmeasured."""

    id: str
    stages: str
    severity: Severity
    title: str
    reads: str
    trap: int | None = None
    quality: bool = False
    optional: bool = False
    note: str = ""


SHARED = (
    CheckKind("exit_zero", "H-2・H-3", FAIL, "終了コードが 0", "子プロセスの終了コード"),
    CheckKind("no_traceback", "H-2・H-3", WARN, "トレースバックが表示されていない", "stdout と stderr"),
    CheckKind(
        "adapter_base",
        "H-2・H-3",
        FAIL,
        "アダプターのベースが対象モデル",
        "adapter_config.json の base_model_name_or_path",
        trap=14,
    ),
)
RANKS = (
    CheckKind(
        "ranks_as_asked",
        "H-2・H-3",
        FAIL,
        "依頼した数のプロセスが、それぞれのGPUで走った",
        "各プロセスの probe（rank と GPU の UUID）",
        note="複数プロセスのとき",
    ),
    CheckKind(
        "results_printed_once",
        "H-2・H-3",
        WARN,
        "結果を表示したのは1プロセスだけ",
        "stdout の train_runtime の行、EVALUATION RESULTS の行",
        note="複数プロセスのとき",
    ),
)
