"""Records the first `generate` calls of each adapter state, and tells training calls of a model from scoring calls.

Of a `generate` call: the prompt, the answer and the options.
"""

from __future__ import annotations

import sys
import threading
import time
import types
import weakref
from types import ModuleType
from typing import Any

from . import facts, models, patches, splice, tokens, weights

_FIRST_CALLS = 16
_FIRST_ANSWERS = 48  # calls of `generate`: each of ten questions may be asked again
_MOST_SCORED, _LONGEST_CHOICE = 16, 48  # rows of a call, and tokens of one, whose likelihood is read
_WEIGHTS_AT = (1, 16)  # of these calls in a state, the weights are looked at
# what keeps a model from its own next token, and its value where it does nothing
_STEERING = {
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "guidance_scale": 1.0, "min_new_tokens": 0,
    "min_length": 0, "suppress_tokens": None, "begin_suppress_tokens": None, "bad_words_ids": None,
    "force_words_ids": None, "constraints": None, "forced_bos_token_id": None, "forced_decoder_ids": None,
    "sequence_bias": None, "prefix_allowed_tokens_fn": None, "logits_processor": None,
    "watermarking_config": None, "penalty_alpha": 0.0, "dola_layers": None, "exponential_decay_length_penalty": None,
}  # fmt: skip
_PLAIN_PROCESSORS = ("InfNanRemove", "LogitNormalization", "MinLength", "MinNewTokens", "NoRepeatNGram", "Penalty")
_own_steering: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
_open = threading.local()
_cached: weakref.WeakKeyDictionary[Any, list[int]] = weakref.WeakKeyDictionary()  # the tokens that a cache was given


class _Counts:
    """Calls in each state of the adapters."""

    generations: dict[str, int] = {}  # noqa: RUF012 - one process, one of these
    scorings: dict[str, int] = {}  # noqa: RUF012
    raised: dict[str, int] = {}  # noqa: RUF012
    new_tokens = 0
    calls = 0


def hook_generation(module: ModuleType) -> None:
    """All generation comes through here, whatever is wrapped around the model."""
    splice.around(
        module.GenerationMixin.generate, before=_before_generate, after=_after_generate, failed=_generate_raised
    )


def in_progress() -> bool:
    """Whether this thread is inside `generate`."""
    return getattr(_open, "depth", 0) > 0


def _before_generate(given: dict[str, Any]) -> dict[str, Any]:
    _open.depth = getattr(_open, "depth", 0) + 1
    model, kwargs = given["self"], given.get("kwargs") or {}
    state = models.state(model)
    key = _key(state)
    count = _Counts.generations[key] = _Counts.generations.get(key, 0) + 1
    call: dict[str, Any] = {"key": key, "state": state, "count": count, "began": time.perf_counter(), "width": 0}
    inputs: Any = given.get("inputs") if given.get("inputs") is not None else kwargs.get("input_ids")
    if not _is_plain(inputs):
        return call
    call["width"] = int(inputs.shape[1])
    if count > _FIRST_ANSWERS or _open.depth > 1:
        return call
    call["prompts"] = _rows(inputs, kwargs.get("attention_mask"))
    call["facts"] = _attention(model, inputs, given, kwargs)
    if count in _WEIGHTS_AT:
        call["facts"].update(matrices=weights.adapter_numbers(model), base=weights.base_changed(model))
        call["facts"].update(own_code=patches.described(model))
    call["cache"] = kwargs.get("past_key_values")
    if stale := _stale_cache_tokens(call["prompts"], call["cache"]):
        call["facts"]["hidden"] = [stale]
    call["training"] = _drops(model)
    call["bos"] = models.bos_of(model)
    call["ends"] = _eos_ids(model, given.get("generation_config"), kwargs)
    call["options"] = _options(model, given.get("generation_config"), kwargs, call["width"])
    call["options"]["steering"] = _steering(model, given.get("generation_config"), {**given, **kwargs})
    call["model"] = {
        "name_or_path": models.name_of(model), "class": models.class_of(model), "quantised": models.quantised(model),
        "devices": models.brief(model)["devices"] if count == 1 else {},
    }  # fmt: skip
    return call


