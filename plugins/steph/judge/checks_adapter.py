"""Checks of a LoRA adapter's own files: whole, finite, trained, of the right base, every layer of it; its tokenizer."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from steph.base.files import Scan, Tensor, UnreadableError, read_header, read_json, read_json_object, same_values, scan
from steph.base.messages import Message, say, words_of
from steph.base.text import one_line
from steph.contract.training_files import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, STATE_NAME, TrainerState
from steph.judge.evidence import BaseModel, layer_of, same_model
from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.record.settings import TrainSettings
from steph.record.values import Check

TOKENIZER_NAME = "tokenizer.json"
MAX_CONFIG_BYTES = 4 << 20
MOST_NAMED = 8  # of modules and layers
CLOCK_SLACK_SECONDS = 1.0  # between the clocks of lines and files
LARGEST_HALF = 65504.0  # what fp16 can hold; a larger weight is infinite in the model
LARGEST_WEIGHT = 100.0  # of a LoRA matrix; a trained one stays below 10
SMALLEST_WEIGHT = 1e-8  # the largest value of a B: below that B·A vanishes beside the base's own rounding
INTEGERS = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
NO_BASE = BaseModel()
_MATRIX = re.compile(r"\blora_(embedding_)?[AB]\b")
_LORA = re.compile(r"\.lora_(?:embedding_)?[AB](?:\.weight)?$")
# wrappers of torch.compile, FSDP, DDP and checkpointing, a second PEFT model, and PEFT's own names in memory
# (the embeddings' and the head's base layers are saved on purpose, where LoRA is on them)
_FOREIGN = re.compile(
    r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|^base_model\.model\.(?:base_model\.model|module)\."
    r"|\.modules_to_save\.|\.original_module\.|(?<!embed_tokens)(?<!lm_head)(?<!wte)(?<!token_adapter)\.base_layer\.weight$|\blora_\w+\.default\."
)
_EMBEDS = re.compile(r"(?<!\w)(?:\w{0,40}embed\w{0,40}|wte)\.(?!lora_)(?:.{0,200}\.)?(?:weight|trainable_tokens\w*)")
_COPY = re.compile(r"\.(?:modules_to_save|original_module)\.")
# the tower of another kind of input, layers that predict further tokens, and experts, which are stored in many ways
_ELSEWHERE = re.compile(r"\b(?:visual|vision\w*|audio\w*|mtp|experts?)\.")
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
ADAPTER_LOADABLE = CheckKind("adapter_loadable", "H-2", FAIL)
ADAPTER_LAYERS = CheckKind("adapter_layers", "H-2", WARN, optional=True)
ADAPTER_VALUES = CheckKind("adapter_values", "H-2", WARN, optional=True)
TOKENIZER_KEPT = CheckKind("tokenizer_kept", "H-2", WARN, optional=True)


def read_adapter_config(folder: Path) -> Mapping[str, object]:
    """Read `adapter_config.json`; UnreadableError where it is no JSON object."""
    return read_json_object(folder / ADAPTER_CONFIG_NAME, MAX_CONFIG_BYTES)


def adapter_config_or_empty(folder: Path) -> Mapping[str, object]:
    """Read `adapter_config.json`; empty where it can't be read."""
    try:
        return read_adapter_config(folder)
    except UnreadableError:
        return {}


def base_check(folder: Path, model_name: str) -> Check:
    """Check that the adapter says it belongs to the model under test."""
    try:
        base = read_adapter_config(folder).get("base_model_name_or_path")
    except UnreadableError as error:
        return ADAPTER_BASE.check(None, "unreadable", reason=words_of(error))
    model = one_line(model_name, 100)
    if not base:
        return ADAPTER_BASE.check(False, "unnamed", model=model)
    holds = isinstance(base, str) and same_model(model_name, base)
    return ADAPTER_BASE.check(holds, "named", base=one_line(base, 100), model=model)


