"""The description of a pipeline, `steph.toml`: how its programs are called, what its rows and results look like.

A description builds on a preset, a description that comes with the suite, and holds only the differences. Without a
`steph.toml` the preset `lawqa` holds: the published pipeline's facts. Paths are relative to the pipeline root.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, WithJsonSchema, model_validator

from steph.base.messages import Value, say
from steph.base.terms import NAMED_TRAINERS, TrainerName
from steph.contract.placeholders import KNOWN_IN_EVALUATE, KNOWN_IN_TRAIN, WHEN, names_in, unknown_placeholder
from steph.contract.results import EvaluationKind
from steph.contract.results_files import ResultsFormat
from steph.contract.rows import FORMATS, RowFormat, own_keys
from steph.contract.settings import Filled, ProfileError, bounded, strictly, validation_messages
from steph.record.settings import MAX_SAMPLES, TrainSettings

FILE_NAME = "steph.toml"
PRESETS = Path(__file__).parent / "presets"  # one TOML file each; its name is what `preset` says
UNKNOWN = "…"  # in a draft, what a person must put in its place; no program has this name
_UNFILLED = re.compile(rf'^[^#\n]*(?:"{UNKNOWN}"|=[ ]*{UNKNOWN})', re.MULTILINE)
DEFAULT_PRESET = "lawqa"
OUTPUT_DIR, EVALUATION_OUTPUT = "steph-adapter", "steph-evaluation.json"  # where nothing is said; no folder is made


def preset_names() -> tuple[str, ...]:
    """The presets that there are."""
    return tuple(sorted(file.stem for file in PRESETS.glob("*.toml")))


def preset_text(name: str) -> str:
    """A preset's file; raises ValueError naming those that there are."""
    if name not in preset_names():
        raise ValueError(say("description.no_preset", preset=repr(name), known=preset_names()))
    return (PRESETS / f"{name}.toml").read_text(encoding="utf-8")


@cache
def preset_table(name: str) -> dict[str, Any]:
    """A preset's tables; raises ValueError naming those that there are."""
    return tomllib.loads(preset_text(name))


def _inside(path: str) -> str:
    """The path of an output; a link in it may lead anywhere, its text may not."""
    lexical = Path(os.path.normpath(path))
    if lexical.is_absolute() or lexical.parts[:1] == (os.pardir,):
        raise ValueError(say("description.outside"))
    return path


def _named(trainer: object) -> object:
    """The name of a trainer; that nobody named one is said by leaving the key out."""
    if trainer not in NAMED_TRAINERS:
        raise ValueError(say("setting.must.one_of", allowed=[*map(repr, map(str, NAMED_TRAINERS))]))
    return trainer


NamedTrainer = Annotated[
    TrainerName, BeforeValidator(_named), WithJsonSchema({"enum": [*map(str, NAMED_TRAINERS)], "type": "string"})
]
Output = Annotated[str, AfterValidator(_inside)]
Command = Annotated[tuple[str, ...], Field(min_length=1)]
Words = tuple[str, ...]


class Paths(Value):
    """The spec's relative paths, from the pipeline root."""

    train_script: str = "scripts/train_qwen_law_ft.py"
    """The training script, `{train_script}` in the preset `lawqa`."""
    evaluate_script: str = "scripts/evaluate_multiple_choice.py"
    """The evaluation script, `{evaluate_script}` in the preset `lawqa`."""
    train_file: str = "results/finetune/ft_direct_full_norag.jsonl"
    """The training rows where `train.rows.file` is not given; H-2 trains on it."""
    train_file_cot: str = "results/finetune/ft_cot_full_norag.jsonl"
    """The same with reasoned answers."""
    dataset: str = "datasets/lawqa_jp/data/selection.json"
    """The questions, JSON with a list `samples`; H-3 asks its first ones. An evaluation that is not of the preset
    `lawqa` has one only where this key is given."""
    dataset_fallback: str | None = None
    """Used where `dataset` is not there; the record then says that it was a sample."""
    output_dir: Output = "runs/debug_small_model/direct_norag_small_4bit"
    """The folder that the training writes, `{output_dir}`, below the root; what lies there is moved into the record
    before each attempt. A symbolic link in it may lead elsewhere."""
    evaluation_output: Output = "results/evaluations/small_model_debug_direct.json"
    """The file or folder that the evaluation writes, `{output}`, below the root; moved away likewise."""
    evaluation_output_pattern: Annotated[str, Field(pattern=r"^[^/]+$")] | None = None
    """A file name with `*` that the script may write beside `evaluation_output` in its place, such as
    `"results_*.json"`; a date before the asked name (`20260131-1200_NAME`) is understood without it."""


