"""Runs one planted variant and judges it, as the suite would: copy the root, train, evaluate, collect the evidence."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path

from steph.base.files import sha256_of
from steph.contract.questions import prompt_template_in, questions_in, questions_of
from steph.contract.results import Row
from steph.contract.results_files import read_lawqa
from steph.contract.training_files import ADAPTER_WEIGHTS_NAME
from steph.judge.checks_evaluation import adapter_files, judge_evaluation
from steph.judge.checks_training import judge_training
from steph.judge.evidence import EvalEvidence, TrainEvidence
from steph.judge.witness import read_witness
from steph.record.settings import EvalSettings
from steph.record.values import Artifact, Check, EvalOutcome, TrainOutcome

from planted import DATASET, EVALUATE_SCRIPT, TRAIN_FILE, TRAIN_SCRIPT, Ran, plant, run_script
from planted.defects import SEEN, Variant

MODEL = "Qwen/Qwen1.5-1.8B-Chat"
OUTPUT_DIR = "runs/debug_small_model/direct_norag_small_4bit"
OUTPUT = "results/evaluations/small_model_debug_direct.json"
TRAIN_ROWS = 40
TRAIN_SECONDS = 5.0
SEEN_TRAINING = "seen-training"  # the folder of what a witness sees of the training


def training_evidence(root: Path, variant: Variant) -> TrainEvidence:
    """Run the planted training and hand over what the suite would know, had each of its lines taken half a second."""
    settings = variant.train_settings
    if variant.row_change is not None:
        rows = map(json.loads, (root / TRAIN_FILE).read_text(encoding="utf-8").splitlines())
        lines = [json.dumps(variant.row_change(n, row), ensure_ascii=False) for n, row in enumerate(rows)]
        (root / TRAIN_FILE).write_text("\n".join(lines), encoding="utf-8")
    _let_last(root, TRAIN_SECONDS)
    inputs = tuple((root / name, sha256_of(root / name)) for name in (DATASET, TRAIN_FILE))
    place, began_unix = (root / OUTPUT_DIR).resolve(), time.time()
    ran = run_script(
        root, TRAIN_SCRIPT, "--model-name", MODEL, "--train-file", TRAIN_FILE, "--output-dir", OUTPUT_DIR,
        "--num-epochs", str(settings.num_epochs), "--batch-size", str(settings.batch_size),
        "--gradient-accumulation-steps", str(settings.gradient_accumulation_steps), "--logging-steps", "1",
        "--max-seq-length", str(settings.max_seq_length), "--use-4bit", "--do-train",
        *(("--target-modules", ",".join(settings.target_modules)) if settings.target_modules else ()),
        *(("--max-steps-override", str(settings.max_steps)) if settings.max_steps < TRAIN_ROWS // 4 else ()),
        probe_dir=root / SEEN_TRAINING,
    )  # fmt: skip
    arrivals = tuple((0.5 * n, line) for n, line in enumerate(ran.stdout.splitlines()))
    seconds = max(TRAIN_SECONDS, 0.5 * len(arrivals))
    evidence = TrainEvidence(
        output_dir=root / OUTPUT_DIR, output_dir_name=OUTPUT_DIR, settings=settings, model_name=MODEL,
        stdout=ran.stdout, output=ran.output, returncode=ran.returncode, train_rows=TRAIN_ROWS,
        attempt_started_unix=began_unix - seconds, attempt_ended_unix=time.time(), seconds=seconds,
        base_tokenizer=root / "tokenizer.json", base_folder=root / "model", lost_answers=(0, TRAIN_ROWS),
        line_arrivals=arrivals, output_place=place, inputs=inputs,
        witness=read_witness(root / SEEN_TRAINING), train_file=root / TRAIN_FILE,
        questions=questions_of(root / DATASET),
    )  # fmt: skip
    return variant.train_change(evidence)


def _let_last(root: Path, seconds: float) -> None:
    """Have the stand-in say that its training took so long: it fits the lines' arrivals and not this process."""
    path = root / "defect.json"
    knobs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({"train_seconds": seconds} | knobs), encoding="utf-8")


