"""What was seen of a training decides: defects that no printed line shows, and sound programs of other kinds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planted import plant
from planted.defects import Variant
from planted.scenario import training_evidence
from seen_facts import Change, Facts, each, facts_in, without, witness_of
from steph.base.fingerprint import fingerprints, text_hash
from steph.base.terms import Severity
from steph.judge.checks_rows import ROW_IDENTITY
from steph.judge.checks_setup import quantised_check, weight_bits
from steph.judge.checks_training import judge_training
from steph.judge.checks_witness import WITNESSED_TRAINING
from steph.judge.evidence import TrainEvidence
from steph.judge.witness import ModelFact
from steph.record.values import Check

OURS = {kind.id for kind in (*WITNESSED_TRAINING, *ROW_IDENTITY)}
CORE = {"training_seen", "steps_seen", "tokens_supervised", "model_loaded", "quantised_as_asked", "adapter_moved"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> TrainEvidence:
    """A sound planted training with what was seen of it."""
    return training_evidence(plant(tmp_path_factory.mktemp("sound") / "root"), Variant("", "H-2", ""))


def facts_of(evidence: TrainEvidence) -> Facts:
    """The facts of the planted training."""
    return facts_in(evidence.output_dir.parents[2] / "seen-training")


def judged(evidence: TrainEvidence, folder: Path, *changes: Change) -> dict[str, Check]:
    """Our checks of the same run, had these facts been seen."""
    facts = facts_of(evidence)
    for change in changes:
        facts = change(facts)
    seen = replace(evidence, witness=witness_of(folder / "seen", facts))
    return {check.id: check for check in judge_training(seen)[1] if check.id in OURS}


def broken(checks: dict[str, Check]) -> dict[str, Severity]:
    """What does not hold, and how hard it is."""
    return {name: check.severity for name, check in checks.items() if check.holds is False}


def logged(**series: list[Any]) -> Change:
    """The first steps' logged figures in place of the planted ones."""

    def change(facts: Facts) -> Facts:
        kept = [fact for fact in facts if fact["fact"] != "logged"]
        steps = [
            {
                "fact": "logged",
                "at": 5.0,
                "step": n + 1,
                "loss": 1.0,
                **{name: values[n] for name, values in series.items()},
            }
            for n in range(len(next(iter(series.values()))))
        ]
        at = next(n for n, fact in enumerate(kept) if fact["fact"] == "training_ends")
        return [*kept[:at], *steps, *kept[at:]]

    return change


def test_a_sound_training_shows_the_whole_core(sound: TrainEvidence, tmp_path: Path) -> None:
    """All core checks are measured and hold by what the stand-in shows."""
    checks = judged(sound, tmp_path)
    assert broken(checks) == {}
    assert {name for name, check in checks.items() if check.holds} >= CORE


@pytest.mark.parametrize(
    ("rates", "norms", "hardness"),
    [
        ([2e-4, 1e-4, 5e-5, 0.0], [1.0, 0.8, 0.7, 0.6], None),  # linear, logged after the step
        ([0.0, 2e-4, 1e-4, 5e-5], ["inf", 0.8, 0.7, 0.6], None),  # warm-up, and fp16 looking for its scale
        ([2e-4] * 4, [1.0, "nan", 0.7, 0.6], None),
        ([2e-4, 0.0, 0.0, 0.0], [1.0, 0.8, 0.7, 0.6], Severity.FAIL),
        ([0.0, 2e-4, 0.0, 0.0, 0.0, 0.0], [1.0] * 6, Severity.WARN),
        ([2e-4] * 4, [0.0] * 4, Severity.FAIL),
        ([2e-4] * 4, [1.0, "nan", "nan", "nan"], Severity.WARN),
        ([2e-4, 0.0], [1.0, 0.5], None),  # two steps say nothing
    ],
)
def test_steps_that_teach_nothing_are_found(
    sound: TrainEvidence, tmp_path: Path, rates: list[float], norms: list[object], hardness: Severity | None
) -> None:
    """A rate or gradient of zero from the second step on fails, for most steps it warns, and once it is no finding."""
    no_losses = each("training_ends", first_losses={})
    found = broken(judged(sound, tmp_path, logged(learning_rate=rates, grad_norm=norms), no_losses))
    assert found == ({} if hardness is None else {"updates_seen": hardness})


def test_a_hook_that_failed_makes_unmeasured_what_it_would_have_seen(sound: TrainEvidence, tmp_path: Path) -> None:
    """No training was seen, but the hook had taken itself off: that is no proof that there was none."""
    blind = {"fact": "blind", "at": 1.0, "where": "Trainer.train", "error": "AttributeError: state"}
    checks = judged(sound, tmp_path, lambda facts: [*facts[:3], blind])
    assert checks["training_seen"].holds is None
    assert "AttributeError" in str(checks["training_seen"].message)
    assert broken(checks) == {}


def test_an_engine_that_no_hook_sees_into_is_named(sound: TrainEvidence, tmp_path: Path) -> None:
    """A process that loaded another engine may have worked there; the reason says so."""
    other = {"fact": "hooked", "at": 1.0, "module": "mlx_lm"}
    check = judged(sound, tmp_path, lambda facts: [*facts[:3], other])["training_seen"]
    assert check.holds is None
    assert "mlx_lm" in str(check.message)


def test_a_hidden_retry_is_a_finding(sound: TrainEvidence, tmp_path: Path) -> None:
    """A training that raised before the one that ended well is told of; one that ended well is not."""

    def twice(**end: object) -> Change:
        def change(facts: Facts) -> Facts:
            first = [fact | (end if fact["fact"] == "training_ends" else {}) for fact in facts]
            at = next(n for n, fact in enumerate(facts) if fact["fact"] == "training_begins")
            return [*first, *facts[at:]]

        return change

    assert broken(judged(sound, tmp_path / "a", twice(raised="RuntimeError", steps=3))) == {
        "training_seen": Severity.WARN
    }
    assert broken(judged(sound, tmp_path / "b", twice())) == {}


def _with(kind: str, name: str, change: Callable[[Any], Any]) -> Change:
    """Change a value of every fact of one kind."""
    return lambda facts: [fact | {name: change(fact[name])} if fact["fact"] == kind else fact for fact in facts]


def of_another_process(facts: Facts) -> Facts:
    """The facts as another process has them, whose rows are others."""
    return _with("batch", "row_hashes", lambda rows: [f"{row[::-1]}-" for row in rows])(facts)


