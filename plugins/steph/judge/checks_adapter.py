"""Checks of a LoRA adapter's own files: whole, finite, trained, of the right base. Reads files, changes nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from steph.base.files import UnreadableError, read_json_object
from steph.base.tensors import Scan, Tensor, read_header, same_values, scan
from steph.base.text import one_line
from steph.contract.training_files import STATE_NAME, TrainerState
from steph.judge.base_model import BaseModel
from steph.judge.checks_adapter_keys import key_checks
from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.judge.lora_pairs import MATRIX, pairs_of, unfit
from steph.judge.names import same_model
from steph.record.settings import TrainSettings
from steph.record.values import Check

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 4 << 20
TIMES_SLACK_SECONDS = 1.0  # between the clocks of lines and files
LARGEST_HALF = 65504.0  # what fp16 can hold; a larger weight is infinite in the model
# PEFT fills these with zeros: of a linear layer's pair the second, of an embedding's the first
_BEGINS_AT_ZERO = ("lora_B", "lora_embedding_A")
# no token may ever reach these: experts that the router never chose, the tower of another kind of input
_MAY_STAY_IDLE = re.compile(r"\.(?:experts|visual|vision_\w+|audio_\w+)\.")

ADAPTER_BASE = CheckKind("adapter_base", "H-2・H-3", FAIL, trap=14)
ADAPTER_WEIGHTS = CheckKind("adapter_weights", "H-2", FAIL)
ADAPTER_CONFIG = CheckKind("adapter_config", "H-2", FAIL)
ADAPTER_FINITE = CheckKind("adapter_finite", "H-2", FAIL)
ADAPTER_TRAINED = CheckKind("adapter_trained", "H-2", FAIL)
ADAPTER_AS_ASKED = CheckKind("adapter_as_asked", "H-2", WARN)
ADAPTER_IS_LAST = CheckKind("adapter_is_last", "H-2", WARN, optional=True)
INTEGERS = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
NO_BASE = BaseModel()
ADAPTER_FILES = (ADAPTER_WEIGHTS, ADAPTER_CONFIG, ADAPTER_FINITE, ADAPTER_TRAINED, ADAPTER_AS_ASKED, ADAPTER_IS_LAST)


@dataclass(frozen=True)
class AdapterConfig:
    """The keys of `adapter_config.json` that are judged, as found; None where a key is missing."""

    peft_type: object
    base_model_name_or_path: object
    r: object
    lora_alpha: object
    lora_dropout: object
    target_modules: object
    target_parameters: object
    bias: object
    layers_to_transform: object
    rank_pattern: object
    alpha_pattern: object
    init_lora_weights: object
    task_type: object
    exclude_modules: object
    use_dora: object
    modules_to_save: object

    @property
    def names_layers(self) -> bool:
        """Whether it says itself that some layers have no LoRA."""
        return bool(self.layers_to_transform or self.exclude_modules or self.target_parameters)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read `adapter_config.json`; UnreadableError where it is no JSON object."""
    raw = read_json_object(folder / CONFIG_NAME, MAX_CONFIG_BYTES)
    return AdapterConfig(**{field.name: raw.get(field.name) for field in fields(AdapterConfig)})


def base_check(folder: Path, model_name: str) -> Check:
    """Check that the adapter says it belongs to the model under test."""
    try:
        base = read_adapter_config(folder).base_model_name_or_path
    except UnreadableError as error:
        return ADAPTER_BASE.check(None, f"{CONFIG_NAME} から読めない: {error}")
    holds = isinstance(base, str) and same_model(model_name, base)
    named = one_line(base, 100) if base else "記録なし"
    return ADAPTER_BASE.check(holds, f"アダプターのベースは {named}、対象モデルは {one_line(model_name, 100)}。")


