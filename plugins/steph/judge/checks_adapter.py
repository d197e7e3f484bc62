"""Checks of a LoRA adapter's own files: whole, finite, trained, of the right base. Reads files, changes nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from steph.judge.artifacts import UnreadableError, read_json
from steph.judge.kinds import FAIL, WARN, CheckKind, bounded
from steph.judge.names import same_model
from steph.judge.tensors import Scan, Tensor, TensorFileError, read_header, same_values, scan
from steph.judge.training_files import TrainerState
from steph.record import Check, TrainSettings

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 4 << 20
# PEFT fills these with zeros: of a linear layer's pair the second, of an embedding's the first
_BEGINS_AT_ZERO = ("lora_B", "lora_embedding_A")
# no token may ever reach these: experts that the router never chose, the tower of another kind of input
_MATRIX = re.compile(r"\blora_(embedding_)?[AB]\b")
_MAY_STAY_IDLE = re.compile(r"\.(?:experts|visual|vision_\w+|audio_\w+)\.")

ADAPTER_BASE = CheckKind(
    "adapter_base",
    "H-2・H-3",
    FAIL,
    "アダプターのベースが対象モデル",
    "adapter_config.json の base_model_name_or_path",
    trap=14,
)
ADAPTER_WEIGHTS = CheckKind(
    "adapter_weights",
    "H-2",
    FAIL,
    "LoRA 重みが読める形で書かれた",
    "adapter_model.safetensors のヘッダと長さ、A と B の対",
)
ADAPTER_CONFIG = CheckKind("adapter_config", "H-2", FAIL, "LoRA 設定が読める形で書かれた", "adapter_config.json")
ADAPTER_FINITE = CheckKind(
    "adapter_finite", "H-2", FAIL, "LoRA 重みに NaN・Inf がない", "adapter_model.safetensors の全要素"
)
ADAPTER_TRAINED = CheckKind(
    "adapter_trained",
    "H-2",
    FAIL,
    "LoRA の B 行列がゼロのままでない",
    "lora_B テンソル（埋め込みでは lora_embedding_A）の全要素",
    note="半数以上が動いていれば、またはゼロから始まらない初期化（PiSSA など）なら warn",
)
ADAPTER_AS_ASKED = CheckKind(
    "adapter_as_asked",
    "H-2",
    WARN,
    "LoRA の設定が依頼どおり",
    "adapter_config.json の r・alpha・dropout・target_modules・bias・層ごとの指定、重みの名前と形",
)
ADAPTER_IS_LAST = CheckKind(
    "adapter_is_last",
    "H-2",
    WARN,
    "保存されたアダプターが最後のチェックポイントのもの",
    "adapter_model.safetensors と、checkpoint-N の中のもの（best_model_checkpoint があればそれも）",
    optional=True,
)
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


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read `adapter_config.json`; UnreadableError where it is no JSON object."""
    raw = read_json(folder / CONFIG_NAME, MAX_CONFIG_BYTES)
    if not isinstance(raw, Mapping):
        raise UnreadableError("JSON のオブジェクトでない")
    return AdapterConfig(**{field.name: raw.get(field.name) for field in fields(AdapterConfig)})


def base_check(folder: Path, model_name: str) -> Check:
    """Check that the adapter says it belongs to the model under test."""
    try:
        base = read_adapter_config(folder).base_model_name_or_path
    except UnreadableError as error:
        return ADAPTER_BASE.check(None, f"{CONFIG_NAME} から読めない: {error}")
    holds = isinstance(base, str) and same_model(model_name, base)
    named = bounded(base, 100) if base else "記録なし"
    return ADAPTER_BASE.check(holds, f"アダプターのベースは {named}、対象モデルは {bounded(model_name, 100)}。")


