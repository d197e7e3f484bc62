"""Checks of a LoRA adapter's own files: whole, finite, trained, of the right base, every layer of it; its tokenizer."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from steph.base.files import UnreadableError, read_json, read_json_object
from steph.base.messages import Message, say, words_of
from steph.base.tensors import Scan, Tensor, read_header, same_values, scan
from steph.base.text import one_line
from steph.contract.training_files import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, STATE_NAME, TrainerState
from steph.judge.folders import BaseModel, layer_of, same_model
from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.record.settings import TrainSettings
from steph.record.values import Check

MATRIX = re.compile(r"\blora_(embedding_)?[AB]\b")
PREFIX = "base_model.model."
LARGEST_WEIGHT = 100.0  # of a LoRA matrix; a trained one stays below 10
SMALLEST_WEIGHT = 1e-8  # the largest value of a B: below that B·A vanishes beside the base's own rounding
LEAST_TWINS = 2
# wrappers of torch.compile, FSDP, DDP and checkpointing, a second PEFT model, and PEFT's own names in memory
# (the embeddings' and the head's base layers are saved on purpose, where LoRA is on them)
_FOREIGN = re.compile(
    r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|^base_model\.model\.(?:base_model\.model|module)\."
    r"|\.modules_to_save\.|\.original_module\.|(?<!embed_tokens)(?<!lm_head)(?<!wte)\.base_layer\.weight$|\blora_\w+\.default\."
)
_LORA = re.compile(r"\.lora_(?:embedding_)?[AB](?:\.weight)?$")
# the tower of another kind of input, layers that predict further tokens, and experts, which are stored in many ways
_ELSEWHERE = re.compile(r"\b(?:visual|vision\w*|audio\w*|mtp|experts?)\.")
ADAPTER_LOADABLE = CheckKind("adapter_loadable", "H-2", FAIL)
ADAPTER_LAYERS = CheckKind("adapter_layers", "H-2", WARN, optional=True)
ADAPTER_VALUES = CheckKind("adapter_values", "H-2", WARN, optional=True)
ADAPTER_KEYS = (ADAPTER_LOADABLE, ADAPTER_LAYERS, ADAPTER_VALUES)
MAX_CONFIG_BYTES = 4 << 20
MOST_NAMED = 8  # of modules
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
TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_KEPT = CheckKind("tokenizer_kept", "H-2", WARN, optional=True)


def pairs_of(tensors: Iterable[Tensor]) -> tuple[dict[str, Tensor], ...]:
    """Each pair by its parts, `A` and `B`; one of them is missing where a matrix stands alone."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        found = MATRIX.search(tensor.name)
        if found and not tensor.name.endswith(".bias"):
            pairs.setdefault(MATRIX.sub(r"lora_\1*", tensor.name), {})[found[0][-1]] = tensor
    return tuple(pairs.values())


def unfit(pair: dict[str, Tensor]) -> bool:
    """Whether a whole pair can't be multiplied: A is rank by in, B is out by rank, and neither is empty."""
    if len(pair) < 2:
        return False
    first, second = pair["A"].shape, pair["B"].shape
    if not math.prod(first) or not math.prod(second):
        return True
    return len(first) > 1 and len(second) > 1 and first[0] != second[1]


def key_checks(
    tensors: tuple[Tensor, ...], scans: tuple[Scan, ...], base: BaseModel, targets: object, *, whole: bool
) -> tuple[Check, ...]:
    """All checks of an adapter's keys; `targets` is its `target_modules`, `whole` says that no layer is left out."""
    if not tensors:
        kinds = (ADAPTER_LOADABLE, ADAPTER_LAYERS, ADAPTER_VALUES)
        return tuple(kind.check(None, say("adapter.unread")) for kind in kinds)
    return (_loadable_check(tensors, base), _layers_check(tensors, base, targets, whole=whole), _values_check(scans))


def _loadable_check(tensors: tuple[Tensor, ...], base: BaseModel) -> Check:
    foreign = [t.name for t in tensors if not t.name.startswith(PREFIX) or _FOREIGN.search(t.name)]
    if foreign:
        first = one_line(foreign[0], 120)
        return ADAPTER_LOADABLE.check(False, "foreign", keys=len(tensors), foreign=len(foreign), example=first)
    astray = next(_misfits(tensors, base), None)
    if astray:
        return ADAPTER_LOADABLE.check(False, "misfit", misfit=astray)
    return ADAPTER_LOADABLE.check(True, "sound", keys=len(tensors))


