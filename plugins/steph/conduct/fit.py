"""`steph fit`: a model's shape and LoRA's targets, from the tables or counted, and the answer as JSON or as text."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steph.base import units
from steph.base.files import UnreadableError, parse_json_object, read_json, read_json_object, write_whole
from steph.base.messages import Message, phrase, say, text, verbatim, words_of
from steph.base.terms import FitVerdict, TrainerName
from steph.base.units import GIB
from steph.contract.settings import Card
from steph.memory import shapes
from steph.memory.calibration import Calibration
from steph.memory.fit import Fit
from steph.memory.forecast import Forecast
from steph.memory.terms import DEFAULT_TARGETS, AdapterCount
from steph.run.hub import is_offline
from steph.run.processes import output_of
from steph.tell.markdown import left, right

COUNT_SCRIPT = Path(__file__).parents[1] / "child" / "count.py"
COUNT_FORMAT = 2  # counted up when the same question would have another answer
COUNT_SECONDS = 120
CONFIG_SECONDS = 10.0  # for one small file of the Hub
ALL = ("all", "all-linear")
HEAD = ("embed_tokens", "lm_head")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NAMES = re.compile(r"[\w\s,]*")


class CountingError(Exception):
    """The model can't be counted; the message is one line."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A model's shape, and LoRA's parameters and the modules that it is on where an adapter was asked about."""

    shape: shapes.ModelShape
    adapter: AdapterCount | None = None
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """LoRA as the options say it, and who counts: the interpreter, the folder that keeps answers, who hears of it."""

    targets: str | None
    r: int
    modules_to_save: tuple[str, ...]
    dora: bool
    python: str
    cache: Path
    tell: Callable[[Message], object]

    def count(self, model: str, config: Path, adapter: dict[str, Any] | None = None) -> Counted:
        """Have transformers and peft count (`child/count.py`), or take the answer that is kept.

        `model`: what it is called. `adapter`: arguments of peft.LoraConfig. Raises CountingError, and OSError where the
        configuration can't be read.
        """
        # what makes two questions the same: the configuration, the adapter, and the packages that answer
        home = Path(self.python).parent.parent
        packages = [folder.stat().st_mtime_ns for folder in sorted(home.glob("lib/python*/site-packages"))]
        contents = [COUNT_FORMAT, config.read_text(encoding="utf-8"), adapter, str(home), packages]
        digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
        kept = self.cache / "counts" / f"{digest}.json"
        try:
            found = read_json_object(kept)
        except (UnreadableError, OSError):
            self.tell(say("fit.counting", model=model, python=self.python))
            found = _count(model, config, adapter, self.python)
            with contextlib.suppress(OSError):  # it costs the next question its seconds alone
                write_whole(kept, json.dumps(found))
        lora = found.get("adapter")
        if lora is None:
            return Counted(shapes.shape_of_counts(found))
        count_of = AdapterCount(lora["lora"], lora["magnitude"], lora["whole"])
        return Counted(shapes.shape_of_counts(found), count_of, tuple(lora["modules"]))


