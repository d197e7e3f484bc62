"""Checks of a training by what was seen in its own process: the core of H-2. Pure but for the training file's rows.

Printed words are not asked here. What no witness could see is unmeasured, with the reason; a hook that took itself off
makes unmeasured what it would have seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from steph.base.text import one_line
from steph.judge.checks_inputs import MASK_AND_POSITIONS, inputs_check
from steph.judge.checks_rows import row_checks
from steph.judge.checks_weights import BASE_UNCHANGED, NO_OWN_CODE, SAVED_AS_TRAINED, is_even, trained_weight_checks
from steph.judge.evidence import TrainEvidence
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Needs
from steph.judge.names import same_model
from steph.judge.witness import (
    AdapterLoaded,
    Batch,
    Blind,
    Hooked,
    Logged,
    ModelFact,
    ModelLoaded,
    ModelSaved,
    Moved,
    Process,
    TrainingBegins,
    TrainingEnds,
    Witness,
)
from steph.plan.steps import steps_per_epoch
from steph.record.values import Check

OTHER_ENGINES = ("vllm", "llama_cpp", "sglang", "ctransformers", "openai", "ollama", "mlx", "mlx_lm", "tensorrt_llm")
FOUR_BIT, EIGHT_BIT = ("Linear4bit", "LinearNF4", "LinearFP4"), ("Linear8bitLt",)
LEAST_PATH_SHARE = 0.02  # of the summed learning rates: an adaptive optimizer moves a weight by up to one rate a step
LEAST_LOGGED = 3  # steps; of fewer, the one rate that is zero may be the warm-up's or the last one's
MOST_LOST_SHARE = 0.5  # of the steps after the first, without a rate or with a gradient that is no number
MOST_SKIPPED_SHARE = 0.2  # of the optimizer's steps; fp16 skips one or two while it looks for its scale
MOST_PADDING = 0.5
LEAST_LOSSES, LOSS_TOLERANCE, LOSS_ROUNDING = 2, 0.05, 0.01  # steps; a share of the larger one; what is cut in a log
RATE_TOLERANCE = 1e-3
LEAST_STEPS = 3  # B begins at zero, so that A has no gradient in the first one
MOST_DECAY = 0.2  # weight decay that nobody asked for; libraries' defaults are 0 to 0.1
MOST_SHRUNK = 0.5  # of A: training changes its numbers and hardly ever makes them smaller

TRAINING_SEEN = CheckKind("training_seen", "H-2", FAIL, trap=23, core=True)
STEPS_SEEN = CheckKind("steps_seen", "H-2", FAIL, core=True)
BATCH_SEEN = CheckKind("batch_seen", "H-2", FAIL, optional=True)
TOKENS_SUPERVISED = CheckKind("tokens_supervised", "H-2", FAIL, trap=21, core=True)
ANSWER_SUPERVISED = CheckKind("answer_supervised", "H-2", WARN, optional=True)
END_SUPERVISED = CheckKind("end_supervised", "H-2", WARN, trap=20, optional=True)
PROMPT_UNLABELLED = CheckKind("prompt_unlabelled", "H-2", WARN, optional=True, needs=(Needs.ANSWER_LABELS,))
BEGINS_NEW = CheckKind("begins_new", "H-2", WARN, optional=True)
ONE_BOS = CheckKind("one_bos", "H-2", WARN, optional=True)
PADDING_BOUNDED = CheckKind("padding_bounded", "H-2", INFO, trap=11, optional=True)
MODEL_LOADED = CheckKind("model_loaded", "H-2・H-3", FAIL, core=True)
QUANTISED_AS_ASKED = CheckKind("quantised_as_asked", "H-2・H-3", FAIL, trap=5, core=True)
SETUP_SEEN = CheckKind("setup_seen", "H-2", WARN, trap=26, optional=True)
PARAMETERS_ON_GPU = CheckKind("parameters_on_gpu", "H-2・H-3", FAIL, trap=26, core=True)
ADAPTER_MOVED = CheckKind("adapter_moved", "H-2", FAIL, core=True)
UPDATES_SEEN = CheckKind("updates_seen", "H-2", FAIL, trap=25, optional=True)
LOSS_AS_COMPUTED = CheckKind("loss_as_computed", "H-2", WARN, optional=True)
SAVED_AT_END = CheckKind("saved_at_end", "H-2", WARN, trap=23, optional=True)
WITNESSED_TRAINING = (
    TRAINING_SEEN,
    STEPS_SEEN,
    BATCH_SEEN,
    TOKENS_SUPERVISED,
    ANSWER_SUPERVISED,
    END_SUPERVISED,
    PROMPT_UNLABELLED,
    ONE_BOS,
    PADDING_BOUNDED,
    MODEL_LOADED,
    QUANTISED_AS_ASKED,
    SETUP_SEEN,
    PARAMETERS_ON_GPU,
    ADAPTER_MOVED,
    UPDATES_SEEN,
    LOSS_AS_COMPUTED,
    SAVED_AT_END,
    SAVED_AS_TRAINED,
    BASE_UNCHANGED,
    NO_OWN_CODE,
    BEGINS_NEW,
    MASK_AND_POSITIONS,
)


@dataclass(frozen=True)
class Seen:
    """One training of an attempt: the one that ended last, on the first rank; `earlier` raised before it."""

    process: Process
    begins: TrainingBegins
    ends: TrainingEnds | None
    batches: tuple[Batch, ...]
    logged: tuple[Logged, ...]
    earlier: tuple[str, ...] = ()


def why_unseen(witness: Witness | None, what: str) -> tuple[bool | None, str]:
    """What it means that `what` was not seen: that it did not happen, or that nobody could have seen it."""
    if witness is None or not witness.processes:
        ways = "python -I、コンテナ、サーバー、vLLM や llama.cpp など"
        return None, f"{what}を目撃できるプロセスがなかった（{ways}では見えない）。"
    engines = sorted({hook.module for hook in witness.of(Hooked) if hook.module in OTHER_ENGINES})
    if engines:
        return None, f"{what}は見えない: {'、'.join(engines)} の中では目撃できない。"
    blind = witness.of(Blind)
    if blind:
        return None, f"{what}を目撃できなかった: {one_line(blind[0].where, 60)}: {one_line(blind[0].error, 120)}。"
    return False, f"どのプロセスの中でも{what}が行われていない。"


def training_in(witness: Witness | None) -> Seen | None:
    """The training that counts: the last one of the first rank that trained; None where none was seen."""
    found: list[Seen] = []
    for process in witness.processes if witness else ():
        starts = [n for n, fact in enumerate(process.facts) if isinstance(fact, TrainingBegins)]
        if any(getattr(process.facts[n], "source", None) == "trainer" for n in starts):
            starts = [n for n in starts if getattr(process.facts[n], "source", None) == "trainer"]
        earlier: list[str] = []
        for start, end in pairwise([*starts, len(process.facts)]):
            part = Process(process.pid, process.rank, process.facts[start:end])
            ends = part.of(TrainingEnds)
            seen = Seen(
                process, part.of(TrainingBegins)[0], ends[-1] if ends else None,
                tuple(batch for batch in part.of(Batch) if batch.training or batch.grad is not False),
                tuple(line for line in part.of(Logged) if not line.eval), tuple(earlier),
            )  # fmt: skip
            earlier += [ends[-1].raised] if ends and ends[-1].raised else []
            found.append(seen)
    first = min((seen.process.rank or 0 for seen in found), default=0)
    of_first = [seen for seen in found if (seen.process.rank or 0) == first]
    return sorted(of_first, key=lambda seen: seen.begins.at)[-1] if found else None


def witnessed_training_checks(evidence: TrainEvidence, adapter_sha256: str | None) -> tuple[Check, ...]:
    """All checks of what was seen of a training; where none was seen, they say why."""
    seen = training_in(evidence.witness)
    witness = evidence.witness or Witness()
    if seen is None:
        holds, why = why_unseen(evidence.witness, "学習")
        needed = [kind for kind in WITNESSED_TRAINING if kind not in (TRAINING_SEEN, PARAMETERS_ON_GPU)]
        unmeasured = (kind.check(None, "学習を目撃していないので測れない。") for kind in needed)
        return (TRAINING_SEEN.check(holds, why), *unmeasured, *row_checks(evidence, None, ()))
    return (
        _ended_check(seen),
        _steps_check(evidence, seen),
        _batch_check(evidence, seen.begins),
        *_label_checks(seen),
        model_check(witness, evidence.model_name, (seen.begins,)),
        quantised_check(evidence.settings.use_4bit, (seen.begins,)),
        _setup_check(evidence, seen),
        *place_checks((seen.begins,), on_gpu=evidence.card is not None),
        _moved_check(evidence, seen),
        _updates_check(seen),
        _loss_check(seen),
        _saved_check(evidence, witness, seen, adapter_sha256),
        *trained_weight_checks(seen.ends, evidence.output_dir, last_save(seen, witness, adapter_sha256)),
        _begins_new_check(seen),
        inputs_check(seen.batches),
        *row_checks(evidence, seen.begins, seen.batches),
    )


def _ended_check(seen: Seen) -> Check:
    begins, ends = seen.begins, seen.ends
    who = one_line(begins.trainer or ("Trainer" if begins.source == "trainer" else "自前のループ"), 60)
    if ends is None:
        return TRAINING_SEEN.check(False, f"学習（{who}）は始まったが、終わりを目撃していない。")
    if ends.raised:
        return TRAINING_SEEN.check(False, f"学習（{who}）は例外で終わった: {one_line(ends.raised, 100)}。")
    if seen.earlier:
        raised = one_line("、".join(seen.earlier), 100)
        message = f"学習（{who}）は終わったが、その前の学習が例外で終わっている: {raised}。"
        return TRAINING_SEEN.check(False, message, severity=WARN)
    return TRAINING_SEEN.check(True, f"学習（{who}）は自分で終わった。")


def _steps_check(evidence: TrainEvidence, seen: Seen) -> Check:
    """All steps that the Trainer counted on were done, and it counted on as many as its rows are due."""
    begins, ends, settings = seen.begins, seen.ends, evidence.settings
    done = ends.steps if ends and ends.steps is not None else ends.optimizer_steps if ends else None
    if done is None:
        return STEPS_SEEN.check(None, "行われたステップ数を目撃していない。")
    due = (ends.due if ends else None) or begins.steps_due
    if due is not None and done != due:
        return STEPS_SEEN.check(False, f"予定 {due} ステップに対して {done} ステップ。")
    rows = begins.rows if begins.rows and not begins.packing else None
    if rows is None and due is not None:
        return STEPS_SEEN.check(True, f"Trainer の予定どおり {done} ステップ（行数は数えられない）。")
    rows = rows or evidence.train_rows
    if not rows:
        return STEPS_SEEN.check(True if due else None, f"{done} ステップ。行数は分からない。")
    whole = steps_per_epoch(rows, settings) * settings.num_epochs
    most, least = min(whole + settings.num_epochs, settings.max_steps), min(whole, settings.max_steps)
    # a loop of its own may hold out rows; the Trainer may drop an incomplete last batch in each epoch
    least = math.ceil(MOST_LOST_SHARE * least) if due is None else max(1, least - settings.num_epochs)
    message = f"{done} ステップ。{rows} 行で依頼どおりなら {min(whole, settings.max_steps)} ステップ。"
    return STEPS_SEEN.check(least <= done <= most, message)


def _batch_check(evidence: TrainEvidence, begins: TrainingBegins) -> Check:
    if not begins.batch_size:
        return BATCH_SEEN.check(None, "バッチの大きさを目撃していない。")
    parts = (begins.batch_size, begins.accumulation or 1, begins.world_size or 1)
    asked = evidence.settings
    message = (
        f"バッチ {parts[0]} × 累積 {parts[1]} × {parts[2]} プロセス = {math.prod(parts)} 行（依頼は"
        f" {asked.batch_size} × {asked.gradient_accumulation_steps} × {asked.num_processes}）。"
    )
    return BATCH_SEEN.check(math.prod(parts) == asked.effective_batch_size, message)


def _label_checks(seen: Seen) -> tuple[Check, ...]:
    known = [batch for batch in seen.batches if batch.supervised is not None]
    return (
        _supervised_check(known),
        _answer_check(known),
        _end_check(known),
        _prompt_check(known),
        _bos_check(seen.batches),
        _padding_check(seen.batches),
    )


def _supervised_check(batches: Sequence[Batch]) -> Check:
    counts = [count for batch in batches for count in batch.supervised or ()]
    if not counts:
        return TOKENS_SUPERVISED.check(None, "ラベルの付いたバッチを目撃していない。")
    if any(batch.shifted for batch in batches):
        return TOKENS_SUPERVISED.check(False, "ラベルが初めから 1 つずれている（モデルがもう一度ずらす）。")
    bare = counts.count(0)
    message = f"最初の {len(counts)} 行のラベルは {sum(counts)} トークン、ラベルのない行は {bare} 行。"
    if bare * 2 > len(counts) or not sum(counts):
        return TOKENS_SUPERVISED.check(False, message)
    if any(batch.aligned is False for batch in batches):
        astray = f"{message}ラベルが、その位置のトークンと違う。"
        return TOKENS_SUPERVISED.check(False, astray, severity=WARN)
    return TOKENS_SUPERVISED.check(not bare, message, severity=WARN if bare else None)


def _answer_check(batches: Sequence[Batch]) -> Check:
    """Labels from the row's beginning that leave several tokens at its end are on the prompt."""
    rows = [
        (first, tail, ends)
        for batch in batches
        if not batch.packed
        for first, tail, ends in zip(
            batch.first_supervised or (), batch.unsupervised_tail or (), batch.ends_with_end_token or (), strict=False
        )
        if first is not None and tail is not None
    ]
    if not rows:
        return ANSWER_SUPERVISED.check(None, "ラベルの位置を目撃していない。")
    on_prompt = sum(first <= 2 and tail >= 2 and not ends for first, tail, ends in rows)
    message = f"最初の {len(rows)} 行のうち {on_prompt} 行で、ラベルが行の前半だけにあり、終わりにない。"
    return ANSWER_SUPERVISED.check(on_prompt * 2 <= len(rows), message)


