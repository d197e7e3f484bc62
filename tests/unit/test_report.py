"""The report says what the record says, in the spec's sections, and its file keeps what people wrote."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import record_factory as factory
from record_factory import render
from steph.base.messages import verbatim
from steph.base.terms import Severity, StageId, Verdict
from steph.judge.verdict import Overall, overall
from steph.record.settings import TrainSettings
from steph.record.values import Check, PredictedPeak, Record
from steph.tell import attempts, keep, wording
from steph.tell.attempts import own_frame
from steph.tell.report import parts, report_path, write_report
from steph.tell.wording import headline, sentences

SECTIONS = (
    "## タスクH-1：デバッグ用の「小さい HF モデル」を決める\n",
    "## タスクH-2：no-RAG direct 用 小モデル学習のスモールラン\n",
    "## タスクH-3：HF バックエンド + 小モデルでの評価スモーク\n",
    "## 実行履歴\n",
    "## StepHまとめ\n",
)


def with_stage(record: Record, stage: StageId, **changes: object) -> Record:
    """Give the record with one stage changed."""
    return record.model_copy(
        update={"stages": record.stages | {stage: record.stages[stage].model_copy(update=changes)}}
    )


def undrawn(record: Record) -> Record:
    """Give the record without losses, so that writing its report draws nothing."""
    last = record.stages[StageId.H2].attempts[-1]
    training = last.training.model_copy(update={"losses": ()}) if last.training else None
    attempts = (*record.stages[StageId.H2].attempts[:-1], last.model_copy(update={"training": training}))
    return with_stage(record, StageId.H2, attempts=attempts)


def section(text: str, title: str) -> str:
    """Give one `##` section of a page."""
    return text.split(f"## {title}", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("sample", factory.ALL_SAMPLES)
def test_every_record_has_the_spec_sections_in_order(sample: Callable[[], Record]) -> None:
    """Green, failed, crashed, running or rehearsed: the spec's tasks by its own titles, StepHまとめ at the end."""
    text = render(sample())
    places = [text.index(title) for title in SECTIONS]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (factory.green_acceptance, "✅ 受入: 合格"),
        (factory.walked_down, "🟡 受入: 条件付き合格"),
        (factory.with_rejected_candidates, "🟡 受入: 条件付き合格"),
        (factory.out_of_memory_everywhere, "❌ 受入: 不合格"),
        (factory.blocked, "❌ 受入: 不合格"),
        (factory.crashed, "❌ 受入: 不合格"),
        (factory.live, "⏳ 受入: 実行中(まだ合格ではない)"),
        (factory.rehearsal, "予行・受入ではない: ✅ 3 ステージとも通過"),
    ],
)
def test_the_first_line_is_the_verdict(sample: Callable[[], Record], expected: str) -> None:
    """The verdict line names the record by its worst stage."""
    assert headline(sample()) == expected
    assert f"## {expected}\n" in render(sample())


@pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if not verdict.is_green])
@pytest.mark.parametrize("stage", list(StageId))
def test_no_record_with_a_red_stage_passes(stage: StageId, verdict: Verdict) -> None:
    """Whatever is wrong with whichever stage, the record is neither passed nor degraded."""
    assert overall(with_stage(factory.green_acceptance(), stage, verdict=verdict)) in (
        Overall.FAILED,
        Overall.INCOMPLETE,
    )


@pytest.mark.parametrize("stage", list(StageId))
def test_missing_and_stale_stages_never_pass(stage: StageId) -> None:
    """A stage that was not run, or that stands on a replaced result, leaves the record incomplete."""
    green = factory.green_acceptance()
    without = green.model_copy(update={"stages": {key: value for key, value in green.stages.items() if key != stage}})
    assert overall(without) is Overall.INCOMPLETE
    assert overall(with_stage(green, stage, stale=True)) is Overall.INCOMPLETE