def _drops(model: Any) -> bool:
    """Whether the model is in training mode, or one layer's dropout alone."""
    return bool(model.training) or models.dropouts(model)[1] > 0


def _stale_cache_tokens(prompts: list[list[int]], cache: Any) -> int:
    """How many of a single prompt's tokens the model does not see, as its cache has others in their place."""
    held = _cached.get(cache, []) if hasattr(cache, "get_seq_length") else []
    if len(prompts) > 1 or not held:
        return 0
    alike = next((n for n, (one, other) in enumerate(zip(prompts[0], held)) if one != other), len(held))
    return max(0, min(int(cache.get_seq_length()), len(prompts[0])) - alike)


def _is_plain(value: Any) -> bool:
    torch: Any = sys.modules["torch"]
    if type(value) is not torch.Tensor or value.dim() != 2 or str(value.device) == "meta" or value.is_floating_point():
        return False
    return not (value.is_cuda and torch.cuda.is_current_stream_capturing())


def _rows(ids: Any, mask: Any) -> list[list[int]]:
    """Each row's tokens without its padding."""
    rows: list[list[int]] = ids.tolist()
    if _is_plain(mask) and tuple(mask.shape) == tuple(ids.shape):
        return [[token for token, seen in zip(row, marks) if seen] for row, marks in zip(rows, mask.tolist())]
    return rows


def _eos_ids(model: Any, config: Any, kwargs: dict[str, Any]) -> set[int]:
    for holder in (kwargs.get("eos_token_id"), getattr(config, "eos_token_id", None)):
        if tokens.ids_of(holder):
            return set(tokens.ids_of(holder))
    own = getattr(model, "generation_config", None)
    return set(tokens.ids_of(getattr(own, "eos_token_id", None))) or tokens.end_ids(model)


def _options(model: Any, config: Any, kwargs: dict[str, Any], width: int) -> dict[str, Any]:
    """The options of an answer: the call's own, else its configuration's, else the model's."""

    def value(name: str) -> Any:
        if name in kwargs:
            return kwargs[name]
        for holder in (config, getattr(model, "generation_config", None)):
            found = getattr(holder, name, None)
            if found is not None:
                return found
        return None

    limit, longest = value("max_new_tokens"), value("max_length")
    limit = limit if limit is not None else longest - width if isinstance(longest, int) else None
    return {
        "limit": limit if isinstance(limit, int) else None,
        "do_sample": bool(value("do_sample")),
        "num_beams": value("num_beams"),
    }


@facts.guarded("options")
def as_loaded(model: Any) -> None:
    """Remember what the model's own configuration steers; options that come later are the program's."""
    own = getattr(model, "generation_config", None)
    _own_steering[models.base_of(model)] = {name: _number_of(getattr(own, name, None)) for name in _STEERING}


def _steering(model: Any, config: Any, given: dict[str, Any]) -> dict[str, float]:
    """The options that steer answers and were not in the model's own configuration: a number, or how many there are."""
    own = getattr(model, "generation_config", None)
    known = _own_steering.get(models.base_of(model), {})
    found: dict[str, float] = {}
    for name, neutral in _STEERING.items():
        value = next(
            (
                one
                for one in (given.get(name), getattr(config, name, None), getattr(own, name, None))
                if one is not None
            ),
            None,
        )
        number = _number_of(value)
        if number is not None and number != neutral and number != known.get(name):
            found[name] = number
    return found


def _number_of(value: Any) -> float | None:
    """A number as it is, of anything else how many there are; processors only where they choose tokens."""
    if value is None or isinstance(value, bool) or (hasattr(value, "__len__") and not len(value)):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, (list, tuple)):
        return float(len(value)) if hasattr(value, "__len__") else 1.0
    is_plain = [
        type(one).__module__.startswith("transformers.")
        and any(part in type(one).__name__ for part in _PLAIN_PROCESSORS)
        for one in value
    ]
    return float(is_plain.count(False)) or None