def _prompt_check(batches: Sequence[Batch]) -> Check:
    """Labels from a row's beginning on are on its prompt, too; the first token may be a BOS that nothing predicts."""
    firsts = [first for batch in batches for first in batch.first_supervised or () if first is not None]
    if not firsts:
        return PROMPT_UNLABELLED.check(None, "ラベルの位置を目撃していない。")
    on_prompt = sum(first <= 1 for first in firsts)
    message = f"最初の {len(firsts)} 行のうち {on_prompt} 行で、質問にもラベルがある。"
    return PROMPT_UNLABELLED.check(on_prompt * 2 <= len(firsts), message)


def _begins_new_check(seen: Seen) -> Check:
    """Whether the adapter was made for this training, and not read from a folder before it."""
    read = [fact for fact in seen.process.of(AdapterLoaded) if fact.is_trainable and fact.at <= seen.begins.at]
    if not read:
        return BEGINS_NEW.check(True, "学習の前に読み込まれた LoRA はない。")
    return BEGINS_NEW.check(False, f"学習は、読み込まれた LoRA から始まった: {one_line(read[-1].path, 160)}。")


def has_packed_batches(witness: Witness | None) -> bool:
    """Whether several rows were seen in one, as their positions begin anew."""
    seen = training_in(witness)
    return seen is not None and any(batch.packed for batch in seen.batches)