def config_checks(
    folder: Path, settings: TrainSettings, tensors: tuple[Tensor, ...], unsaid: frozenset[str] = frozenset()
) -> tuple[Check, ...]:
    """Check that `adapter_config.json` is there and says what was asked; nobody asked for `unsaid` settings."""
    try:
        config = read_adapter_config(folder)
    except UnreadableError as error:
        return (
            ADAPTER_CONFIG.check(False, f"{CONFIG_NAME} が使えない: {error}。"),
            ADAPTER_AS_ASKED.check(None, "adapter_config.json がないので測れない。"),
        )
    is_lora = config.peft_type == "LORA"
    kind = one_line(config.peft_type, 40)
    wrong = _differences(config, settings, tensors, unsaid)
    return (
        ADAPTER_CONFIG.check(is_lora, f"{CONFIG_NAME} は読め、種類は {kind}。"),
        ADAPTER_AS_ASKED.check(
            not wrong, f"依頼と違う設定: {'、'.join(wrong)}。" if wrong else f"r={settings.lora_r} などが依頼どおり。"
        ),
    )


def _differences(
    config: AdapterConfig, settings: TrainSettings, tensors: tuple[Tensor, ...], unsaid: frozenset[str]
) -> list[str]:
    pairs = [
        ("r", config.r, settings.lora_r),
        ("lora_alpha", config.lora_alpha, settings.lora_alpha),
        ("lora_dropout", config.lora_dropout, settings.lora_dropout),
    ]
    pairs = [pair for pair in pairs if pair[0] not in unsaid]
    wrong = [f"{name}={one_line(found, 40)}（依頼 {asked}）" for name, found, asked in pairs if found != asked]
    modules = config.target_modules
    if settings.target_modules and not (
        isinstance(modules, list) and {str(m) for m in modules} == set(settings.target_modules)
    ):
        asked_modules = ",".join(settings.target_modules)
        wrong.append(f"target_modules={one_line(modules, 80)}（依頼 {one_line(asked_modules, 80)}）")
    wrong += [
        f"{name}={one_line(value, 60)}（依頼していない）"
        for name, value in (
            ("layers_to_transform", config.layers_to_transform),
            ("rank_pattern", config.rank_pattern),
            ("alpha_pattern", config.alpha_pattern),
            ("bias", None if config.bias == "none" else config.bias),
            ("task_type", None if config.task_type == "CAUSAL_LM" else config.task_type),
        )
        if value
    ]
    wrong += _left_out(config, [t.name for t in tensors])
    wrong += _astray(config, settings, [t.name for t in tensors if "lora_A" in t.name])
    ranks = {t.shape[0] for t in tensors if "lora_A" in t.name and t.name.endswith("weight") and t.shape}
    if ranks - {settings.lora_r}:
        wrong.append(f"lora_A の階数 {sorted(ranks)[:5]}（依頼 {settings.lora_r}）")
    return wrong


def _left_out(config: AdapterConfig, names: Sequence[str]) -> list[str]:
    """What the configuration promises beside A and B and the weights don't have."""
    saved = config.modules_to_save if isinstance(config.modules_to_save, list) else []
    wrong = ["use_dora なのに magnitude がない"] if config.use_dora and names and "magnitude" not in str(names) else []
    if saved and names and not any(f".{module}." in name for module in saved for name in names):
        wrong.append(f"modules_to_save の {one_line('、'.join(map(str, saved)), 80)} の重みがない")
    return wrong


def _astray(config: AdapterConfig, settings: TrainSettings, names: Sequence[str]) -> list[str]:
    """Modules that were asked for and have no weights, and weights on modules that the configuration does not name."""
    lacking = [module for module in settings.target_modules if names and not any(f".{module}." in n for n in names)]
    wrong = [f"{one_line('、'.join(lacking), 80)} の重みがない"] if lacking else []
    targets = config.target_modules if isinstance(config.target_modules, list) else None
    if targets and not config.target_parameters:
        others = [name for name in names if not any(f".{module}." in f".{name}" for module in targets)]
        wrong += [f"target_modules にない {one_line(others[0], 100)}"] if others else []
    return wrong