def evaluation_evidence(root: Path, variant: Variant) -> EvalEvidence:
    """Evaluate an adapter that was trained without a defect, and hand over what the suite would know about it."""
    trained = Path(_soundly_trained().name) / "root"
    for name in (OUTPUT_DIR, SEEN_TRAINING):
        shutil.copytree(trained / name, root / name)
    for facts in (root / SEEN_TRAINING).iterdir():
        facts.write_text(facts.read_text(encoding="utf-8").replace(str(trained), str(root)), encoding="utf-8")
    _let_last(root, TRAIN_SECONDS)
    beside = _answers_of_h3(root, variant) if variant.stage in ("H-3rag", "H-3base") else None
    settings, lora_path = variant.eval_settings, None if variant.stage == "H-3base" else OUTPUT_DIR
    questions, dataset_sha256 = questions_of(root / DATASET), sha256_of(root / DATASET)
    files = adapter_files(root / OUTPUT_DIR)
    started_unix = time.time()
    ran = _evaluate(root, settings, lora_path, root / SEEN)
    sha256 = sha256_of(root / OUTPUT_DIR / ADAPTER_WEIGHTS_NAME)
    evidence = EvalEvidence(
        root=root, dataset=root / DATASET, output_path=OUTPUT, settings=settings, model_name=MODEL,
        lora_path=lora_path, h3_rows=beside, stdout=ran.stdout, output=ran.output, returncode=ran.returncode,
        attempt_started_unix=started_unix, seconds=20.0, adapter_sha256_expected=sha256, adapter_sha256_actual=sha256,
        train_questions=questions_in(root / TRAIN_FILE), train_template=prompt_template_in(root / TRAIN_FILE),
        witness=read_witness(root / SEEN), training_witness=read_witness(root / SEEN_TRAINING),
        questions=questions, dataset_sha256=dataset_sha256, adapter_files=files,
    )  # fmt: skip
    return variant.eval_change(evidence)


@cache
def _soundly_trained() -> tempfile.TemporaryDirectory[str]:
    """A folder with a root whose training was sound; every evaluation of this process begins with what it left."""
    folder = tempfile.TemporaryDirectory()
    training_evidence(plant(Path(folder.name) / "root"), Variant("sound", "H-2", ""))
    return folder


def _evaluate(root: Path, settings: EvalSettings, lora_path: str | None, probe_dir: Path | None = None) -> Ran:
    return run_script(
        root, EVALUATE_SCRIPT, "--data", DATASET, "--output", OUTPUT, "--samples", str(settings.samples),
        "--top-k", "1", *(() if settings.use_rag else ("--no-rag",)), "--llm-backend", "hf", "--hf-model-name", MODEL,
        *(("--hf-lora-path", lora_path) if lora_path else ()),
        "--hf-load-in-4bit", "--ensemble", "1", *(("--use-cot",) if settings.use_cot else ()),
        probe_dir=probe_dir,
    )  # fmt: skip


def _answers_of_h3(root: Path, variant: Variant) -> tuple[Row, ...]:
    """What the root's H-3 answered before, prompts included; the variant's own defect is planted again after it."""
    defect = root / "defect.json"
    defect.write_text(json.dumps({"evaluate": "rag_prompt"}), encoding="utf-8")
    _evaluate(root, EvalSettings(), OUTPUT_DIR)
    defect.write_text(json.dumps({"evaluate": variant.plant}), encoding="utf-8")
    return read_lawqa(root / OUTPUT).results


def judged(
    variant: Variant, target: Path
) -> tuple[TrainOutcome | EvalOutcome, tuple[Check, ...], tuple[Artifact, ...]]:
    """Plant the variant's defect in a copy of the root at `target`, run its stage, and judge it."""
    if variant.stage == "H-2":
        return judge_training(training_evidence(plant(target, train=variant.plant, style=variant.style), variant))
    return judge_evaluation(evaluation_evidence(plant(target, evaluate=variant.plant), variant))
