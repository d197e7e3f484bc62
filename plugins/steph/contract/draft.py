"""A first `steph.toml` from what a folder says of itself: what was found, and what a person must still say. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from steph.base.messages import say, text
from steph.base.terms import TrainerName
from steph.contract.commands import MUST_BE_SAID
from steph.contract.description import UNKNOWN
from steph.contract.programs import NAMES, Script
from steph.contract.survey import Survey
from steph.record.settings import MAX_SAMPLES


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
    train = tuple(_train(found, training))
    own_model = _model(found, training)
    lines = [*_comment("init.head"), "", *_trainer(train), *own_model, *train, "", *_evaluate(found, evaluating)]
    return "\n".join(lines) + "\n"


def _comment(message_id: str, **values: object) -> list[str]:
    return [f"# {line}" for line in said(message_id, **values).splitlines()]


def _with_note(line: str, message_id: str, **values: object) -> str:
    """A line of TOML with a comment behind it."""
    return f"{line}   # {' '.join(said(message_id, **values).split())}"


def _toml(value: object) -> str:
    """A value as TOML spells it: JSON's texts, numbers and lists are TOML's."""
    return json.dumps(value, ensure_ascii=False)


def _inline(table: Mapping[str, object]) -> str:
    return f"{{ {', '.join(f'{name} = {_toml(value)}' for name, value in table.items())} }}"


@dataclass(frozen=True)
class _Taken:
    """What a script's command line takes: its options by placeholder, its switches by condition, and all others."""

    options: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()


def _taken(script: Script | None, section: str) -> _Taken:
    """`section`: `training` or `evaluation`, by whose names options and switches are known."""
    if script is None:
        return _Taken()
    plain = {option: option.lstrip("-").replace("-", "_") for option in script.options}
    with_value = {plain[option]: option for option, is_switch in script.options.items() if not is_switch}
    alone = {plain[option]: option for option, is_switch in script.options.items() if is_switch}

    def known(names: Mapping[str, list[str]], among: Mapping[str, str]) -> dict[str, str]:
        found = {place: next((among[one] for one in several if one in among), "") for place, several in names.items()}
        return {place: option for place, option in found.items() if option}

    options, switches = known(NAMES[f"{section}_options"], with_value), known(NAMES[f"{section}_switches"], alone)
    used = {*options.values(), *switches.values()}
    return _Taken(options, switches, tuple(option for option in script.options if option not in used))


def _trainer(train: tuple[str, ...]) -> Iterator[str]:
    """What the memory of a preset's program follows, where that was measured."""
    for name in (TrainerName.TRL, TrainerName.UNSLOTH):
        if f"preset = {_toml(name)}" in train:
            yield from (_with_note(f"trainer = {_toml(name)}", "init.note.trainer"), "")


def _model(found: Survey, script: Script | None) -> Iterator[str]:
    """The candidates: the one model that is given or inside, else the small ones of the family that is named."""
    settings, family, is_published = found.training_settings, found.family, "train" in found.published
    small = list(family.small) if family else []
    sizes = tuple(f"{parameters / 1e9:.1f}B" for parameters in family.small.values()) if family else ()
    if settings is not None and settings.model and not is_published:
        line = f"candidates = {_toml([settings.model])}"
        yield from ("[model]", _with_note(line, "init.note.settings_model", path=settings.path))
        if small and settings.model not in small:
            yield from _comment("init.note.smaller", models=_toml(small), sizes=sizes)
        yield ""
    elif settings is None and script and not is_published and "model" not in _taken(script, "training").options:
        if script.model:
            line = f"candidates = {_toml([script.model])}"
            yield from ("[model]", _with_note(line, "init.note.inside_model", path=script.path), "")
    elif small and family:
        line = f"candidates = {_toml(small)}"
        yield from ("[model]", _with_note(line, "init.note.small", family=family.name, sizes=sizes), "")


def _train(found: Survey, script: Script | None) -> Iterator[str]:
    yield "[train]"
    settings = found.training_settings
    if "train" in found.published:
        yield 'preset = "lawqa"'
    elif settings is not None:
        yield f"preset = {_toml(settings.program)}"
        yield _with_note(f"config = {_toml(settings.path)}", "init.note.config")
        if settings.rows_file is None:  # they can't be compared
            why = settings.trouble or say("init.rows.unnamed")
            yield _with_note('rows.format = "none"', "init.note.no_rows", why=why)
        else:
            yield _rows_line(found, settings.rows_file)
    elif "trl sft" in found.programs or (script is None and "trl" in found.programs):
        yield 'preset = "trl"'
        yield _rows_line(found)
        yield _with_note('# extra = ["--packing"]', "init.note.extra")
    elif script is None:
        yield f"command = {_toml(['{python}', UNKNOWN, '--model', '{model}', '--data', '{train_file}'])}"
        yield _rows_line(found)
        yield _with_note(f"fixed = {{ batch_size = {UNKNOWN} }}", "init.note.fixed")
    else:
        yield from _training_script(found, script)


