"""Judges one evaluation attempt (H-3) by its lines and its JSON. Reads files, changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from steph.base.files import sha256_of
from steph.base.text import one_line
from steph.judge.artifacts import MAX_HASHED_BYTES, artifact
from steph.judge.checks_adapter import WEIGHTS_NAME, base_check
from steph.judge.checks_answers import witnessed_answer_checks
from steph.judge.checks_extended import compared, extended_checks
from steph.judge.checks_lines import line_checks
from steph.judge.checks_process import process_checks
from steph.judge.checks_results import content_checks, dataset_check, file_checks
from steph.judge.checks_text import response_checks
from steph.judge.evidence import EvalEvidence
from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.judge.lines import EvalLines, adapter_trouble_in, parse_evaluation
from steph.judge.names import names_model
from steph.judge.results import Results, ResultsFile, Row, find_results
from steph.record.values import Artifact, Check, EvalOutcome

MAX_ANSWERS = 1000

ADAPTER_UNCHANGED = CheckKind(
    "adapter_unchanged", "H-3", FAIL, "H-2 の記録と同じアダプター", "adapter_model.safetensors の sha256"
)
ADAPTER_LOADED = CheckKind(
    "adapter_loaded", "H-3", FAIL, "アダプターの読み込みに失敗の表示がない", "stdout と stderr の PEFT の警告"
)
ADAPTER_LEFT_ALONE = CheckKind(
    "adapter_left_alone",
    "H-3",
    WARN,
    "評価がアダプターのファイルを書き換えていない",
    "アダプターのフォルダーの設定と重みの sha256（評価の前と後）",
    optional=True,
)
ADAPTER_IN_USE = (ADAPTER_UNCHANGED, ADAPTER_LOADED, ADAPTER_LEFT_ALONE)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def judge_evaluation(evidence: EvalEvidence) -> tuple[EvalOutcome, tuple[Check, ...], tuple[Artifact, ...]]:
    """Read what the attempt printed and wrote and check it; missing files are findings, never exceptions."""
    lines = parse_evaluation(evidence.stdout)
    file = find_results(
        evidence.root,
        evidence.output_path,
        lines.saved_to,
        evidence.attempt_started_unix,
        pattern=evidence.output_pattern,
    )
    content = file.content
    if content:  # of several blocks the one that the file counts
        lines = parse_evaluation(
            evidence.stdout, (len(content.results), sum(row.is_correct for row in content.results))
        )
    checks = (
        *process_checks(evidence.returncode, evidence.output, on_gpu=evidence.on_gpu),
        *line_checks(evidence, lines, content),
        *_adapter_checks(evidence, lines),
        *witnessed_answer_checks(evidence, content),
        *file_checks(file, lines),
        dataset_check(evidence),
        *content_checks(evidence, content, lines),
        *response_checks(
            content.results if content else None,
            cot=evidence.settings.use_cot, ensemble=evidence.settings.ensemble, rehearsal=evidence.rehearsal,
            seconds=evidence.seconds, random_weights=evidence.random_weights, ranks=evidence.settings.num_processes,
        ),
        *extended_checks(evidence, lines, content),
    )  # fmt: skip
    return _outcome(evidence, lines, file), checks, _artifacts(file)


def _adapter_checks(evidence: EvalEvidence, lines: EvalLines) -> tuple[Check, ...]:
    if evidence.lora_path is None:
        return ()
    expected, actual = evidence.adapter_sha256_expected, evidence.adapter_sha256_actual
    same = None if expected is None or actual is None else expected == actual
    hashes = f"記録の sha256 は {(expected or 'なし')[:12]}、評価時は {(actual or 'なし')[:12]}。"
    trouble = adapter_trouble_in(evidence.output, besides=lines.of_other_blocks)
    shown = f"読み込みの失敗の表示: {one_line(trouble, 200) if trouble else 'なし'}。"
    return (
        base_check(evidence.root / evidence.lora_path, evidence.model_name),
        ADAPTER_UNCHANGED.check(same, hashes),
        ADAPTER_LOADED.check(trouble is None, shown),
        _left_alone_check(evidence.adapter_files, evidence.root / evidence.lora_path),
    )


def adapter_files(folder: Path) -> dict[str, str]:
    """The sha256 of each file of an adapter that decides what it does: its configuration and its weights, by name."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file()) if folder.is_dir() else ()
    kept = (path for path in files if path.name.startswith("adapter_") or _is_weights(path))
    return {path.name: sha256_of(path) for path in kept if path.stat().st_size <= MAX_HASHED_BYTES}


def _is_weights(path: Path) -> bool:
    return path.suffix in _WEIGHTS and path.name != "training_args.bin"


def _left_alone_check(before: Mapping[str, str] | None, folder: Path) -> Check:
    """Weights that changed are another check's; a second weights file or a new configuration misleads the next user."""
    if before is None:
        return ADAPTER_LEFT_ALONE.check(None, "評価の前のアダプターのファイルが記録されていない。")
    after = adapter_files(folder)
    names = sorted({*before, *after} - {WEIGHTS_NAME})
    changed = [one_line(name, 60) for name in names if before.get(name) != after.get(name)]
    return ADAPTER_LEFT_ALONE.check(not changed, f"評価の間に変わったファイル: {'、'.join(changed) or 'なし'}。")


def _outcome(evidence: EvalEvidence, lines: EvalLines, file: ResultsFile) -> EvalOutcome:
    results = file.content
    return EvalOutcome(
        output_path=file.name,
        total=lines.total if results is None else len(results.results),
        correct=lines.correct if results is None else sum(row.is_correct for row in results.results),
        accuracy=_accuracy(lines, results),
        backend=_short(lines.backend or (results.config.backend if results else None)),
        model_name=_short(_model(evidence.model_name, lines)),
        lora_path=_short(lines.lora_path),
        key_lines=tuple(one_line(line) for line in lines.key_lines),
        answers=tuple(row.predicted_answer for row in results.results[:MAX_ANSWERS]) if results else (),
        answering_seconds=_answering_seconds(results.results) if results else None,
        with_adapter=compared(results.results, evidence.beside) if results and evidence.lora_path is None else None,
    )


def _answering_seconds(rows: tuple[Row, ...]) -> float | None:
    own = [row.own_seconds for row in rows if row.own_seconds is not None]
    return sum(own) if len(own) == len(rows) else None


def _accuracy(lines: EvalLines, results: Results | None) -> float | None:
    if results is not None and results.results:
        return sum(row.is_correct for row in results.results) / len(results.results)
    return lines.accuracy if lines.accuracy is not None and 0 <= lines.accuracy <= 1 else None


def _model(asked: str, lines: EvalLines) -> str | None:
    printed = (lines.hf_model, lines.llm_model)
    return next((value for value in printed if value and names_model(value, asked)), printed[0] or printed[1])


def _short(value: object) -> str | None:
    return one_line(value) if value is not None else None


def _artifacts(file: ResultsFile) -> tuple[Artifact, ...]:
    if file.path is None or file.path.stat().st_size > MAX_HASHED_BYTES:
        return ()
    return (artifact(file.path, file.name),)