def _end_check(batches: Sequence[Batch]) -> Check:
    ends = [
        one
        for batch in batches
        if not batch.packed
        for one, count in zip(batch.ends_with_end_token or (), batch.supervised or (), strict=False)
        if one is not None and count
    ]
    if not ends:
        return END_SUPERVISED.check(None, "答えの終わりを目撃していない（詰め合わせた行では分からない）。")
    message = f"最初の {len(ends)} 行のうち {sum(ends)} 行で、終わりのトークンにラベルがある。"
    return END_SUPERVISED.check(sum(ends) * 2 >= len(ends), message)


def _bos_check(batches: Sequence[Batch]) -> Check:
    known = [(batch.double_bos, batch.shape[0]) for batch in batches if batch.double_bos is not None and batch.shape]
    rows, double = sum(rows for _, rows in known), sum(count for count, _ in known)
    if not rows:
        return ONE_BOS.check(None, "行の先頭を目撃していない。")
    return ONE_BOS.check(double * 2 <= rows, f"最初の {rows} 行のうち {double} 行が BOS を 2 つ続けて持つ。")


def _padding_check(batches: Sequence[Batch]) -> Check:
    shares = [batch.padding for batch in batches if batch.padding is not None]
    if not shares:
        return PADDING_BOUNDED.check(None, "パディングの割合を目撃していない。")
    share = sum(shares) / len(shares)
    return PADDING_BOUNDED.check(
        share <= MOST_PADDING, f"最初の {len(shares)} バッチの {100 * share:.0f} % がパディング。"
    )