def test_a_green_stage_with_a_hard_finding_is_reported_as_failed() -> None:
    """A verdict that contradicts its own checks is not repeated."""
    broken = Check(
        id="adapter_finite", severity=Severity.FAIL, holds=False, message=verbatim("LoRA に NaN があります。")
    )
    record = with_stage(factory.green_acceptance(), StageId.H2, checks=(broken,))
    assert overall(record) is Overall.FAILED
    assert "LoRA に NaN" in render(record).split("## タスクH-1")[0]


def test_a_rehearsal_never_says_that_it_passed_an_acceptance() -> None:
    """The word 合格 does not occur in a rehearsal's first screen or stage verdicts."""
    text = render(factory.rehearsal())
    assert "# StepH 予行" in text
    assert "予行・受入ではない" in text
    assert "合格" not in text.split("## 環境とデータ")[0]


@pytest.mark.parametrize("sample", factory.ALL_SAMPLES)
def test_the_first_screen_has_few_sentences(sample: Callable[[], Record]) -> None:
    """What matters is said in four sentences, the fifth says whether to go on."""
    assert 1 <= len(sentences(sample())) <= 4
    first_screen = render(sample()).split("## タスクH-1")[0]
    decided, _, known = first_screen.partition("| H-1")
    assert sum(line.startswith("- **") for line in decided.splitlines()) <= 4
    assert sum(line.startswith("- ") for line in known.splitlines()) <= 4


