"""A first `steph.toml` from what a folder says of itself: what was found, and what a person must still say. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from steph.base.messages import say, text
from steph.base.terms import TrainerName
from steph.contract.asked import MUST_BE_SAID
from steph.contract.settings_files import SettingsFile
from steph.contract.survey import RowsFile, Script, Survey
from steph.record.settings import MAX_SAMPLES

UNKNOWN = "…"  # what a person must put in its place; no program has this name
# options by their names without dashes: what the program is given there
_TRAIN_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "{model}": ("model", "model_name", "model_name_or_path", "base_model", "model_id", "model_path", "hf_model_name"),
    "{train_file}": ("train_file", "data", "data_file", "data_path", "dataset", "dataset_path", "train_data", "train"),
    "{output_dir}": ("output_dir", "output", "out", "out_dir", "save_dir", "save_path", "adapter_dir"),
    "{num_epochs}": ("num_epochs", "epochs", "num_train_epochs", "n_epochs"),
    "{max_steps}": ("max_steps", "steps", "num_steps", "max_train_steps", "max_steps_override"),
    "{batch_size}": ("batch_size", "per_device_train_batch_size", "micro_batch_size", "bs", "train_batch_size"),
    "{learning_rate}": ("learning_rate", "lr"),
    "{max_seq_length}": ("max_seq_length", "max_length", "max_seq_len", "cutoff_len", "seq_len", "block_size"),
    "{gradient_accumulation_steps}": ("gradient_accumulation_steps", "grad_accum", "accumulation_steps", "ga_steps"),
    "{warmup_ratio}": ("warmup_ratio",),
    "{lora_r}": ("lora_r", "lora_rank", "rank", "r"),
    "{lora_alpha}": ("lora_alpha", "alpha"),
    "{lora_dropout}": ("lora_dropout",),
    "{target_modules}": ("target_modules", "lora_target_modules"),
    "{use_4bit}": ("load_in_4bit", "use_4bit"),
    "{logging_steps}": ("logging_steps", "log_every"),
}
_EVALUATE_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "{model}": _TRAIN_OPTIONS["{model}"],
    "{adapter}": ("adapter", "adapter_path", "lora", "lora_path", "peft", "peft_model", "adapter_dir", "hf_lora_path"),
    "{samples}": ("samples", "limit", "num_samples", "max_samples", "n", "n_samples", "num_examples"),
    "{output}": ("output", "out", "output_path", "output_file", "out_file", "results", "results_file", "save_path"),
}
_TRAIN_SWITCHES = {
    "use_4bit": ("use_4bit", "load_in_4bit", "qlora", "four_bit"),
    "bf16": ("bf16",),
    "fp16": ("fp16",),
    "cpu": ("use_cpu", "cpu", "no_cuda"),
}
_EVALUATE_SWITCHES = {"use_4bit": _TRAIN_SWITCHES["use_4bit"], "cpu": _TRAIN_SWITCHES["cpu"]}


def said(message_id: str, **values: object) -> str:
    """A message's words, of any length."""
    return text(message_id, values=values)


def findings(found: Survey) -> Iterator[str]:
    """What was found, a line each."""
    for script in found.scripts:
        how = said("init.options", count=len(script.options)) if script.has_command_line else said("init.no_options")
        does = "init.trains" if script.trains else "init.evaluates"
        yield said(does, path=script.path, how=how)
    yield from (said("init.published", section=section) for section in sorted(found.published))
    for file in found.rows:
        of = "init.rows" if file.format else "init.unknown_rows"
        yield said(of, path=file.path, rows=file.rows, format=file.format or "")
    yield from (said("init.task", folder=folder, task=task) for task, folder in found.tasks.items())
    yield from (said("init.settings", path=file.path, program=file.program) for file in found.settings)
    yield from (said("init.notebook", path=path) for path in found.notebooks)
    if found.family:
        yield said("init.family", family=found.family.name)
    yield from (said("init.program", program=name) for name in sorted(found.programs))


def draft(found: Survey) -> str:
    """The text of a `steph.toml`, its comments in the language in use."""
    training = next((script for script in found.scripts if script.trains), None)
    evaluating = next((script for script in found.scripts if script.evaluates), None)
    settings = _settings_file(found)
    own_model, train = _model(found, settings, training), tuple(_train(found, settings, training))
    lines = [*_comment("init.head"), "", *_trainer(train), *own_model, *train, "", *_evaluate(found, evaluating)]
    return "\n".join(lines) + "\n"


def _comment(message_id: str, **values: object) -> list[str]:
    return [f"# {line}" for line in said(message_id, **values).splitlines()]