def model_check(
    witness: Witness, asked: str, worked: Sequence[ModelFact], merged: frozenset[str] = frozenset()
) -> Check:
    """The weights of the model under test were read and it worked; `merged` are folders made of it by a seen merge."""

    def is_it(*names: str | None) -> bool:
        return any(same_model(one, name) for one in (asked, *merged) for name in names if name)

    strangers = sorted({fact.name_or_path for fact in worked if fact.name_or_path and not is_it(fact.name_or_path)})
    if strangers:
        named = one_line("、".join(strangers), 160)
        return MODEL_LOADED.check(False, f"働いたモデルは {named}。依頼したモデルではない。")
    loaded = [fact for fact in witness.of(ModelLoaded) if is_it(fact.path, fact.name_or_path)]
    read = [fact for fact in loaded if fact.how != "from_config"]
    if not read and loaded:
        return MODEL_LOADED.check(False, "モデルは設定だけから作られ、重みを読んでいない。")
    if not read:
        others = [fact.path or fact.name_or_path for fact in witness.of(ModelLoaded) if fact.generates]
        if others:
            return MODEL_LOADED.check(False, f"読み込まれたのは別のモデル: {one_line(others[0], 160)}。")
        return MODEL_LOADED.check(None, "モデルの読み込みを目撃していない。")
    if loaded[-1].how == "from_config":
        return MODEL_LOADED.check(False, "モデルは重みを読んだあとで、設定だけから作り直された。")
    lost = max((fact.missing or 0) + (fact.mismatched or 0) for fact in read)
    name = one_line(read[-1].path or read[-1].name_or_path, 160)
    message = f"{name} を読み込み、ファイルにない重みは {lost} 個。"
    return MODEL_LOADED.check(lost == 0, message)