def config_checks(
    folder: Path,
    settings: TrainSettings,
    tensors: tuple[Tensor, ...],
    unsaid: frozenset[str] = frozenset(),
    scalings: Sequence[float] = (),
) -> tuple[Check, ...]:
    """Check that `adapter_config.json` is there and says what was asked; nobody asked for `unsaid` settings.

    `scalings`: those that the adapter was trained with, which whoever loads it takes from this file.
    """
    try:
        config = read_adapter_config(folder)
    except UnreadableError as error:
        unusable = ADAPTER_CONFIG.check(False, "unusable", reason=words_of(error))
        return unusable, ADAPTER_AS_ASKED.check(None, "no_config")
    kind = config.get("peft_type")
    asked = {"r": settings.lora_r, "lora_alpha": settings.lora_alpha, "lora_dropout": settings.lora_dropout}
    wrong = [
        say("adapter.setting", name=name, found=one_line(config.get(name), 40), asked=value)
        for name, value in asked.items()
        if name not in unsaid and config.get(name) != value
    ]
    modules, asked_modules = config.get("target_modules"), settings.target_modules
    is_same = isinstance(modules, list) and {str(module) for module in modules} == set(asked_modules)
    if asked_modules and not is_same:
        shown, wanted = one_line(modules, 80), one_line(",".join(asked_modules), 80)
        wrong.append(say("adapter.setting", name="target_modules", found=shown, asked=wanted))
    wrong += [
        say("adapter.not_asked", name=name, found=one_line(value, 60))
        for name, usual in (
            *(("layers_to_transform", None), ("rank_pattern", None), ("alpha_pattern", None)),
            *(("bias", "none"), ("task_type", "CAUSAL_LM")),
        )
        if (value := config.get(name)) and value != usual
    ]
    wrong += _unlike_weights(config, settings, tensors)
    own = _scaling_of(config)
    if own is not None and scalings and not any(math.isclose(own, one, rel_tol=1e-3) for one in scalings):
        wrong.append(say("adapter.other_scaling", found=own, trained=scalings[0]))
    return (
        ADAPTER_CONFIG.check(kind == "LORA", "read", kind=one_line(kind, 40)),
        ADAPTER_AS_ASKED.check(not wrong, "differs" if wrong else "as_asked", settings=wrong, r=settings.lora_r),
    )


def _scaling_of(config: Mapping[str, object]) -> float | None:
    """The factor that this configuration means; None where single layers have their own, or it says none."""
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank <= 0:
        return None
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        return None
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _unlike_weights(
    config: Mapping[str, object], settings: TrainSettings, tensors: tuple[Tensor, ...]
) -> list[Message]:
    """What the configuration or the settings promise and the weights don't have, and the other way round."""
    names, wrong = [tensor.name for tensor in tensors], list[Message]()
    if names and bool(config.get("use_dora")) != ("magnitude" in str(names)):
        wrong.append(say("adapter.no_magnitude" if config.get("use_dora") else "adapter.magnitude_unsaid"))
    saved = modules if isinstance(modules := config.get("modules_to_save"), list) else []
    if saved and names and not any(f".{module}." in name for module in saved for name in names):
        wrong.append(say("adapter.not_saved", modules=saved[:MOST_NAMED]))
    first = [name for name in names if "lora_A" in name]
    lacking = [module for module in settings.target_modules if not any(f".{module}." in name for name in first)]
    if first and lacking:
        wrong.append(say("adapter.no_weights", modules=lacking[:MOST_NAMED]))
    targets = modules if isinstance(modules := config.get("target_modules"), list) else []
    others = [name for name in first if not any(f".{module}." in f".{name}" for module in targets)]
    if targets and others and not config.get("target_parameters"):
        wrong.append(say("adapter.untargeted", matrix=one_line(others[0], 100)))
    ranks = {t.shape[0] for t in tensors if "lora_A" in t.name and t.name.endswith("weight") and t.shape}
    if ranks - {settings.lora_r}:
        wrong.append(say("adapter.ranks", ranks=str(sorted(ranks)[:5]), asked=settings.lora_r))
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
    if False in answers:
        return ADAPTER_IS_LAST.check(is_mean, "mean" if is_mean else "differs", checkpoint=state.folder.name)
    try:
        written = (folder / ADAPTER_WEIGHTS_NAME).stat().st_mtime
        ended = (state.folder / STATE_NAME).stat().st_mtime
    except OSError:
        return ADAPTER_IS_LAST.check(None, "incomparable", checkpoint=state.folder.name)
    early = max(ended, last_loss_unix if last_loss_unix is not None else ended) - written
    if early > CLOCK_SLACK_SECONDS and not state.best_folder:
        return ADAPTER_IS_LAST.check(False, "early", seconds=early)
    return ADAPTER_IS_LAST.check(None, "incomparable", checkpoint=state.folder.name)