def test_the_first_rank_speaks_for_all(sound: TrainEvidence, tmp_path: Path) -> None:
    """With two ranks only the first logs and saves; the effective batch is that of both."""
    begins = each("training_begins", world_size=2, batch_size=2, accumulation=1)
    facts = begins(facts_of(sound))
    other = of_another_process(without("logged", "model_saved")(facts))
    settings = sound.settings.model_copy(update={"num_processes": 2, "gradient_accumulation_steps": 1})
    seen = replace(sound, settings=settings, witness=witness_of(tmp_path / "seen", facts, other))
    checks = {check.id: check for check in judge_training(seen)[1] if check.id in OURS}
    assert broken(checks) == {}
    assert checks["batch_seen"].holds


@pytest.mark.parametrize(
    ("rows", "steps"), [(36, 9), (39, 9), (40, 10), (37, 10)], ids=["held_out", "last_batch_dropped", "all", "uneven"]
)
def test_rows_that_were_held_out_or_dropped_are_no_finding(
    sound: TrainEvidence, tmp_path: Path, rows: int, steps: int
) -> None:
    """The steps due are those of the rows that the Trainer got."""
    begins = each("training_begins", rows=rows, steps_due=steps, row_hashes=None)
    ends = each("training_ends", steps=steps, due=steps, optimizer_steps=steps)
    saves = each("model_saved", step=steps)
    assert broken(judged(sound, tmp_path, begins, ends, saves)) == {}


def test_half_of_the_rows_are_missed(sound: TrainEvidence, tmp_path: Path) -> None:
    """Where the Trainer got half of the file's rows or fewer it is said, whatever the steps."""
    begins = each("training_begins", rows=20, steps_due=5, row_hashes=None)
    ends = each("training_ends", steps=5, due=5, optimizer_steps=5, optimizer_age=[4, 4])
    found = broken(judged(sound, tmp_path, begins, ends, each("model_saved", step=5)))
    assert found == {"rows_seen": Severity.WARN}


def test_the_best_checkpoint_loaded_at_the_end_is_sound(sound: TrainEvidence, tmp_path: Path) -> None:
    """The file is that of step 5, and it was saved again after the training's end."""

    def change(facts: Facts) -> Facts:
        saves = [fact for fact in facts if fact["fact"] == "model_saved"]
        at = next(n for n, fact in enumerate(facts) if fact["fact"] == "training_ends")
        best = saves[0] | {"step": 5, "in_training": True}
        last = best | {"step": 10, "sha256": "0" * 64}
        return [*facts[:at], best, last, facts[at], saves[-1]]

    assert broken(judged(sound, tmp_path, change)) == {}


def test_layers_without_a_compute_type_yet_are_no_finding(sound: TrainEvidence, tmp_path: Path) -> None:
    """What is not known of the quantisation contradicts nothing."""
    quantised = [{"class": "Linear4bit", "quant_type": "nf4", "compute_dtype": None, "layers": 28}]
    checks = judged(sound, tmp_path, each("training_begins", quantised=quantised))
    assert broken(checks) == {}


@pytest.mark.parametrize("unsaid", [frozenset(), frozenset({"use_4bit"})])
def test_4bit_that_nobody_spoke_of_is_no_finding(sound: TrainEvidence, tmp_path: Path, unsaid: frozenset[str]) -> None:
    """A program that is described without a word on 4-bit may have it inside; one that was told not to may not."""
    plain = replace(sound, settings=sound.settings.changed(use_4bit=False), unsaid=unsaid)
    quantised = [{"class": "Linear4bit", "quant_type": "nf4", "compute_dtype": None, "layers": 28}]
    check = judged(plain, tmp_path, each("training_begins", quantised=quantised))["quantised_as_asked"]
    assert check.holds is bool(unsaid)


def test_another_4bit_format_is_not_called_wrong(sound: TrainEvidence, tmp_path: Path) -> None:
    """A quantised class that is not known is unmeasured, which is not green, but no contradiction."""
    quantised = [{"class": "HQQLinear", "layers": 28}]
    check = judged(sound, tmp_path, each("training_begins", quantised=quantised))["quantised_as_asked"]
    assert (check.holds, check.severity) == (None, Severity.FAIL)


def _rows(evidence: TrainEvidence) -> list[dict[str, str]]:
    assert evidence.train_file is not None
    return [json.loads(line) for line in evidence.train_file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    "template",
    [
        "{input}{output}",
        "<s>[INST] {input} [/INST] {output} </s>",
        "Below is an instruction that describes a task.\n\n### Instruction:\n{input}\n\n### Response:\n{output}",
        "{output}\n\n質問は次のとおりです。{input}",
    ],
)
def test_rows_behind_any_template_are_the_files(sound: TrainEvidence, tmp_path: Path, template: str) -> None:
    """What a template puts around a row's fields makes no other file of it."""
    seen = [fingerprints(template.format(**row)) for row in _rows(sound)[:32]]
    assert broken(judged(sound, tmp_path, each("training_begins", row_fingerprints=seen))) == {}


def test_rows_shortened_to_the_asked_length_are_no_finding(sound: TrainEvidence, tmp_path: Path) -> None:
    """Prompts cut from the left, as wide as was asked for, are the program's way to keep the answers."""
    seen = [fingerprints((row["input"] + row["output"])[-90:]) for row in _rows(sound)[:32]]
    settings = sound.settings.model_copy(update={"max_seq_length": 100})
    narrow = each("batch", shape=[2, 98])
    evidence = replace(sound, settings=settings)
    assert broken(judged(evidence, tmp_path, narrow, each("training_begins", row_fingerprints=seen))) == {}


def test_rows_of_another_text_are_found(sound: TrainEvidence, tmp_path: Path) -> None:
    """A file of the same size with other questions is not the one that was given."""
    seen = [
        fingerprints(row["input"].replace("期間", "当事者の責任の及ぶ範囲") + row["output"]) for row in _rows(sound)
    ]
    found = broken(judged(sound, tmp_path, each("training_begins", row_fingerprints=seen[:32])))
    assert found["rows_seen"] is Severity.WARN


