"""Reads what the witness in an attempt's processes saw: one value for each fact. Reads files, judges nothing.

`witness-<rank or none>-<pid>.jsonl` has one JSON object a line, written as things happened. A line that is torn, or
that is no fact of this form, is passed over and counted. Numbers may be "nan" or "inf"; what a fact does not say is
None or empty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from steph.base.files import json_lines

MAX_FILE_BYTES = 64 << 20
_NAME = re.compile(r"witness-(none|\d+)-(\d+)\.jsonl")


def _tuple_of(value: object) -> object:
    """One value, a list of values or nothing, as a tuple; None among the values is nothing."""
    if value is None:
        return ()
    return tuple(one for one in value if one is not None) if isinstance(value, list | tuple) else (value,)


def _empty_if_none(value: object) -> object:
    return {} if value is None else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_tuple_of)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_tuple_of)]
Counts = Annotated[dict[str, int], BeforeValidator(_empty_if_none)]
Matrices = dict[str, tuple[float, float, int]]  # norm, sum and size of each, by its name in the file
TextLists = Annotated[tuple[Texts, ...], BeforeValidator(lambda value: [] if value is None else value)]


class _Seen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), populate_by_name=True)


class Quantised(_Seen):
    """Linear layers of the base model that are quantised alike."""

    kind: str | None = Field(None, alias="class")  # "Linear4bit", "Linear8bitLt"
    quant_type: str | None = None
    compute_dtype: str | None = None
    double_quant: bool | None = None
    layers: int = 0


class Lora(_Seen):
    """The LoRA layers of a model, by name, and how they are set."""

    layers: int = 0
    rank: Numbers = ()
    scaling: Numbers = ()
    dropout: Numbers = ()
    adapters: Texts = ()
    active: Texts = ()
    pairs: int = 0
    nonzero_pairs: int = 0  # as the training begins
    begun_as: Texts = ()  # "True", "False", "pissa" …, by their configurations


class BaseCompared(_Seen):
    """How many of the base's tensors are others than when it was loaded; the first of them by name."""

    compared: int = 0
    changed: int = 0
    names: Texts = ()
    trained: Texts = ()  # beside adapters, by a training


class OwnCode(_Seen):
    """Modules, by their class, with a forward or hooks that are the program's own."""

    forwards: Counts = Field(default_factory=dict)
    hooks: Counts = Field(default_factory=dict)
    gradient_hooks: Counts = Field(default_factory=dict)
    optimizer_hooks: Counts = Field(default_factory=dict)  # before its steps


class Fact(_Seen):
    """Something that was seen in a process, and when (unix seconds)."""

    at: float
    pid: int = 0


class ModelFact(Fact):
    """A fact that shows a model: its name, quantised layers, and where its parameters are."""

    name_or_path: str | None = None
    kind: str | None = Field(None, alias="class")
    quantised: Annotated[tuple[Quantised, ...], BeforeValidator(lambda value: value or ())] = ()
    unquantised_linears: int | None = None
    lora: Lora | None = None
    parameters: int | None = None
    fp32_parameters: int | None = None
    devices: Counts = Field(default_factory=dict)
    bos: int | None = None


class StateFact(ModelFact):
    """A fact that shows in which state the adapter was."""

    adapters: Texts = ()
    layers: int = 0
    disabled: int = 0
    merged: int = 0
    scaling: Numbers = ()
    sha256: Texts = ()  # of the adapters that were active
    merged_sha256: Texts = ()  # of those that are part of the weights

    @property
    def state(self) -> tuple[object, ...]:
        """The values by which two states of the adapter differ."""
        return (self.adapters, self.layers, self.disabled, self.merged, self.scaling, self.sha256, self.merged_sha256)


class Hooked(Fact):
    """A hook was set on a module."""

    module: str = ""
    version: str | None = None


class Blind(Fact):
    """A hook failed and took itself off."""

    where: str = ""
    error: str = ""


class ModelLoaded(ModelFact):
    """A model was loaded or built; `how` is "from_pretrained" or "from_config"."""

    how: str | None = None
    path: str | None = None
    missing: int | None = None
    mismatched: int | None = None
    generates: bool | None = None
    set_otherwise: Texts = ()  # settings of its own file that were others when it was built


class AdapterLoaded(Fact):
    """An adapter's weights were loaded."""

    path: str | None = None
    sha256: str | None = None
    missing: int | None = None
    unexpected: int | None = None
    scaling: Numbers = ()
    is_trainable: bool | None = None