def weight_checks(folder: Path, base: BaseModel = NO_BASE) -> tuple[tuple[Tensor, ...], tuple[Check, ...]]:
    """Check the weights' file and every value in it; the tensors are empty where the file can't be read."""
    path, config = folder / ADAPTER_WEIGHTS_NAME, adapter_config_or_empty(folder)
    try:
        tensors = read_header(path)
        values = sum(math.prod(tensor.shape) for tensor in tensors)
        trouble = None if values else say("adapter.no_tensors")
        scans = tuple(scan(path, tensors)) if values else ()
    except (OSError, UnreadableError) as error:
        trouble = words_of(error)
    if trouble is not None:
        is_pickle = (folder / "adapter_model.bin").exists()
        found = "damaged" if path.exists() else "pickle" if is_pickle else "missing"
        unread = (ADAPTER_FINITE, ADAPTER_TRAINED, ADAPTER_LOADABLE, ADAPTER_LAYERS, ADAPTER_VALUES)
        others = (kind.check(None, say("adapter.unread")) for kind in unread)
        return (), (ADAPTER_WEIGHTS.check(False, found, reason=trouble), *others)
    names_layers = any(config.get(key) for key in ("layers_to_transform", "exclude_modules", "target_parameters"))
    # PEFT fills B with zeros; PiSSA and its like draw it from the model's weights
    begins_at_zero = config.get("init_lora_weights") in (None, True, "gaussian", "eva")
    return tensors, (
        _pairs_check(tensors, values),
        _finite_check(scans),
        _trained_check(scans, begins_at_zero=begins_at_zero),
        *key_checks(tensors, scans, base, config.get("target_modules"), whole=not names_layers),
    )


def _pairs_of(tensors: Iterable[Tensor]) -> tuple[dict[str, Tensor], ...]:
    """Each pair by its parts, `A` and `B`; one of them is missing where a matrix stands alone."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        found = _MATRIX.search(tensor.name)
        if found and not tensor.name.endswith(".bias"):
            pairs.setdefault(_MATRIX.sub(r"lora_\1*", tensor.name), {})[found[0][-1]] = tensor
    return tuple(pairs.values())


def _pairs_check(tensors: tuple[Tensor, ...], values: int) -> Check:
    """Half a pair is loaded with the other half at random, and a pair that can't be multiplied not at all."""
    alone, unfit = list[str](), list[tuple[Tensor, Tensor]]()
    for pair in _pairs_of(tensors):
        if len(pair) == 1:
            alone += [tensor.name for tensor in pair.values()]
            continue
        a, b = pair["A"], pair["B"]  # A is rank by in, B is out by rank
        is_empty = not math.prod(a.shape) or not math.prod(b.shape)
        if is_empty or (len(a.shape) > 1 and len(b.shape) > 1 and a.shape[0] != b.shape[1]):
            unfit.append((a, b))
    faults = [say("adapter.alone", matrices=len(alone), example=one_line(alone[0], 120))] if alone else []
    for a, b in unfit[:1]:
        shapes = {"a_shape": str(list(a.shape)), "b_shape": str(list(b.shape))}
        faults.append(say("adapter.unfit", pairs=len(unfit), example=one_line(a.name, 120), **shapes))
    found = "faulty" if faults else "whole"
    return ADAPTER_WEIGHTS.check(not faults, found, tensors=len(tensors), values=values, faults=faults)


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
        count, first = sum(s.nonfinite_values or 0 for s in bad), one_line(bad[0].tensor.name, 120)
        return ADAPTER_FINITE.check(False, "nonfinite", tensors=len(bad), values=count, example=first)
    huge = [s for s in scans if _MATRIX.search(s.tensor.name) and (s.largest or 0) > LARGEST_HALF]
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
    pairs = {tensor.name: pair for pair in _pairs_of(s.tensor for s in scans) for tensor in pair.values()}
    still = []
    for s in matrices:
        still += [t.name for t in pairs.get(s.tensor.name, {"": s.tensor}).values() if t.name in zero][:1]
    if not begins_at_zero and not still:
        return ADAPTER_TRAINED.not_applicable(say("adapter.nonzero_start"))
    return ADAPTER_TRAINED.check(
        not still,
        "nothing" if len(still) == len(matrices) else "still" if still else "moved",
        severity=WARN if 2 * len(still) <= len(matrices) else None,
        matrices=len(matrices),
        moved=len(matrices) - len(still),
        example=one_line(still[0], 120) if still else "",
    )