class Builder(Value):
    """A command that makes an input on demand, with the pipeline's Python and from its root."""

    command: tuple[str, ...]


class Model(Value):
    """The models that this pipeline is made for."""

    candidates: tuple[Filled, ...] = ()
    """Models in order of preference in the place of the profile's, ids on the Hub or folders below the root: this
    project's own family. No other is ever taken as a substitute. A profile that makes its own tiny twin still does."""


class TrainWhen(Value):
    """Words that a training command has only under a condition."""

    use_4bit: Words = ()
    """Where the weights are loaded in 4 bits."""
    no_4bit: Words = ()
    """Where they are not."""
    bf16: Words = ()
    """Where the training computes in bf16."""
    fp16: Words = ()
    """Where it computes in fp16."""
    fp32: Words = ()
    """Where neither is asked."""
    cpu: Words = ()
    """On a machine without a GPU."""
    gpu: Words = ()
    """On a GPU."""
    target_modules: Words = ()
    """Where the profile names LoRA's target modules."""
    launcher: Words = ()
    """Where the profile starts several processes and the program does so itself."""
    max_steps: Words = ()
    """Where the asked epochs would take more than `max_steps`."""
    output_only: Words = ()
    """In the extended stages that take the loss on the answers only."""


class EvaluateWhen(Value):
    """Words that an evaluation command has only under a condition."""

    adapter: Words = ()
    """Where an adapter is evaluated; the base model alone has none."""
    use_4bit: Words = ()
    """Where the weights are loaded in 4 bits."""
    cpu: Words = ()
    """On a machine without a GPU."""
    gpu: Words = ()
    """On a GPU."""
    launcher: Words = ()
    """Where the profile starts several processes and the program does so itself."""
    use_rag: Words = ()
    """With retrieval."""
    no_rag: Words = ()
    """Without retrieval."""
    use_cot: Words = ()
    """Where reasoning before the answer is asked."""


class ConfigFile(Value):
    """A file of settings that a program is given, `{config}` in its command."""

    file: Annotated[str, Field(pattern=r"^[^/]+$", min_length=1)] | None = None
    """The name of the file that is made of the template and written into the attempt's folder. Not given, or
    `config = "train.yaml"` alone: the program gets that file of the root as it is, and its command says what differs.
    """
    template: Filled
    """The file below the root whose placeholders are filled; for a YAML or JSON file a value is written as it is."""

    def place(self, folder: Path) -> str:
        """Where the program finds it, from the root; `folder` is the attempt's."""
        return self.template if self.file is None else str(folder / self.file)


Config = Annotated[
    ConfigFile | None, BeforeValidator(lambda config: {"template": config} if isinstance(config, str) else config)
]


class _Given(Value):
    @property
    def given(self) -> dict[str, Any]:
        """The settings that are given, by the profile's names."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set)}


@bounded(TrainSettings, optional=True, besides=("launcher", "num_processes"))
class Fixed(_Given):
    """Settings that a program has inside: no rung turns them, and what was seen is held against them."""


def _known_format(row_format: str) -> str:
    """A format that rows can be read by; there are many that name a person's own keys."""
    if row_format not in FORMATS and own_keys(row_format) is None:
        raise ValueError(say("setting.must.one_of", allowed=[*map(repr, FORMATS), "'question -> answer'"]))
    return row_format


KnownFormat = Annotated[
    RowFormat, AfterValidator(_known_format), WithJsonSchema({"enum": [*FORMATS, "KEY -> KEY"], "type": "string"})
]


class TrainRows(Value):
    """The rows that are trained on."""

    file: str | None = None
    """The training file: JSON Lines, a JSON list, or a table (`.csv`, `.tsv`) whose first line names its columns;
    `{train_file}` in the command."""
    format: KnownFormat = "input_output"
    """What a row looks like: texts `input` and `output`; `prompt` and `completion`; `messages` of `role` and
    `content`; `instruction`, `input` and `output` (alpaca); `conversations` of `from` and `value` (sharegpt); `text`
    alone; keys or columns of its own, `"question -> answer"` or `"question + passage -> answers.text.0"`; or `none`,
    where the program takes its rows from elsewhere, such as a data set of the Hub."""
    labels: Literal["answer", "all"] | None = None
    """Which tokens of a row are learnt: the answers' alone, or all. Not given: nothing is held against it."""