class AdapterChanged(Fact):
    """An adapter was merged, unloaded, disabled or enabled; `change` says which."""

    change: str = ""
    adapter: Texts = ()
    sha256: Texts = ()
    scaling: Numbers = ()  # of the adapters, right before they were merged


class ModelSaved(Fact):
    """A model or an adapter was saved; `step` is that of the training in progress or of the last one."""

    path: str | None = None
    adapter: bool | None = None
    sha256: str | None = None
    merged_sha256: Texts = ()
    step: int | None = None
    in_training: bool | None = None
    matrices: Matrices | None = None


class Sampler(_Seen):
    """The sampler that chooses the order of a training's rows."""

    kind: str | None = Field(None, alias="class")
    replacement: bool | None = None


class TrainingBegins(ModelFact):
    """A training began; `source` is "trainer" or "loop"."""

    source: str | None = None
    trainer: str | None = None
    rows: int | None = None
    row_hashes: tuple[str, ...] | None = None
    row_fingerprints: tuple[Texts, ...] | None = None
    prompt_hashes: tuple[str, ...] = ()  # of the tokens before the first label or in the last turn's beginning
    batch_size: int | None = None
    accumulation: int | None = None
    world_size: int | None = None
    steps_due: int | None = None
    learning_rate: float | None = None
    learning_rates: tuple[float, ...] | None = None  # of all groups of parameters
    label_smoothing: float | None = None
    embedding_noise: float | None = None  # NEFTune's
    schedule: str | None = None
    warmup_steps: float | None = None
    weight_decay: float | None = None
    epsilon: float | None = None  # Adam's, the largest of all groups
    betas: tuple[tuple[float, ...], ...] = ()
    precision: str | None = None
    optimizer: str | None = None
    packing: bool | None = None
    sampler: Sampler | None = None
    resumed: bool | None = None


class Batch(Fact):
    """One of the first batches that the model received; lists have a value for each row."""

    shape: tuple[int, ...] = ()
    supervised: tuple[int, ...] | None = None
    ends_with_end_token: tuple[bool | None, ...] | None = None
    unsupervised_tail: tuple[int | None, ...] | None = None
    first_supervised: tuple[int | None, ...] | None = None
    aligned: bool | None = None
    shifted: bool | None = None
    unshifted: bool | None = None  # each label is the token before it
    labelled_padding: tuple[int, ...] | None = None  # tokens that the mask hides and that are not the row's own end
    unpredicted: int | None = None  # rows whose first label stands before every output
    double_bos: int | None = None
    bos: int | None = None
    leading_bos: tuple[int, ...] | None = None  # how many of these each row begins with
    padding: float | None = None
    packed: bool | None = None
    row_hashes: tuple[str, ...] | None = None
    row_fingerprints: tuple[Texts, ...] | None = None
    prompt_hashes: tuple[str, ...] = ()  # likewise
    of_data_set: tuple[bool, ...] | None = None  # whether the data set has these rows
    special_tokens: tuple[int, ...] | None = None  # but for padding, BOS and the row's end
    answer_hashes: tuple[str | None, ...] | None = None
    begins_blank: tuple[bool | None, ...] | None = None  # the first label is a line break behind a line break
    unlabelled_end_hashes: tuple[str | None, ...] | None = None  # of what follows the last label
    nested: tuple[bool | None, ...] | None = None  # whether a turn begins in another's header
    lead_hashes: TextLists = ()  # of each two tokens near the prompt's end; the last are right before the first label
    pair_hashes: TextLists = ()  # of each two tokens of rows with labels from their beginning
    header_hashes: tuple[tuple[str, ...] | None, ...] | None = None  # of what begins a turn, with the token behind it
    ends_in_thought: tuple[bool | None, ...] | None = None  # whether the last that has a label closes a thought
    begin_hashes: TextLists = ()  # of each two tokens from there on, into the answer
    training: bool | None = None
    grad: bool | None = None
    dropouts: tuple[int, ...] | None = None  # the adapters' that were asked for, and how many of these are on
    step: int | None = None  # how many were done before
    gradient: float | None = None  # the largest number of the gradients that lay there already
    backwards: int | None = None  # passes through a loop's losses since its last step
    hidden: tuple[int, ...] | None = None  # tokens that the mask hides though they are no padding
    foreseen: tuple[int, ...] | None = None  # positions that see what comes after them
    bare_padding: tuple[int, ...] | None = None  # before the row, and not hidden
    misplaced: tuple[float, ...] | None = None  # the share of tokens whose position does not follow the one before