def quantised_check(asked: bool, worked: Sequence[ModelFact]) -> Check:
    """4-bit layers where they were asked for, in every model that worked; 8-bit is not 4-bit."""
    if not worked:
        return QUANTISED_AS_ASKED.check(None, "働いたモデルを目撃していない。")
    counts = [Counter[str]() for _ in worked]
    for count, fact in zip(counts, worked, strict=True):
        for part in fact.quantised:
            count[part.kind or "?"] += part.layers
    four = [sum(count[kind] for kind in FOUR_BIT) for count in counts]
    shown = "、".join(f"{kind} {layers} 層" for kind, layers in counts[-1].items()) or "なし"
    if not asked:
        message = f"4bit なしの依頼に対して、量子化された層: {shown}。"
        return QUANTISED_AS_ASKED.check(not any(four), message, severity=WARN if any(four) else None)
    known = {*FOUR_BIT, *EIGHT_BIT}
    foreign = sorted({kind for count in counts for kind in count} - known)
    message = f"4bit の依頼に対して、量子化された層: {shown}。"
    if not all(four) and foreign:
        return QUANTISED_AS_ASKED.check(None, f"{message}4bit かどうか分からない。")
    few = any(count < (fact.unquantised_linears or 0) for count, fact in zip(four, worked, strict=True))
    if all(four) and few:
        plain = max(fact.unquantised_linears or 0 for fact in worked)
        return QUANTISED_AS_ASKED.check(False, f"{message}量子化されていない層が {plain} 層。", severity=WARN)
    return QUANTISED_AS_ASKED.check(all(four), message)