def _training_script(found: Survey, script: Script) -> Iterator[str]:
    if script.unsloth:
        yield 'preset = "unsloth"'
    taken = _taken(script, "training")
    yield from _command(script, taken)
    passed = {*taken.options, *taken.switches}
    fixed = {name: value for name, value in sorted(script.settings.items()) if name not in passed}
    lacking = [name for name in MUST_BE_SAID if name not in passed and name not in fixed]
    if "max_steps" in passed or "max_steps" in fixed:
        lacking = [name for name in lacking if name != "num_epochs"]
    if lacking:
        yield from _comment("init.note.lacking", settings=tuple(f"{name} = {UNKNOWN}" for name in lacking))
    if fixed:
        yield f"fixed = {_inline(fixed)}"
    if assumed := sorted(script.assumed & fixed.keys()):
        yield from _comment("init.note.assumed", settings=tuple(assumed))
    yield _rows_line(found, named=script.rows_file)
    output_dir, adapter = script.output_dir, script.adapter
    if "output_dir" not in taken.options:
        yield _with_note(f"output_dir = {_toml(output_dir or adapter or UNKNOWN)}", "init.note.output_dir")
        if output_dir and adapter and adapter != output_dir:
            inside = adapter.removeprefix(f"{output_dir.rstrip('/')}/")
            yield f"artifacts.adapter = {_toml(adapter if inside == adapter else f'{{output_dir}}/{inside}')}"


def _rows_line(found: Survey, wanted: str | None = None, named: str | None = None) -> str:
    """The training file: the wanted one alone, else the likeliest, which a script may have named."""
    files = [file for file in found.rows if wanted in (None, file.path)]
    if not files:
        if wanted is not None:
            return f"rows = {{ file = {_toml(wanted)}, format = {_toml(UNKNOWN)} }}"
        return _with_note(f'rows = {{ file = "{UNKNOWN}", format = "messages" }}', "init.note.elsewhere")
    file = max(files, key=lambda file: (file.path == named, "train" in file.path, bool(file.format), file.rows))
    line = f"rows = {_inline({'file': file.path, 'format': file.format or UNKNOWN})}"
    return line if wanted and not file.format else _with_note(line, "init.note.rows", rows=file.rows)


def _evaluate(found: Survey, script: Script | None) -> Iterator[str]:
    yield "[evaluate]"
    if "evaluate" in found.published:
        yield 'preset = "lawqa"'
    elif found.tasks or (script is None and {"lm_eval", "lm-eval"} & found.programs):
        task, folder = next(iter(found.tasks.items()), (UNKNOWN, None))
        include = ["--include_path", folder] if folder else []
        yield 'preset = "lm-eval"'
        yield f"extra = {_toml([*include, '--tasks', task])}"
    elif script is None:
        yield _with_note(f'none = "{UNKNOWN}"', "init.note.none")
    else:
        taken = _taken(script, "evaluation")
        yield from _command(script, taken)
        if "samples" not in taken.options:
            yield _with_note(f"fixed = {{ samples = {UNKNOWN} }}", "init.note.samples", most=MAX_SAMPLES)
        yield f"results.file = {_toml('{output}' if 'output' in taken.options else script.results_file or UNKNOWN)}"
        yield from (f"results.{name} = {_toml(path)}" for name, path in script.results.items())
        if "score" not in script.results:
            yield _with_note(f'results.score = "{UNKNOWN}"', "init.note.score")
        if script.row:
            yield f"results.row = {_inline(script.row)}"


def _command(script: Script, taken: _Taken) -> Iterator[str]:
    options = dict(taken.options)
    adapter = options.pop("adapter", None)
    words = [word for place, option in options.items() for word in (option, f"{{{place}}}")]
    yield f"command = {_toml(['{python}', script.path, *words])}"
    if adapter:
        yield f"when.adapter = {_toml([adapter, '{adapter}'])}"
    yield from (f"when.{name} = {_toml([option])}" for name, option in taken.switches.items())
    if script.has_command_line and taken.others:
        yield from _comment("init.note.left", options=taken.others)