class Logged(Fact):
    """One line of figures that the Trainer logged; `eval` where they are of an evaluation."""

    step: int | None = None
    loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None
    eval: bool | None = None


class Moved(_Seen):
    """How many LoRA matrices of one kind there are, moved during the training, and are zero at its end."""

    total: int = 0
    moved: int = 0
    zero: int = 0
    frozen: int = 0  # at the training's end
    max_abs: float | None = None
    kept: float | None = None  # the size of their first numbers over what it was before


class TrainingEnds(Fact):
    """A training ended; `raised` is the exception's type, `optimizer_steps` counts real calls of `step`."""

    source: str | None = None
    steps: int | None = None
    due: int | None = None
    optimizer_steps: int | None = None
    epoch: float | None = None
    seconds: float | None = None
    lora_a: Moved | None = None
    lora_b: Moved | None = None
    raised: str | None = None
    hook_seconds: float | None = None
    forwards: int | None = None
    bare_forwards: int | None = None  # with labels, in training mode, and without a gradient
    first_losses: dict[int, tuple[float, ...]] = Field(default_factory=dict)  # by the steps done before
    gaps: int | None = None  # between the first steps
    left_gradients: tuple[float, ...] = ()  # largest numbers that a loop's first backward passes after a step find
    rates: tuple[float, ...] = ()  # of a loop's steps, the highest group's
    calls: tuple[tuple[int, int, int], ...] = ()  # the first: steps before, in training mode, learnt from
    touched_between: int | None = None  # of these, in which something else than the optimizer changed LoRA's matrices
    since_last: float | None = None  # the size of some B matrices at a loop's last save over that after its last step
    own_losses: tuple[tuple[float, float, bool], ...] = ()  # the step's, the model's, and whether it knew the tokens
    optimizer_age: tuple[int, float] | None = None  # steps in a row, and how many of them the optimizer knows of
    evaluations: int | None = None
    stopped_by: tuple[str, ...] | None = None  # callbacks that may have ended it before its last step, if one did
    rateless_steps: int | None = None  # of the optimizer, with a learning rate of zero in all of its groups
    matrices: Matrices | None = None
    base: BaseCompared | None = None
    own_code: OwnCode | None = None

    @property
    def stopped_itself(self) -> bool:
        """Whether a callback ended it early, in view of an evaluation, as early stopping does."""
        return self.stopped_by is not None and bool(self.evaluations) and not self.raised


class Generation(StateFact):
    """One call of `generate`; lists have a value for each row."""

    rows: int = 0
    prompt_tokens: tuple[int, ...] | None = None
    prompt_hashes: Texts = ()
    turn_hashes: tuple[str | None, ...] = ()  # of what stands before its last turn, with what begins that
    prompt_fingerprints: TextLists = ()
    leading_bos: tuple[int, ...] | None = None
    special_tokens: tuple[int, ...] | None = None  # of the prompt, but for padding and BOS
    lead_hashes: TextLists = ()  # of each two tokens near the prompt's end
    header_hashes: tuple[tuple[str, ...] | None, ...] | None = None
    thinks: tuple[bool, ...] | None = None  # whether it ends with a thought, or an order to think or not
    nested: tuple[bool | None, ...] | None = None
    new_tokens: tuple[int, ...] | None = None
    stopped: tuple[bool | None, ...] | None = None
    limit: int | None = None
    response_hashes: TextLists = ()  # of the whole, of what follows </think>, of the first and of the last line
    response_fingerprints: TextLists = ()
    first_characters: tuple[str | None, ...] = ()  # None where it may be the whole answer
    do_sample: bool | None = None
    num_beams: int | None = None
    training: bool | None = None  # whether the model was in training mode: its dropout was on
    seconds: float | None = None
    prompt_lines: TextLists = ()  # 8 digits for each line of a prompt
    steering: dict[str, float] = Field(default_factory=dict)  # beyond the model's own configuration
    hidden: tuple[int, ...] | None = None
    bare_padding: tuple[int, ...] | None = None
    padding_behind: tuple[bool, ...] | None = None
    misplaced: tuple[float, ...] | None = None
    matrices: Matrices | None = None
    base: BaseCompared | None = None
    own_code: OwnCode | None = None


class Scoring(StateFact):
    """One forward of a model in evaluation mode, outside `generate`."""

    rows: int = 0
    tokens: tuple[int, ...] | None = None
    prompt_hashes: Texts = ()
    turn_hashes: tuple[str | None, ...] = ()  # of what stands before its last turn, with what begins that
    prompt_fingerprints: TextLists = ()
    leading_bos: tuple[int, ...] | None = None
    special_tokens: tuple[int, ...] | None = None
    training: bool | None = None  # as of a generation
    prompt_lines: TextLists = ()  # 8 digits for each line of what was read