def place_checks(worked: Sequence[ModelFact], *, on_gpu: bool) -> tuple[Check, ...]:
    """Whether the parameters were on the GPU that was given; none where none was given."""
    if not on_gpu:
        return ()
    places: dict[str, int] = {}
    for fact in worked:
        for place, count in fact.devices.items():
            places[place] = places.get(place, 0) + count
    total = sum(places.values())
    if not total:
        return (PARAMETERS_ON_GPU.check(None, "重みの置き場所を目撃していない。"),)
    away = {place: count for place, count in places.items() if place.split(":")[0] not in ("cuda", "xpu", "hpu")}
    outside = sum(away.values())
    named = "、".join(f"{place} に {100 * count / total:.1f} %" for place, count in away.items()) or "すべて GPU"
    partly = 0 < outside < total
    return (PARAMETERS_ON_GPU.check(not outside, f"重みの置き場所: {named}。", severity=WARN if partly else None),)


def _setup_check(evidence: TrainEvidence, seen: Seen) -> Check:
    asked, begins = evidence.settings, seen.begins
    four = [part for part in begins.quantised if part.kind in FOUR_BIT] if asked.use_4bit else []
    dropouts = {f"{value:g}" for value in begins.lora.dropout} if begins.lora else set()
    quant_types = {part.quant_type for part in four if part.quant_type}
    compute_types = {part.compute_dtype.removeprefix("torch.") for part in four if part.compute_dtype}
    pairs: list[tuple[str, set[str], str]] = []
    if "bnb_4bit_quant_type" not in evidence.unsaid:
        pairs.append(("量子化の型", quant_types, asked.bnb_4bit_quant_type))
    if "bnb_4bit_compute_dtype" not in evidence.unsaid:
        pairs.append(("4bit の計算の型", compute_types, asked.bnb_4bit_compute_dtype))
    if "lora_dropout" not in evidence.unsaid:
        pairs.append(("dropout", dropouts, f"{asked.lora_dropout:g}"))
    if asked.mixed_precision and begins.precision:
        pairs.append(("混合精度", {begins.precision}, asked.mixed_precision))
    if begins.learning_rate is not None:
        same = math.isclose(begins.learning_rate, asked.learning_rate, rel_tol=RATE_TOLERANCE)
        shown = f"{asked.learning_rate if same else begins.learning_rate:g}"
        pairs.append(("学習率", {shown}, f"{asked.learning_rate:g}"))
    decay = seen.begins.weight_decay
    if decay is not None and decay > MOST_DECAY and not evidence.says("weight[-_ ]?decay"):
        pairs.append(("重み減衰", {f"{decay:g}"}, f"指定がない。ふつうは {MOST_DECAY:g} まで"))
    known = [pair for pair in pairs if pair[1]]
    if not known:
        return SETUP_SEEN.check(None, "量子化の型も dropout も学習率も目撃していない。")
    wrong = [f"{name} {'・'.join(sorted(found))}（依頼では {want}）" for name, found, want in known if found != {want}]
    switches = [batch.dropouts for batch in seen.batches if batch.dropouts and batch.dropouts[0]]
    if switches and not any(switch[-1] for switch in switches) and "lora_dropout" not in evidence.unsaid:
        wrong.append("LoRA の dropout がどれも切れている（評価モードのまま学習した）")
    return SETUP_SEEN.check(not wrong, f"依頼と違う設定: {one_line('、'.join(wrong) or 'なし', 250)}。")


def _moved_check(evidence: TrainEvidence, seen: Seen) -> Check:
    ends, lora = seen.ends, seen.begins.lora
    if ends is None or ends.lora_b is None or not ends.lora_b.total:
        why = "学習したモデルに PEFT の LoRA の層が見えない" if lora is None else "動いたかどうかを目撃していない"
        return ADAPTER_MOVED.check(None, f"{why}。")
    b, a = ends.lora_b, ends.lora_a or Moved()
    message = f"LoRA の B は {b.total} 個のうち {b.moved} 個、A は {a.total} 個のうち {a.moved} 個が動いた。"
    if ends.optimizer_steps == 0 and not b.moved:
        return ADAPTER_MOVED.check(False, f"{message}最適化は一度も実行されていない。")
    if b.moved * 2 <= b.total or b.zero >= b.total:
        return ADAPTER_MOVED.check(False, message)
    if is_even(ends.matrices) and (ends.steps or 0) > 1:
        told = f"{message}B のどれも、中の数値がすべて同じ。勾配が置き換えられた疑い。"
        return ADAPTER_MOVED.check(False, told, severity=WARN)
    if (trouble := _trouble_with_a(evidence, seen, ends, a)) is not None:
        return ADAPTER_MOVED.check(False, f"{message}{trouble}", severity=WARN)
    rates = [line.learning_rate for line in seen.logged if line.learning_rate]
    if b.max_abs is not None and len(rates) >= LEAST_LOGGED and ends.steps:
        path = ends.steps * sum(rates) / len(rates)
        if b.max_abs < LEAST_PATH_SHARE * path:
            told = f"{message}B は最も大きく動いた所でも {b.max_abs:.2g}（学習率の合計は {path:.2g}）。"
            return ADAPTER_MOVED.check(False, told, severity=WARN)
    return ADAPTER_MOVED.check(True, message)


