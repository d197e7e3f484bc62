"""CONTRIBUTING's recipes, walked: each change is made in a copy of the suite, works there, and takes few files."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from steph.base.messages import LANGUAGES

SUITE = Path(__file__).parents[2] / "plugins" / "steph"
MOST_FILES = 2  # of production; catalogs of words and samples are not counted
DESCRIBED = """
TRAIN = '[train]\\npreset = "trl"\\nrows.file = "rows.jsonl"\\n'
NO_EVALUATION = '[evaluate]\\nnone = "this machine has no time"\\n'
"""  # what the code of a change may write into a steph.toml


@dataclass(frozen=True)
class Change:
    """What a recipe asks for: texts that another takes the place of, new files, and code that fails without them.

    `words` are catalog entries that both languages get.
    """

    edits: Mapping[str, tuple[tuple[str, str], ...]]
    shows: str
    files: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)


CHANGES = {
    "a check with a new fact": Change(
        {
            "judge/checks_process.py": (
                (
                    "    written_late: tuple[str, ...] = ()\n",
                    "    written_late: tuple[str, ...] = ()\n    ended: int = 0\n",
                ),
                ("GPU_USED = ", 'NONE_ENDED = CheckKind("none_ended", "H-2・H-3", WARN)\nGPU_USED = '),
                (
                    "    checks.append(_left_check(evidence))\n",
                    "    checks.append(_left_check(evidence))\n"
                    '    checks.append(NONE_ENDED.check(not evidence.ended, "counted", ended=evidence.ended))\n',
                ),
            ),
            "conduct/attempts.py": (
                (
                    "written_late=self.written_late,\n        )",
                    "written_late=self.written_late,\n            ended=self.outcome.killed_descendants,\n        )",
                ),
            ),
        },
        """
        from types import SimpleNamespace as Told
        from steph.base.terms import EndedBy
        from steph.conduct.attempts import Finished
        from steph.judge.kinds import check_kinds
        from steph.judge.checks_process import machine_checks
        from steph.record.values import Attempt
        from steph.run.runner import ChildOutcome
        attempt = Attempt(stage="H-2", number=1, label="", started_at="")
        outcome = ChildOutcome(0, EndedBy.EXIT, 1.0, killed_descendants=3)
        setup = Told(device=None, devices=lambda ranks: (), options=Told(vram_cap_bytes=None))
        checks = machine_checks(Finished(attempt, outcome, None, 0.0, "", "").processes(setup), "")
        assert ("none_ended", False, "3 were ended") in [(c.id, c.holds, str(c.message)) for c in checks]
        assert "none_ended" in check_kinds()
        """,
        words={
            "check.none_ended.title": "nothing had to be ended",
            "check.none_ended.reads": "the runner's count",
            "check.none_ended.counted": "{ended} were ended",
        },
    ),
    "a key of profiles": Change(
        {
            "contract/settings.py": (
                (
                    "    memory_return_seconds:",
                    '    helper_seconds: Seconds = 180\n    """A builder."""\n    memory_return_seconds:',
                ),
            ),
            "conduct/attempts.py": (
                (
                    "run.left_seconds(HELPER_SECONDS)",
                    "run.left_seconds(run.setup.profile.limits.helper_seconds)",
                ),
            ),
        },
        """
        from pathlib import Path
        from steph.contract.settings import load_profile
        from types import SimpleNamespace as Told
        from steph.conduct import attempts
        from steph.contract.description import Description
        profile = Path("cpu.toml").read_text().replace("[limits]\\n", "[limits]\\nhelper_seconds = 7\\n")
        Path("own.toml").write_text(profile)
        asked = []
        attempts.run_child = lambda spec: asked.append(spec.limit_seconds) or Told(returncode=0)
        profile = load_profile(Path("own.toml"))
        setup = Told(root=Path.cwd(), profile=profile, description=Description(), devices=lambda ranks: ())
        run = Told(setup=setup, left_seconds=lambda limit: limit)
        assert attempts.run_side_command(run, ("true",), Path.cwd()) == 0
        assert asked == [7]
        """,
    ),
    "a flag of a command": Change(
        {
            "record/settings.py": (
                (
                    "    logging_steps: _Steps = 1\n",
                    '    weight_decay: float = 0.0\n    """Weight decay."""\n    logging_steps: _Steps = 1\n',
                ),
            ),
            "contract/presets/trl.toml": (
                ('  "--use_peft",\n', '  "--weight_decay", "{weight_decay}",\n  "--use_peft",\n'),
            ),
        },
        """
        from pathlib import Path
        from steph.contract.commands import Place, train_call
        from steph.contract.description import load_description
        from steph.contract.settings import ProfileError, load_profile
        from steph.record.settings import TrainSettings
        Path("steph.toml").write_text(TRAIN + NO_EVALUATION)
        place = Place(root=Path.cwd(), python="python", on_gpu=False, train_dir="rows")
        settings = TrainSettings(weight_decay=0.25)
        call = train_call(load_description(Path.cwd()), place, "model", settings, cap_steps=False)
        assert ("--weight_decay", "0.25") in zip(call.argv, call.argv[1:])
        Path("steph.toml").write_text(TRAIN + "fixed.weight_decay = 0.25\\n" + NO_EVALUATION)
        assert load_description(Path.cwd()).train.fixed.given == {"weight_decay": 0.25}
        profile = Path("cpu.toml").read_text().replace("[train]\\n", "[train]\\nweight_decay = nan\\n")
        Path("own.toml").write_text(profile)
        try:
            load_profile(Path("own.toml"))
        except ProfileError as error:
            assert "train.weight_decay: nan" in str(error)
        else:
            raise AssertionError("NaN was taken")
        """,
    ),
    "a format of training logs": Change(
        {
            "contract/lines.py": (
                (
                    '    found = _DICT.match(line) if "{" in line else None\n',
                    '    if line.startswith("STEP "):\n'
                    "        told = (pair.split('=') for pair in line.split()[1:])\n"
                    "        return Metrics(tuple((name, float(value)) for name, value in told))\n"
                    '    found = _DICT.match(line) if "{" in line else None\n',
                ),
            ),
        },
        """
        from steph.contract.lines import is_metrics
        from steph.contract.training_files import read_log
        text = "STEP loss=2.5 epoch=0.5\\nSTEP loss=1.5 epoch=1.0\\nSTEP train_runtime=3.0 train_loss=2.0"
        log = read_log(text)
        assert [one.get("loss") for one in log.losses] == [2.5, 1.5]
        assert log.final.get("train_runtime") == 3.0
        assert all(map(is_metrics, text.splitlines()))  # these lines' times of arrival are kept
        """,
    ),
    "a format of rows": Change(
        {
            "contract/rows.py": (
                ('"sharegpt", "text", "none")', '"sharegpt", "qa", "text", "none")'),
                (
                    '        case "text":\n',
                    '        case "qa":\n'
                    '            turns = (Turn("user", _text(row, "q")), Turn("assistant", _text(row, "a")))\n'
                    '        case "text":\n',
                ),
                ('"alpaca", "input_output", "text",\n', '"alpaca", "input_output", "qa", "text",\n'),
            ),
        },
        """
        from pathlib import Path
        from steph.contract.description import load_description
        from steph.contract.rows import format_of, training_row
        assert training_row({"q": "one", "a": "two"}, "qa").answer == "two"
        assert format_of([{"q": "one", "a": "two"}]) == "qa"
        Path("steph.toml").write_text(TRAIN + 'rows.format = "qa"\\n' + NO_EVALUATION)
        assert load_description(Path.cwd()).train.rows.format == "qa"
        """,
    ),
    "a format of results": Change(
        {
            "contract/results_files.py": (
                ("import results_lm_eval", "import results_csv, results_lm_eval"),
                ('"lm_eval", "json"]', '"lm_eval", "json", "csv"]'),
                (
                    '    "json": Reader(',
                    '    "csv": Reader(results_csv.read_results, results_csv.KNOWS),\n    "json": Reader(',
                ),
            ),
        },
        """
        from pathlib import Path
        from steph.contract.description import load_description
        from steph.contract.results import ResultsForm
        from steph.contract.results_files import find_results
        from steph.judge.kinds import lacking_in_evaluation
        from steph.judge.kinds import Needs
        Path("out.csv").write_text("question,expected,response\\none,a,a\\ntwo,b,c\\n")
        form = ResultsForm(format="csv", kind="generate", file="out.csv")
        content = find_results(Path.cwd(), form, "out.csv", None, 0.0).content
        assert (content.scores[0].value, content.results[1].question) == (0.5, "two")
        lacks = lacking_in_evaluation(form)  # what its reader knows is asked for
        assert not {Needs.ROWS, Needs.QUESTIONS, Needs.GOLD, Needs.RESPONSES} & {*lacks}
        own = '[evaluate]\\ncommand = ["x"]\\nkind = "metric"\\nresults.format = "csv"\\n'
        Path("steph.toml").write_text(TRAIN + own)
        assert load_description(Path.cwd()).evaluate.results.format == "csv"
        """,
        {
            "contract/results_csv.py": """
            import csv
            from steph.contract.results import Config, Results, Row, Score

            KNOWS = frozenset({"question", "expected", "response"})

            def read_results(path, rows_files, form):
                rows = tuple(map(_row, csv.DictReader(path.read_text().splitlines())))
                score = Score(value=sum(row.is_correct for row in rows) / len(rows), count=len(rows))
                return Results(config=Config(), results=rows, scores=(score,)), ()

            def _row(told):
                right = told["expected"] == told["response"]
                return Row(
                    question=told["question"], correct_answer=told["expected"], predicted_answer="",
                    response=told["response"], is_correct=right, score=float(right),
                )
            """
        },
    ),
    "a launcher": Change(
        {
            "record/settings.py": (('"torchrun", "accelerate"]', '"torchrun", "accelerate", "deepspeed"]'),),
            "contract/commands.py": (
                (
                    '        case "torchrun":\n',
                    '        case "deepspeed":\n'
                    '            return (python, "-m", "deepspeed.launcher.runner", "--num_gpus", count)\n'
                    '        case "torchrun":\n',
                ),
            ),
        },
        """
        from pathlib import Path
        from steph.contract.commands import Place, train_call
        from steph.contract.description import load_description
        from steph.record.settings import TrainSettings
        settings = TrainSettings(launcher="deepspeed", num_processes=2)
        place = Place(root=Path.cwd(), python="python", on_gpu=True, train_file="rows.jsonl")
        call = train_call(load_description(Path.cwd()), place, "model", settings, cap_steps=False)
        assert call.argv[:5] == ("python", "-m", "deepspeed.launcher.runner", "--num_gpus", "2")
        assert call.argv[5] == "scripts/train_qwen_law_ft.py"
        """,
    ),
    "a language": Change(
        {
            "base/messages.py": (
                ('Literal["ja", "en"]', 'Literal["ja", "en", "de"]'),
                ('= ("ja", "en")', '= ("ja", "en", "de")'),
            ),
        },
        """
        from steph.base.messages import say, speaking
        from steph.contract.options import parse_language
        assert parse_language("DE", "--steph-language") == "de"
        with speaking("de"):
            assert str(say("hub.unreachable")) == "der Hub antwortet nicht"
        """,
        {"base/words/de/hub.po": 'msgid "hub.unreachable"\nmsgstr "der Hub antwortet nicht"\n'},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_by_its_recipe_works_and_takes_two_files_at_most(name: str, tmp_path: Path) -> None:
    """In a copy of the suite the change alone makes its code run, with no more beside it than words."""
    change, suite = CHANGES[name], tmp_path / "steph"
    shutil.copytree(SUITE, suite, copy_function=os.symlink)
    shutil.copy(SUITE.parents[1] / "profiles" / "cpu.toml", tmp_path)
    for file, edits in change.edits.items():
        text = (suite / file).read_text(encoding="utf-8")
        for old, new in edits:
            assert text.count(old) == 1, f"{file}: {old}"
            text = text.replace(old, new)
        _write(suite / file, text)
    for file, text in change.files.items():
        _write(suite / file, inspect.cleandoc(text) + "\n")
    for language in LANGUAGES if change.words else ():
        told = "".join(f'msgid "{key}"\nmsgstr "{said}"\n\n' for key, said in change.words.items())
        _write(suite / "base" / "words" / language / "added.po", told)
    done = _run(change.shows, tmp_path)
    assert done.returncode == 0, done.stderr
    touched = {file for file in (*change.edits, *change.files) if not file.endswith(".po")}
    assert len(touched) <= MOST_FILES


def _write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in this folder, on the suite that lies in it; nothing is compiled into the files that it links to."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-c", DESCRIBED + inspect.cleandoc(code)]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