class TrainArtifacts(Value):
    """What a training leaves."""

    adapter: str = "{output_dir}"
    """The folder of the adapter's two files; `*` may stand for what changes."""
    state: tuple[str, ...] = ("{output_dir}/checkpoint-*/trainer_state.json", "{output_dir}/trainer_state.json")
    """Where the Trainer's state may be; the newest one counts."""


class Section(Value):
    """How one of the two programs is called."""

    preset: str | None = None
    """The preset that this section builds on: `lawqa`, `trl`, `llamafactory`, `axolotl` or `unsloth` of a training,
    `lawqa` or `lm-eval` of an evaluation."""
    command: Command | None = None
    """The program and its arguments, word by word; no shell reads them. `{model}` and the other placeholders are
    filled in. A section with a command of its own takes nothing from a preset that it does not name."""
    extra: Words = ()
    """Words behind the preset's command, such as lm_eval's `--tasks`."""
    before: tuple[Command, ...] = ()
    """Commands that run before it in the same attempt, one after the other, such as one that builds its data."""
    after: tuple[Command, ...] = ()
    """Commands that run after it in the same attempt, such as one that merges the adapter."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables for these commands. Placeholders are filled in as in `command`, and count as passed:
    `BATCH = "{batch_size}"`."""
    cwd: str = "."
    """The folder that they run in, from the root."""
    config: Config = None


class Train(Section):
    """How the training is called, and what it takes and leaves."""

    when: TrainWhen = TrainWhen()
    fixed: Fixed = Fixed()
    """The value that the program has inside, where the command does not pass the profile's."""
    output_dir: Output | None = None
    """`paths.output_dir` by another name."""
    rows: TrainRows = TrainRows()
    artifacts: TrainArtifacts = TrainArtifacts()


class ResultsRow(Value):
    """Where a row of the results has what: dotted paths within the row."""

    question: str | None = None
    """The question's text."""
    choices: str | None = None
    """The choices, a list, a table or a text."""
    expected: str | None = None
    """The answer that counts as right: a label, a text, or a choice's text or number."""
    predicted: str | None = None
    """The answer that was read off the response, likewise."""
    response: str | None = None
    """The model's response, word for word."""
    correct: str | None = None
    """Whether it is right: true or false, or 1 or 0."""


class EvaluateResults(Value):
    """What an evaluation writes, and where in it the figures are."""

    format: ResultsFormat = "json"
    """Who wrote it: the preset's own format, or JSON whose figures the other keys find."""
    file: str | None = None
    """The results file; `{output}`, `*` and `**` may stand in it, and of several the newest one counts. A file of rows
    alone (JSON Lines, or a table: `.csv`, `.tsv`) needs no `rows`, and `row` then names its keys or columns."""
    score: str | None = None
    """Dotted path to the score in that file, 0 to 1 or a percentage; `*` stands for any one name."""
    count: str | None = None
    """Dotted path to the number of samples."""
    model: str | None = None
    """Dotted path to the model's name."""
    adapter: str | None = None
    """Dotted path to the adapter's folder."""
    rows: str | None = None
    """The rows: a dotted path to a list in that file, or a JSON Lines file of their own, as `file` is spelled. With `*`
    in the path (`tasks.*.samples`) the rows of all lists count."""
    row: ResultsRow = ResultsRow()


class EvaluateFixed(_Given):
    """Settings that an evaluation has inside."""

    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = None
    load_in_4bit: bool | None = None
    ensemble: Annotated[int, Field(ge=1, le=100)] | None = None


class Evaluate(Section):
    """How the evaluation is called, and what it prints and leaves."""

    when: EvaluateWhen = EvaluateWhen()
    fixed: EvaluateFixed = EvaluateFixed()
    """The value that the program has inside, where the command does not pass the profile's."""
    output: Output | None = None
    """`paths.evaluation_output` by another name."""
    kind: EvaluationKind = "generate"
    """What the model is asked for: a text (`generate`), one of some labels (`choice`), the likelihood of given texts
    (`loglikelihood`), or only a figure is known (`metric`)."""
    lines: Words = ()
    """Printed words that must come, in this order."""
    results: EvaluateResults = EvaluateResults()
    none: Filled | None = None
    """There is no evaluation, and why. H-3 is then NOT_RUN with this reason, the run exits with 1, and its headline is
    not green; H-1 and H-2 keep their verdicts."""