def _trouble_with_a(evidence: TrainEvidence, seen: Seen, ends: TrainingEnds, a: Moved) -> str | None:
    """What is to be said of A matrices that stood still, which LoRA-FA means to do, or that shrank away."""
    is_meant = evidence.says("lora[-_ ]?fa") or "lorafa" in (seen.begins.optimizer or "").lower()
    if a.total and 2 * a.moved <= a.total and (ends.optimizer_steps or ends.steps or 0) >= LEAST_STEPS and not is_meant:
        return "A が学習されていない（凍結したか、更新が丸められた。LoRA-FA のつもりなら、その指定が見えない）。"
    if a.kept is not None and a.kept < MOST_SHRUNK:
        return f"A の数値が学習の前の {a.kept:.2g} 倍に縮んだ（重み減衰が強すぎる疑い）。"
    return None


def _updates_check(seen: Seen) -> Check:
    """Steps that taught nothing: without a rate or gradient, with one that is no number, or skipped by the scaler."""
    rates = [line.learning_rate for line in seen.logged if line.learning_rate is not None]
    norms = [line.grad_norm for line in seen.logged if line.grad_norm is not None]
    troubles: list[tuple[str, float]] = []  # what, and the share of the steps that it concerns
    if len(rates) >= LEAST_LOGGED:
        later = rates[1:-1] if rates[-1] == 0 and any(rates[1:-1]) else rates[1:]
        troubles.append(("学習率が 0", sum(rate == 0 for rate in later) / len(later)))
    if len(norms) >= LEAST_LOGGED:
        later = norms[1:]
        troubles.append(("勾配ノルムが 0", sum(norm == 0 for norm in later) / len(later)))
        troubles.append(("勾配ノルムが NaN・Inf", sum(not math.isfinite(norm) for norm in later) / len(later)))
    ends = seen.ends
    if ends and ends.steps and ends.optimizer_steps and ends.optimizer_steps < ends.steps:
        share = 1 - ends.optimizer_steps / ends.steps
        troubles.append(("更新が飛ばされた", share if ends.steps - ends.optimizer_steps > 2 else 0.0))
    if ends and ends.bare_forwards and ends.steps:
        whole = max(ends.bare_forwards + (ends.forwards or 0), ends.steps * (seen.begins.accumulation or 1))
        share = ends.bare_forwards / whole
        troubles.append(("更新に使われない順伝播（ラベルがあり、勾配がない）", share))
    lost, forgotten = _lost_gradients(seen), _forgotten(ends)
    if not troubles and not lost and not forgotten:
        return UPDATES_SEEN.check(None, "学習率も勾配ノルムも 3 ステップ分目撃していない。")
    wrong = [
        (what, share)
        for what, share in troubles
        if share > (MOST_SKIPPED_SHARE if what.startswith("更新") else MOST_LOST_SHARE)
    ]
    told = [f"2 ステップ目からの {100 * share:.0f} % で{what}" for what, share in wrong]
    text = "、".join([*told, *filter(None, (lost, forgotten))])
    dead = bool(lost) or any(share == 1 and not what.endswith("Inf") for what, share in wrong)
    message = f"{text}。" if text else f"{max(len(rates), len(norms))} ステップ分の学習率と勾配ノルムに異常はない。"
    return UPDATES_SEEN.check(not text, message, severity=WARN if text and not dead else None)