def _with_note(line: str, message_id: str, **values: object) -> str:
    """A line of TOML with a comment behind it."""
    return f"{line}   # {' '.join(said(message_id, **values).split())}"


def _trainer(train: tuple[str, ...]) -> Iterator[str]:
    """What the memory of a preset's program follows, where that was measured."""
    for name in (TrainerName.TRL, TrainerName.UNSLOTH):
        if f"preset = {_toml(name)}" in train:
            yield from (_with_note(f"trainer = {_toml(name)}", "init.note.trainer"), "")


def _model(found: Survey, settings: SettingsFile | None, script: Script | None) -> Iterator[str]:
    """The candidates: the one model that is given or inside, else the small ones of the family that is named."""
    family, is_published = found.family, "train" in found.published
    small = family.candidates if family else []
    sizes = tuple(f"{parameters / 1e9:.1f}B" for _, parameters in family.small) if family else ()
    if settings is not None and settings.model and not is_published:
        line = f"candidates = {_toml([settings.model])}"
        yield from ("[model]", _with_note(line, "init.note.settings_model", path=settings.path))
        if small and settings.model not in small:
            yield from _comment("init.note.smaller", models=_toml(small), sizes=sizes)
        yield ""
    elif settings is None and script and not is_published and not _option(script, "{model}", _TRAIN_OPTIONS):
        if script.model:
            line = f"candidates = {_toml([script.model])}"
            yield from ("[model]", _with_note(line, "init.note.inside_model", path=script.path), "")
    elif small and family:
        line = f"candidates = {_toml(small)}"
        yield from ("[model]", _with_note(line, "init.note.small", family=family.name, sizes=sizes), "")


def _train(found: Survey, settings: SettingsFile | None, script: Script | None) -> Iterator[str]:
    yield "[train]"
    if "train" in found.published:
        yield 'preset = "lawqa"'
        return
    if settings is not None:
        yield f"preset = {_toml(settings.program)}"
        yield _with_note(f"config = {_toml(settings.path)}", "init.note.config")
        yield _named_rows(found, settings)
        return
    rows = _rows_line(found.rows, script)
    if "trl sft" in found.programs or (script is None and "trl" in found.programs):
        yield 'preset = "trl"'
        yield rows
        yield _with_note('# extra = ["--packing"]', "init.note.extra")
        return
    if script is None:
        yield f"command = {_toml(['{python}', UNKNOWN, '--model', '{model}', '--data', '{train_file}'])}"
        yield rows
        yield _with_note(f"fixed = {{ batch_size = {UNKNOWN} }}", "init.note.fixed")
        return
    if script.unsloth:
        yield 'preset = "unsloth"'
    yield from _command(script, _TRAIN_OPTIONS, _TRAIN_SWITCHES)
    yield from _fixed(script)
    yield rows
    output_dir, adapter = script.output_dir, script.adapter
    if not _option(script, "{output_dir}", _TRAIN_OPTIONS):
        yield _with_note(f"output_dir = {_toml(output_dir or adapter or UNKNOWN)}", "init.note.output_dir")
        if output_dir and adapter and adapter != output_dir:
            inside = adapter.removeprefix(f"{output_dir.rstrip('/')}/")
            yield f"artifacts.adapter = {_toml(adapter if inside == adapter else f'{{output_dir}}/{inside}')}"


def _settings_file(found: Survey) -> SettingsFile | None:
    """The file of settings that a training goes by: one whose rows are here, else one that names any."""
    files = [file for file in found.settings if file.program != "trl"]
    return min(files, key=lambda file: (file.rows_file is None, file.trouble is None), default=None)


def _named_rows(found: Survey, settings: SettingsFile) -> str:
    """The rows that a file of settings names; where they can't be compared, why."""
    if settings.rows_file is None:
        why = settings.trouble or say("init.rows.unnamed")
        return _with_note('rows.format = "none"', "init.note.no_rows", why=why)
    known = next((file for file in found.rows if file.path == settings.rows_file), None)
    if known is None or known.format is None:
        return f"rows = {{ file = {_toml(settings.rows_file)}, format = {_toml(UNKNOWN)} }}"
    return _with_note(
        f"rows = {{ file = {_toml(known.path)}, format = {_toml(known.format)} }}", "init.note.rows", rows=known.rows
    )