@pytest.mark.parametrize("length", [24, 300])
def test_a_file_of_which_no_row_was_trained_on_fails(sound: TrainEvidence, tmp_path: Path, length: int) -> None:
    """Also where the file's questions are short, and most of them have no piece of their own."""
    file = tmp_path / "train.jsonl"
    kept = [{"input": row["input"][:length], "output": row["output"]} for row in _rows(sound)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
    evidence = replace(sound, train_file=file)
    own, other = ([fingerprints(text) for text in texts] for texts in (
        [row["input"] + row["output"] for row in kept[:32]],
        [f"The baker sold {n} loaves before dawn. Is sentence {n * 7} a happy one? yes" for n in range(32)],
    ))  # fmt: skip
    found = broken(judged(evidence, tmp_path / "a", each("training_begins", row_fingerprints=other)))
    assert found["rows_seen"] is Severity.FAIL
    assert "rows_seen" not in broken(judged(evidence, tmp_path / "b", each("training_begins", row_fingerprints=own)))


def test_rows_in_small_letters_are_the_files(sound: TrainEvidence, tmp_path: Path) -> None:
    """Of short questions no piece may be left as it was."""
    file = tmp_path / "train.jsonl"
    kept = [{"input": f"NAME THE CAPITAL OF LAND {n}", "output": "abcd"[n % 4]} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    small = [fingerprints(f"{row['input']} {row['output']}".lower()) for row in kept[:32]]
    found = judged(replace(sound, train_file=file), tmp_path, each("training_begins", row_fingerprints=small))
    assert broken(found).get("rows_seen") is not Severity.FAIL


def test_choices_in_another_order_have_answers_of_their_own(sound: TrainEvidence, tmp_path: Path) -> None:
    """An answer is the file's only where its question stands as in the file, or is cut at its ends."""
    texts = (
        "届出の期限に関する次の記述のうち、正しいものを一つ選びなさい。",
        "許可を受けた者は、その日から十四日以内に届け出る",
        "登録を受けた者は、三十日前までに大臣へ申し出る",
        "事業を廃止した者は、遅滞なく知事に通知する",
    )
    rows = [[f"第{n}条の{n * 7}種{text}" for text in texts] for n in range(20)]
    file = tmp_path / "rows.jsonl"
    lines = [{"input": "\n".join(row), "output": "ab"[n % 2]} for n, row in enumerate(rows)]
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")

    def learnt(make: Callable[[list[str]], list[str]]) -> Check:
        seen = [fingerprints("問い:" + "".join(make(row)) + "答え:") for row in rows[:2]]
        batch = each("batch", row_fingerprints=seen, row_hashes=["1", "2"], answer_hashes=[*map(text_hash, "ba")],
                     first_supervised=[9, 9], unlabelled_end_hashes=[], begins_blank=[False, False])  # fmt: skip
        plain = each("training_begins", row_fingerprints=None, row_hashes=None)
        checks = judged(replace(sound, train_file=file), tmp_path / str(len(list(tmp_path.iterdir()))), batch, plain)
        return checks["answers_of_file"]

    assert learnt(list).holds is False
    assert learnt(lambda row: [row[0][4:], *row[1:]]).holds is False
    assert learnt(lambda row: [row[0], row[2], row[3], row[1]]).holds is None


@pytest.mark.parametrize(("padded", "is_found"), [([0, 9], True), ([0, 1], True), ([0, 0], False)])
def test_labels_on_padding_are_said(sound: TrainEvidence, tmp_path: Path, padded: list[int], is_found: bool) -> None:
    """However few they are: rows of nearly the same length have hardly any padding."""
    found = broken(judged(sound, tmp_path, each("batch", labelled_padding=padded)))
    assert found == ({"tokens_supervised": Severity.WARN} if is_found else {})


def test_a_loop_that_passes_no_labels_is_not_green(sound: TrainEvidence, tmp_path: Path) -> None:
    """Where the loss is computed outside of the model nobody saw the labels: unmeasured, and not passed."""
    check = judged(sound, tmp_path, each("batch", supervised=None))["tokens_supervised"]
    assert (check.holds, check.severity) == (None, Severity.FAIL)


def test_rows_that_the_file_repeats_may_be_repeated(sound: TrainEvidence, tmp_path: Path) -> None:
    """What the file has twice is trained on twice."""
    assert sound.train_file is not None
    lines = sound.train_file.read_text(encoding="utf-8").splitlines()
    twice = tmp_path / "twice.jsonl"
    twice.write_text("\n".join(lines[:20] * 2), encoding="utf-8")
    hashes = [f"{n % 20:08x}" for n in range(40)]
    changed = each("training_begins", row_hashes=hashes)
    assert broken(judged(replace(sound, train_file=twice), tmp_path / "a", changed)) == {}
    assert broken(judged(sound, tmp_path / "b", changed)) == {"rows_seen": Severity.WARN}


@pytest.mark.parametrize(
    ("steps", "rows", "is_found"),
    [
        ([0, 0, 0, 0, 1, 1, 1, 1], "ababcdcdefefghgh", False),  # each micro-batch twice, as R-Drop and SAM compute it
        ([0, 0, 0, 0, 1, 1, 1, 1], "abbacddceffeghhg", False),
        ([0, 0, 1, 1, 2, 2, 3, 3], "ababcdcdefefghgh", True),  # as many as are accumulated
        ([0, 0, 0, 0, 1, 1, 1, 1], "aaaaccccbbbbdddd", True),  # one row in place of both
    ],
)
def test_a_step_may_compute_its_batches_again(
    sound: TrainEvidence, tmp_path: Path, steps: list[int], rows: str, is_found: bool
) -> None:
    """But not draw the same rows once more in place of others."""
    begins = each("training_begins", rows=40, row_hashes=[*"abcdefghijklmnopqrstuvwxyz0123456789ABCD"], accumulation=2,
                  batch_size=2)  # fmt: skip
    own = batches(step=steps, row_hashes=[[*rows[at : at + 2]] for at in range(0, 16, 2)])
    assert ("rows_seen" in broken(judged(sound, tmp_path, begins, own))) is is_found


def test_a_mean_of_steps_may_be_saved_and_a_multiple_of_the_last_may_not(sound: TrainEvidence, tmp_path: Path) -> None:
    """What was saved after the end is as it was in memory then; all of it times one number is no mean."""
    saved = next(fact["matrices"] for fact in reversed(facts_of(sound)) if fact["fact"] == "model_saved")

    def ended(factor: Callable[[int], float]) -> Change:
        numbers = {name: [v[0] * factor(n), v[1] * factor(n), v[2]] for n, (name, v) in enumerate(saved.items())}
        return each("training_ends", matrices=numbers)

    assert broken(judged(sound, tmp_path / "a", ended(lambda n: 1.1 + n / 50))) == {}
    assert broken(judged(sound, tmp_path / "b", ended(lambda n: 2.0))) == {"saved_as_trained": Severity.FAIL}
    assert broken(judged(sound, tmp_path / "c", ended(lambda n: 0.2 + n / 50))) == {"saved_as_trained": Severity.FAIL}
    unseen = each("model_saved", matrices=None)
    found = broken(judged(sound, tmp_path / "d", ended(lambda n: 1.1 + n / 50), unseen))
    assert found == {"saved_as_trained": Severity.FAIL}


def test_evaluation_mode_is_a_finding_only_where_dropout_was_asked_for(sound: TrainEvidence, tmp_path: Path) -> None:
    """A model that calls itself evaluating may be trained; its dropouts tell whether something is lost."""
    evaluating = each("batch", training=False)
    assert broken(judged(sound, tmp_path / "a", evaluating)) == {}
    assert broken(judged(sound, tmp_path / "b", evaluating, each("batch", dropouts=[0, 0]))) == {}
    off = each("batch", dropouts=[8, 0])
    assert broken(judged(sound, tmp_path / "c", evaluating, off)) == {"setup_seen": Severity.WARN}


def batches(**series: list[Any]) -> Change:
    """A loop's batches in place of the planted ones, with the n-th of these values each."""

    def change(facts: Facts) -> Facts:
        like = next(fact for fact in facts if fact["fact"] == "batch")
        own = [
            like | {name: values[n] for name, values in series.items()} for n in range(len(next(iter(series.values()))))
        ]
        at = facts.index(like)
        return [*facts[:at], *own, *(fact for fact in facts[at:] if fact["fact"] != "batch")]

    return change


@pytest.mark.parametrize(
    ("on", "steps", "is_found"),
    [
        ([8, 8, 0, 0, 0, 0, 0, 0], [None, None, 1, 1, 2, 2, 3, 3], True),  # eval() for a validation, and no train()
        ([8, 8, 0, 8, 0, 8, 0, 8], [None, None, 1, 1, 2, 2, 3, 3], False),  # a validation that computes gradients
        ([8, 8, 8, 8, 0, 0, 0, 0], [None, None, None, None, 1, 1, 1, 1], False),  # and one that is long
    ],
)
def test_dropout_that_a_validation_leaves_off(
    sound: TrainEvidence, tmp_path: Path, on: list[int], steps: list[int | None], is_found: bool
) -> None:
    """Found where it is off in all of the last steps that were seen, whatever the first ones had."""
    found = broken(judged(sound, tmp_path, batches(dropouts=[[8, one] for one in on], step=steps)))
    assert found.get("setup_seen") is (Severity.WARN if is_found else None)


@pytest.mark.parametrize(
    ("rows", "is_found"),
    [
        (["ab"] * 8, True),  # the first batch, over and over
        (["ab", "ab", "cd", "cd", "ef", "ef", "gh", "gh"], False),  # two passes over each batch
        (["ab"] * 4 + ["cd"] * 4, False),  # and four
        (["ab", "cd", "ae", "fb", "gh", "ia", "bc", "dj"], False),  # drawn again
    ],
)
def test_a_loop_that_sees_one_batch_again_and_again(
    sound: TrainEvidence, tmp_path: Path, rows: list[str], is_found: bool
) -> None:
    """Of a loop the rows of the first batches are all that is known: nearly all of them are the same."""
    loop = each("training_begins", source="loop", rows=None, row_hashes=None)
    found = broken(judged(sound, tmp_path, batches(row_hashes=[*map(list, rows)]), loop))
    assert found.pop("rows_seen", None) is (Severity.WARN if is_found else None)


@pytest.mark.parametrize(
    ("sampler", "epochs", "words", "is_found"),
    [
        ("SequentialSampler", 2, (), True),
        ("SequentialSampler", 1, (), False),
        ("RandomSampler", 2, (), False),
        ("LengthGroupedSampler", 2, (), False),
        ("SequentialSampler", 2, ("curriculum_sampling: true",), False),
        ("SequentialSampler", 2, ("--disable_shuffling", "true"), False),
    ],
)
def test_epochs_in_the_same_order_are_a_note(
    sound: TrainEvidence, tmp_path: Path, sampler: str, epochs: int, words: tuple[str, ...], is_found: bool
) -> None:
    """Not where it was asked for, where rows are packed, or where one epoch is all there is."""
    settings = sound.settings.model_copy(update={"num_epochs": epochs, "max_steps": 500})
    evidence = replace(sound, settings=settings, words=words)
    change = each("training_begins", sampler={"class": sampler})
    assert broken(judged(evidence, tmp_path / "a", change)).get("rows_seen") is (Severity.INFO if is_found else None)
    packed = each("training_begins", packing=True)
    assert "rows_seen" not in broken(judged(evidence, tmp_path / "b", change, packed))


def test_a_loop_that_never_shuffles_is_a_note(sound: TrainEvidence, tmp_path: Path) -> None:
    """Its first rows are the file's first ones, by the text that each has to itself."""
    places = ["倉庫", "質屋", "鉄道", "港湾", "酒類", "銀行", "保険", "旅館", "古物", "警備", "電気", "水道"]
    texts = [
        f"第{n}条により{place}の許可を受けた者は、{n * 7 + 3}日以内に{place}を所管する大臣に届け出なければならない。"
        for n, place in enumerate(places)
    ]
    file = tmp_path / "rows.jsonl"
    lines = (json.dumps({"input": text * 2, "output": "ab"[n % 2]}, ensure_ascii=False) for n, text in enumerate(texts))
    file.write_text("\n".join(lines), encoding="utf-8")
    settings = sound.settings.model_copy(update={"num_epochs": 2, "max_steps": 500})
    evidence = replace(sound, settings=settings, train_file=file, train_rows=12)
    loop = each("training_begins", source="loop", rows=None, row_hashes=None, row_fingerprints=None, sampler=None)

    def found(order: list[int]) -> Severity | None:
        prints = [[fingerprints(texts[n] * 2) for n in order[k : k + 2]] for k in range(0, 12, 2)]
        hashes = [[f"{n:08x}" for n in order[k : k + 2]] for k in range(0, 12, 2)]
        own = batches(row_fingerprints=prints, row_hashes=hashes)
        return broken(judged(evidence, tmp_path / str(order[0]), loop, own)).get("rows_seen")

    assert found([*range(12)]) is Severity.INFO
    assert found([3, 1, 0, 2, *range(4, 12)]) is None


LETTERS = "許可届出申請期間建物土地河川森林道路航空電波温泉漁業鉱業、。のをにが"
TEXTS = ["".join(random.Random(n).choices(LETTERS, k=200)) for n in range(24)]  # noqa: S311 - no secret
WHOLE = "".join(TEXTS)
SIZE = 160  # characters of a block, which stand for its tokens


def _rows_as(texts: list[str], width: int = SIZE, **more: object) -> Change:
    """Batches of two such rows, of which each token is learnt and none is an end token."""
    pairs = [texts[n : n + 2] for n in range(0, len(texts) - 1, 2)][:8]
    like = {
        "shape": [2, width], "padding": 0.0, "supervised": [width] * 2, "first_supervised": [0, 0],
        "unsupervised_tail": [0, 0], "ends_with_end_token": [False] * 2, "ends_in_thought": [False] * 2, **more,
    }  # fmt: skip
    series: dict[str, list[Any]] = {name: [value] * len(pairs) for name, value in like.items()}
    prints = [[fingerprints(text) for text in pair] for pair in pairs]
    hashes = [[text_hash(text)[:8] for text in pair] for pair in pairs]
    return batches(**series, row_fingerprints=prints, row_hashes=hashes)


def _cut(text: str, size: int = SIZE) -> list[str]:
    return [text[n : n + size] for n in range(0, len(text) - size + 1, size)]


@pytest.mark.parametrize(
    ("rows", "file", "more", "is_found"),
    [
        (_cut(WHOLE), TEXTS, {}, False),  # several texts in one, or the middle of one
        (_cut(WHOLE), [WHOLE], {}, False),  # one long text
        (_cut(WHOLE), None, {}, False),
        (_cut(WHOLE), None, {"width": 32}, True),
        ([one[:SIZE] for one in TEXTS], TEXTS, {}, True),  # each row cut to one length
        ([one[-SIZE:] for one in TEXTS], TEXTS, {}, True),  # at its beginning
        (TEXTS, TEXTS, {}, True),  # whole rows that are as long as each other
        (TEXTS, TEXTS, {"padding": 0.2}, True),
        (_cut(WHOLE), None, {"padding": 0.2}, True),
        (_cut(WHOLE), None, {"leading_bos": [1, 1]}, True),
        ([f"次の質問に答えてください。よく考えて、一つだけ選ぶこと。{one}" for one in TEXTS], None, {}, True),
    ],
)  # fmt: skip
def test_blocks_of_one_length_need_no_end_token(
    sound: TrainEvidence,
    tmp_path: Path,
    rows: list[str],
    file: list[str] | None,
    more: dict[str, Any],
    is_found: bool,
) -> None:
    """A text may end in any of them; a row that holds one text of its own teaches where it ends, or not."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": one}) for one in file or ()), encoding="utf-8")
    evidence = replace(sound, train_file=path if file else None, row_format="text", train_rows=len(file or rows))
    unsaid = each("training_begins", rows=len(rows), row_hashes=None, row_fingerprints=None)
    found = broken(judged(evidence, tmp_path, unsaid, _rows_as(rows, **more)))
    assert ("end_supervised" in found) == is_found
    assert is_found or not {"rows_seen", "rows_whole", "steps_seen"} & found.keys()


@pytest.mark.parametrize(("alike", "rows", "is_found"), [(10, 8, True), (10, 6, False), (20, 8, False)])
def test_first_rows_whose_answers_are_all_alike(
    sound: TrainEvidence, tmp_path: Path, alike: int, rows: int, is_found: bool
) -> None:
    """A file that is sorted by its answers and never shuffled; few rows, or an answer that most have, are chance."""
    assert sound.train_file is not None
    own = [json.loads(line) for line in sound.train_file.read_text(encoding="utf-8").splitlines()]
    file = tmp_path / "rows.jsonl"
    changed = (row | {"output": "答えは一つ" if n < alike else f"{n}番"} for n, row in enumerate(own))
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in changed), encoding="utf-8")
    seen = batches(
        answer_hashes=[[text_hash("答えは一つ")] * 2] * (rows // 2),
        row_hashes=[[f"{n}a", f"{n}b"] for n in range(rows // 2)],
        **{name: [None] * (rows // 2) for name in ("unlabelled_end_hashes", "of_data_set", "row_fingerprints")},
    )
    begins = each("training_begins", row_fingerprints=None, row_hashes=None)
    found = broken(judged(replace(sound, train_file=file), tmp_path, seen, begins)).get("rows_seen")
    assert found is (Severity.WARN if is_found else None)


@pytest.mark.parametrize(("rateless", "is_found"), [(0, False), (1, False), (7, True)])
def test_steps_of_a_loop_without_a_rate(sound: TrainEvidence, tmp_path: Path, rateless: int, is_found: bool) -> None:
    """A loop logs nothing: its optimizer tells. A warm-up may begin at zero."""
    ends = each("training_ends", rateless_steps=rateless, steps=10)
    check = judged(sound, tmp_path, without("logged"), ends)["updates_seen"]
    assert (check.holds, check.severity) == ((False, Severity.WARN) if is_found else (True, Severity.FAIL))


@pytest.mark.parametrize(
    ("a", "steps", "words", "optimizer", "is_found"),
    [
        ({"moved": 0}, 10, (), "AdamW", True),
        ({"moved": 0}, 10, ("--optim", "lora_fa"), "AdamW", False),
        ({"moved": 0}, 10, ("--use-lorafa",), "AdamW", False),
        ({"moved": 0}, 10, (), "LoraFAOptimizer", False),
        ({"moved": 0}, 2, (), "AdamW", False),  # B begins at zero: A has no gradient in the first step
        ({"kept": 0.2}, 10, (), "AdamW", True),
        ({"kept": 0.9}, 10, (), "AdamW", False),
        ({"kept": 3.0}, 10, (), "AdamW", False),
    ],
)
def test_a_matrices_that_stand_still_or_shrink_are_said(
    sound: TrainEvidence, tmp_path: Path, a: dict[str, Any], steps: int, words: tuple[str, ...], optimizer: str,
    is_found: bool,
) -> None:  # fmt: skip
    """Frozen A matrices warn, unless the description or the optimizer says that they are meant to be."""

    def ended(facts: Facts) -> Facts:
        return [
            fact | {"lora_a": fact["lora_a"] | a, "optimizer_steps": steps} if fact["fact"] == "training_ends" else fact
            for fact in facts
        ]

    said = replace(sound, words=words)
    found = broken(judged(said, tmp_path, ended, each("training_begins", optimizer=optimizer)))
    assert found.pop("updates_seen", None) is (None if steps == 10 else Severity.FAIL)
    assert found == ({"adapter_moved": Severity.WARN} if is_found else {})


@pytest.mark.parametrize(
    ("decay", "words", "is_found"),
    [(0.5, (), True), (0.5, ("--weight-decay", "0.5"), False), (0.1, (), False), (None, (), False)],
)
def test_a_weight_decay_that_nobody_asked_for(
    sound: TrainEvidence, tmp_path: Path, decay: float | None, words: tuple[str, ...], is_found: bool
) -> None:
    """More than libraries have by default is said, unless the description's words have it."""
    found = broken(judged(replace(sound, words=words), tmp_path, each("training_begins", weight_decay=decay)))
    assert found == ({"setup_seen": Severity.WARN} if is_found else {})


@pytest.mark.parametrize(
    ("begins", "words", "is_found"),
    [
        ({"epsilon": 0.1}, (), True),
        ({"epsilon": 0.1}, ("--logging-steps", "1"), True),
        ({"epsilon": 0.1}, ("adam_epsilon: 0.1",), False),
        ({"epsilon": 0.1, "optimizer": "Adagrad"}, (), False),
        ({"epsilon": 1e-6, "betas": [[0.9, 0.95]]}, (), False),
        ({"betas": [[0.9, 0.999], [0.0, 0.999]]}, (), True),
        ({"betas": [[0.9, 0.0]]}, (), True),
        ({"betas": [[0.999, 0.9]]}, (), True),  # in the other order
        ({"betas": [[0.0, 0.999]]}, ("--adam_beta1", "0"), False),
        ({"betas": [[0.9, 0.0]], "optimizer": "SGD8bit"}, (), False),  # its momentum and dampening
        ({"betas": [[0.8, 0.9, 0.9999]]}, (), False),
    ],
)
def test_constants_of_adam_that_nobody_asked_for(
    sound: TrainEvidence, tmp_path: Path, begins: dict[str, object], words: tuple[str, ...], is_found: bool
) -> None:
    """With an epsilon as large as the gradients, or without a memory of them, it is no Adam any more."""
    change = each("training_begins", **{"optimizer": "AdamW", **begins})
    found = broken(judged(replace(sound, words=words), tmp_path, change))
    assert found == ({"setup_seen": Severity.WARN} if is_found else {})


@pytest.mark.parametrize(
    ("lora", "is_found"),
    [
        ({"nonzero_pairs": 14, "begun_as": ["False"]}, True),
        ({"nonzero_pairs": 14, "begun_as": ["True"]}, True),  # by code of its own
        ({"nonzero_pairs": 0, "begun_as": ["True"]}, False),
        ({"nonzero_pairs": 14, "begun_as": ["pissa"]}, False),
        ({"nonzero_pairs": 14, "begun_as": ["ADALORA"]}, False),
        ({"nonzero_pairs": 14}, False),  # unknown
    ],
)
def test_an_adapter_that_is_none_of_zeros_at_its_beginning(
    sound: TrainEvidence, tmp_path: Path, lora: dict[str, object], is_found: bool
) -> None:
    """A new one changes nothing; one that was loaded, resumed, trained before in this process or asked for may."""
    begins = next(fact for fact in facts_of(sound) if fact["fact"] == "training_begins")
    change = each("training_begins", lora={**begins["lora"], "pairs": 14, **lora})
    assert broken(judged(sound, tmp_path / "a", change)) == ({"begins_new": Severity.WARN} if is_found else {})
    loaded = {"fact": "adapter_loaded", "at": 0.0, "sha256": "0" * 64}
    for n, further in enumerate([
        lambda facts: [loaded, *facts],
        each("training_begins", resumed=True),
        lambda facts: [begins | {"at": 0.0}, {"fact": "training_ends", "at": 0.5, "source": "trainer"}, *facts],
    ]):  # fmt: skip
        assert "begins_new" not in broken(judged(sound, tmp_path / str(n), change, further))
    asked = replace(sound, words=("--init-lora-weights", "False"))
    assert broken(judged(asked, tmp_path / "b", change)) == {}


def test_gradients_are_lost_only_where_no_micro_batch_finds_any(sound: TrainEvidence, tmp_path: Path) -> None:
    """More calls a step than were asked for, a training of one's own, or one gradient left: nothing is said."""
    none = each("batch", gradient=0.0)
    assert broken(judged(sound, tmp_path / "a", none)) == {"updates_seen": Severity.FAIL}
    assert broken(judged(sound, tmp_path / "b", none, each("batch", step=0))) == {}
    assert broken(judged(sound, tmp_path / "c", none, each("training_begins", accumulation=1, batch_size=4))) == {}
    assert broken(judged(sound, tmp_path / "d", each("batch", gradient=None))) == {}


def test_gradients_are_left_only_where_each_step_finds_some(sound: TrainEvidence, tmp_path: Path) -> None:
    """One step that begins without any, or a loop, which may clear them after its forward pass: nothing is said."""
    kept = each("batch", gradient=0.25)
    assert broken(judged(sound, tmp_path / "a", kept)) == {"updates_seen": Severity.WARN}
    assert broken(judged(sound, tmp_path / "b", each("batch", gradient=float("nan")))) == {
        "updates_seen": Severity.WARN
    }
    once = batches(step=[0, 0, 1, 1, 2, 2], gradient=[0.0, 0.25, 0.25, 0.25, 0.0, 0.25])
    assert "updates_seen" not in broken(judged(sound, tmp_path / "c", once))
    loop = each("training_begins", source="loop", accumulation=None, batch_size=None)
    assert "updates_seen" not in broken(judged(sound, tmp_path / "d", kept, loop))


@pytest.mark.parametrize(
    ("left", "is_found"), [([0.3, 0.6, 0.9], True), ([0.3], False), ([0.0, 0.0, 0.4], False), ([], False)]
)
def test_gradients_that_a_loops_first_backward_pass_finds(
    sound: TrainEvidence, tmp_path: Path, left: list[float], is_found: bool
) -> None:
    """By then whoever clears them has done so: a step that still finds those before it adds them up for ever."""
    loop = each("training_begins", source="loop", accumulation=None, batch_size=None)
    found = broken(judged(sound, tmp_path, loop, each("training_ends", left_gradients=left)))
    assert found.get("updates_seen") == (Severity.WARN if is_found else None)


@pytest.mark.parametrize(("thoughts", "is_found"), [([True, True], True), ([True, False], False), (None, False)])
def test_labels_that_end_with_a_thought(
    sound: TrainEvidence, tmp_path: Path, thoughts: list[bool] | None, is_found: bool
) -> None:
    """Nothing behind the thoughts is learnt, whatever the file's answers are."""
    found = broken(judged(sound, tmp_path, each("batch", ends_in_thought=thoughts)))
    assert found == ({"answer_supervised": Severity.WARN} if is_found else {})


@pytest.mark.parametrize(
    ("begins", "rates", "is_found"),
    [
        ({"warmup_steps": 0, "steps_due": 10}, [], False),  # 0.3 steps, rounded down
        ({"warmup_steps": 1, "steps_due": 10}, [], False),
        ({"warmup_steps": 0, "steps_due": 100}, [], True),
        ({"warmup_steps": 5, "steps_due": 100}, [], True),
        ({"warmup_steps": 0, "steps_due": 100}, [1.0, 0.9, 0.8, 0.7], True),
        ({"warmup_steps": 0, "steps_due": 100}, [0.3, 0.6, 1.0, 0.9], False),  # a schedule of the program's own
        ({"warmup_steps": 0, "steps_due": 100, "schedule": "constant"}, [], False),
        ({"warmup_steps": None, "steps_due": 100}, [], False),
        ({"warmup_steps": 0, "steps_due": None}, [], False),
    ],
)
def test_a_warm_up_that_is_another(
    sound: TrainEvidence, tmp_path: Path, begins: dict[str, object], rates: list[float], is_found: bool
) -> None:
    """More than a step away from 3 % of the steps, unless the rates have it or nobody asked for it."""
    changes = each("training_begins", **begins), logged(learning_rate=[2e-4 * rate for rate in rates] or [None])
    assert broken(judged(sound, tmp_path / "a", *changes)).get("setup_seen") == (Severity.WARN if is_found else None)
    unsaid = replace(sound, unsaid=frozenset({"warmup_ratio"}))
    steps = replace(sound, words=("max_steps: 100\nwarmup_steps: 20\n",))  # which go before a ratio
    for n, asked in enumerate((unsaid, steps)):
        assert "setup_seen" not in broken(judged(asked, tmp_path / str(n), *changes))


@pytest.mark.parametrize(("packed", "is_found"), [(True, False), (False, True)])
def test_a_warm_up_of_packed_rows_is_an_estimate(
    sound: TrainEvidence, tmp_path: Path, packed: bool, is_found: bool
) -> None:
    """Where a program counts the steps before the rows are packed."""
    begins = each("training_begins", warmup_steps=8, steps_due=200)  # 6 were asked for
    found = broken(judged(sound, tmp_path, begins, each("batch", packed=packed), logged(learning_rate=[None])))
    assert (found.get("setup_seen") is Severity.WARN) is is_found


@pytest.mark.parametrize(
    ("steps", "gradients", "rows", "is_found"),
    [
        ([0, 0, 1, 1, 2, 2], [0.0] * 6, "abcdef", True),
        ([0, 0, 1, 1, 2, 2], [0.0] * 6, "aabbcc", False),  # SAM asks the same rows twice
        ([0, 0, 1, 1, 2, 2], [0.0, 0.5] * 3, "abcdef", False),
        ([0, 0, 0, 1, 2, 3], [0.0] * 6, "abcdef", False),  # fp16 looks for its scale, and then takes each step
        ([0] * 8, [0.0] * 8, "abcdefgh", True),
        ([0, 1, 2, 3], [0.0] * 4, "abcd", False),
    ],
)
def test_a_loop_that_drops_its_gradients(
    sound: TrainEvidence, tmp_path: Path, steps: list[int], gradients: list[float], rows: str, is_found: bool
) -> None:
    """A loop does not say what a step is: other rows were learnt from in the same one, and nothing is left of them."""
    loop = each("training_begins", source="loop", accumulation=None, batch_size=None)
    learnt = [int(step in steps[:n]) for n, step in enumerate(steps)]
    seen = batches(step=steps, gradient=gradients, row_hashes=[[one] for one in rows], backwards=learnt)
    found = broken(judged(sound, tmp_path, loop, seen))
    assert found.get("updates_seen") == (Severity.WARN if is_found else None)


LEARNT, LOST, VALIDATION = (1, 1), (1, 0), (0, 0)  # a call in training mode or not, and whether it was learnt from


@pytest.mark.parametrize(
    ("steps", "severity"),
    [
        ([[LEARNT, LEARNT]] * 4, None),
        ([[LEARNT, LOST]] * 4, Severity.FAIL),
        ([[LOST, LOST, LOST, LEARNT]] * 4, Severity.FAIL),
        ([[LEARNT, LEARNT, LOST]] * 4, Severity.WARN),
        ([[(0, 1), (0, 0)]] * 4, Severity.FAIL),  # a training without dropout
        ([[LEARNT, VALIDATION]] * 4, None),
        ([[LEARNT], [LEARNT, *[LOST] * 8], [LEARNT], [LEARNT, *[LOST] * 8]], None),  # a validation now and then
        ([[LEARNT]] * 4 + [[]] * 6 + [[LOST] * 8], None),  # behind the last step
        ([[LOST]] * 4, None),  # what was learnt from is neither loss nor logits: the matrices moved
        ([], None),
    ],
)
def test_forward_passes_that_no_backward_pass_follows(
    sound: TrainEvidence, tmp_path: Path, steps: list[list[tuple[int, int]]], severity: Severity | None
) -> None:
    """In most of the steps: from half of the calls on, most of what was read was not learnt from."""
    loop = each("training_begins", source="loop", accumulation=None, batch_size=None)
    calls = [[n, *one] for n, own in enumerate(steps) for one in own]
    found = broken(judged(sound, tmp_path / "loop", loop, each("training_ends", steps=10, calls=calls)))
    assert found.get("updates_seen") == severity
    found = broken(judged(sound, tmp_path / "trainer", each("training_ends", steps=10, calls=calls)))
    assert found.get("updates_seen") == severity


@pytest.mark.parametrize(
    ("moved", "frozen", "severity"),
    [(2, 2, Severity.WARN), (1, 3, Severity.WARN), (1, 2, Severity.FAIL), (0, 4, Severity.FAIL), (2, 0, Severity.FAIL)],
)
def test_layers_may_be_frozen(
    sound: TrainEvidence, tmp_path: Path, moved: int, frozen: int, severity: Severity
) -> None:
    """All others must move."""
    ends = each("training_ends", lora_b={"total": 4, "moved": moved, "zero": 4 - moved, "frozen": frozen})
    assert broken(judged(sound, tmp_path, ends)) == {"adapter_moved": severity}


def test_a_loop_without_any_backward_pass(sound: TrainEvidence, tmp_path: Path) -> None:
    """Its optimizer steps, nothing moves, and both are said."""
    loop = each("training_begins", source="loop", accumulation=None, batch_size=None)
    still = {"total": 4, "moved": 0, "zero": 4}
    ends = each("training_ends", calls=[[n, 1, 0] for n in range(4)], lora_b=still)
    found = broken(judged(sound, tmp_path, loop, ends))
    assert (found["updates_seen"], found["adapter_moved"]) == (Severity.FAIL, Severity.FAIL)
    both = each("training_ends", lora_b=still, lora_a=still, optimizer_steps=4)
    assert "一つも変わっていない" in str(judged(sound, tmp_path / "both", both)["adapter_moved"].message)


@pytest.mark.parametrize(
    ("ended", "is_found"),
    [
        ({"forwards": 10, "bare_forwards": 10}, True),
        ({"forwards": 3, "bare_forwards": 2}, False),  # a graph replays the others
        ({"optimizer_age": [8, 1]}, True),
        ({"optimizer_age": [8, 6]}, False),  # fp16 skipped two
        ({"optimizer_age": [4, 104]}, False),  # resumed
        ({"optimizer_age": None}, False),
        ({"optimizer_age": [16, 16], "optimizer_steps": 20}, True),  # of ten steps of the Trainer
        ({"optimizer_age": [16, 16]}, False),  # of which a training before this one did the first
    ],
)
def test_calls_and_an_optimizer_that_forgets(
    sound: TrainEvidence, tmp_path: Path, ended: dict[str, object], is_found: bool
) -> None:
    """Half of the calls without a gradient, or fewer than half of the steps in the optimizer's memory, warn."""
    found = broken(judged(sound, tmp_path, each("training_ends", **ended)))
    assert found == ({"updates_seen": Severity.WARN} if is_found else {})


@pytest.mark.parametrize("world_size", [1, 2])
def test_logged_losses_are_those_of_the_trainers_steps(sound: TrainEvidence, tmp_path: Path, world_size: int) -> None:
    """On one process; with several each has a loss of its own."""
    losses = {str(n): [9.0, 9.0] for n in range(4)}
    begins = each("training_begins", world_size=world_size, batch_size=2 // world_size)
    found = broken(judged(sound, tmp_path, begins, each("training_ends", first_losses=losses)))
    assert found == ({"loss_as_computed": Severity.WARN} if world_size == 1 else {})


def test_a_first_label_that_nothing_predicts_fails(sound: TrainEvidence, tmp_path: Path) -> None:
    """Labels cut to the answers, outputs to as many positions: one short, an answer's first token is never learnt."""
    found = judged(sound, tmp_path, each("batch", unpredicted=2))["tokens_supervised"]
    assert found.holds is False
    assert "最初のラベルの前に" in str(found.message)


@pytest.mark.parametrize(
    ("layers", "plain", "single", "bits"),
    [
        ([("Linear4bit", 100)], 20, 9, 4), ([("Linear8bitLt", 100)], 20, 0, 8), ([("HQQLinear", 100)], 0, 0, None),
        ([], 120, 0, 16), ([], 120, 90, 32), ([("Linear4bit", 3)], 120, 0, 16), ([], None, None, 16),
    ],
)  # fmt: skip
def test_the_bits_of_most_layers_are_the_models(
    layers: list[tuple[str, int]], plain: int | None, single: int | None, bits: int | None
) -> None:
    """An output layer may stay plain and embeddings be fp32 beside 4-bit layers; another way has no known size."""
    quantised = [{"class": kind, "layers": count} for kind, count in layers]
    fact = ModelFact.model_validate({
        "fact": "model_loaded", "at": 0.0, "pid": 1, "quantised": quantised, "unquantised_linears": plain,
        "parameters": 100, "fp32_parameters": single,
    })  # fmt: skip
    assert weight_bits(fact) == bits


@pytest.mark.parametrize(
    ("four_bit", "plain", "holds"),
    [(14, 1, True), (14, 0, True), (112, 17, True), (8, 7, False), (6, 8, False), (0, 15, False)],
    ids=["a head", "tied", "a mixture's routers", "the MLPs", "the attentions", "none"],
)
def test_a_model_that_is_quantised_in_part_is_not_taken_for_a_whole_one(four_bit: int, plain: int, holds: bool) -> None:
    """An output layer and routers stay plain in every 4-bit model; MLPs or attentions that do are a warning."""
    layers = [{"class": "Linear4bit", "layers": four_bit}] if four_bit else []
    fact = ModelFact.model_validate(
        {"fact": "model_loaded", "at": 0.0, "pid": 1, "quantised": layers, "unquantised_linears": plain}
    )
    check = quantised_check(True, (fact,))
    assert check.holds is holds
    assert check.severity is (Severity.FAIL if holds or not four_bit else Severity.WARN)


def _scaled(norm: float, total: float, part: int = 1) -> Change:
    """An end with other numbers in each matrix."""
    return _with("training_ends", "matrices", lambda known: {
        name: [norm * one[0], total * one[1], one[2] // part] for name, one in known.items()
    })  # fmt: skip


@pytest.mark.parametrize(
    ("second", "holds", "severity"),
    [
        (of_another_process, True, Severity.FAIL),
        (lambda facts: of_another_process(_scaled(2, 2)(facts)), False, Severity.FAIL),
        (lambda facts: facts, False, Severity.WARN),
        (_scaled(0.5, 0.3, 2), None, Severity.INFO),
        (without("training_ends"), None, Severity.INFO),
    ],
    ids=["in step", "gradients apart", "the same rows", "parts of matrices", "an end that nobody saw"],
)
def test_processes_train_one_adapter_on_rows_of_their_own(
    sound: TrainEvidence, tmp_path: Path, second: Change, holds: bool | None, severity: Severity
) -> None:
    """Two ranks are compared by what each saw; what lies in parts can't be."""
    facts = each("training_begins", world_size=2, batch_size=1)(facts_of(sound))
    witness = witness_of(tmp_path / "seen", facts, second(facts))
    check = {check.id: check for check in judge_training(replace(sound, witness=witness))[1]}["ranks_agree"]
    assert (check.holds, check.severity) == (holds, severity), check.message