def _forgotten(ends: TrainingEnds | None) -> str | None:
    """What is to be said where an optimizer that stepped all the time knows of fewer than half of its steps."""
    if ends is None or ends.optimizer_age is None or 2 * ends.optimizer_age[1] >= ends.optimizer_age[0]:
        return None
    count, age = ends.optimizer_age
    return f"最適化の状態が途中で捨てられた（{count} ステップのあとで、自分では {age:g} ステップ目という）"


def _lost_gradients(seen: Seen) -> str | None:
    """What is to be said where each micro-batch finds no gradient of the one before it in the same step."""
    accumulation = seen.begins.accumulation or 1
    counts = Counter(batch.step for batch in seen.batches)
    if seen.begins.source != "trainer" or None in counts or max(counts.values(), default=0) > accumulation:
        return None
    later = [batch.gradient for before, batch in pairwise(seen.batches) if before.step == batch.step]
    if not later or any(gradient is None or gradient != 0 for gradient in later):
        return None
    return "勾配の累積が捨てられた（マイクロバッチの前に、同じステップの勾配がない）"


def _loss_check(seen: Seen) -> Check:
    """The losses that were logged are what the Trainer's own steps gave, on one process and step by step."""
    logged = {line.step: line.loss for line in seen.logged if line.step is not None and line.loss is not None}
    given = seen.ends.first_losses if seen.ends else {}
    accumulation = seen.begins.accumulation
    pairs = [
        (sum(losses), float(logged[done + 1] or 0.0))
        for done, losses in given.items()
        if len(losses) == accumulation and done + 1 in logged and (done in logged or not done)
    ]
    pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
    if len(pairs) < LEAST_LOSSES or (seen.begins.world_size or 1) > 1:
        return LOSS_AS_COMPUTED.check(None, "Trainer が計算した損失と、記録された損失を比べられない。")
    wrong = [pair for pair in pairs if abs(pair[0] - pair[1]) > LOSS_TOLERANCE * max(map(abs, pair)) + LOSS_ROUNDING]
    own, told = wrong[0] if wrong else pairs[0]
    message = f"比べた {len(pairs)} ステップのうち {len(wrong)} で損失が違う（計算は {own:.4g}、記録は {told:.4g}）。"
    return LOSS_AS_COMPUTED.check(2 * len(wrong) <= len(pairs), message)


def _saved_check(evidence: TrainEvidence, witness: Witness, seen: Seen, sha256: str | None) -> Check:
    saves = [save for save in witness.of(ModelSaved) if save.adapter is not False and save.sha256]
    done = seen.ends.steps if seen.ends else None
    if sha256 is None or not saves:
        return SAVED_AT_END.check(None, "アダプターの保存を目撃していない。")
    same = [save for save in saves if save.sha256 == sha256]
    if not same:
        folder = evidence.output_dir.resolve()
        overwritten = any(save.path and Path(save.path).resolve() == folder for save in saves)
        what = "保存されたあとで書き換えられている" if overwritten else "この試行で保存されたどれとも違う"
        message = f"アダプターのファイル（{sha256[:12]}）は、{what}。"
        return SAVED_AT_END.check(False, message, severity=FAIL if overwritten else None)
    if all(save.at < seen.begins.at for save in same):
        return SAVED_AT_END.check(False, "アダプターのファイルは、学習が始まる前に保存されたもの。")
    steps = [save.step for save in same if save.step is not None]
    if done is None or not steps or any(not save.in_training for save in same if save.at >= _end_of(seen)):
        return SAVED_AT_END.check(True, "アダプターのファイルは、この試行で保存されたもの。")
    message = f"アダプターのファイルは {max(steps)} ステップ目に保存されたもの（全 {done} ステップ）。"
    return SAVED_AT_END.check(max(steps) >= done, message)


def last_save(seen: Seen | None, witness: Witness, sha256: str | None) -> ModelSaved | None:
    """The save of this adapter's file when the training's last step was done; None where none was seen."""
    if seen is None or seen.ends is None or sha256 is None:
        return None
    done = seen.ends.steps
    late = [
        save for save in witness.of(ModelSaved)
        if save.sha256 == sha256 and save.at >= seen.begins.at
        and (save.at >= seen.ends.at or (save.step is not None and done is not None and save.step >= done))
    ]  # fmt: skip
    return late[-1] if late else None


def _end_of(seen: Seen) -> float:
    return seen.ends.at if seen.ends else math.inf