def last_check(
    folder: Path, state: TrainerState, last_loss_unix: float | None = None, *, is_mean: bool = False
) -> Check:
    """What was saved at the end must be what the last checkpoint has, or the one that the Trainer calls its best.

    Where no checkpoint has weights to compare: it must have been written after the last loss, told at `last_loss_unix`
    by the files' clock. `is_mean`: the mean of the last steps was saved, which no checkpoint has.
    """
    if not state.fresh or state.problem or state.folder is None:
        return ADAPTER_IS_LAST.check(None, "この試行のチェックポイントがない。")
    kept = [folder / name / WEIGHTS_NAME for name in (state.folder.name, state.best_folder) if name]
    try:
        answers = [same_values(folder / WEIGHTS_NAME, path) for path in kept if path.is_file()]
    except (OSError, UnreadableError):
        answers = []
    if True in answers:
        return ADAPTER_IS_LAST.check(True, f"{state.folder.name} の LoRA 重みと同じ。")
    if False in answers and is_mean:
        return ADAPTER_IS_LAST.check(True, f"{state.folder.name} の LoRA 重みではなく、終わりのステップの平均。")
    if False in answers:
        return ADAPTER_IS_LAST.check(False, f"{state.folder.name} の LoRA 重みと値が違う。")
    early = None if state.best_folder else _seconds_early(folder, state.folder, last_loss_unix)
    if early is not None and early > TIMES_SLACK_SECONDS:
        return ADAPTER_IS_LAST.check(False, f"LoRA 重みは学習の終わりより {early:.1f} 秒前に書かれた。")
    return ADAPTER_IS_LAST.check(None, f"{state.folder.name} に比べられる LoRA 重みがない。")


def _seconds_early(folder: Path, checkpoint: Path, last_loss_unix: float | None) -> float | None:
    """By how much the weights are older than the last checkpoint's state or the last loss, whichever came later."""
    try:
        written = (folder / WEIGHTS_NAME).stat().st_mtime
        ended = (checkpoint / STATE_NAME).stat().st_mtime
    except OSError:
        return None
    return max(ended, last_loss_unix if last_loss_unix is not None else ended) - written


def weight_checks(folder: Path, base: BaseModel = NO_BASE) -> tuple[tuple[Tensor, ...], tuple[Check, ...]]:
    """Check the weights' file and every value in it; the tensors are empty where the file can't be read."""
    path = folder / WEIGHTS_NAME
    config = _config_or_none(folder)
    targets, whole = (config.target_modules, not config.names_layers) if config else (None, True)
    try:
        tensors = read_header(path)
        values = sum(math.prod(tensor.shape) for tensor in tensors)
        if not values:
            raise UnreadableError("テンソルが 1 つもない")
        scans = tuple(scan(path, tensors))
    except (OSError, UnreadableError) as error:
        return (), (*_unreadable(folder, error), *key_checks((), (), base, targets, whole=whole))
    return tensors, (
        _written_check(tensors, values),
        _finite_check(scans),
        _trained_check(scans, begins_at_zero=_begins_at_zero(config)),
        *key_checks(tensors, scans, base, targets, whole=whole),
    )


def _written_check(tensors: tuple[Tensor, ...], values: int) -> Check:
    """Half a pair is loaded with the other half at random, and a pair that can't be multiplied not at all."""
    pairs = pairs_of(tensors)
    alone = [tensor.name for pair in pairs if len(pair) == 1 for tensor in pair.values()]
    odd = [f"{pair['A'].name} {list(pair['A'].shape)} と {list(pair['B'].shape)}" for pair in pairs if unfit(pair)]
    example = f"、対の片方しかない行列 {len(alone)} 個（例 {one_line(alone[0], 120)}）" if alone else ""
    example += f"、A と B の形が合わない対 {len(odd)} 個（例 {one_line(odd[0], 160)}）" if odd else ""
    written = f"{WEIGHTS_NAME} に {len(tensors)} テンソル、{values:,} 要素がある{example}。"
    return ADAPTER_WEIGHTS.check(not alone and not odd, written)


def _config_or_none(folder: Path) -> AdapterConfig | None:
    try:
        return read_adapter_config(folder)
    except UnreadableError:
        return None