def _misfits(tensors: Sequence[Tensor], base: BaseModel) -> Iterator[Message]:
    """What does not fit the base: a layer that it doesn't have, modules that it doesn't have, another width."""
    shapes = {place: shape for name, shape in base.matrices.items() if (place := _place(name))}
    placed = [(tensor, place) for tensor in tensors if _LORA.search(tensor.name) and (place := _place_of(tensor))]
    for tensor, (layer, _) in placed:
        if base.layers is not None and layer >= base.layers:
            yield say("adapter.no_layer", matrix=one_line(tensor.name, 120), layers=base.layers)
    known = [(tensor, shapes[place]) for tensor, place in placed if place in shapes]
    if shapes and placed and not known:
        yield say("adapter.no_module", matrix=one_line(placed[0][0].name, 120))
    for tensor, shape in known:
        width = tensor.shape[-1 if "lora_A" in tensor.name else 0] if len(tensor.shape) == 2 else None
        if width is not None and width not in shape:
            name, own, known_shape = one_line(tensor.name, 120), str(list(tensor.shape)), str(list(shape))
            yield say("adapter.other_shape", matrix=name, shape=own, base_shape=known_shape)


def _place(name: str) -> tuple[int, str] | None:
    return None if _ELSEWHERE.search(name) else layer_of(name)


def _place_of(tensor: Tensor) -> tuple[int, str] | None:
    return _place(_LORA.sub("", tensor.name))


def _layers_check(tensors: Sequence[Tensor], base: BaseModel, targets: object, *, whole: bool) -> Check:
    had = {place for tensor in tensors if _LORA.search(tensor.name) and (place := _place_of(tensor))}
    if not whole or not had:
        return ADAPTER_LAYERS.check(None, "chosen")
    wanted = _wanted(base, targets)
    if not wanted and not base.is_mixed:  # of an unknown base the layers go as far as LoRA's
        layers = base.layers if base.layers is not None else 1 + max(layer for layer, _ in had)
        wanted = {(layer, module) for layer in range(layers) for _, module in had}
    if not wanted:
        return ADAPTER_LAYERS.check(None, "unknown")
    lacking = sorted(wanted - had)
    where = sorted({layer for layer, _ in lacking})
    listing = [*where[:8], *("…" for _ in where[8:9])]
    if lacking:
        return ADAPTER_LAYERS.check(False, "lacking", matrices=len(wanted), lacking=len(lacking), layers=listing)
    return ADAPTER_LAYERS.check(True, "all")


def _wanted(base: BaseModel, targets: object) -> set[tuple[int, str]]:
    """The base's matrices that these targets mean; PEFT takes a list by the names' ends and a text as an expression."""
    limit = base.layers if base.layers is not None else 10**9
    places = [(name, place) for name in base.matrices if (place := _place(name)) and place[0] < limit]
    if isinstance(targets, list):
        ends = tuple(f".{target}" for target in targets)
        return {place for name, place in places if f".{name}".endswith(ends)}
    if isinstance(targets, str):
        try:
            expression = re.compile(targets)
        except re.error:
            return set()
        return {place for name, place in places if expression.fullmatch(name)}
    return set()


def _values_check(scans: tuple[Scan, ...]) -> Check:
    """Sizes that no training leads to, and matrices B of several layers that are one and the same."""
    lora = [s for s in scans if _LORA.search(s.tensor.name) and s.largest is not None and not s.nonfinite_values]
    sizes = {s.tensor.name: s.largest for s in lora if s.largest is not None and s.any_nonzero}
    if not sizes:
        return ADAPTER_VALUES.check(None, "none")
    ends = [size for name, size in sizes.items() if "lora_B" in name or "lora_embedding_A" in name]
    name, largest = max(sizes.items(), key=lambda item: item[1])
    same = _same_in_layers(lora)
    wrong = []
    tiny = [size for size in ends if size < SMALLEST_WEIGHT]
    if tiny:
        wrong.append(say("adapter.tiny", matrices=len(ends), tiny=len(tiny), largest=max(tiny)))
    if largest > LARGEST_WEIGHT:
        wrong.append(say("adapter.large", matrix=one_line(name, 120), largest=largest))
    if same:
        wrong.append(say("adapter.twins", matrices=same))
    return ADAPTER_VALUES.check(not wrong, "odd" if wrong else "plausible", troubles=wrong, largest=largest)