class Likelihoods(Fact):
    """What the model found likely in the scoring forward before it, row by row."""

    # of each ending of a row: its text's hash, log-likelihood, tokens, and the log-likelihood of end tokens in it
    endings: tuple[tuple[tuple[str, float, int, float], ...], ...] = ()
    labels: tuple[dict[str, float], ...] = ()  # of each label as the next token


class Raised(StateFact):
    """A call of `generate`, or a scoring forward, raised."""

    error: str = ""


class Tally(Fact):
    """How many calls there were in each state so far; `raised` are those that raised."""

    generations: Counts = Field(default_factory=dict)
    scorings: Counts = Field(default_factory=dict)
    raised: Counts = Field(default_factory=dict)
    new_tokens: int | Counts | None = None


class Ended(Tally):
    """The process came to its end."""

    hook_seconds: float | None = None
    optimizer_steps: int | None = None


KINDS: dict[str, type[Fact]] = {
    "hooked": Hooked,
    "blind": Blind,
    "model_loaded": ModelLoaded,
    "adapter_loaded": AdapterLoaded,
    "adapter_merged": AdapterChanged,
    "adapter_unloaded": AdapterChanged,
    "adapter_disabled": AdapterChanged,
    "adapter_enabled": AdapterChanged,
    "model_saved": ModelSaved,
    "training_begins": TrainingBegins,
    "batch": Batch,
    "logged": Logged,
    "training_ends": TrainingEnds,
    "generation": Generation,
    "scoring": Scoring,
    "likelihoods": Likelihoods,
    "generation_raised": Raised,
    "counts": Tally,
    "ended": Ended,
}
_Kind = TypeVar("_Kind", bound=Fact)


@dataclass(frozen=True)
class Process:
    """The facts that were seen in one process, in their order; `rank` is None where it had none."""

    pid: int
    rank: int | None
    facts: tuple[Fact, ...] = ()

    def of(self, kind: type[_Kind]) -> tuple[_Kind, ...]:
        """Its facts of one kind."""
        return tuple(fact for fact in self.facts if isinstance(fact, kind))


@dataclass(frozen=True)
class Witness:
    """The facts of all processes of an attempt; `unread_lines` were torn or are no facts of this form."""

    processes: tuple[Process, ...] = ()
    unread_lines: int = 0

    def of(self, kind: type[_Kind]) -> tuple[_Kind, ...]:
        """The facts of one kind in all processes, in time's order."""
        return tuple(sorted((fact for process in self.processes for fact in process.of(kind)), key=lambda f: f.at))

    @cached_property
    def answering(self) -> tuple[Generation | Scoring, ...]:
        """All calls that may have answered a question."""
        return tuple(sorted((*self.of(Generation), *self.of(Scoring)), key=lambda fact: fact.at))

    def totals(self, name: str) -> int:
        """All calls of one sort (`generations`, `scorings`, `raised`) by the last count of each process."""
        last = (process.of(Tally)[-1:] for process in self.processes)
        return sum(sum(getattr(tally, name).values()) for tallies in last for tally in tallies)


def read_witness(folder: Path) -> Witness:
    """Read all witness files of an attempt's folder; no file gives a witness without processes."""
    processes, unread = [], 0
    for path in sorted(folder.glob("witness-*.jsonl")):
        match = _NAME.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        rank = None if match[1] == "none" else int(match[1])
        with path.open("rb") as file:
            lines = json_lines(file.read(MAX_FILE_BYTES))
            read = [_fact(line.row, int(match[2])) for line in lines]
        facts = tuple(fact for fact in read if fact is not None)
        unread += len(read) - len(facts)
        processes.append(Process(int(match[2]), rank, facts))
    return Witness(tuple(processes), unread)


def _fact(raw: Mapping[str, object] | None, pid: int) -> Fact | None:
    """The fact of one line; the parts `state` and `model` may be nested in it or stand beside its other keys."""
    if raw is None or (kind := KINDS.get(str(raw.get("fact")))) is None:
        return None
    for part in ("model", "state"):
        if isinstance(nested := raw.get(part), dict):
            raw = {**nested, **raw}
    if kind is AdapterChanged:
        raw = {**raw, "change": str(raw["fact"]).removeprefix("adapter_")}
    known = {key: value for key, value in raw.items() if value is not None}
    try:
        return kind.model_validate(known | {"pid": pid})
    except ValidationError:
        return None