def _fixed(script: Script) -> Iterator[str]:
    """The settings that it has inside, as its text and its libraries' defaults say."""
    passed = {name.strip("{}") for name in _TRAIN_OPTIONS if _option(script, name, _TRAIN_OPTIONS)}
    passed |= {name for name, names in _TRAIN_SWITCHES.items() if _switch(script, names)}
    fixed = {name: value for name, value in script.settings.items() if name not in passed}
    lacking = [name for name in MUST_BE_SAID if name not in passed and name not in fixed]
    if "max_steps" in passed or "max_steps" in fixed:
        lacking = [name for name in lacking if name != "num_epochs"]
    if lacking:
        yield from _comment("init.note.lacking", settings=tuple(f"{name} = {UNKNOWN}" for name in lacking))
    if not fixed:
        return
    yield f"fixed = {{ {', '.join(f'{name} = {_toml(value)}' for name, value in sorted(fixed.items()))} }}"
    assumed = sorted(script.assumed & fixed.keys())
    if assumed:
        yield from _comment("init.note.assumed", settings=tuple(assumed))


def _rows_line(files: tuple[RowsFile, ...], script: Script | None) -> str:
    def rank(file: RowsFile) -> tuple[bool, bool, bool, int]:
        is_named = script is not None and script.rows_file == file.path
        return is_named, "train" in file.path, file.format is not None, file.rows

    if not files:
        return _with_note(f'rows = {{ file = "{UNKNOWN}", format = "messages" }}', "init.note.elsewhere")
    file = max(files, key=rank)
    known = f", format = {_toml(file.format)}" if file.format else f', format = "{UNKNOWN}"'
    return _with_note(f"rows = {{ file = {_toml(file.path)}{known} }}", "init.note.rows", rows=file.rows)


def _evaluate(found: Survey, script: Script | None) -> Iterator[str]:
    yield "[evaluate]"
    if "evaluate" in found.published:
        yield 'preset = "lawqa"'
        return
    if found.tasks or (script is None and {"lm_eval", "lm-eval"} & found.programs):
        task, folder = next(iter(found.tasks.items()), (UNKNOWN, None))
        include = ["--include_path", folder] if folder else []
        yield 'preset = "lm-eval"'
        yield f"extra = {_toml([*include, '--tasks', task])}"
        return
    if script is None:
        yield _with_note(f'none = "{UNKNOWN}"', "init.note.none")
        return
    yield from _command(script, _EVALUATE_OPTIONS, _EVALUATE_SWITCHES)
    if not _option(script, "{samples}", _EVALUATE_OPTIONS):
        yield _with_note(f"fixed = {{ samples = {UNKNOWN} }}", "init.note.samples", most=MAX_SAMPLES)
    has_output = _option(script, "{output}", _EVALUATE_OPTIONS)
    yield 'results.file = "{output}"' if has_output else f"results.file = {_toml(script.results_file or UNKNOWN)}"
    for name, path in script.results.items():
        yield f"results.{name} = {_toml(path)}"
    if "score" not in script.results:
        yield _with_note(f'results.score = "{UNKNOWN}"', "init.note.score")
    if script.row:
        yield f"results.row = {{ {', '.join(f'{name} = {_toml(path)}' for name, path in script.row.items())} }}"


def _command(
    script: Script, options: Mapping[str, tuple[str, ...]], switches: Mapping[str, tuple[str, ...]]
) -> Iterator[str]:
    words = ["{python}", script.path]
    found = {placeholder: option for placeholder in options if (option := _option(script, placeholder, options))}
    adapter = found.pop("{adapter}", None)
    words += [word for placeholder, option in found.items() for word in (option, placeholder)]
    yield f"command = {_toml(words)}"
    if adapter:
        yield f"when.adapter = {_toml([adapter, '{adapter}'])}"
    for name, names in switches.items():
        if option := _switch(script, names):
            yield f"when.{name} = {_toml([option])}"
    if script.has_command_line and (left := _left(script, options, switches)):
        yield from _comment("init.note.left", options=tuple(left))


def _option(script: Script, placeholder: str, options: Mapping[str, tuple[str, ...]]) -> str | None:
    names = options[placeholder]
    known = {_plain(option): option for option, is_switch in script.options.items() if not is_switch}
    return next((known[name] for name in names if name in known), None)


def _switch(script: Script, names: tuple[str, ...]) -> str | None:
    return next((option for option, is_switch in script.options.items() if is_switch and _plain(option) in names), None)


def _left(script: Script, options: Mapping[str, tuple[str, ...]], switches: Mapping[str, tuple[str, ...]]) -> list[str]:
    used = {_option(script, one, options) for one in options} | {_switch(script, names) for names in switches.values()}
    return [option for option in script.options if option not in used]


def _plain(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def _toml(value: object) -> str:
    """A value as TOML spells it: JSON's texts, numbers and lists are TOML's."""
    return json.dumps(value, ensure_ascii=False)