def _same_in_layers(lora: Sequence[Scan]) -> int:
    """How many matrices B are the same as another layer's of that module, to the last bit."""
    by_module: Mapping[tuple[str, tuple[int, ...]], Counter[bytes]] = defaultdict(Counter)
    for s in lora:
        place = layer_of(s.tensor.name)
        if place and s.any_nonzero and "lora_B" in s.tensor.name and s.tensor.name.endswith(("lora_B", "weight")):
            by_module[place[1], s.tensor.shape][s.digest] += 1
    return sum(count for digests in by_module.values() for count in digests.values() if count >= LEAST_TWINS)


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
    raw = read_json_object(folder / ADAPTER_CONFIG_NAME, MAX_CONFIG_BYTES)
    return AdapterConfig(**{field.name: raw.get(field.name) for field in fields(AdapterConfig)})


def adapter_config_or_none(folder: Path) -> AdapterConfig | None:
    """The same, None where it can't be read."""
    try:
        return read_adapter_config(folder)
    except UnreadableError:
        return None


def base_check(folder: Path, model_name: str) -> Check:
    """Check that the adapter says it belongs to the model under test."""
    try:
        base = read_adapter_config(folder).base_model_name_or_path
    except UnreadableError as error:
        return ADAPTER_BASE.check(None, "unreadable", reason=words_of(error))
    model = one_line(model_name, 100)
    if not base:
        return ADAPTER_BASE.check(False, "unnamed", model=model)
    holds = isinstance(base, str) and same_model(model_name, base)
    return ADAPTER_BASE.check(holds, "named", base=one_line(base, 100), model=model)


def config_checks(
    folder: Path, settings: TrainSettings, tensors: tuple[Tensor, ...], unsaid: frozenset[str] = frozenset()
) -> tuple[Check, ...]:
    """Check that `adapter_config.json` is there and says what was asked; nobody asked for `unsaid` settings."""
    try:
        config = read_adapter_config(folder)
    except UnreadableError as error:
        return (
            ADAPTER_CONFIG.check(False, "unusable", reason=words_of(error)),
            ADAPTER_AS_ASKED.check(None, "no_config"),
        )
    is_lora = config.peft_type == "LORA"
    wrong = _differences(config, settings, tensors, unsaid)
    return (
        ADAPTER_CONFIG.check(is_lora, "read", kind=one_line(config.peft_type, 40)),
        ADAPTER_AS_ASKED.check(not wrong, "differs" if wrong else "as_asked", settings=wrong, r=settings.lora_r),
    )