def _begins_at_zero(config: AdapterConfig | None) -> bool:
    """Whether PEFT filled B with zeros; PiSSA and its like draw it from the model's weights."""
    return config is None or config.init_lora_weights in (None, True, "gaussian", "eva")


def _unreadable(folder: Path, error: Exception) -> tuple[Check, ...]:
    if (folder / WEIGHTS_NAME).exists():
        why = f"壊れている: {error}"
    elif (folder / "adapter_model.bin").exists():
        why = "ない（adapter_model.bin はあるが、pickle は読み込まない）"
    else:
        why = "ない"
    return (
        ADAPTER_WEIGHTS.check(False, f"{WEIGHTS_NAME} が{why}。"),
        ADAPTER_FINITE.check(None, "重みを読めないので測れない。"),
        ADAPTER_TRAINED.check(None, "重みを読めないので測れない。"),
    )


def _finite_check(scans: tuple[Scan, ...]) -> Check:
    whole = [s.tensor for s in scans if s.tensor.dtype in INTEGERS]
    if whole:
        first = one_line(whole[0].name, 120)
        return ADAPTER_FINITE.check(False, f"{len(whole)} テンソルの型が整数（{first} は {whole[0].dtype}）。")
    unread = [s.tensor.dtype for s in scans if s.nonfinite_values is None]
    if unread:
        return ADAPTER_FINITE.check(None, f"{len(unread)} テンソルの型 {unread[0]} は復号できない。")
    bad = [s for s in scans if s.nonfinite_values]
    if bad:
        count = sum(s.nonfinite_values or 0 for s in bad)
        first = one_line(bad[0].tensor.name, 120)
        return ADAPTER_FINITE.check(
            False, f"{len(bad)} テンソルに NaN または Inf が {count:,} 要素ある（最初は {first}）。"
        )
    huge = [s for s in scans if MATRIX.search(s.tensor.name) and (s.largest or 0) > LARGEST_HALF]
    if huge:
        first = one_line(huge[0].tensor.name, 120)
        return ADAPTER_FINITE.check(False, f"{first} に {huge[0].largest:.2g} がある: 半精度では Inf になる。")
    return ADAPTER_FINITE.check(True, f"{len(scans)} テンソルの全要素が有限。")


def _trained_check(scans: tuple[Scan, ...], *, begins_at_zero: bool) -> Check:
    """A sound training moves every matrix that begins at zero within its first steps, in any precision.

    The other one of its pair is drawn at random: where that is zero, the product is nothing for ever.
    """
    begun = [s for s in scans if any(part in s.tensor.name for part in _BEGINS_AT_ZERO)]
    matrices = [s for s in begun if not _MAY_STAY_IDLE.search(s.tensor.name)] or begun
    if not matrices:
        return ADAPTER_TRAINED.check(False, f"{len(scans)} テンソルの中に LoRA の B 行列がない。")
    unread = [s for s in matrices if s.any_nonzero is None]
    if unread:
        return ADAPTER_TRAINED.check(None, f"B 行列の型 {unread[0].tensor.dtype} は復号できない。")
    zero = {s.tensor.name for s in scans if s.any_nonzero is False}
    pairs = {
        name: names
        for pair in pairs_of(s.tensor for s in scans)
        if (names := [t.name for t in pair.values()])
        for name in names
    }
    still = [
        found
        for s in matrices
        if (found := next((n for n in pairs.get(s.tensor.name, [s.tensor.name]) if n in zero), None))
    ]
    if not begins_at_zero and not still:
        return ADAPTER_TRAINED.check(None, "B 行列がゼロから始まらない初期化なので測れない。", severity=WARN)
    moved = len(matrices) - len(still)
    example = f"（ゼロのまま: {one_line(still[0], 120)} など）" if still else ""
    return ADAPTER_TRAINED.check(
        not still,
        f"B 行列 {len(matrices)} 個のうち {moved} 個が、A とともにゼロでない{example}。",
        severity=WARN if 2 * moved >= len(matrices) else None,
    )