def config_checks(folder: Path, settings: TrainSettings, tensors: tuple[Tensor, ...]) -> tuple[Check, ...]:
    """Check that `adapter_config.json` is there and says what was asked."""
    try:
        config = read_adapter_config(folder)
    except UnreadableError as error:
        return (
            ADAPTER_CONFIG.check(False, f"{CONFIG_NAME} が使えない: {error}。"),
            ADAPTER_AS_ASKED.check(None, "adapter_config.json がないので測れない。"),
        )
    is_lora = config.peft_type == "LORA"
    kind = bounded(config.peft_type, 40)
    wrong = _differences(config, settings, tensors)
    return (
        ADAPTER_CONFIG.check(is_lora, f"{CONFIG_NAME} は読め、種類は {kind}。"),
        ADAPTER_AS_ASKED.check(
            not wrong, f"依頼と違う設定: {'、'.join(wrong)}。" if wrong else f"r={settings.lora_r} などが依頼どおり。"
        ),
    )


def _differences(config: AdapterConfig, settings: TrainSettings, tensors: tuple[Tensor, ...]) -> list[str]:
    pairs = [
        ("r", config.r, settings.lora_r),
        ("lora_alpha", config.lora_alpha, settings.lora_alpha),
        ("lora_dropout", config.lora_dropout, settings.lora_dropout),
    ]
    wrong = [f"{name}={bounded(found, 40)}（依頼 {asked}）" for name, found, asked in pairs if found != asked]
    modules = config.target_modules
    if settings.target_modules and not (
        isinstance(modules, list) and {str(m) for m in modules} == set(settings.target_modules)
    ):
        asked_modules = ",".join(settings.target_modules)
        wrong.append(f"target_modules={bounded(modules, 80)}（依頼 {bounded(asked_modules, 80)}）")
    wrong += [
        f"{name}={bounded(value, 60)}（依頼していない）"
        for name, value in (
            ("layers_to_transform", config.layers_to_transform),
            ("rank_pattern", config.rank_pattern),
            ("alpha_pattern", config.alpha_pattern),
            ("bias", None if config.bias == "none" else config.bias),
        )
        if value
    ]
    wrong += _astray(config, settings, [t.name for t in tensors if "lora_A" in t.name])
    ranks = {t.shape[0] for t in tensors if "lora_A" in t.name and t.name.endswith("weight") and t.shape}
    if ranks - {settings.lora_r}:
        wrong.append(f"lora_A の階数 {sorted(ranks)[:5]}（依頼 {settings.lora_r}）")
    return wrong


def _astray(config: AdapterConfig, settings: TrainSettings, names: Sequence[str]) -> list[str]:
    """Modules that were asked for and have no weights, and weights on modules that the configuration does not name."""
    lacking = [module for module in settings.target_modules if names and not any(f".{module}." in n for n in names)]
    wrong = [f"{bounded('、'.join(lacking), 80)} の重みがない"] if lacking else []
    targets = config.target_modules if isinstance(config.target_modules, list) else None
    if targets and not config.target_parameters:
        others = [name for name in names if not any(f".{module}." in f".{name}" for module in targets)]
        wrong += [f"target_modules にない {bounded(others[0], 100)}"] if others else []
    return wrong


def last_check(folder: Path, state: TrainerState) -> Check:
    """What was saved at the end must be what the last checkpoint has, or the one that the Trainer calls its best."""
    if not state.fresh or state.problem or state.folder is None:
        return ADAPTER_IS_LAST.check(None, "この試行のチェックポイントがない。")
    kept = [folder / name / WEIGHTS_NAME for name in (state.folder.name, state.best_folder) if name]
    try:
        answers = [same_values(folder / WEIGHTS_NAME, path) for path in kept if path.is_file()]
    except (OSError, TensorFileError):
        answers = []
    if True in answers:
        return ADAPTER_IS_LAST.check(True, f"{state.folder.name} の LoRA 重みと同じ。")
    if False in answers:
        return ADAPTER_IS_LAST.check(False, f"{state.folder.name} の LoRA 重みと値が違う。")
    return ADAPTER_IS_LAST.check(None, f"{state.folder.name} に比べられる LoRA 重みがない。")