def _differences(
    config: AdapterConfig, settings: TrainSettings, tensors: tuple[Tensor, ...], unsaid: frozenset[str]
) -> list[Message]:
    pairs = [
        ("r", config.r, settings.lora_r),
        ("lora_alpha", config.lora_alpha, settings.lora_alpha),
        ("lora_dropout", config.lora_dropout, settings.lora_dropout),
    ]
    pairs = [pair for pair in pairs if pair[0] not in unsaid]
    wrong = [
        say("adapter.setting", name=name, found=one_line(found, 40), asked=asked)
        for name, found, asked in pairs
        if found != asked
    ]
    modules = config.target_modules
    if settings.target_modules and not (
        isinstance(modules, list) and {str(m) for m in modules} == set(settings.target_modules)
    ):
        asked_modules = one_line(",".join(settings.target_modules), 80)
        wrong.append(say("adapter.setting", name="target_modules", found=one_line(modules, 80), asked=asked_modules))
    wrong += [
        say("adapter.not_asked", name=name, found=one_line(value, 60))
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
        wrong.append(say("adapter.ranks", ranks=str(sorted(ranks)[:5]), asked=settings.lora_r))
    return wrong


def _left_out(config: AdapterConfig, names: Sequence[str]) -> list[Message]:
    """What the configuration promises beside A and B and the weights don't have."""
    saved = config.modules_to_save if isinstance(config.modules_to_save, list) else []
    wrong = [say("adapter.no_magnitude")] if config.use_dora and names and "magnitude" not in str(names) else []
    if saved and names and not any(f".{module}." in name for module in saved for name in names):
        wrong.append(say("adapter.not_saved", modules=saved[:MOST_NAMED]))
    return wrong


def _astray(config: AdapterConfig, settings: TrainSettings, names: Sequence[str]) -> list[Message]:
    """Modules that were asked for and have no weights, and weights on modules that the configuration does not name."""
    lacking = [module for module in settings.target_modules if names and not any(f".{module}." in n for n in names)]
    wrong = [say("adapter.no_weights", modules=lacking[:MOST_NAMED])] if lacking else []
    targets = config.target_modules if isinstance(config.target_modules, list) else None
    if targets and not config.target_parameters:
        others = [name for name in names if not any(f".{module}." in f".{name}" for module in targets)]
        wrong += [say("adapter.untargeted", matrix=one_line(others[0], 100))] if others else []
    return wrong


def last_check(
    folder: Path, state: TrainerState, last_loss_unix: float | None = None, *, is_mean: bool = False
) -> Check:
    """What was saved at the end must be what the last checkpoint has, or the one that the Trainer calls its best.

    Where no checkpoint has weights to compare: it must have been written after the last loss, told at `last_loss_unix`
    by the files' clock. `is_mean`: the mean of the last steps was saved, which no checkpoint has.
    """
    if not state.fresh or state.problem or state.folder is None:
        return ADAPTER_IS_LAST.check(None, "none")
    kept = [folder / name / ADAPTER_WEIGHTS_NAME for name in (state.folder.name, state.best_folder) if name]
    try:
        answers = [same_values(folder / ADAPTER_WEIGHTS_NAME, path) for path in kept if path.is_file()]
    except (OSError, UnreadableError):
        answers = []
    if True in answers:
        return ADAPTER_IS_LAST.check(True, "same", checkpoint=state.folder.name)
    if False in answers and is_mean:
        return ADAPTER_IS_LAST.check(True, "mean", checkpoint=state.folder.name)
    if False in answers:
        return ADAPTER_IS_LAST.check(False, "differs", checkpoint=state.folder.name)
    early = None if state.best_folder else _seconds_early(folder, state.folder, last_loss_unix)
    if early is not None and early > TIMES_SLACK_SECONDS:
        return ADAPTER_IS_LAST.check(False, "early", seconds=early)
    return ADAPTER_IS_LAST.check(None, "incomparable", checkpoint=state.folder.name)


def _seconds_early(folder: Path, checkpoint: Path, last_loss_unix: float | None) -> float | None:
    """By how much the weights are older than the last checkpoint's state or the last loss, whichever came later."""
    try:
        written = (folder / ADAPTER_WEIGHTS_NAME).stat().st_mtime
        ended = (checkpoint / STATE_NAME).stat().st_mtime
    except OSError:
        return None
    return max(ended, last_loss_unix if last_loss_unix is not None else ended) - written


def weight_checks(folder: Path, base: BaseModel = NO_BASE) -> tuple[tuple[Tensor, ...], tuple[Check, ...]]:
    """Check the weights' file and every value in it; the tensors are empty where the file can't be read."""
    path = folder / ADAPTER_WEIGHTS_NAME
    config = adapter_config_or_none(folder)
    targets, whole = (config.target_modules, not config.names_layers) if config else (None, True)
    unread = key_checks((), (), base, targets, whole=whole)
    try:
        tensors = read_header(path)
        values = sum(math.prod(tensor.shape) for tensor in tensors)
        if not values:
            return (), (*_unreadable(folder, say("adapter.no_tensors")), *unread)
        scans = tuple(scan(path, tensors))
    except (OSError, UnreadableError) as error:
        return (), (*_unreadable(folder, words_of(error)), *unread)
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
    odd = [pair for pair in pairs if unfit(pair)]
    faults = [say("adapter.alone", matrices=len(alone), example=one_line(alone[0], 120))] if alone else []
    if odd:
        a, b = odd[0]["A"], odd[0]["B"]
        name, shapes = one_line(a.name, 120), (str(list(a.shape)), str(list(b.shape)))
        faults.append(say("adapter.unfit", pairs=len(odd), example=name, a_shape=shapes[0], b_shape=shapes[1]))
    found = "faulty" if faults else "whole"
    return ADAPTER_WEIGHTS.check(not faults, found, tensors=len(tensors), values=values, faults=faults)


def _begins_at_zero(config: AdapterConfig | None) -> bool:
    """Whether PEFT filled B with zeros; PiSSA and its like draw it from the model's weights."""
    return config is None or config.init_lora_weights in (None, True, "gaussian", "eva")


def _unreadable(folder: Path, reason: Message) -> tuple[Check, ...]:
    if (folder / ADAPTER_WEIGHTS_NAME).exists():
        found = "damaged"
    else:
        found = "pickle" if (folder / "adapter_model.bin").exists() else "missing"
    return (
        ADAPTER_WEIGHTS.check(False, found, reason=reason),
        ADAPTER_FINITE.check(None, say("adapter.unread")),
        ADAPTER_TRAINED.check(None, say("adapter.unread")),
    )


def _finite_check(scans: tuple[Scan, ...]) -> Check:
    whole = [s.tensor for s in scans if s.tensor.dtype in INTEGERS]
    if whole:
        first = one_line(whole[0].name, 120)
        return ADAPTER_FINITE.check(False, "integers", tensors=len(whole), example=first, dtype=whole[0].dtype)
    unread = [s.tensor.dtype for s in scans if s.nonfinite_values is None]
    if unread:
        return ADAPTER_FINITE.check(None, "undecodable", tensors=len(unread), dtype=unread[0])
    bad = [s for s in scans if s.nonfinite_values]
    if bad:
        count = sum(s.nonfinite_values or 0 for s in bad)
        first = one_line(bad[0].tensor.name, 120)
        return ADAPTER_FINITE.check(False, "nonfinite", tensors=len(bad), values=count, example=first)
    huge = [s for s in scans if MATRIX.search(s.tensor.name) and (s.largest or 0) > LARGEST_HALF]
    if huge:
        first = one_line(huge[0].tensor.name, 120)
        return ADAPTER_FINITE.check(False, "huge", example=first, largest=huge[0].largest)
    return ADAPTER_FINITE.check(True, "finite", tensors=len(scans))


def _trained_check(scans: tuple[Scan, ...], *, begins_at_zero: bool) -> Check:
    """A sound training moves every matrix that begins at zero within its first steps, in any precision.

    The other one of its pair is drawn at random: where that is zero, the product is nothing for ever.
    """
    begun = [s for s in scans if any(part in s.tensor.name for part in _BEGINS_AT_ZERO)]
    matrices = [s for s in begun if not _MAY_STAY_IDLE.search(s.tensor.name)] or begun
    if not matrices:
        return ADAPTER_TRAINED.check(False, "no_b", tensors=len(scans))
    unread = [s for s in matrices if s.any_nonzero is None]
    if unread:
        return ADAPTER_TRAINED.check(None, "undecodable", dtype=unread[0].tensor.dtype)
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
        return ADAPTER_TRAINED.check(None, "nonzero_start", severity=WARN)
    moved = len(matrices) - len(still)
    return ADAPTER_TRAINED.check(
        not still,
        "still" if still else "moved",
        severity=WARN if 2 * moved >= len(matrices) else None,
        matrices=len(matrices),
        moved=moved,
        example=one_line(still[0], 120) if still else "",
    )


def tokenizer_check(saved: Path, base: Path | None) -> Check:
    """Compare two `tokenizer.json` by their words: a word may be added, but none may change its number."""
    known = _readable(base) if base is not None else None
    if known is None or not saved.is_file():
        return TOKENIZER_KEPT.check(None, "none")
    words = _readable(saved)
    if words is None:
        return TOKENIZER_KEPT.check(False, "unreadable")
    changed = [word for word, number in known.items() if words.get(word) != number]
    return TOKENIZER_KEPT.check(
        not changed,
        "changed" if changed else "kept",
        words=len(known),
        changed=len(changed),
        example=one_line(changed[0], 40) if changed else "",
        added=len(words.keys() - known.keys()),
    )


def _readable(path: Path) -> dict[str, int] | None:
    try:
        return _words(read_json(path))
    except UnreadableError:
        return None


def _words(raw: object) -> dict[str, int] | None:
    """All words of a tokenizer with their numbers: BPE and WordPiece have a table, Unigram a list; None for others."""
    model = raw.get("model") if isinstance(raw, Mapping) else None
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, list):
        vocabulary = {str(entry[0]): number for number, entry in enumerate(vocabulary) if isinstance(entry, list)}
    if not isinstance(raw, Mapping) or not isinstance(vocabulary, Mapping):
        return None
    entries = raw.get("added_tokens")
    added = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    return {**vocabulary, **{str(entry.get("content")): entry.get("id") for entry in added}}