class Description(Value):
    """What the suite may assume of one pipeline."""

    preset: str | None = None
    """The preset of both sections: `lawqa`, which holds where nothing is said."""
    truncation: Literal["right", "keeps_answer"] = "right"
    """Where a row that is too long is cut: `"right"` (its answer goes first) or `"keeps_answer"` (its prompt is
    shortened). Where most answers would be lost, a length is skipped."""
    trainer: NamedTrainer | None = None
    """What the trainer's memory follows: `"full"` casts what is not 4-bit to fp32, computes all logits and pads to the
    maximum; `"answer"` casts nothing, computes the answers' logits only and pads to the longest row; `"reference"` is
    this release's reference pipeline, whose attention needs no mask and which uses host memory where it must; `"trl"`
    is TRL's SFTTrainer of 1.x, `"liger"` the same with `use_liger_kernel`, `"unsloth"` Unsloth's loader and
    checkpointing. Not given: the forecast shows `"full"`'s peak with an interval over all of them, and no setting is
    passed over because of it."""
    optional_flags: tuple[str, ...] | None = None
    """Of the preset `lawqa`: what the training script takes beyond the flags that every such script has,
    `--max-steps-override` above all. Not given: read off its `--help`, where the script's own text shows a command
    line (argparse, click, typer, fire, tyro, absl, docopt or the like); a script without one is never started to be
    asked."""
    paths: Paths = Paths()
    model: Model = Model()
    train: Train = Field(default_factory=lambda: strictly(Train, preset_table(DEFAULT_PRESET)["train"]))
    evaluate: Evaluate = Field(default_factory=lambda: strictly(Evaluate, preset_table(DEFAULT_PRESET)["evaluate"]))
    build: Builder | None = None
    """The builder of the training rows and its arguments, run where `paths.train_file` is missing or was built from
    other data. `{dataset}`, `{train_file}`, `{mode}` and `{samples}` are filled in."""
    index: Builder | None = None
    """The builder of the index, run before each evaluation with retrieval. `{dataset}` is filled in."""

    @model_validator(mode="after")
    def _is_complete(self) -> Description:
        """Sections that are right key by key are right together."""
        train, evaluate = self.train, self.evaluate
        _refuse_placeholders(
            "train", train, KNOWN_IN_TRAIN, artifacts=(train.artifacts.adapter, *train.artifacts.state)
        )
        results = tuple(filter(None, (evaluate.results.file, evaluate.results.rows)))
        _refuse_placeholders("evaluate", evaluate, KNOWN_IN_EVALUATE, results=results)
        for name, section in (("train", train), ("evaluate", evaluate)):
            if section.config is None and "config" in names_in(section.command or ()):
                raise ValueError(say("description.no_config", section=name))
        if train.command is None:
            raise ValueError(say("description.no_training"))
        if self.train_file is None and train.rows.format != "none":
            raise ValueError(say("description.no_rows"))
        found = evaluate.results
        if found.format == "json" and found.rows is None and (found.score or found.count) and found.row != ResultsRow():
            raise ValueError(say("description.no_results_rows"))
        row, has_rows = found.row, found.rows is not None or found.row != ResultsRow()
        if found.format == "json" and has_rows and row.correct is None and None in (row.expected, row.predicted):
            raise ValueError(say("description.no_row_correct"))
        if evaluate.none is None and evaluate.command is None:
            raise ValueError(say("description.no_evaluation"))
        return self

    @property
    def train_file(self) -> str | None:
        """The training file from the root; None where the program takes its rows from elsewhere."""
        if self.train.rows.format == "none":
            return None
        is_named = "train_file" in self.paths.model_fields_set or self._is_lawqa(self.train)
        return self.train.rows.file or (self.paths.train_file if is_named else None)

    @staticmethod
    def _is_lawqa(section: Train | Evaluate) -> bool:
        """Whether a section calls one of the published pipeline's scripts."""
        return bool({"train_script", "evaluate_script"} & {*names_in(section.command or ())})

    @property
    def output_dir(self) -> str:
        """The folder that the training writes, from the root."""
        if "output_dir" in self.paths.model_fields_set:
            return self.paths.output_dir
        literal = self.train.artifacts.adapter
        own = self.train.output_dir or ("" if "{" in literal else literal)
        return own or (self.paths.output_dir if self._is_lawqa(self.train) else OUTPUT_DIR)

    @property
    def output(self) -> str:
        """The file or folder that the evaluation writes, from the root."""
        if "evaluation_output" in self.paths.model_fields_set:
            return self.paths.evaluation_output
        literal = self.evaluate.results.file or ""
        own = self.evaluate.output or ("" if {*"{*["} & {*literal} else literal)
        return own or (self.paths.evaluation_output if self._is_lawqa(self.evaluate) else EVALUATION_OUTPUT)

    @property
    def dataset(self) -> str | None:
        """The questions' file from the root; None where only the evaluation knows what it asks."""
        is_named = "dataset" in self.paths.model_fields_set or self.evaluate.results.format == "lawqa"
        return self.paths.dataset if is_named else None


