"""Defects planted in the real reference pipeline: the real witness sees each of them, and none in sound variants.

All variants are run by one process that has loaded the libraries and forks for each (`fork_host.py`). One sound
training serves all evaluations. Of each kind only the first is run, unless STEPH_TEST_PLANTED is set
(`make test-planted`).
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from planted_reference import (
    ALSO_ON_MERGED,
    ENDING,
    EVALUATIONS,
    ON_ANOTHER,
    ON_MERGED,
    SCRIPT_EVALUATE,
    SCRIPT_TRAIN,
    SOUND_EVALUATIONS,
    SOUND_TRAININGS,
    STOPPING,
    TRAININGS,
    TWO_BOS,
    WITH_BOS,
    WITHOUT_BOS,
    Planted,
    copy_of,
    first_of_each_kind,
)
from small_run import LETTERS, TOPICS, Ended, RunScript, ScriptHost
from steph.base.files import sha256_of
from steph.base.fingerprint import text_hash
from steph.base.terms import Severity
from steph.contract.results_files import read_lawqa
from steph.judge.checks_answers import WITNESSED_ANSWERS
from steph.judge.checks_evaluation import judge_evaluation
from steph.judge.checks_extended import output_only_check, unquantised_check
from steph.judge.checks_results import CONFIG_AS_ASKED
from steph.judge.checks_rows import ROW_IDENTITY
from steph.judge.checks_seen import trained_weight_checks
from steph.judge.checks_setup import TOKENS_SUPERVISED, training_in
from steph.judge.checks_training import judge_training
from steph.judge.checks_witness import WITNESSED_TRAINING, witnessed_training_checks
from steph.judge.evidence import EvalEvidence, TrainEvidence
from steph.judge.witness import Batch, Blind, Likelihoods, Scoring, TrainingEnds, Witness, read_witness
from steph.record.settings import EvalSettings, TrainSettings
from steph.record.values import Check

QUESTIONS = 8
OUTPUT, RESULTS = "out", "results.json"
# but for how good the answers are, of which a tiny model's say nothing
SEEN = {
    kind.id for kind in (*WITNESSED_TRAINING, *WITNESSED_ANSWERS, *ROW_IDENTITY, CONFIG_AS_ASKED) if not kind.quality
}
SETTINGS = TrainSettings(
    num_epochs=2, max_steps=50, batch_size=2, gradient_accumulation_steps=1, learning_rate=5e-3, warmup_ratio=0.03,
    target_modules=("q_proj", "v_proj"), max_seq_length=1024,
    bnb_4bit_compute_dtype="float32",  # a CPU without bf16 instructions takes twice as long in bf16
)  # fmt: skip
ASKED = EvalSettings(samples=4)


OF_A_KNOWN_KIND = pytest.mark.skipif(
    not os.environ.get("STEPH_TEST_PLANTED"),
    reason="another of its kind is run: set STEPH_TEST_PLANTED, or make test-planted",
)


def each_kind(*variants: Planted) -> list[object]:
    """All of them as parameters; those that are not the first of their kind may be skipped."""
    first = list(first_of_each_kind(variants))
    return [pytest.param(one, id=one.what, marks=[] if one in first else OF_A_KNOWN_KIND) for one in variants]


def run(host: ScriptHost, root: Path, script: str, *argv: object) -> tuple[Ended, Witness]:
    """Run a script of this pipeline, and what was seen in it."""
    name = Path(script).stem
    done = host.run(root, script, *argv, output=root / f"{name}.log", facts=root / f"seen-{name}")
    return done, read_witness(root / f"seen-{name}")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions long enough to be told from each other."""
    path = tmp_path_factory.mktemp("long") / "selection.json"
    samples = [
        {
            "ファイル名": f"架空法_問題番号{n}",
            "コンテキスト": f"## 架空法\n### 第{n}条\n#### 第1項\n別に定める。",
            "指示": "次の問いに答えてください。",
            "問題文": (
                f"{TOPICS[n % 8]}法第{n + 31}条の{TOPICS[(n + 3) % 8]}の{n}種の許可を受けた者の届出はいつまでですか。"
            ),
            "選択肢": "\n".join(
                f"{letter} {TOPICS[(n + k) % 8]}を始める日の{n * 7 + 3 * k + 11}日前までに届け出る"
                for k, letter in enumerate(LETTERS)
            ),
            "output": LETTERS[(n * 3) % 4],
            "references": ["https://example.com/law"],
        }
        for n in range(QUESTIONS)
    ]
    path.write_text(json.dumps({"samples": samples}, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def long_rows(questions: Path, run_script: RunScript) -> Path:
    """Their training rows."""
    path = questions.with_name("rows.jsonl")
    flags = ("--lawqa-path", questions, "--output-path", path, "--mode", "direct", "--no-rag")
    assert run_script("build_finetune_dataset", *flags).returncode == 0
    return path


def train(
    host: ScriptHost, root: Path, model: Path, rows: Path, flags: tuple[object, ...] = ("--use-4bit",)
) -> TrainEvidence:
    """Train in this folder, and what the suite would know of it."""
    done, seen = run(
        host, root, SCRIPT_TRAIN, "--do-train",
        "--model-name", model, "--train-file", rows, "--output-dir", root / OUTPUT,
        "--num-epochs", SETTINGS.num_epochs, "--batch-size", SETTINGS.batch_size, "--gradient-accumulation-steps",
        SETTINGS.gradient_accumulation_steps, "--learning-rate", SETTINGS.learning_rate, "--warmup-ratio", "0.03",
        "--max-seq-length", SETTINGS.max_seq_length, "--logging-steps", 1, "--save-steps", 4, *flags,
        "--bnb-4bit-compute-dtype", SETTINGS.bnb_4bit_compute_dtype,
        "--target-modules", ",".join(SETTINGS.target_modules),
    )  # fmt: skip
    return TrainEvidence(
        output_dir=root / OUTPUT, output_dir_name=OUTPUT, settings=SETTINGS, model_name=str(model), stdout=done.stdout,
        output=done.stdout, returncode=done.returncode, attempt_started_unix=done.began_unix, train_rows=QUESTIONS,
        rehearsal=True, witness=seen, train_file=rows,
    )  # fmt: skip


def evaluate(
    host: ScriptHost,
    root: Path,
    model: Path,
    questions: Path,
    training: TrainEvidence,
    settings: EvalSettings = ASKED,
    flags: tuple[object, ...] = ("--no-rag",),
) -> EvalEvidence:
    """Evaluate what was trained with this folder's scripts, and what the suite would know of it."""
    adapter = training.output_dir
    done, seen = run(
        host, root, SCRIPT_EVALUATE, "--data", questions, "--output", root / RESULTS, "--samples", settings.samples,
        *flags, "--no-few-shot", "--top-k", 1, "--llm-backend", "hf", "--hf-model-name", model,
        "--hf-lora-path", adapter, "--hf-load-in-4bit",
    )  # fmt: skip
    sha256 = sha256_of(adapter / "adapter_model.safetensors")
    return EvalEvidence(
        root=root, dataset=questions, output_path=RESULTS, settings=settings, model_name=str(model),
        lora_path=str(adapter), stdout=done.stdout, output=done.stdout, returncode=done.returncode,
        attempt_started_unix=done.began_unix, seconds=10.0, adapter_sha256_expected=sha256,
        adapter_sha256_actual=sha256, rehearsal=True, random_weights=True, witness=seen,
        training_witness=training.witness,
    )  # fmt: skip


def broken(checks: tuple[Check, ...]) -> dict[str, str]:
    """The checks of what was seen that do not hold, and what they say."""
    return {check.id: str(check.message) for check in checks if check.id in SEEN and check.holds is False}


@pytest.fixture(scope="module")
def trained(
    watched_host: ScriptHost, tiny_model: Path, long_rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainEvidence, Path]:
    """One sound training, and its folder."""
    root = copy_of(Planted("sound", ()), tmp_path_factory.mktemp("variants") / "sound")
    evidence = train(watched_host, root, tiny_model, long_rows)
    assert evidence.returncode == 0, evidence.output[-2000:]
    return evidence, root


@pytest.mark.parametrize("variants", [TRAININGS, EVALUATIONS], ids=["trainings", "evaluations"])
def test_every_run_has_a_defect_for_each_check(variants: tuple[Planted, ...]) -> None:
    """The first of each kind break together what all break, and they are fewer than half."""
    first = [*first_of_each_kind(variants)]
    assert {name for one in first for name in one.broken} == {name for one in variants for name in one.broken}
    assert len(first) < len(variants) / 2


@pytest.mark.parametrize("variant", each_kind(*SOUND_TRAININGS, *TRAININGS))
def test_a_training_is_seen_as_it_was(
    variant: Planted, watched_host: ScriptHost, tiny_model: Path, long_rows: Path, trained: tuple[TrainEvidence, Path]
) -> None:
    """A defect breaks exactly the checks of what it did; a sound variant breaks none; no hook fails."""
    root = copy_of(variant, trained[1].with_name(f"train-{abs(hash(variant.what))}"))
    evidence = train(watched_host, root, tiny_model, long_rows)
    assert evidence.witness is not None
    assert not evidence.witness.of(Blind)
    found = broken(judge_training(evidence)[1])
    assert set(found) == variant.broken, f"{found}\n{evidence.output[-3000:]}"


@pytest.mark.parametrize("variant", [*STOPPING, *ENDING], ids=lambda variant: variant.what)
def test_a_training_that_ends_early_fails_unless_it_stopped_itself(
    variant: Planted, watched_host: ScriptHost, tiny_model: Path, long_rows: Path, trained: tuple[TrainEvidence, Path]
) -> None:
    """Early stopping is a warning that names its callback, and no other check complains; other short trainings fail."""
    root = copy_of(variant, trained[1].with_name(f"stop-{abs(hash(variant.what))}"))
    evidence = train(watched_host, root, tiny_model, long_rows)
    assert evidence.returncode == 0, evidence.output[-2000:]
    found = {check.id: check for check in judge_training(evidence)[1] if check.holds is False}
    failed = {name for name, check in found.items() if check.severity is Severity.FAIL}
    assert failed == (set() if variant in STOPPING else {"steps_complete", "steps_seen"}), str(found)
    assert set(found) == {"loss_below_chance", "steps_complete", "steps_seen"}, str(found)
    name = "EarlyStoppingCallback" if "early" in variant.what else "Own"
    assert (name in str(found["steps_seen"].message)) == (variant in STOPPING)


@pytest.mark.parametrize("variant", each_kind(*SOUND_EVALUATIONS, *EVALUATIONS))
def test_an_evaluation_is_seen_as_it_was(
    variant: Planted, watched_host: ScriptHost, tiny_model: Path, questions: Path, trained: tuple[TrainEvidence, Path]
) -> None:
    """A defect breaks exactly the checks of what it did; a sound variant breaks none; no hook fails."""
    training, sound = trained
    root = copy_of(variant, sound.with_name(f"evaluate-{abs(hash(variant.what))}"))
    evidence = evaluate(watched_host, root, tiny_model, questions, training)
    assert evidence.witness is not None
    assert not evidence.witness.of(Blind)
    found = broken(judge_evaluation(evidence)[1])
    assert set(found) == variant.broken, f"{found}\n{evidence.output[-3000:]}"


def test_an_adapter_on_top_of_a_frozen_one(
    watched_host: ScriptHost, tiny_model: Path, long_rows: Path, questions: Path, trained: tuple[TrainEvidence, Path]
) -> None:
    """Two adapters at once are sound where the training had both: the lower one is part of the base."""
    root = copy_of(ON_ANOTHER, trained[1].with_name("on-another"))
    training = train(watched_host, root, tiny_model, long_rows)
    assert training.returncode == 0, training.output[-2000:]
    assert broken(judge_training(training)[1]) == {}
    evaluation = evaluate(watched_host, root, tiny_model, questions, training)
    assert evaluation.returncode == 0, evaluation.output[-2000:]
    assert broken(judge_evaluation(evaluation)[1]) == {}


def test_a_bos_that_only_the_training_has(
    watched_host: ScriptHost, tiny_model: Path, long_rows: Path, questions: Path, trained: tuple[TrainEvidence, Path]
) -> None:
    """In front of rows and prompts it is sound; prompts that lack it, or have it twice, are not as was trained."""
    root = copy_of(WITH_BOS, trained[1].with_name("with-bos"))
    training = train(watched_host, root, tiny_model, long_rows)
    assert broken(judge_training(training)[1]) == {}
    for variant, found in ((WITH_BOS, set()), (WITHOUT_BOS, {"frame_as_trained"}), (TWO_BOS, {"frame_as_trained"})):
        root = copy_of(variant, trained[1].with_name(f"bos-{abs(hash(variant.what))}"))
        evaluation = evaluate(watched_host, root, tiny_model, questions, training)
        assert evaluation.returncode == 0, evaluation.output[-2000:]
        assert set(broken(judge_evaluation(evaluation)[1])) == found, variant.what


def test_an_adapter_that_was_merged_before_the_training_is_missed_in_the_evaluation(
    watched_host: ScriptHost, tiny_model: Path, long_rows: Path, questions: Path, trained: tuple[TrainEvidence, Path]
) -> None:
    """The new adapter alone stands on another base than it was trained on; with the same merge it does not."""
    root = copy_of(ON_MERGED, trained[1].with_name("on-merged"))
    training = train(watched_host, root, tiny_model, long_rows)
    assert training.returncode == 0, training.output[-2000:]
    assert broken(judge_training(training)[1]) == {}
    found = broken(judge_evaluation(evaluate(watched_host, root, tiny_model, questions, training))[1])
    assert set(found) == {"base_as_trained"}, found
    again = copy_of(ALSO_ON_MERGED, root.with_name("also-on-merged"))
    assert broken(judge_evaluation(evaluate(watched_host, again, tiny_model, questions, training))[1]) == {}


def test_answers_with_passages_are_seen_as_such(
    watched_host: ScriptHost, tiny_model: Path, questions: Path, trained: tuple[TrainEvidence, Path]
) -> None:
    """An index is built, passages are found in it, and the prompts carry them; the rehearsals have it as a stage."""
    training, sound = trained
    bare, root = (copy_of(Planted(name, ()), sound.with_name(name)) for name in ("bare", "passages"))
    evaluate(watched_host, bare, tiny_model, questions, training)
    without = read_lawqa(bare / RESULTS).results
    index = ("--index-dir", root / "index")
    built = watched_host.run(root, "scripts/build_index.py", "--data", questions, *index, output=root / "index.log")
    assert built.returncode == 0, built.stdout
    asked = ASKED.model_copy(update={"use_rag": True})
    evidence = replace(evaluate(watched_host, root, tiny_model, questions, training, asked, index), h3_rows=without)
    checks = judge_evaluation(evidence)[1]
    assert broken(checks) == {}, evidence.output[-3000:]
    held = {check.id for check in checks if check.holds}
    assert {"line_rag_enabled", "rag_retrieved", "rag_in_prompt", "config_as_asked"} <= held


def test_a_step_does_what_its_flags_say(
    watched_host: ScriptHost, tiny_model: Path, long_rows: Path, trained: tuple[TrainEvidence, Path]
) -> None:
    """Without 4-bit nothing is quantised, with it layers are; labels are on the answers, or on all of a row."""
    step = ("--max-steps-override", 1)
    for name, flags, is_as_asked in (
        ("as asked", ("--loss-on-output-only",), True),
        ("otherwise", ("--use-4bit", "--no-loss-on-output-only"), False),
    ):
        root = copy_of(Planted(name, ()), trained[1].with_name(f"step {name}"))
        seen = train(watched_host, root, tiny_model, long_rows, (*step, *flags)).witness
        assert seen is not None
        assert unquantised_check(seen, training_in(seen)).holds is is_as_asked
        assert output_only_check(training_in(seen), 1).holds is is_as_asked


OWN_LOSS = """
import sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
ids = torch.tensor([[9, 8, 7, 6, 5, 2], [19, 18, 17, 16, 15, 2]])
labels = ids.clone()
labels[:, :3] = -100
for _ in range(2):
    logits = model(input_ids=ids).logits
    SHIFT
    torch.nn.CrossEntropyLoss()(logits.flatten(0, 1), learnt.flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.param_groups[0]["lr"] = 0.0
"""


LAST = "labels[:, :-1] = -100; "  # the answer is one token, the row's last


@pytest.mark.parametrize(
    ("cut", "is_right"), [("logits, learnt = logits[:, :-1], labels[:, 1:]", True), ("learnt = labels", False)]
)
def test_a_loss_on_the_last_token_alone_is_seen(
    cut: str, is_right: bool, watched_host: ScriptHost, tiny_model: Path, tmp_path: Path
) -> None:
    """What the last place learns has no place behind it: it may be the token that was just read."""
    (tmp_path / "train.py").write_text(OWN_LOSS.replace("SHIFT", LAST + cut))
    done, seen = run(watched_host, tmp_path, "train.py", tiny_model)
    assert done.returncode == 0, done.stdout
    assert not seen.of(Blind)
    batch = seen.of(Batch)[0]
    assert (batch.aligned, batch.unshifted) == (is_right, not is_right)


@pytest.mark.parametrize(
    "taught",
    [
        "logits, learnt = logits[:, -1:], torch.tensor([3, 4])",
        # a row that is padded on the right learns behind its end
        "logits, learnt = torch.stack([logits[0, 3:4], logits[1, -1:]]), torch.tensor([3, 4])",
    ],
)
def test_a_class_behind_the_prompt_is_learnt(
    taught: str, watched_host: ScriptHost, tiny_model: Path, tmp_path: Path
) -> None:
    """A classifier is given the prompt alone, and its loss the class: no row has that, and none is bare."""
    marks = ", attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])" if "stack" in taught else ""
    script = OWN_LOSS.replace("SHIFT", taught).replace("input_ids=ids", f"input_ids=ids{marks}")
    (tmp_path / "train.py").write_text(script)
    done, seen = run(watched_host, tmp_path, "train.py", tiny_model)
    assert done.returncode == 0, done.stdout
    assert not seen.of(Blind)
    batch = seen.of(Batch)[0]
    assert (batch.supervised, batch.aligned, batch.unshifted) == ((1, 1), True, False)


@pytest.mark.parametrize(
    ("shift", "is_right"), [("logits, learnt = logits[:, :-1], labels[:, 1:]", True), ("learnt = labels", False)]
)
def test_a_loss_of_the_programs_own_is_seen(
    shift: str, is_right: bool, watched_host: ScriptHost, tiny_model: Path, tmp_path: Path
) -> None:
    """The model is given no labels: the gradient of its logits says which tokens were learnt, and where."""
    (tmp_path / "train.py").write_text(OWN_LOSS.replace("SHIFT", shift))
    done, seen = run(watched_host, tmp_path, "train.py", tiny_model)
    assert done.returncode == 0, done.stdout
    assert not seen.of(Blind)
    (ends,) = seen.of(TrainingEnds)
    assert (ends.steps, ends.rateless_steps) == (2, 1)
    batch = seen.of(Batch)[0]
    assert (batch.supervised, batch.aligned, batch.unshifted) == ((3 - (not is_right),) * 2, is_right, not is_right)
    assert (batch.first_supervised == (3, 3)) is is_right
    evidence = TrainEvidence(
        output_dir=tmp_path / "out", output_dir_name="out", settings=TrainSettings(), model_name=str(tiny_model),
        stdout="", output="", returncode=0, attempt_started_unix=0.0, witness=seen,
    )  # fmt: skip
    (check,) = [one for one in witnessed_training_checks(evidence, None) if one.id == TOKENS_SUPERVISED.id]
    assert (check.holds, check.severity) == (is_right, TOKENS_SUPERVISED.severity)


SCORING = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
asked, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("期間は何日か。\\n", "30日以内"))
ids = [*asked, *said, tokenizer.eos_token_id]
logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
for read in (said, said + [tokenizer.eos_token_id]):
    print(sum(logs[len(asked) - 1 + n, one].item() for n, one in enumerate(read)))
padded, mask = torch.tensor([ids + [0, 0], [0, 0] + ids]), torch.ones(2, len(ids) + 2, dtype=torch.long)
mask[0, -2:] = mask[1, :2] = 0
model(input_ids=padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
model(input_ids=torch.tensor([ids]), logits_to_keep=len(said) + 2)
cache = model(input_ids=torch.tensor([asked]), use_cache=True).past_key_values
model(input_ids=torch.zeros(1, 3, dtype=torch.long), attention_mask=torch.zeros(1, 3, dtype=torch.long))
print(logs[len(asked) - 1, tokenizer.encode("a", add_special_tokens=False)[0]].item())
model(input_ids=torch.tensor([said]), past_key_values=cache)
with torch.no_grad():
    model.train()(input_ids=torch.tensor([ids]))
"""


def test_how_likely_a_scored_text_was_is_seen(watched_host: ScriptHost, tiny_model: Path, tmp_path: Path) -> None:
    """As the program computes it, with padding on either side and with the last logits alone; behind a cache not."""
    (tmp_path / "score.py").write_text(SCORING)
    done, seen = run(watched_host, tmp_path, "score.py", tiny_model)
    assert done.returncode == 0, done.stdout
    assert not seen.of(Blind)
    alone, ended, letter = map(float, done.stdout.split()[-3:])
    read = seen.of(Likelihoods)
    assert len(seen.of(Scoring)) == len(read) + 1 == 7
    assert [fact.training for fact in seen.of(Scoring)] == [False] * 6 + [True]
    for endings in (row for fact in read[:3] for row in fact.endings):
        (found,) = [one for one in endings if one[0] == text_hash("30日以内")[:8]][:1]
        assert found[1] == pytest.approx(ended, abs=0.01)
        assert found[1] - found[3] == pytest.approx(alone, abs=0.01)
    assert read[3].labels[0]["a"] == pytest.approx(letter, abs=0.01)


LOADED = """
import sys
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
rows = [{"input_ids": [20 + n, 30 + n, 40 + n, 2]} for n in range(8)]
collate = lambda batch: torch.tensor([row["input_ids"] for row in batch])
list(DataLoader([{"input_ids": [7, 7, 2]}] * 3, 2, collate_fn=collate))  # rows that are held out
for ids in DataLoader(ROWS, 2, shuffle=True, collate_fn=collate):
    model(input_ids=CHANGED, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.mark.parametrize(
    ("rows", "changed", "seen_rows", "distinct"),
    [
        ("rows", "ids", 8, 8),
        ("rows[:4] * 2", "ids", 8, 4),
        ("rows", "ids + 1", None, 0),
        ("iter(rows)", "ids", None, 0),
    ],
)
def test_the_rows_of_a_loops_loader_are_seen(
    rows: str,
    changed: str,
    seen_rows: int | None,
    distinct: int,
    watched_host: ScriptHost,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    """All of them, and not only those of its first batches; where they are changed on their way they are not known."""
    script = LOADED.replace("ROWS", rows).replace("CHANGED", changed)
    if "iter" in rows:  # a stream has no length
        script = script.replace("iter(rows), 2, shuffle=True", "Stream(), 2").replace(
            "collate =",
            "class Stream(torch.utils.data.IterableDataset):\n    __iter__ = lambda self: iter(rows)\ncollate =",
        )
    (tmp_path / "loop.py").write_text(script)
    done, seen = run(watched_host, tmp_path, "loop.py", tiny_model)
    assert done.returncode == 0, done.stdout
    assert not seen.of(Blind)
    training = training_in(seen)
    assert training is not None
    assert (training.begins.source, training.begins.rows) == ("loop", seen_rows)
    assert len({*(training.begins.row_hashes or ())}) == distinct


RETURNED = """
import functools
import sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

class Empty:
    def __getattr__(self, name):
        raise NotImplementedError(name)

base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
own = type(base).forward
@functools.wraps(own)
def forward(self, *given, **named):
    result = own(self, *given, **named)
    CHANGE
    return result
type(base).forward = forward
model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
rows = [{"input_ids": [20 + n, 30 + n, 40 + n, 2], "labels": [20 + n, 30 + n, 40 + n, 2]} for n in range(8)]
Trainer(model, TrainingArguments("out", max_steps=3, report_to=[], use_cpu=True), train_dataset=rows).train()
"""


@pytest.mark.parametrize(
    ("change", "blind", "calls"),
    [
        ("result.logits = Empty()", [], 3),  # as Unsloth's
        ("result.loss.register_hook = None", ["model's loss"], 0),
    ],
)
def test_a_hook_that_fails_counts_nothing(
    change: str, blind: list[str], calls: int, watched_host: ScriptHost, tiny_model: Path, tmp_path: Path
) -> None:
    """Logits that are no tensor are not asked for anything; of calls that a failed hook missed nothing is told."""
    (tmp_path / "train.py").write_text(RETURNED.replace("CHANGE", change))
    done, seen = run(watched_host, tmp_path, "train.py", tiny_model)
    assert done.returncode == 0, done.stdout
    assert [fact.where for fact in seen.of(Blind)] == blind
    (ends,) = seen.of(TrainingEnds)
    assert [call[2] for call in ends.calls] == [1] * calls
    assert (ends.forwards, ends.optimizer_steps) == (3, 3)


AVERAGED = """
import sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).train()
weights = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(weights, lr=1e-2)
ids = torch.tensor([[9, 8, 7, 6, 5, 2], [19, 18, 17, 16, 15, 2]])
for n in range(8):
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    own = [p.detach().clone() for p in weights]
    mean = own if n == 0 else [KEPT * old + (1 - KEPT) * new for old, new in zip(mean, own)]
    best = [p.detach().clone() for p in weights] if n == 0 else best
for weight, one in zip(weights, best if KEPT == 1 else mean):
    weight.data.copy_(one)
model.save_pretrained("out")
"""


@pytest.mark.parametrize(("kept", "is_found"), [(0.0, False), (0.3, False), (0.99, True), (1, False)])
def test_what_a_loop_saves_in_the_place_of_its_last_weights(
    kept: float, is_found: bool, watched_host: ScriptHost, tiny_model: Path, tmp_path: Path
) -> None:
    """A mean of the last steps is sound, and so is the best step; one that hardly left the first was not trained."""
    (tmp_path / "loop.py").write_text(AVERAGED.replace("KEPT", str(kept)))
    done, seen = run(watched_host, tmp_path, "loop.py", tiny_model)
    assert done.returncode == 0, done.stdout
    assert not seen.of(Blind)
    (ends,) = seen.of(TrainingEnds)
    assert ends.since_last is not None
    assert (ends.since_last == 1.0) is (kept in (0.0, 1))
    check = trained_weight_checks(ends, tmp_path / "out")[0]
    assert (check.id, check.holds) == ("saved_as_trained", not is_found), check.message