def key_checks(
    tensors: tuple[Tensor, ...], scans: tuple[Scan, ...], base: BaseModel, targets: object, *, whole: bool
) -> tuple[Check, ...]:
    """All checks of an adapter's keys; `targets` is its `target_modules`, `whole` says that no layer is left out."""
    placed = [(t, place) for t in tensors if _LORA.search(t.name) and (place := _place(_LORA.sub("", t.name)))]
    had = {place for _, place in placed}
    layers = _layers_check(had, base, targets) if whole and had else ADAPTER_LAYERS.check(None, "chosen")
    return _loadable_check(tensors, placed, base), layers, _values_check(scans)


def _place(name: str) -> tuple[int, str] | None:
    return None if _ELSEWHERE.search(name) else layer_of(name)


def _loadable_check(
    tensors: tuple[Tensor, ...], placed: Sequence[tuple[Tensor, tuple[int, str]]], base: BaseModel
) -> Check:
    """The keys are PEFT's own, and fit the base: no layer, no module and no width that it does not have."""
    # of a module that is saved whole beside larger embeddings PEFT writes its own copies, too
    names = {tensor.name for tensor in tensors}
    kept = [t.name for t in tensors if _COPY.sub(".", t.name) not in names - {t.name}]
    foreign = [name for name in kept if not name.startswith("base_model.model.") or _FOREIGN.search(name)]
    if foreign:
        first = one_line(foreign[0], 120)
        return ADAPTER_LOADABLE.check(False, "foreign", keys=len(tensors), foreign=len(foreign), example=first)
    shapes = {place: shape for name, shape in base.matrices.items() if (place := _place(name))}
    known = [(tensor, shapes[place]) for tensor, place in placed if place in shapes]
    misfits = [
        say("adapter.no_layer", matrix=one_line(tensor.name, 120), layers=base.layers)
        for tensor, (layer, _) in placed
        if base.layers is not None and layer >= base.layers
    ]
    if shapes and placed and not known:
        misfits.append(say("adapter.no_module", matrix=one_line(placed[0][0].name, 120)))
    for tensor, shape in known:
        if len(tensor.shape) == 2 and tensor.shape[-1 if "lora_A" in tensor.name else 0] not in shape:
            name, own, other = one_line(tensor.name, 120), str(list(tensor.shape)), str(list(shape))
            misfits.append(say("adapter.other_shape", matrix=name, shape=own, base_shape=other))
    if misfits:
        return ADAPTER_LOADABLE.check(False, "misfit", misfit=misfits[0])
    return ADAPTER_LOADABLE.check(True, "sound", keys=len(tensors))


def _layers_check(had: set[tuple[int, str]], base: BaseModel, targets: object) -> Check:
    """Every matrix that the targets mean has a LoRA; PEFT takes a list by the names' ends, a text as an expression."""
    limit = base.layers if base.layers is not None else 10**9
    places = [(name, place) for name in base.matrices if (place := _place(name)) and place[0] < limit]
    wanted: set[tuple[int, str]] = set()
    if isinstance(targets, list):
        ends = tuple(f".{target}" for target in targets)
        wanted = {place for name, place in places if f".{name}".endswith(ends)}
    elif isinstance(targets, str):
        try:
            expression = re.compile(targets)
            wanted = {place for name, place in places if expression.fullmatch(name)}
        except re.error:
            pass
    if not wanted and not base.is_mixed:  # of an unknown base the layers go as far as LoRA's
        layers = base.layers if base.layers is not None else 1 + max(layer for layer, _ in had)
        wanted = {(layer, module) for layer in range(layers) for _, module in had}
    if not wanted:
        return ADAPTER_LAYERS.check(None, "unknown")
    lacking = wanted - had
    if not lacking:
        return ADAPTER_LAYERS.check(True, "all")
    where = sorted({layer for layer, _ in lacking})
    listing = [*where[:MOST_NAMED], *("…" for _ in where[MOST_NAMED : MOST_NAMED + 1])]
    return ADAPTER_LAYERS.check(False, "lacking", matrices=len(wanted), lacking=len(lacking), layers=listing)