def test_the_first_screen_says_what_the_verdict_is_about() -> None:
    """Card, model and profile stand above the stages; each stage has duration, peak of the card, attempts and time."""
    first_screen = render(factory.walked_down()).split("## タスクH-1")[0]
    assert "カード: **NVIDIA GeForce RTX 3080 10.11 GiB**" in first_screen
    assert "`Qwen/Qwen1.5-1.8B-Chat`(1.8B)" in first_screen
    row = next(line for line in first_screen.splitlines() if line.startswith("| H-2"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:] == ["🟡 条件付き合格(PASS_DEGRADED)", "4分46秒", "9.02 GiB", "3", "2026-11-20 01:03"]


@pytest.mark.parametrize("sample", factory.ALL_SAMPLES)
def test_every_table_is_one_and_every_fold_is_closed(sample: Callable[[], Record]) -> None:
    """Each row has as many cells as its header, and each fold opens and closes as HTML of its own."""
    markdown_it = pytest.importorskip("markdown_it")
    tokens = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").parse(render(sample()))
    widths: list[int] = []
    for token in tokens:
        if token.type == "table_open":
            widths = []
        elif token.type == "tr_open":
            widths.append(0)
        elif token.type in ("td_open", "th_open"):
            widths[-1] += 1
        elif token.type == "table_close":
            assert len(set(widths)) == 1, widths
    html = [token.content.strip() for token in tokens if token.type == "html_block"]
    assert sum(block.startswith("<details>") for block in html) == html.count("</details>") > 0


def test_h1_records_model_size_and_reason() -> None:
    """Model name, approximate size, reason, revision, licence and passed-over candidates are there."""
    text = section(render(factory.with_rejected_candidates()), "タスクH-1")
    for words in (
        "Qwen/Qwen2.5-1.5B-Instruct",
        "約 1.5B",
        "| 代わりに使ったモデル名 | `Qwen/Qwen2.5-1.5B-Instruct` |",
        "次の候補を使いました",
        "e482ee3f",
        "404: no such repository",
    ):
        assert words in text


def test_h2_records_command_outcome_duration_and_paths() -> None:
    """What the spec asks to be recorded of the training is there."""
    text = section(render(factory.green_acceptance()), "タスクH-2")
    for words in (
        "学習完了の有無 | 成功",
        "3分8秒",
        factory.ADAPTER,
        "checkpoint-35",
        "adapter_model.safetensors",
        "426 tokens/s",
    ):
        assert words in text


def test_the_final_command_can_be_pasted() -> None:
    """The command block, read by a shell, is the attempt's own argv."""
    attempt = factory.green_acceptance().stages[StageId.H2].attempts[-1]
    changed = attempt.model_copy(update={"argv": (*attempt.argv, "--train-file", "a b'c $HOME.jsonl")})
    folder, command = attempts.attempt_command(changed).split("\n", 1)
    assert folder == f"cd {factory.ROOT}"
    assert tuple(shlex.split(command.replace("\\\n", " "))) == changed.argv


def test_an_error_of_one_line_can_be_read_without_scrolling() -> None:
    """The message of a failed attempt is broken at spaces, no word of it lost; its traceback stays as it was."""
    attempt = factory.walked_down().stages[StageId.H2].attempts[0]
    message = f"{attempt.probes[0].exception_type}: {attempt.probes[0].exception_message}"
    block = render(factory.walked_down()).split("のエラー: OOM")[1].split("```")[1]
    assert max(map(len, block.splitlines())) <= 110
    assert " ".join(block.split()) == f"text {' '.join(message.split())}"


def test_predicted_and_measured_peaks_stand_in_one_row() -> None:
    """Where attempts were predicted, each has its prediction with the interval beside the measured peaks."""
    record = factory.walked_down()
    h2 = record.stages[StageId.H2]
    gib = 1024**3
    figures = {"predicted": PredictedPeak(peak_bytes=9 * gib, low_bytes=8 * gib, high_bytes=10 * gib)}
    attempts = (h2.attempts[0].model_copy(update=figures), *h2.attempts[1:])
    text = section(render(with_stage(record, StageId.H2, attempts=attempts)), "タスクH-2")
    assert "| 9.33 GiB | 8.92 GiB | 9.00 GiB<br>8.00 〜 10.00 |" in text
    assert text.count("| 未予測 |") == 2
    assert "未予測" not in section(render(record), "タスクH-2")


def test_every_attempt_and_every_failure_is_shown() -> None:
    """Settings, cause and peak of each attempt; message, cause note, advice and traceback of the failed ones."""
    text = section(render(factory.walked_down()), "タスクH-2")
    for words in ("512/b2/4bit", "384/b2/4bit", "256/b1/4bit", "9.33 GiB", "CUDA OOM(GPU メモリ不足)、最初のステップ"):
        assert words in text
    assert text.count("原因メモ(自動)") == 2
    assert text.count("<summary>traceback</summary>") == 2
    assert text.count("Tried to allocate 594.00 MiB") >= 2
    assert "140 行すべてで答えが切れる" in text


def test_h3_records_backend_model_adapter_and_accuracy_in_words() -> None:
    """The evaluation's key lines and the accuracy in words are there."""
    text = section(render(factory.green_acceptance()), "タスクH-3")
    for words in (
        "3問中2問正解(66.7%)",
        "| backend | `hf` |",
        f"| lora_path | `{factory.ADAPTER}` |",
        "Total Samples: 3",
    ):
        assert words in text


def test_the_first_screen_of_a_failure_names_cause_and_next_step() -> None:
    """A red stage's cause and the first thing to do about it are read without scrolling."""
    first_screen = render(factory.blocked()).split("## タスクH-1")[0]
    assert "import エラー" in first_screen
    assert "`pip install peft`" in first_screen


def test_a_stale_evaluation_is_not_told_as_a_result() -> None:
    """Where H-3's base was replaced, the first screen says so and gives no score."""
    first_screen = render(with_stage(factory.green_acceptance(), StageId.H3, stale=True)).split("## タスクH-1")[0]
    assert "やり直しが必要" in first_screen
    assert "正解" not in first_screen


def test_blocked_stages_say_so() -> None:
    """A stage that was not started is named as such, with the reason, and has no figures."""
    record = factory.blocked()
    text = section(render(record), "タスクH-3")
    assert "前段が通らず未実行(BLOCKED)" in text
    assert "H-2 が通っていない" in text
    assert "正解" not in text


@pytest.mark.parametrize("stage", [StageId.H2, StageId.H3])
def test_the_result_before_a_blocked_run_is_shown_whole(stage: StageId) -> None:
    """The later run's verdict and reason come first; below them stand the figures, attempts and checks from before."""
    record = factory.green_acceptance()
    before = record.stages[stage]
    why = verbatim("先に H-1 を。")
    blocked = with_stage(
        record, stage, verdict=Verdict.BLOCKED, explanation=why, attempts=(), checks=(), earlier=before
    )
    page, whole = render(blocked), render(record)
    shown, was = section(page, f"タスク{stage}"), section(whole, f"タスク{stage}")
    assert "BLOCKED" in shown
    assert "先に H-1 を。" in shown
    lost = [line for line in was.splitlines() if line.startswith("|") and line not in shown]
    assert lost == []
    assert "結果は残っています" in page.split("## タスクH-1")[0]
    assert overall(blocked) is not Overall.PASSED
    assert "結果は残っています" not in whole


def test_a_crashed_stage_shows_its_last_lines() -> None:
    """After a kill the report names the stage in flight and its last output."""
    text = section(render(factory.crashed()), "タスクH-2")
    assert "途絶(CRASHED)" in text
    assert "12/35" in text


def test_a_running_stage_is_called_running() -> None:
    """While a conductor writes, the stage in flight is neither failed nor passed."""
    text = section(render(factory.live()), "タスクH-2")
    assert "⏳ 実行中" in text
    assert "失敗した試行" not in text
    assert "12/35" in text


def test_changes_on_main_are_warned_of_with_the_command() -> None:
    """A dirty main branch of the pipeline brings the spec's branch rule to mind."""
    assert wording.BRANCH_COMMAND in section(render(factory.blocked()), "環境とデータ")
    assert wording.BRANCH_COMMAND not in render(factory.green_acceptance())


def test_environment_and_data_are_recorded() -> None:
    """Card, driver, CUDA, versions, commits and the data's sha256 are there; sample data is called so."""
    text = section(render(factory.green_acceptance()), "環境とデータ")
    for words in (
        "RTX 3080",
        "580.95.05",
        "CUDA 13.0",
        "2.13.0+cu130",
        "3f1c2d4e5a6b",
        "b23cd02aa0b1",
        "a1" * 32,
        "140",
    ):
        assert words in text
    assert "付属の見本データ" in section(render(factory.rehearsal()), "環境とデータ")


@pytest.mark.parametrize(
    ("command", "launcher", "options"),
    [
        ("", "pytest", ""),
        ("pytest -m gpu -x -k h2 tests", "pytest", ""),
        ("/usr/bin/pytest --steph-profile cpu --steph-twin", "/usr/bin/pytest", " --steph-profile cpu --steph-twin"),
        ("python -m pytest -m gpu --steph-vram-cap=9GiB", "python -m pytest", " --steph-vram-cap=9GiB"),
        ("pytest -p no:randomly --steph-twin tests/acceptance", "pytest", " -p no:randomly --steph-twin"),
        ("pytest --steph-pipeline-root '/a b'", "pytest", " --steph-pipeline-root '/a b'"),
        ("pytest --steph-deep --steph-twin", "pytest", " --steph-twin"),
    ],
)
def test_the_rerun_command_keeps_the_sessions_options(command: str, launcher: str, options: str) -> None:
    """Selections are dropped, the suite's options stay, and the stage is named by its test id."""
    record = factory.green_acceptance()
    only = record.sessions[0].model_copy(update={"command": tuple(shlex.split(command))})
    made = attempts.rerun_command(record.model_copy(update={"sessions": (only,)}), StageId.H2)
    assert made.replace(" \\\n  ", " ") == f"{launcher} -m gpu {attempts.TEST_IDS[StageId.H2]}{options}"


def test_the_rerun_command_of_an_installed_suite_names_its_module() -> None:
    """Where `--pyargs` was said there is no path to a test, so the stage is named by module and function."""
    record = factory.green_acceptance()
    session = record.sessions[0].model_copy(update={"command": ("pytest", "--pyargs", "steph.acceptance", "-x")})
    installed = record.model_copy(update={"sessions": (session,)})
    page, test = "steph.acceptance.test_steph", "test_h3_hf_evaluation_runs"
    assert attempts.rerun_command(installed, StageId.H3).split() == f"pytest -m gpu \\ --pyargs {page}::{test}".split()
    assert attempts.extended_command(installed).endswith(f"--pyargs {page}_extended")


def test_the_same_record_renders_to_the_same_text() -> None:
    """Rendering is a pure function of the record."""
    assert render(factory.walked_down()) == render(factory.walked_down())


def test_acceptances_and_rehearsals_have_files_of_their_own(tmp_path: Path) -> None:
    """The spec's folder in the pipeline root takes acceptances alone."""
    (tmp_path / "root" / "LLM_ファインチューニング").mkdir(parents=True)
    reports = tmp_path / "reports"
    for sample, root, expected in (
        (factory.green_acceptance(), "elsewhere", reports / "StepH_結果まとめ.md"),
        (factory.green_acceptance(), "root", tmp_path / "root" / "LLM_ファインチューニング" / "StepH_結果まとめ.md"),
        (factory.rehearsal(), "root", reports / "StepH_予行.md"),
    ):
        made_under = sample.context.model_copy(update={"pipeline_root": str(tmp_path / root)})
        assert report_path(sample.model_copy(update={"context": made_under}), reports) == expected


def test_a_report_on_disk_keeps_notes_through_reruns(tmp_path: Path) -> None:
    """Words under a section stay when the next record is written over the first."""
    path = write_report(undrawn(factory.out_of_memory_everywhere()), [], tmp_path / "r.md")
    noted = path.read_bytes().replace("原因メモ\n\n".encode(), "原因メモ\n\nブラウザを閉じ忘れた。\n\n".encode(), 1)
    path.write_bytes(noted)
    write_report(undrawn(factory.walked_down()), [factory.out_of_memory_everywhere()], path)
    text = path.read_text(encoding="utf-8")
    assert "ブラウザを閉じ忘れた。" in text
    assert "🟡 受入: 条件付き合格" in text
    assert "❌ 受入: 不合格" not in text
    assert not list(tmp_path.glob(".*"))


def test_a_report_goes_below_what_a_person_has_written(tmp_path: Path) -> None:
    """A file without any marks keeps its bytes as the beginning of the new one."""
    path = tmp_path / "StepH_結果まとめ.md"
    own = "# 私のまとめ\r\n\r\n手書き".encode()
    path.write_bytes(own)
    write_report(undrawn(factory.green_acceptance()), [], path)
    assert path.read_bytes().startswith(own)


class MeddlingHistory(list[Record]):
    """A history during whose reading a person saves a note, once."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path: Path | None = path

    def __iter__(self) -> Iterator[Record]:
        path, self._path = self._path, None
        if path is not None:
            path.write_bytes(path.read_bytes() + "\n間に合ったメモ\n".encode())
        return super().__iter__()


def test_a_note_saved_while_the_report_is_made_is_not_lost(tmp_path: Path) -> None:
    """A file that changed since it was read is read again before it is replaced."""
    path = write_report(undrawn(factory.green_acceptance()), [], tmp_path / "r.md")
    write_report(undrawn(factory.walked_down()), MeddlingHistory(path), path)
    text = path.read_text(encoding="utf-8")
    assert "間に合ったメモ" in text
    assert "🟡 受入: 条件付き合格" in text


def test_a_report_that_can_not_be_replaced_leaves_the_old_one(tmp_path: Path) -> None:
    """Where the path is a folder the error is raised and nothing half-written lies beside."""
    (tmp_path / "r.md").mkdir()
    with pytest.raises(OSError, match=r"r\.md"):
        write_report(undrawn(factory.green_acceptance()), [], tmp_path / "r.md")
    assert [path.name for path in tmp_path.iterdir()] == ["r.md"]


def test_a_link_and_the_files_permissions_stay(tmp_path: Path) -> None:
    """A report that is a link stays one, and the file behind it keeps its mode."""
    real = tmp_path / "real.md"
    real.write_text("mine\n", encoding="utf-8")
    real.chmod(0o640)
    link = tmp_path / "link.md"
    link.symlink_to(real)
    assert write_report(undrawn(factory.green_acceptance()), [], link) == real
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640


def test_history_has_a_row_for_each_run_of_its_kind_newest_first() -> None:
    """Acceptances list acceptances; each session of each record is one row."""
    text = section(render(factory.walked_down(), [factory.green_acceptance(), factory.rehearsal()]), "実行履歴")
    rows = [line for line in text.splitlines() if line.startswith("| 2026")]
    assert ["20261120-020000" in rows[0], "20261120-010000" in rows[1], len(rows)] == [True, True, 2]
    assert "H-2 PASS_DEGRADED" in rows[0]


def test_a_long_history_is_folded_and_no_row_of_it_is_lost(tmp_path: Path) -> None:
    """Beyond twenty rows the older ones are in a fold, from which they are read again when their records are gone."""
    green = undrawn(factory.green_acceptance())
    often = [
        green.sessions[0].model_copy(update={"started_at": f"2026-10-{day:02d}T00:00:00+00:00"}) for day in range(1, 31)
    ]
    path = write_report(green.model_copy(update={"sessions": tuple(often)}), [], tmp_path / "r.md")
    write_report(undrawn(factory.walked_down()), [], path)
    text = section(path.read_text(encoding="utf-8"), "実行履歴")
    assert "<summary>それより前の 11 回</summary>" in text
    assert [line[2:12] for line in text.splitlines() if line.startswith("| 2026-10")] == [
        f"2026-10-{day:02d}" for day in range(30, 0, -1)
    ]


def test_history_rows_outlive_their_records(tmp_path: Path) -> None:
    """Rows of records that are no longer on disk are kept from the file."""
    path = write_report(undrawn(factory.green_acceptance()), [], tmp_path / "r.md")
    write_report(undrawn(factory.walked_down()), [], path)
    write_report(undrawn(factory.walked_down()), [], path)
    text = section(path.read_text(encoding="utf-8"), "実行履歴")
    assert text.count("`20261120-010000`") == 1
    assert text.count("`20261120-020000`") == 1


def test_writing_the_same_record_again_changes_no_byte(tmp_path: Path) -> None:
    """A renewal without news leaves the file as it was."""
    path = write_report(undrawn(factory.walked_down()), [], tmp_path / "r.md")
    before = path.read_bytes()
    write_report(undrawn(factory.walked_down()), [], path)
    assert path.read_bytes() == before


def test_every_part_of_a_report_is_found_again(tmp_path: Path) -> None:
    """The marks on disk enclose exactly the parts that were generated."""
    path = write_report(undrawn(factory.crashed()), [], tmp_path / "r.md")
    found = keep.blocks_in(path.read_bytes())
    assert [block.id for block in found] == [part.id for part in parts(factory.crashed())]
    assert not any(block.is_edited for block in found)


def test_pictures_lie_beside_the_report(tmp_path: Path) -> None:
    """The page names its pictures by relative paths that exist, with words beside."""
    path = write_report(factory.green_acceptance(), [], tmp_path / "r.md")
    text = path.read_text(encoding="utf-8")
    assert "](figures/20261120-010000-loss.svg)" in text
    assert (tmp_path / "figures" / "20261120-010000-loss.svg").is_file()
    assert "\n図: ステップごとの損失(35 点)" in text


def test_under_a_cap_the_process_is_held_against_it_not_the_card() -> None:
    """A card emulated as a smaller one holds more than the cap before the run; the sentence compares like with like."""
    green = factory.green_acceptance()
    last = green.stages[StageId.H2].attempts[-1]
    measured = last.model_copy(update={"device_peaks": factory.card_peaks(4 << 30, 2 << 30)})
    capped = with_stage(green, StageId.H2, attempts=(measured,)).model_copy(
        update={"context": green.context.model_copy(update={"vram_cap_bytes": 3 << 30})}
    )
    assert any("最大 2.00 GiB で、3.00 GiB まで 1.00 GiB 余りました" in sentence for sentence in sentences(capped))


def test_a_capped_cards_limit_lies_above_what_was_in_use_before() -> None:
    """The memory picture shows the whole card, so a cap counts from what others held before the run."""
    green = factory.green_acceptance()
    card = green.context.environment.device
    assert card is not None
    capped = green.model_copy(update={"context": green.context.model_copy(update={"vram_cap_bytes": 3 << 30})})
    assert wording.ceiling_bytes(capped) == card.used_bytes + (3 << 30)
    assert wording.ceiling_bytes(green) == card.total_bytes


LIBRARY = "/home/user/.venv/lib/python3.12/site-packages/torch/nn/functional.py"
TRACEBACK = f"""Traceback (most recent call last):
  File "{factory.ROOT}/scripts/train_qwen_law_ft.py", line 39, in main
    train(settings, rows)
  File "{factory.ROOT}/app/training/run.py", line 36, in train
    trainer.train()
  File "{LIBRARY}", line 916, in cross_entropy
    return loss
torch.OutOfMemoryError: CUDA out of memory."""


@pytest.mark.parametrize(
    ("traceback", "root", "frame"),
    [
        (TRACEBACK, factory.ROOT, f'File "{factory.ROOT}/app/training/run.py", line 36, in train'),
        ('  File "scripts/x.py", line 3, in <module>\n  File "/usr/lib/python3.11/json.py", line 1, in f', "/r",
         'File "scripts/x.py", line 3, in <module>'),
        ('  File "/r/.venv/lib/python3.11/site-packages/peft/x.py", line 1, in f', "/r", None),
        ('  File "<frozen importlib>", line 1, in f', "/r", None),
        ("", "", None),
    ],
)  # fmt: skip
def test_the_frame_that_is_named_is_the_pipelines_own(traceback: str, root: str, frame: str | None) -> None:
    """The last one in its folder and in none of its libraries."""
    assert own_frame(traceback, root) == frame


def out_of_memory_under(cap_bytes: int | None) -> str:
    """The failures of a record in which two attempts ran out of memory, the second for good."""
    attempts = []
    for number in (1, 2):
        made = factory.out_of_memory(number, TrainSettings(max_seq_length=640 - 128 * number))
        assert made.diagnosis is not None
        evidence = (f'File "{LIBRARY}", line 916, in cross_entropy', *made.diagnosis.evidence)
        diagnosis = made.diagnosis.changed(evidence=evidence)
        attempts.append(made.changed(traceback=TRACEBACK, diagnosis=diagnosis))
    record = factory.out_of_memory_everywhere()
    stages = {**record.stages, StageId.H2: factory.stage_h2(attempts, verdict=Verdict.FAIL)}
    record = record.changed(stages=stages, context=record.context.changed(vram_cap_bytes=cap_bytes))
    return section(render(record), "タスクH-2").partition("### 失敗した試行")[2]


def test_a_failure_names_the_pipelines_line_and_what_followed() -> None:
    """No library's frame; the first attempt says which one followed, and the last one alone what to do."""
    text = out_of_memory_under(None)
    assert "line 36, in train" in text
    assert "- 根拠: `File" in text
    assert not re.search(r"根拠: .*site-packages", text)
    first, last = text.split("#### 試行 2")
    assert "試行 2(`384/b2/4bit`)で続けました" in first
    assert "次の一手" not in first
    assert "次の一手" in last
    assert "全体 9.64 GiB" in text


def test_under_a_limit_the_figures_of_an_oom_are_the_limits() -> None:
    """What torch says of the whole card is of no use to who emulates a smaller one."""
    text = out_of_memory_under(2 * 1024**3)
    assert "要求 594.0 MiB、この実行の上限 2.00 GiB、torch の確保 8.12 GiB" in text
    assert "- メモリ: " in text
    assert "全体 9.64" not in text


def test_a_record_says_when_it_began_in_utc_and_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both where they differ, and UTC alone where the machine's clock is that."""
    try:
        for zone, said in (
            ("Asia/Tokyo", "開始 2026-11-20 01:00 UTC(現地 2026-11-20 10:00 JST)"),
            ("UTC", "開始 2026-11-20 01:00 UTC。"),
        ):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            assert said in render(factory.green_acceptance())
    finally:
        monkeypatch.undo()
        time.tzset()