def _count(model: str, config: Path, adapter: dict[str, Any] | None, python: str) -> dict[str, Any]:
    command = [python, str(COUNT_SCRIPT), "--config", str(config), "--sizes", *shapes.COUNTED_SIZES]
    command += ["--adapter", json.dumps(adapter)] if adapter is not None else []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "CUDA_VISIBLE_DEVICES": ""}
    try:
        ended = output_of(command, COUNT_SECONDS, environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CountingError(say("fit.not_counted", model=model, error=error)) from error
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines() or [str(ended.returncode)]
        raise CountingError(say("fit.not_counted", model=model, error=lines[-1]))
    try:
        return parse_json_object((ended.stdout.strip().splitlines() or [""])[-1].encode())
    except UnreadableError as error:
        raise CountingError(say("fit.not_counted", model=model, error=words_of(error))) from error


def hub_config(name: str, cache_dir: Path | None = None, endpoint: str | None = None) -> Path:
    """The config.json of a model, from the Hub's cache or else from the Hub; raises CountingError."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    file: dict[str, Any] = {"repo_id": name, "filename": "config.json", "cache_dir": cache_dir}
    try:
        path = try_to_load_from_cache(**file)
        if not isinstance(path, str):
            if is_offline():
                raise CountingError(say("fit.no_config", model=name, error="HF_HUB_OFFLINE"))
            path = hf_hub_download(**file, endpoint=endpoint, etag_timeout=CONFIG_SECONDS)
        read_json_object(Path(path), finite=False)
    except CountingError:
        raise
    except Exception as error:  # whatever the network, the Hub or the file does
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CountingError(say("fit.no_config", model=name, error=lines[0])) from error
    return Path(path)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model's shape, the modules that LoRA is on, and its parameters where peft had to count them."""

    shape: shapes.ModelShape
    targets: tuple[str, ...]
    adapter: AdapterCount | None = None
    weights: shapes.Weights = field(default_factory=shapes.Weights)  # how the published ones are quantised
    taken_for: str = ""  # the common model whose shape it is, by its name alone


def subject(model: str, options: LoraOptions) -> Subject:
    """The model and its adapter; from the tables at once, else counted. Raises ShapeError, CountingError."""
    shape, weights, taken_for = _shape(model, options)
    names = tuple(dict.fromkeys(linear.name for linear in shapes.linears(shape)))
    found = Subject(shape, names, weights=weights, taken_for=taken_for)
    usual = [name for name in (*DEFAULT_TARGETS, "qkv_proj") if name in names]  # q and v, or what holds them
    targets = options.targets or ",".join(usual or names)
    is_all = targets in ALL
    # peft's all-linear takes experts along, which are no linears
    counts_all = is_all and (shape.num_experts > 0 or not shape.family.is_measured)
    wanted = names if is_all else tuple(name.strip() for name in targets.split(","))
    is_plain = NAMES.fullmatch(targets) is not None or is_all
    if is_plain and not counts_all and set(options.modules_to_save) <= set(HEAD):
        return replace(found, targets=wanted)
    adapter = {
        "r": options.r,
        "use_dora": options.dora,
        "modules_to_save": list(options.modules_to_save) or None,
        "target_modules": "all-linear" if is_all else list(wanted) if is_plain else targets,
    }
    lora = _counted_adapter(found.taken_for or model, shape, adapter, options)
    return replace(found, targets=lora.modules, adapter=lora.adapter)


def _shape(model: str, options: LoraOptions) -> tuple[shapes.ModelShape, shapes.Weights, str]:
    """The shape, how the published weights are quantised, and the common model that the name is taken for."""
    if shapes.weights_by_name(model).form == "gguf":
        raise CountingError(say("fit.gguf", model=model))
    try:
        return shapes.model_shape(model), _weights(model), ""
    except shapes.UnknownShapeError:
        try:
            if HUB_ID.fullmatch(model) and not is_offline():
                published = hub_config(model)
                return options.count(model, published).shape, _weights(str(published)), ""
        except CountingError:
            if shapes.same_model(model) is None:
                raise
        known = shapes.same_model(model)
        if known is None:
            raise
        return shapes.model_shape(known), shapes.weights_by_name(model), known
    except shapes.ShapeError:
        with contextlib.suppress(OSError, RuntimeError, UnreadableError):  # what made the error is no file
            config = shapes.config_file(model)
            values = read_json(config, finite=False) if config is not None else None
            kind = values.get("model_type") if isinstance(values, dict) else None
            has_biases = isinstance(values, dict) and bool(values.get("attention_bias") or values.get("mlp_bias"))
            if config is not None and isinstance(kind, str) and (kind not in shapes.READ_FROM_CONFIG or has_biases):
                return options.count(model, config).shape, _weights(model), ""  # transformers may know it
        raise


def _weights(model: str) -> shapes.Weights:
    """How the weights beside a config.json are quantised, which a model known by its name need not have."""
    with contextlib.suppress(UnreadableError, OSError, RuntimeError):
        config = shapes.config_file(model)
        return shapes.Weights() if config is None else shapes.weights_by_config(read_json(config, finite=False))
    return shapes.Weights()


def _counted_adapter(model: str, shape: shapes.ModelShape, adapter: dict[str, Any], options: LoraOptions) -> Counted:
    """LoRA by peft, on the model's own configuration or on one of the table's sizes."""
    config = shapes.config_file(model)
    if config is not None:
        return options.count(model, config, adapter)
    if shape.more_linears:
        if HUB_ID.fullmatch(model):
            return options.count(model, hub_config(model), adapter)
        raise CountingError(say("fit.needs_config", model=model))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "config.json"
        made.write_text(json.dumps(shapes.config_of(shape, model)), encoding="utf-8")
        return options.count(model, made, adapter)


_POINT = ("batch_size", "max_seq_length")


def fit_json(result: Fit, card: Card | None = None) -> str:
    """One object for one setting; for several `grid` with one object each, named by its setting, and `largest`.

    With a card that was looked up by its name, `card` says what is usable of it, and how that is known. `basis`: what
    the answer rests on; where nothing is known there are `reasons`, and `at_least_gib` instead of a forecast.
    """
    common: dict[str, Any] = {"basis": [str(line) for line in result.basis]}
    if result.host is not None:
        host = result.host
        disk = {"model": host.model_bytes, "checkpoint": host.checkpoint_bytes, "merged": host.merged_bytes}
        common["host_memory_gib"] = _gib(host.memory_bytes)
        common["disk_gib"] = {name: _gib(size) for name, size in disk.items()}
    common["changes"] = [str(line) for line in result.change.words] if result.change else []
    if result.setting.is_unknown:
        points = {
            name: point and dict(zip(_POINT, point, strict=True)) for name, point in result.largest_by_trainer.items()
        }
        common["largest_by_trainer"] = points
        common["fitting_trainers"] = list(result.fitting_trainers)
        common["changing_trainers"] = list(result.changing_trainers)
    common["larger_card"] = result.larger_card or None
    if card is not None:
        common["card"] = card.words()
    if result.reasons:
        reasons = [str(reason) for reason in result.reasons]
        at_least = {"verdict": result.unforeseen_verdict, "reasons": reasons, "at_least_gib": _gib(result.floor_bytes)}
        return json.dumps({**at_least, **common}, ensure_ascii=False, indent=1)
    rows = {
        (batch, length): {"batch_size": batch, "max_seq_length": length, **_fit_values(result, forecast)}
        for (batch, length), forecast in result.forecasts.items()
    }
    if len(rows) == 1:
        (only,) = result.forecasts.values()
        largest = dict(zip(_POINT, result.largest, strict=True)) if result.largest else None
        values = {**_fit_values(result, only), "largest": largest, **common}
        return json.dumps(values, ensure_ascii=False, indent=1)
    largest = rows[result.largest] if result.largest else None
    return json.dumps({"grid": list(rows.values()), "largest": largest, **common}, ensure_ascii=False, indent=1)


def _fit_values(result: Fit, forecast: Forecast) -> dict[str, Any]:
    def interval(one: Forecast) -> dict[str, Any]:
        return {"low_gib": _gib(one.peak.low_bytes), "high_gib": _gib(one.peak.high_bytes)}

    if result.setting.is_unknown:  # no single trainer's peak would be the run's
        by_trainer = {
            name: {**interval(one), "verdict": result.verdict(one)} for name, one in result.by_trainer.items()
        }
        known = {"by_trainer": by_trainer} if by_trainer else {}
        return {**interval(forecast), "verdict": result.verdict(forecast), **known}
    terms = (term for term in forecast.terms if term.at_peak)
    return {
        "peak_allocated_gib": _gib(forecast.peak_allocated_bytes),
        "peak_reserved_gib": _gib(forecast.peak_reserved_bytes),
        "total_gib": _gib(forecast.peak.peak_bytes),
        **interval(forecast),
        "verdict": result.verdict(forecast),
        "terms": {text(f"fit.term.{term.name}", "en"): _gib(term.size_bytes) for term in terms},  # keys, not words
    }


def _gib(size_bytes: float) -> float:
    return round(size_bytes / GIB, 4)


def fit_text(result: Fit, card: Card | None = None, basis: str = "", command: str = "steph fit …") -> str:
    """The breakdown of one setting, or the grid; `basis` says where constants come from, `command` what was typed."""
    lines = [_head(result), *filter(None, (card.words() if card else "", basis))]
    if result.largest_by_trainer and len(result.forecasts) > 1:
        lines += ["", phrase("fit.by_trainer")]
        for name, point in result.largest_by_trainer.items():
            words = (
                phrase("fit.by_trainer.none")
                if point is None
                else phrase("fit.by_trainer.setting", batch=point[0], length=point[1])
            )
            lines.append(f"  {left(name, 10)} {left(words, 26)} {phrase(f'fit.by_trainer.{name}')}")
        lines.append("")
    lines += [str(line) for line in result.basis]
    if result.reasons:
        lines += ["", *(phrase("fit.why", reason=reason) for reason in result.reasons)]
        lines.append(phrase("fit.floor", size=units.gib(result.floor_bytes)))
        lines.append(phrase(f"fit.verdict.{result.unforeseen_verdict}"))
    elif len(result.forecasts) == 1:
        lines += _breakdown(result, next(iter(result.forecasts.values())))
    else:
        lines += _fit_grid(result)
    lines += [*_change_lines(result, command), ""]
    if host := result.host:
        merged = units.gib(host.merged_bytes)
        model, checkpoint = units.gib(host.model_bytes), units.gib(host.checkpoint_bytes)
        lines.append(phrase("fit.host", memory=units.gib(host.memory_bytes), merging=merged))
        lines.append(phrase("fit.disk", model=model, checkpoint=checkpoint, merged=merged))
    return "\n".join([*lines, ""])


def _head(result: Fit) -> str:
    """What was asked: the model, how it is trained, and the card."""
    work, setting = result.work, result.setting
    bits = 4 if work.use_4bit else 8 if work.use_8bit else 16
    is_whole = work.adapter is not None and not work.adapter.lora and work.adapter.whole
    trained = [say("fit.head.whole")]
    if not is_whole:
        many = say("fit.head.many", count=len(work.target_modules))
        targets = many if len(work.target_modules) > 8 else ",".join(work.target_modules)
        trained = [say("fit.head.lora", r=work.lora_r, targets=targets)]
        trained += [verbatim(name) for name, is_on in (("packing", work.packing), ("DoRA", work.dora)) if is_on]
    size = f"{result.vram_bytes / GIB:.2f} GiB"
    card = say("fit.head.card", size=size)
    if setting.cards > 1:
        card = say("fit.head.cards", count=setting.cards, sharing=setting.sharing, size=size)
    base = say("fit.head.base", bits=bits)
    parts = [result.model, f"trainer {setting.trainer}", base, *trained, work.optimizer]
    return phrase("fit.head", parts=parts, card=card)


def _change_lines(result: Fit, command: str) -> list[str]:
    """What makes the setting, or the grid's smallest, fit; nothing where it does, or where nothing is known."""
    first = next(iter(result.forecasts.values()), None)
    if first is None or result.verdict(first) == FitVerdict.FITS:
        return []
    lines = []
    if result.fitting_trainers:
        lines.append(phrase("fit.change.trainer", trainers=result.fitting_trainers))
    if result.change is not None:
        lines += [phrase("fit.change.first"), *(f"  - {words}" for words in result.change.words)]
    if result.setting.is_unknown and result.change is None and result.changing_trainers:
        lines.append(phrase("fit.change.by_trainer", trainers=result.changing_trainers))
    if lines and result.setting.is_unknown:
        name = (*result.fitting_trainers, *result.changing_trainers, TrainerName.TRL)[0]
        lines.append(phrase("fit.change.name", command=f"{command} --trainer {name}"))
    lines = lines or [phrase("fit.change.none")]
    return [*lines, phrase("fit.change.card", card=result.larger_card)] if result.larger_card else lines


def _fit_grid(result: Fit) -> list[str]:
    batches = sorted({batch for batch, _ in result.forecasts})
    heads = [right(phrase("fit.grid.batch", batch=batch), 22) for batch in batches]
    lines = ["", "max-seq-length  " + "".join(heads)]
    for length in sorted({length for _, length in result.forecasts}):
        line = f"{length:>14}  "
        for forecast in (result.forecasts[batch, length] for batch in batches):
            size = f"{forecast.peak.peak_bytes / GIB:.2f}"
            if result.setting.is_unknown:  # the interval spans trainers
                size = f"{forecast.peak.low_bytes / GIB:.1f}-{forecast.peak.high_bytes / GIB:.1f}"
            line += right(f"{size} {_verdict(result, forecast)}", 22)
        lines.append(line)
    return [*lines, "", _largest(result)]


def _verdict(result: Fit, forecast: Forecast) -> str:
    return phrase(f"fit.verdict.{result.verdict(forecast)}")


def _largest(result: Fit) -> str:
    is_any, point = result.setting.is_unknown, result.largest
    if point is None:
        return phrase("fit.largest_of_any.none" if is_any else "fit.largest.none")
    of = "fit.largest_of_any.setting" if is_any else "fit.largest.setting"
    return phrase(of, batch=point[0], length=point[1])


def _breakdown(result: Fit, forecast: Forecast) -> list[str]:
    work = forecast.workload
    low, high = forecast.peak.low_bytes, forecast.peak.high_bytes
    context = forecast.peak.peak_bytes - forecast.peak_reserved_bytes
    whole = phrase("fit.row.whole")
    if result.setting.is_unknown:
        lines = ["", left(whole, 44) + _span(low, high, 8)]
        for name, one in result.by_trainer.items():
            row = "  " + phrase("fit.row.trainer", trainer=name)
            lines.append(f"{left(row, 44)}{_span(one.peak.low_bytes, one.peak.high_bytes, 8)}  {_verdict(result, one)}")
    else:
        way = "fit.way.on" if work.recompute else "fit.way.off"
        lines = [phrase(way, rows=work.rows, tokens=work.width), ""]
        for term in forecast.terms:
            note = "" if term.at_peak else f"  {phrase('fit.row.past')}"
            lines.append(f"{left(phrase(f'fit.term.{term.name}'), 44)}{term.size_bytes / GIB:>8.3f}{note}")
        lines += [
            "",
            f"{left(phrase('fit.row.allocated'), 44)}{forecast.peak_allocated_bytes / GIB:>8.2f}",
            f"{left(phrase('fit.row.reserved'), 44)}{forecast.peak_reserved_bytes / GIB:>8.2f}",
            f"{left(whole, 44)}{forecast.peak.peak_bytes / GIB:>8.2f}  ({_span(low, high)})",
        ]
    allocator = _span(max(0, low - context), high - context)
    lines.append(phrase("fit.measures", allocator=allocator, total=_span(low, high)))
    return [*lines, "", _verdict(result, forecast), _largest(result)]


def _span(low_bytes: int, high_bytes: int, cells: int = 0) -> str:
    """Two sizes in GiB, the first one right-aligned in so many cells."""
    low = f"{low_bytes / GIB:.2f}"
    return " " * (cells - len(low)) + phrase("fit.span", low=low, high=f"{high_bytes / GIB:.2f}")


def fit_basis(found: Calibration, trainer: str, shape: shapes.ModelShape) -> str:
    """A line on what a record gave to a prediction for a trainer and a model."""
    if not found.point_count:
        return phrase("fit.record.no_peaks")
    if trainer != found.trainer:
        return phrase("fit.record.other_trainer", trainer=found.trainer)
    if not found.is_explained and found.line is None:
        return phrase("fit.record.off", share=found.constants.relative_error)
    if not found.is_described and (found.line is None or shape != found.shape):
        return phrase("fit.record.undescribed")
    if found.line is not None:
        return phrase("fit.record.line")
    return phrase("fit.record.corrected", attempts=found.point_count)