def _values_check(scans: tuple[Scan, ...]) -> Check:
    """Sizes that no training leads to, and matrices B of several layers that are one and the same."""
    lora = [s for s in scans if _LORA.search(s.tensor.name) and s.largest is not None and not s.nonfinite_values]
    sizes = {s.tensor.name: s.largest for s in lora if s.largest is not None and s.any_nonzero}
    if not sizes:
        return ADAPTER_VALUES.check(None, "none")
    wrong = []
    ends = [size for name, size in sizes.items() if any(part in name for part in _BEGINS_AT_ZERO)]
    tiny = [size for size in ends if size < SMALLEST_WEIGHT]
    if tiny:
        wrong.append(say("adapter.tiny", matrices=len(ends), tiny=len(tiny), largest=max(tiny)))
    name, largest = max(sizes.items(), key=lambda item: item[1])
    if largest > LARGEST_WEIGHT:
        wrong.append(say("adapter.large", matrix=one_line(name, 120), largest=largest))
    by_module: Mapping[tuple[str, tuple[int, ...]], Counter[bytes]] = defaultdict(Counter)
    for s in lora:
        place = layer_of(s.tensor.name)
        if place and s.any_nonzero and "lora_B" in s.tensor.name and s.tensor.name.endswith(("lora_B", "weight")):
            by_module[place[1], s.tensor.shape][s.digest] += 1
    same = sum(count for digests in by_module.values() for count in digests.values() if count > 1)
    if same:
        wrong.append(say("adapter.twins", matrices=same))
    return ADAPTER_VALUES.check(not wrong, "odd" if wrong else "plausible", troubles=wrong, largest=largest)


def tokenizer_check(saved: Path, base: Path | None, rows: int | None = None, tensors: Iterable[Tensor] = ()) -> Check:
    """Compare two `tokenizer.json` by their words: a word may be added, but none may change its number.

    Nor may one be added beyond the `rows` of the base's embedding that no tensor of the adapter embeds: whoever loads
    the adapter gives it another one at random. A token for padding is never read.
    """
    known = _words(base) if base is not None else None
    if known is None or not saved.is_file():
        return TOKENIZER_KEPT.check(None, "none")
    words = _words(saved)
    if words is None:
        return TOKENIZER_KEPT.check(False, "unreadable")
    changed = [word for word, number in known.items() if words.get(word) != number]
    beyond = sorted(word for word, number in words.items() if rows and number >= rows and word not in known)
    lost = [word for word in beyond if word != _padding_of(saved.parent)]
    if not changed and lost and not any(_EMBEDS.search(tensor.name) for tensor in tensors):
        return TOKENIZER_KEPT.check(False, "unembedded", added=len(lost), example=one_line(lost[0], 40))
    return TOKENIZER_KEPT.check(
        not changed,
        "changed" if changed else "kept",
        words=len(known),
        changed=len(changed),
        example=one_line(changed[0], 40) if changed else "",
        added=len(words.keys() - known.keys()),
    )


def _padding_of(folder: Path) -> str | None:
    try:
        told = read_json_object(folder / "tokenizer_config.json", MAX_CONFIG_BYTES).get("pad_token")
    except UnreadableError:
        return None
    told = told.get("content") if isinstance(told, Mapping) else told
    return told if isinstance(told, str) else None


def _words(path: Path) -> dict[str, int] | None:
    """All words of a tokenizer with their numbers: BPE and WordPiece have a table, Unigram a list; None for others."""
    try:
        raw = read_json(path)
    except UnreadableError:
        return None
    model = raw.get("model") if isinstance(raw, Mapping) else None
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, list):
        vocabulary = {str(entry[0]): number for number, entry in enumerate(vocabulary) if isinstance(entry, list)}
    if not isinstance(raw, Mapping) or not isinstance(vocabulary, Mapping):
        return None
    entries = raw.get("added_tokens")
    added = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    return {**vocabulary, **{str(entry.get("content")): entry.get("id") for entry in added}}