def _attention(model: Any, inputs: Any, given: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What the prompts' tokens may look at, by the mask and the positions that were given."""
    pad = models.pad_id(model)
    read: dict[str, Any] = {}
    for name in ("attention_mask", "position_ids"):
        value: Any = kwargs.get(name)
        read[name] = value.tolist() if _is_plain(value) else None
    # without a mask one is made of the pad tokens, unless these may be end tokens
    ends = _eos_ids(model, given.get("generation_config"), kwargs)
    is_unknown = kwargs.get("attention_mask") is not None and read["attention_mask"] is None
    return tokens.attended(
        inputs.tolist(), read["attention_mask"], read["position_ids"], pad, reads_padding=pad in ends and not is_unknown
    )


def _lines(prompts: list[list[int]]) -> list[list[str]] | None:
    found = [tokens.line_hashes(row) for row in prompts]
    return None if any(one is None for one in found) else [one for one in found if one is not None]


def _after_generate(call: dict[str, Any] | None, result: Any) -> None:
    _open.depth -= 1
    if call is None:
        return
    sequences = getattr(result, "sequences", result)
    if _is_plain(sequences):
        _Counts.new_tokens += max(0, int(sequences.shape[1]) - call["width"]) * int(sequences.shape[0])
        if "prompts" in call:
            _write_generation(call, sequences)
    _count()


def _write_generation(call: dict[str, Any], sequences: Any) -> None:
    ends, prompts = call["ends"], call["prompts"]
    if hasattr(call["cache"], "get_seq_length"):
        _cached[call["cache"]] = prompts[0] + sequences[0].tolist()[call["width"] :]
    said, stopped = [], []
    for row in sequences.tolist():
        new = row[call["width"] :]
        end = next((place for place, token in enumerate(new) if token in ends), None)
        said.append(new if end is None else new[:end])
        stopped.append(end is not None)
    texts = [tokens.text_of(row) for row in said]
    responses = [text for text in texts if text is not None]
    known = len(responses) == len(said)
    fingerprints = [tokens.fingerprints_of(row) for row in prompts]
    each = max(1, len(said) // max(1, len(prompts)))  # several answers to a prompt
    prompts = [row for row in prompts for _ in range(each)]
    special = [tokens.special_tokens(row) for row in prompts]
    facts.write(
        "generation", rows=len(said), prompt_tokens=[len(row) for row in prompts],
        prompt_hashes=[tokens.row_hash(row) for row in prompts],
        turn_hashes=[tokens.turn_hash(row, is_prompt=True) for row in prompts],
        bos=call["bos"], leading_bos=tokens.leading(prompts, call["bos"]),
        special_tokens=None if None in special else special, training=call["training"],
        lead_hashes=[tokens.lead_hashes(row) for row in prompts], thinks=[tokens.thinks(row) for row in prompts],
        nested=[tokens.is_nested(row) for row in prompts],
        header_hashes=[tokens.header_hashes(row) for row in prompts],
        prompt_fingerprints=None if None in fingerprints else [one for one in fingerprints for _ in range(each)],
        new_tokens=[len(row) for row in said], stopped=stopped, **call["options"],
        response_hashes=[_hashes(text, tokens.marked_text_of(row)) for text, row in zip(responses, said)]
        if known else None,
        first_characters=[_first_character_hash(text) for text in responses] if known else None,
        response_fingerprints=[tokens.fingerprints_of(row) for row in said] if known else None,
        seconds=round(time.perf_counter() - call["began"], 4),
        prompt_lines=_lines(prompts), **call["facts"], **call["state"], **call["model"],
    )  # fmt: skip


def _hashes(text: str, marked: str | None) -> list[str]:
    """Of the whole, of what follows the thinking, of the first and of the last line; of the whole in lower case; and
    of the whole with such marks as a thought's, where they are special tokens."""
    lines, marked = text.strip().splitlines() or [""], marked or text
    parts = (text, marked.rpartition("</think>")[2], lines[0], lines[-1], text.lower(), marked)
    return [*dict.fromkeys(map(tokens.text_hash, parts))]


def _first_character_hash(text: str) -> str | None:
    """The hash of the first character, where that alone is no answer: a letter is, unless it begins a word."""
    start = text.strip()[:2]
    is_letter = start[:1].isascii() and not (len(start) == 2 and start.isascii() and start.isalnum())
    return None if is_letter or not start else tokens.text_hash(start[0])


def _generate_raised(call: dict[str, Any] | None, error: BaseException) -> None:
    _open.depth -= 1
    if call is None or isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
        return
    key = call["key"]
    _Counts.generations[key] -= 1
    count = _Counts.raised[key] = _Counts.raised.get(key, 0) + 1
    if count <= _FIRST_CALLS:
        facts.write("generation_raised", error=type(error).__name__, **call["state"])
    _count()


@facts.guarded("scoring")
def scored(model: Any, arguments: dict[str, Any]) -> list[list[int]] | None:
    """The model was called for its logits, outside `generate`; the rows, if what it finds likely is to be read."""
    from . import training

    ids: Any = arguments.get("input_ids")
    if not _is_plain(ids):
        return None
    state = models.state(models.unwrapped(model))
    key = _key(state)
    count = _Counts.scorings[key] = _Counts.scorings.get(key, 0) + 1
    if count <= _FIRST_CALLS:
        rows = _rows(ids, arguments.get("attention_mask"))
        fingerprints = [tokens.fingerprints_of(row) for row in rows]
        special = [tokens.special_tokens(row) for row in rows]
        facts.write(
            "scoring", rows=len(rows), tokens=[len(row) for row in rows], training=_drops(model),
            prompt_hashes=[tokens.row_hash(row) for row in rows],
            special_tokens=None if None in special else special,
            bos=(bos := models.bos_of(model)), leading_bos=tokens.leading(rows, bos),
            prompt_fingerprints=None if None in fingerprints else fingerprints, prompt_lines=_lines(rows),
            name_or_path=models.name_of(model), quantised=models.quantised(model), **state,
            devices=models.brief(model)["devices"] if count == 1 else {}, **{"class": models.class_of(model)},
        )  # fmt: skip
    _count()
    is_whole = arguments.get("past_key_values") is None and not training.in_progress()
    return ids.tolist() if count <= _FIRST_CALLS and is_whole else None


def _log_of(logits: Any, token: int) -> Any:
    return logits[token] - logits.logsumexp(-1)


@facts.guarded("likelihoods")
def _read_likelihoods(ids: list[list[int]], mask: Any, result: Any) -> None:
    """How likely the model finds the last tokens of each row, and what a label after it.

    Of each ending the hash of its text, the sum of its tokens' log-likelihoods, how many they are, and the sum of those
    special tokens that stand at its end.
    """
    torch: Any = sys.modules["torch"]
    logits: Any = getattr(result, "logits", None)
    if type(logits) is not torch.Tensor or logits.dim() != 3 or len(ids) != int(logits.shape[0]):
        return
    marks = mask.tolist() if _is_plain(mask) and list(mask.shape) == [len(ids), len(ids[0])] else None
    before = len(ids[0]) - int(logits.shape[1])  # places whose logits were not asked for
    endings, labels, special = [], [], tokens.special_ids()
    # an index beyond the logits would end a program on a GPU
    letters = {text: one for text, one in tokens.label_ids().items() if one < int(logits.shape[2])}
    if max(map(max, ids)) >= int(logits.shape[2]):
        return
    with torch.no_grad():
        for n, row in enumerate(ids[:_MOST_SCORED]):
            places = [place for place in range(len(row)) if not marks or marks[n][place]] or [0]
            learnt = [place for place in places[1:] if place - 1 >= before][-_LONGEST_CHOICE:]
            # one place at a time: no vocabulary is kept, and memory's peak stays the program's
            known = [_log_of(logits[n, place - 1 - before].float(), row[place]) for place in learnt]
            likely = torch.stack(known).tolist() if known else []
            endings.append(tokens.endings([row[place] for place in learnt], likely, special))
            after = logits[n, places[-1] - before].float()
            likely = (after[[*letters.values()]] - after.logsumexp(-1)).tolist() if letters else []
            labels.append({text: round(one, 4) for text, one in zip(letters, likely)})
    facts.write("likelihoods", endings=endings, labels=labels)


def _key(state: dict[str, Any]) -> str:
    """A state in one short text."""
    files = ",".join(one[:8] for one in state["sha256"]) or "-"
    merged = ",".join(one[:8] for one in state["merged_sha256"]) or "-"
    names = ",".join(state["adapters"]) or "-"
    numbers = f"{state['layers']}/{state['disabled']}/{state['merged']}"
    return f"{names} {numbers} {','.join(map(str, state['scaling'])) or '-'} {files} {merged}"


def _count() -> None:
    _Counts.calls += 1
    calls = _Counts.calls
    if calls >= _FIRST_CALLS and calls & (calls - 1) == 0:  # 16, 32, 64, ...
        facts.write("counts", **_counted())


@facts.at_end
def _counted() -> dict[str, Any]:
    return {
        "generations": dict(_Counts.generations), "scorings": dict(_Counts.scorings), "raised": dict(_Counts.raised),
        "new_tokens": _Counts.new_tokens,
    }  # fmt: skip


@facts.forgets
def _forget() -> None:
    _Counts.generations, _Counts.scorings, _Counts.raised = {}, {}, {}
    _Counts.new_tokens = _Counts.calls = 0
    _open.depth = 0


_MOST_FRAMES = 48
_own_code: set[types.CodeType] = set()
_call = threading.local()  # the frame of the call whose loss is wanted


def hook_class(cls: Any) -> None:
    """See the calls of this class's models.

    `__call__` becomes a copy of torch's own, with a call of ours in it; the other modules keep theirs, and a copy
    leaves no other traceback than the original. While something compiles the model there is no such call.
    """
    torch: Any = sys.modules["torch"]
    call = torch.nn.Module.__call__
    copy = splice.copy_between(call, _model_called, _model_returned, unless=torch.compiler.is_compiling)
    _own_code.add(copy.__code__)
    cls.__call__ = copy


def hook_compiled(module: Any) -> None:
    """A compiled model is called through its wrapper."""
    hook_class(module.OptimizedModule)


def _model_called(given: dict[str, Any]) -> None:
    from . import training

    model = given["self"]
    if in_progress() or not _is_outermost():
        return
    torch: Any = sys.modules["torch"]
    arguments = {**dict(zip(("input_ids", "attention_mask"), given["args"])), **given["kwargs"]}
    if torch.is_grad_enabled() and (model.training or _trains(model, arguments)):
        _call.frame = id(sys._getframe(2)) if training.received(model, arguments) else None
    else:
        training.without_gradient(model, arguments)
        rows = scored(model, arguments)
        _call.scored = (id(sys._getframe(2)), rows, arguments.get("attention_mask")) if rows else None


def _model_returned(result: Any) -> Any:
    """The model's own loss, or its logits, of a call that is asked for them; the result is passed on."""
    if getattr(_call, "frame", None) is not None and _call.frame == id(sys._getframe(1)):
        _call.frame = None
        _hand_over(result)
    if getattr(_call, "scored", None) is not None and _call.scored[0] == id(sys._getframe(1)):
        (_, rows, mask), _call.scored = _call.scored, None
        _read_likelihoods(rows, mask, result)
    return result


@facts.guarded("model's loss")
def _hand_over(result: Any) -> None:
    from . import training

    torch: Any = sys.modules["torch"]
    first = result[0] if isinstance(result, tuple) and result else None
    given = (getattr(result, "loss", first), getattr(result, "logits", first))
    # Unsloth's logits are an object that raises whatever it is asked for
    loss, logits = (one if isinstance(one, torch.Tensor) else None for one in given)
    training.model_gave(loss, logits)
    training.model_predicted(logits)


def _trains(model: Any, arguments: dict[str, Any]) -> bool:
    """Whether a model in evaluation mode is trained all the same, as where someone wants no dropout."""
    from . import training

    is_for_training = training.in_progress(of_trainer=True) or arguments.get("labels") is not None
    return is_for_training and training.has_optimizer() and any(one.requires_grad for one in model.parameters())


def _is_outermost() -> bool:
    """Whether no other call of a model stands above this one; such calls stand close above each other."""
    frame = sys._getframe(3).f_back  # past this, `_model_called`, its guard and the call itself
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return True
        if frame.f_code in _own_code:
            return False
        frame = frame.f_back
    return True