class DescriptionError(ProfileError):
    """A `steph.toml` can't be used; the message names file, key, value and what is allowed."""


def load_description(root: Path) -> Description:
    """Read `steph.toml` of a pipeline root, or give the published pipeline's facts where there is none."""
    path = root / FILE_NAME
    if not path.is_file():
        return Description()
    try:
        text = path.read_text(encoding="utf-8-sig")
        if unfilled := _UNFILLED.search(text):
            line = text.count("\n", 0, unfilled.start()) + 1
            raise PresetError(say("description.unfilled", line=line, unknown=UNKNOWN))
        return strictly(Description, with_presets(tomllib.loads(text)))
    except ValidationError as error:
        raise DescriptionError(*validation_messages(str(path), error)) from error
    except PresetError as error:
        raise DescriptionError(say("setting.of", place=path, reason=error)) from error
    except UnicodeDecodeError as error:
        reason = say("setting.not_utf8", byte=str(error.start))
        raise DescriptionError(say("setting.of", place=path, reason=reason)) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = say("description.unreadable", reason=error)
        raise DescriptionError(say("setting.of", place=path, reason=reason)) from error


class PresetError(ValueError):
    """A section names a preset that there is not, or none where it needs one."""


def with_presets(table: Mapping[str, Any]) -> dict[str, Any]:
    """A `steph.toml` laid over the presets that it names, so that it holds whole sections; raises PresetError.

    A section without a preset takes the top one; without both it is `lawqa`'s, unless it has a command of its own.
    """
    found = dict(table)
    for section in ("train", "evaluate"):
        own = table.get(section, {})
        name = _preset_of(table, section)
        if not isinstance(own, dict) or name is None:
            continue
        try:
            base = preset_table(name)
        except ValueError as error:
            raise PresetError(say("setting.of", place=f"{section}.preset", reason=error)) from error
        if section not in base:
            raise PresetError(say("description.preset_without", section=section, preset=repr(name)))
        found[section] = _laid_over(base[section], own)
    return found


def _preset_of(table: Mapping[str, Any], section: str) -> str | None:
    other_name = "train" if section == "evaluate" else "evaluate"
    own, other = table.get(section), table.get(other_name)
    if isinstance(own, dict) and "preset" in own:
        return str(own["preset"])
    if isinstance(own, dict) and ("command" in own or "none" in own):
        return None
    if "preset" in table:
        return str(table["preset"])
    if own is None and isinstance(other, dict) and _preset_of({section: {}, **table}, other_name) != DEFAULT_PRESET:
        raise PresetError(say("description.no_section", section=section))
    return DEFAULT_PRESET


def _laid_over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of both, key by key; a list or a value of `own` takes the place of the other's."""
    both = {
        key: _laid_over(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in own.items()
    }
    return {**base, **both}


def words_by_key(section: Train | Evaluate) -> dict[str, tuple[str, ...]]:
    """All words of a section's commands, its conditions and environment, by the key that they stand under."""
    return {
        "command": section.command or (),
        "extra": section.extra,
        "before": tuple(word for command in section.before for word in command),
        "after": tuple(word for command in section.after for word in command),
        "env": tuple(section.env.values()),
        "cwd": (section.cwd,),
        **{f"{WHEN}{key}": getattr(section.when, key) for key in type(section.when).model_fields},
    }


def _refuse_placeholders(name: str, section: Train | Evaluate, known: frozenset[str], **more: tuple[str, ...]) -> None:
    conditions = {f"{WHEN}{key}" for key in type(section.when).model_fields}
    for key, texts in {**words_by_key(section), **more}.items():
        if trouble := unknown_placeholder(texts, known | conditions):
            raise ValueError(say("setting.of", place=f"{name}.{key}", reason=trouble))