def weight_checks(folder: Path) -> tuple[tuple[Tensor, ...], tuple[Check, ...]]:
    """Check the weights' file and every value in it; the tensors are empty where the file can't be read."""
    path = folder / WEIGHTS_NAME
    try:
        tensors = read_header(path)
        values = sum(_count(tensor) for tensor in tensors)
        if not values:
            raise TensorFileError("テンソルが 1 つもない")
        scans = tuple(scan(path, tensors))
    except (OSError, TensorFileError) as error:
        return (), _unreadable(folder, error)
    alone = _unpaired([tensor.name for tensor in tensors])
    example = f"、対の片方しかない行列 {len(alone)} 個（例 {bounded(alone[0], 120)}）" if alone else ""
    written = f"{WEIGHTS_NAME} に {len(tensors)} テンソル、{values:,} 要素がある{example}。"
    return tensors, (
        ADAPTER_WEIGHTS.check(not alone, written),
        _finite_check(scans),
        _trained_check(scans, begins_at_zero=_begins_at_zero(folder)),
    )


def _unpaired(names: Sequence[str]) -> list[str]:
    """Matrices of LoRA without the other one of their pair: nobody can load them, or half of them at random."""
    matrices = [name for name in names if _MATRIX.search(name) and not name.endswith(".bias")]
    pairs = Counter(_MATRIX.sub(r"lora_\1*", name) for name in matrices)
    return [name for name in matrices if pairs[_MATRIX.sub(r"lora_\1*", name)] == 1]


def _begins_at_zero(folder: Path) -> bool:
    """Whether PEFT filled B with zeros; PiSSA and its like draw it from the model's weights."""
    try:
        return read_adapter_config(folder).init_lora_weights in (None, True, "gaussian", "eva")
    except UnreadableError:
        return True


def _count(tensor: Tensor) -> int:
    count = 1
    for length in tensor.shape:
        count *= length
    return count


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
    unread = [s.tensor.dtype for s in scans if s.nonfinite_values is None]
    if unread:
        return ADAPTER_FINITE.check(None, f"{len(unread)} テンソルの型 {unread[0]} は復号できない。")
    bad = [s for s in scans if s.nonfinite_values]
    if not bad:
        return ADAPTER_FINITE.check(True, f"{len(scans)} テンソルの全要素が有限。")
    count = sum(s.nonfinite_values or 0 for s in bad)
    first = bounded(bad[0].tensor.name, 120)
    message = f"{len(bad)} テンソルに NaN または Inf が {count:,} 要素ある（最初は {first}）。"
    return ADAPTER_FINITE.check(False, message)


def _trained_check(scans: tuple[Scan, ...], *, begins_at_zero: bool) -> Check:
    """A sound training moves every matrix that begins at zero within its first steps, in any precision."""
    begun = [s for s in scans if any(part in s.tensor.name for part in _BEGINS_AT_ZERO)]
    matrices = [s for s in begun if not _MAY_STAY_IDLE.search(s.tensor.name)] or begun
    if not matrices:
        return ADAPTER_TRAINED.check(False, f"{len(scans)} テンソルの中に LoRA の B 行列がない。")
    unread = [s for s in matrices if s.any_nonzero is None]
    if unread:
        return ADAPTER_TRAINED.check(None, f"B 行列の型 {unread[0].tensor.dtype} は復号できない。")
    still = [s.tensor.name for s in matrices if not s.any_nonzero]
    if not begins_at_zero and not still:
        return ADAPTER_TRAINED.check(None, "B 行列がゼロから始まらない初期化なので測れない。", severity=WARN)
    moved = len(matrices) - len(still)
    example = f"（ゼロのまま: {bounded(still[0], 120)} など）" if still else ""
    return ADAPTER_TRAINED.check(
        not still,
        f"B 行列 {len(matrices)} 個のうち {moved} 個がゼロでない{example}。",
        severity=WARN if 2 * moved >= len(matrices) else None,
    )
