"""Sample records for tests: each function gives one whole, self-consistent `Record` as a run would have left it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steph.base.messages import say, verbatim
from steph.base.terms import AnyStage, Cause, EndedBy, Phase, RecordKind, Severity, StageId, Verdict
from steph.record.events import IN_FLIGHT
from steph.record.settings import Context, DataFile, Device, Environment, EvalSettings, GitState, TrainSettings
from steph.record.values import (
    Artifact,
    Attempt,
    Check,
    DevicePeak,
    Diagnosis,
    EvalOutcome,
    ModelChoice,
    OomNumbers,
    Probe,
    Record,
    RejectedCandidate,
    Session,
    SkippedRung,
    StageResult,
    TrainOutcome,
)
from steph.tell.report import parts

GIB = 1024**3
MODEL = "Qwen/Qwen1.5-1.8B-Chat"
ADAPTER = "runs/debug_small_model/direct_norag_small_4bit"
EVALUATION_JSON = "results/evaluations/small_model_debug_direct.json"
TRAIN_FILE = "results/finetune/ft_direct_full_norag.jsonl"
DATASET = "datasets/lawqa_jp/data/selection.json"
PYTHON = "/home/user/steph/.venv/bin/python"
ROOT = "/home/user/statutes-rags"

OOM_TRACEBACK = """Traceback (most recent call last):
  File "/home/user/statutes-rags/scripts/train_qwen_law_ft.py", line 412, in <module>
    main()
  File "/home/user/statutes-rags/scripts/train_qwen_law_ft.py", line 398, in main
    trainer.train()
  File "/home/user/steph/.venv/lib/python3.11/site-packages/torch/nn/functional.py", line 3479, in cross_entropy
    return torch._C._nn.cross_entropy_loss(
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 594.00 MiB. GPU 0 has a total capacity of 9.64 GiB of \
which 311.00 MiB is free. Including non-PyTorch memory, this process has 8.90 GiB memory in use. Of the allocated \
memory 8.12 GiB is allocated by PyTorch, and 401.00 MiB is reserved by PyTorch but unallocated."""


def card_peaks(device_bytes: int | None, own_bytes: int | None) -> tuple[DevicePeak, ...]:
    """What one card had in use at most, and how much more that is than before."""
    return (DevicePeak(uuid=device().uuid, peak_device_bytes=device_bytes, peak_own_bytes=own_bytes),)


def device(name: str = "NVIDIA GeForce RTX 3080", total_bytes: int = 10350 * 1024**2) -> Device:
    """A card of 10,350 MiB with a desktop on it, unless told otherwise."""
    return Device(
        uuid="GPU-5f0c8a4e-2a35-11ef-9f0a-0242ac120002",
        name=name,
        index=0,
        total_bytes=total_bytes,
        used_bytes=420 * 1024**2,
        driver_version="580.95.05",
        cuda_driver_version="13.0",
        compute_capability="8.6",
    )


def environment(gpu: Device | None) -> Environment:
    """A desktop machine with the given card, or none."""
    return Environment(
        os="Ubuntu 24.04.3 LTS (Linux 6.8.0)",
        python="3.11.11",
        cpu="AMD Ryzen 7 5800X",
        cpu_count=16,
        ram_bytes=32 * GIB,
        device=gpu,
        device_error=None if gpu else verbatim("NVML: no library"),
        packages={"pytest": "9.2.0", "huggingface_hub": "2.4.0", "pydantic": "2.14.0"},
    )


def context(
    kind: RecordKind = RecordKind.ACCEPTANCE,
    *,
    gpu: Device | None = None,
    reasons: tuple[str, ...] = (),
    twin: bool = False,
    vram_cap_bytes: int | None = None,
    profile: str = "rtx3080",
    root: str = ROOT,
    dirty: bool = False,
) -> Context:
    """What a record was made under; an acceptance gets the default card when none is given."""
    card = device() if gpu is None and kind is RecordKind.ACCEPTANCE else gpu
    return Context(
        kind=kind,
        profile=profile,
        profile_sha256="9d" * 32,
        pipeline_root=root,
        pipeline_python=PYTHON,
        pipeline_git=GitState(branch="main", commit="3f1c2d4e5a6b7c8d9e0f1a2b3c4d5e6f7a8b9c0d", dirty=dirty),
        suite_git=GitState(branch="main", commit="b23cd02aa0b1c2d3e4f5a6b7c8d9e0f1a2b3c4d5", dirty=False),
        environment=environment(card),
        vram_cap_bytes=vram_cap_bytes,
        twin=twin,
        rehearsal_reasons=tuple(map(verbatim, reasons)),
    )


def data(*, is_sample: bool = False) -> tuple[DataFile, ...]:
    """The data set of 140 questions and the training file made from it."""
    return (
        DataFile(role="dataset", path=DATASET, sha256="a1" * 32, rows=140, is_sample=is_sample),
        DataFile(role="train_file", path=TRAIN_FILE, sha256="b2" * 32, rows=140, is_sample=is_sample),
    )


def train_argv(settings: TrainSettings, model: str = MODEL) -> tuple[str, ...]:
    """The training command of one attempt, as the suite would have built it."""
    return (
        PYTHON, "scripts/train_qwen_law_ft.py",
        "--model-name", model,
        "--train-file", TRAIN_FILE,
        "--output-dir", ADAPTER,
        "--num-epochs", str(settings.num_epochs),
        "--batch-size", str(settings.batch_size),
        "--learning-rate", "2e-4",
        "--max-seq-length", str(settings.max_seq_length),
        "--gradient-accumulation-steps", str(settings.gradient_accumulation_steps),
        "--warmup-ratio", "0.03",
        "--lora-r", str(settings.lora_r),
        "--lora-alpha", str(settings.lora_alpha),
        "--lora-dropout", str(settings.lora_dropout),
        *(("--use-4bit", "--bnb-4bit-compute-dtype", "bfloat16", "--bnb-4bit-quant-type", "nf4")
          if settings.use_4bit else ("--bf16",)),
        "--logging-steps", str(settings.logging_steps),
        "--do-train",
    )  # fmt: skip


def eval_argv(settings: EvalSettings, model: str = MODEL) -> tuple[str, ...]:
    """The evaluation command of one attempt, as the suite would have built it."""
    return (
        PYTHON, "scripts/evaluate_multiple_choice.py",
        "--data", DATASET,
        "--output", EVALUATION_JSON,
        "--samples", str(settings.samples),
        "--top-k", "1",
        "--no-rag",
        "--llm-backend", "hf",
        "--hf-model-name", model,
        "--hf-lora-path", ADAPTER,
        *(("--hf-load-in-4bit",) if settings.load_in_4bit else ()),
        "--ensemble", "1",
    )  # fmt: skip


def probe(peak_allocated_gib: float, exception: tuple[str, str] | None = None) -> Probe:
    """What a process on the card left at its exit."""
    return Probe(
        pid=4242,
        packages={"torch": "2.13.0+cu130", "transformers": "5.23.0", "peft": "0.21.0", "bitsandbytes": "0.50.0"},
        device_uuid=device().uuid,
        peak_allocated_bytes=int(peak_allocated_gib * GIB),
        peak_reserved_bytes=int((peak_allocated_gib + 0.4) * GIB),
        allocator_retries=0,
        peak_rss_bytes=3 * GIB,
        exception_type=exception[0] if exception else None,
        exception_message=exception[1] if exception else None,
    )


def model_choice(name: str = MODEL, **changes: object) -> ModelChoice:
    """The spec's first candidate, got from the Hub."""
    fields: dict[str, object] = {
        "name": name,
        "source": "hub",
        "reason": "仕様の第一候補で、Hub から取得できたため",
        "parameters": 1_836_828_672,
        "revision": "e482ee3f73c375a627a16fdf66fd0c8279743ca6",
        "licence": "tongyi-qianwen-research",
        "download_bytes": 3_680_000_000,
        "free_disk_bytes": 212 * GIB,
        "snapshot_path": "/home/user/.cache/huggingface/hub/models--Qwen--Qwen1.5-1.8B-Chat/snapshots/e482ee3",
    }
    return ModelChoice.model_validate(fields | changes)


def stage_h1(choice: ModelChoice | None = None, verdict: Verdict = Verdict.PASS) -> StageResult:
    """H-1 with a model chosen."""
    return StageResult(
        stage=StageId.H1,
        verdict=verdict,
        explanation=verbatim("モデルを 1 つ選び、取得しました。"),
        started_at="2026-11-20T01:00:00+00:00",
        ended_at="2026-11-20T01:02:11+00:00",
        seconds=131.0,
        checks=(
            Check(id="model_downloaded", severity=Severity.FAIL, holds=True, message=verbatim("重みが揃っています。")),
        ),
        model=choice or model_choice(),
    )


def trained(number: int, settings: TrainSettings, peak_gib: float = 6.42) -> Attempt:
    """A training attempt that ended well."""
    losses = tuple(round(2.9 - 0.045 * step + 0.03 * (step % 3), 4) for step in range(35))
    return Attempt(
        stage=StageId.H2,
        number=number,
        label=verbatim(settings.short()),
        settings=settings,
        argv=train_argv(settings),
        cwd=ROOT,
        folder=f"reports/runs/20261120-010000/h2/{number:02d}",
        started_at=f"2026-11-20T01:0{2 + number}:15+00:00",
        seconds=188.4,
        returncode=0,
        ended_by=EndedBy.EXIT,
        diagnosis=Diagnosis(cause=Cause.NONE),
        last_lines=("{'train_runtime': '151.2', 'train_loss': '2.17', 'epoch': '1.0'}",),
        probes=(probe(peak_gib - 1.5),),
        device_peaks=card_peaks(int(peak_gib * GIB), int((peak_gib - 0.41) * GIB)),
        memory_returned=True,
        artifacts=(
            Artifact(path=f"{ADAPTER}/adapter_model.safetensors", size_bytes=12_600_000, sha256="c3" * 32),
            Artifact(path=f"{ADAPTER}/adapter_config.json", size_bytes=812, sha256="d4" * 32),
            Artifact(path=f"{ADAPTER}/checkpoint-35/trainer_state.json", size_bytes=5120, sha256="e5" * 32),
        ),
        training=TrainOutcome(
            output_dir=ADAPTER,
            steps_done=35,
            steps_due=35,
            epochs_done=1.0,
            train_loss=2.17,
            train_runtime_seconds=151.2,
            losses=losses,
            step_seconds=(4.2,) * 35,
            tokens_per_second=426.0,
            train_rows=140,
            adapter_sha256="c3" * 32,
            checkpoint=f"{ADAPTER}/checkpoint-35",
        ),
    )


def out_of_memory(number: int, settings: TrainSettings, phase: Phase = Phase.FIRST_STEP) -> Attempt:
    """A training attempt that ran out of the card's memory."""
    message = OOM_TRACEBACK.splitlines()[-1]
    return Attempt(
        stage=StageId.H2,
        number=number,
        label=verbatim(settings.short()),
        settings=settings,
        argv=train_argv(settings),
        cwd=ROOT,
        folder=f"reports/runs/20261120-010000/h2/{number:02d}",
        started_at=f"2026-11-20T01:0{2 + number}:05+00:00",
        seconds=41.7,
        returncode=1,
        ended_by=EndedBy.EXIT,
        diagnosis=Diagnosis(
            cause=Cause.CUDA_OOM,
            phase=phase,
            evidence=(message,),
            oom=OomNumbers(
                requested_bytes=594 * 1024**2,
                total_bytes=int(9.64 * GIB),
                free_bytes=311 * 1024**2,
                allocated_bytes=int(8.12 * GIB),
                reserved_bytes=int(8.51 * GIB),
            ),
            advice=(
                verbatim("`--max-seq-length` を 384、次に 256 へ下げる。"),
                verbatim("`--batch-size` を 1 にする。"),
            ),
        ),
        traceback=OOM_TRACEBACK,
        last_lines=("  0%|          | 0/35 [00:00<?, ?it/s]", message),
        probes=(probe(8.12, ("torch.OutOfMemoryError", message.partition(": ")[2])),),
        device_peaks=card_peaks(int(9.33 * GIB), int(8.92 * GIB)),
        memory_returned=True,
    )


def stage_h2(attempts: Sequence[Attempt] | None = None, **changes: object) -> StageResult:
    """H-2, green in one attempt unless told otherwise."""
    fields: dict[str, object] = {
        "stage": StageId.H2,
        "verdict": Verdict.PASS,
        "explanation": "1 エポック 35 ステップの学習が最初の設定で完走しました。",
        "started_at": "2026-11-20T01:03:00+00:00",
        "ended_at": "2026-11-20T01:06:25+00:00",
        "seconds": 205.0,
        "attempts": tuple(attempts if attempts is not None else (trained(1, TrainSettings()),)),
        "checks": (
            Check(id="loss_finite", severity=Severity.FAIL, holds=True, message=verbatim("損失はすべて有限です。")),
            Check(
                id="rows_lose_answer",
                severity=Severity.WARN,
                holds=False,
                message=verbatim("長さ 512 では 140 行中 30 行(21 %)で答えが切り落とされます。"),
                trap=1,
            ),
        ),
    }
    return StageResult.model_validate(fields | changes)


def evaluated(settings: EvalSettings | None = None) -> Attempt:
    """An evaluation attempt that ended well, two of three answers right."""
    wanted = settings or EvalSettings()
    return Attempt(
        stage=StageId.H3,
        number=1,
        label=say("attempt.samples_in_4bit" if wanted.load_in_4bit else "attempt.samples", samples=wanted.samples),
        settings=wanted,
        argv=eval_argv(wanted),
        cwd=ROOT,
        folder="reports/runs/20261120-010000/h3/01",
        started_at="2026-11-20T01:06:40+00:00",
        seconds=38.9,
        returncode=0,
        ended_by=EndedBy.EXIT,
        diagnosis=Diagnosis(cause=Cause.NONE),
        last_lines=("Detailed results saved to: " + EVALUATION_JSON,),
        probes=(probe(2.1),),
        device_peaks=card_peaks(int(3.38 * GIB), int(2.97 * GIB)),
        memory_returned=True,
        artifacts=(Artifact(path=EVALUATION_JSON, size_bytes=9120, sha256="f6" * 32),),
        evaluation=EvalOutcome(
            output_path=EVALUATION_JSON,
            total=3,
            correct=2,
            accuracy=2 / 3,
            backend="hf",
            model_name=MODEL,
            lora_path=ADAPTER,
            key_lines=(
                "Initializing RAG pipeline...",
                "RAG Mode: Disabled (LLM only)",
                f"LLM Model: {MODEL}",
                "LLM Backend: hf",
                f"  HF Model: {MODEL}",
                f"  LoRA Path: {ADAPTER}",
                "EVALUATION RESULTS",
                "Total Samples: 3",
                "Accuracy: 66.67%",
            ),
            answers=("a", "c", "b"),
        ),
    )


def stage_h3(attempts: Sequence[Attempt] | None = None, **changes: object) -> StageResult:
    """H-3, green unless told otherwise."""
    fields: dict[str, object] = {
        "stage": StageId.H3,
        "verdict": Verdict.PASS,
        "explanation": "3 問の評価が hf バックエンドで完走しました。",
        "started_at": "2026-11-20T01:06:30+00:00",
        "ended_at": "2026-11-20T01:07:20+00:00",
        "seconds": 50.0,
        "attempts": tuple(attempts if attempts is not None else (evaluated(),)),
        "checks": (
            Check(
                id="model_named",
                severity=Severity.FAIL,
                holds=True,
                message=verbatim("試験対象のモデル名が出ています。"),
            ),
        ),
    }
    return StageResult.model_validate(fields | changes)


def session(
    verdicts: dict[AnyStage, Verdict],
    command: tuple[str, ...] = ("pytest", "-m", "gpu"),
    started_at: str = "2026-11-20T01:00:00+00:00",
    ended_at: str | None = "2026-11-20T01:07:25+00:00",
) -> Session:
    """One pytest run of the given stages."""
    green = all(verdict.is_green for verdict in verdicts.values())
    return Session(
        started_at=started_at,
        command=command,
        stages=tuple(StageId),
        ended_at=ended_at,
        exit_status=None if ended_at is None else int(not green),
        verdicts=verdicts,
    )


def _record(stages: Sequence[StageResult], made_under: Context, run_id: str, **changes: object) -> Record:
    by_id = {stage.stage: stage for stage in stages}
    fields: dict[str, object] = {
        "id": run_id,
        "context": made_under,
        "data": data(),
        "stages": by_id,
        "sessions": (session({stage.stage: stage.verdict for stage in stages}),),
    }
    return Record.model_validate(fields | changes)


def green_acceptance(run_id: str = "20261120-010000") -> Record:
    """All three stages passed at the first setting, with one warning about cut answers."""
    return _record((stage_h1(), stage_h2(), stage_h3()), context(), run_id)


def walked_down(run_id: str = "20261120-020000") -> Record:
    """H-2 ran out of memory twice and passed at 256 tokens and batch 1: PASS_DEGRADED."""
    low = TrainSettings(max_seq_length=256, batch_size=1, gradient_accumulation_steps=4)
    attempts = (
        out_of_memory(1, TrainSettings()),
        out_of_memory(2, TrainSettings(max_seq_length=384)),
        trained(3, low, peak_gib=9.02),
    )
    h2 = stage_h2(
        attempts,
        verdict=Verdict.PASS_DEGRADED,
        explanation="CUDA OOM のため設定を下げ、3 回目の 256/b1/4bit で完走しました。",
        seconds=286.0,
        skipped_rungs=(
            SkippedRung(label=verbatim("256/b2/4bit"), reason=verbatim("140 行すべてで答えが切れるため飛ばしました。")),
        ),
        given_up=("max-seq-length 512 → 256", "batch-size 2 → 1(勾配累積 4 で実効バッチは同じ)"),
    )
    return _record((stage_h1(), h2, stage_h3()), context(), run_id)


def out_of_memory_everywhere(run_id: str = "20261120-030000") -> Record:
    """No rung of H-2 fitted: FAIL, and H-3 was never started."""
    attempts = tuple(
        out_of_memory(number, TrainSettings(max_seq_length=length, batch_size=batch))
        for number, (length, batch) in enumerate(((512, 2), (384, 2), (256, 2), (256, 1)), start=1)
    )
    h2 = stage_h2(
        attempts, verdict=Verdict.FAIL, explanation="どの設定でも CUDA OOM になりました。", checks=(), seconds=170.0
    )
    return _record((stage_h1(), h2, blocked_h3()), context(), run_id)


def blocked_h3() -> StageResult:
    """H-3 that was not run because H-2 did not pass."""
    return stage_h3(
        (), verdict=Verdict.BLOCKED, explanation="H-2 が通っていないため実行していません。", seconds=None, checks=()
    )


def blocked(run_id: str = "20261120-040000") -> Record:
    """An import error in H-2, and H-3 blocked by it."""
    settings = TrainSettings()
    broken = out_of_memory(1, settings).model_copy(
        update={
            "diagnosis": Diagnosis(
                cause=Cause.IMPORT_ERROR,
                phase=Phase.LOAD,
                evidence=("ModuleNotFoundError: No module named 'peft'",),
                advice=(verbatim("パイプラインの環境に peft を入れる: `pip install peft`"),),
            ),
            "traceback": 'Traceback (most recent call last):\n  File "train_qwen_law_ft.py", line 7, in <module>\n'
            "    import peft\nModuleNotFoundError: No module named 'peft'",
            "probes": (),
            "device_peaks": (),
            "seconds": 6.1,
        }
    )
    h2 = stage_h2((broken,), verdict=Verdict.FAIL, explanation="学習スクリプトが import で失敗しました。", checks=())
    return _record((stage_h1(), h2, blocked_h3()), context(dirty=True), run_id)


def crashed(run_id: str = "20261120-050000") -> Record:
    """pytest was killed in the middle of H-2; its session has no end and H-3 was never reached."""
    in_flight = trained(1, TrainSettings()).model_copy(
        update={
            "seconds": None,
            "returncode": None,
            "ended_by": None,
            "diagnosis": None,
            "training": None,
            "artifacts": (),
            "probes": (),
            "memory_returned": None,
            "last_lines": ("{'loss': '2.61', 'epoch': '0.34'}", " 34%|███▍      | 12/35 [00:52<01:39,  4.3s/it]"),
        }
    )
    h2 = stage_h2(
        (in_flight,),
        verdict=Verdict.CRASHED,
        explanation="H-2 の実行中に記録が途絶えました。",
        ended_at=None,
        seconds=None,
        checks=(),
    )
    only = session({StageId.H1: Verdict.PASS}, ended_at=None)
    return _record((stage_h1(), h2), context(), run_id, sessions=(only,))


def live(run_id: str = "20261120-060000") -> Record:
    """H-2 is running right now."""
    lost = crashed(run_id)
    running = lost.stages[StageId.H2].model_copy(update={"verdict": Verdict.NOT_RUN, "explanation": IN_FLIGHT})
    return lost.model_copy(update={"live": True, "stages": lost.stages | {StageId.H2: running}})


def rehearsal(run_id: str = "20261120-070000") -> Record:
    """A green rehearsal on the CPU with a tiny model and the bundled questions."""
    tiny = model_choice(
        "/home/user/.cache/steph/tiny-qwen2",
        source="twin",
        parameters=1_250_000,
        revision=None,
        licence=None,
        download_bytes=None,
        reason="CPU の予行用に作ったごく小さいモデル",
    )
    made_under = context(
        RecordKind.REHEARSAL,
        reasons=("GPU がない(CPU で実行)", "乱数の重みのモデル"),
        twin=True,
        profile="cpu",
        root="/home/user/steph/pipeline",
    )
    without_card = {"device_peaks": (), "memory_returned": None, "probes": ()}
    h2 = stage_h2((trained(1, TrainSettings()).model_copy(update=without_card),))
    h3 = stage_h3((evaluated().model_copy(update=without_card),))
    verdicts: dict[AnyStage, Verdict] = dict.fromkeys(StageId, Verdict.PASS)
    only = session(verdicts, ("pytest", "-m", "gpu", "--steph-profile", "cpu"))
    return _record((stage_h1(tiny), h2, h3), made_under, run_id, data=data(is_sample=True), sessions=(only,))


def with_rejected_candidates(run_id: str = "20261120-080000") -> Record:
    """A later candidate had to stand in for the spec's two: H-1 is PASS_DEGRADED."""
    substitute = model_choice(
        "Qwen/Qwen2.5-1.5B-Instruct",
        automatic_substitute=True,
        parameters=1_543_714_304,
        reason="仕様の 2 候補が Hub から取得できなかったため、次の候補を使いました",
        rejected=(
            RejectedCandidate(name=MODEL, cause=Cause.HUB_NOT_FOUND, message=verbatim("404: no such repository")),
            RejectedCandidate(
                name="Qwen/Qwen1.5-4B-Chat", cause=Cause.HUB_GATED, message=verbatim("403: gated repository")
            ),
        ),
    )
    return _record((stage_h1(substitute, Verdict.PASS_DEGRADED), stage_h2(), stage_h3()), context(), run_id)


ALL_SAMPLES = (
    green_acceptance,
    walked_down,
    out_of_memory_everywhere,
    blocked,
    crashed,
    live,
    rehearsal,
    with_rejected_candidates,
)


def render(record: Record, history: Sequence[Record] = (), *, figures: Mapping[str, str] | None = None) -> str:
    """The whole generated body of a record's report; `figures` as for `parts`."""
    return "\n\n".join(part.text for part in parts(record, history, figures=figures)) + "\n"
