"""Profiles: one TOML file that says what is run, on which machine or card, with which ladder and limits.

A profile is read and validated whole before anything starts; what is wrong is one line each: file, key, value, what is
allowed. What comes out are the settings that the record knows, without the bounds. Nothing here looks at the machine: a
card is known by its name, from cards.toml, with what a training process can use of it.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, ValidationError, create_model, model_validator
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from steph.base.messages import LANGUAGES, Language, Message, Value, phrase, say, verbatim, words_of
from steph.base.units import GIB, gib
from steph.contract.options import Options
from steph.record.settings import (
    BF16_SINCE,
    MAX_PARAMETERS,
    MAX_ROWS,
    MAX_TOKENS,
    Bounds,
    EvalSettings,
    ProductionTarget,
    TrainSettings,
)


@dataclass(frozen=True, slots=True)
class Card:
    """A row of cards.toml."""

    name: str
    sold_as_gb: int  # that its maker names, and part of the name where they tell cards apart
    usable_gib: float  # of a card that nobody else uses; a desktop on it takes some of that
    capability: tuple[int, int]
    basis: Literal["measured", "documented", "sister"]

    @property
    def usable_bytes(self) -> int:
        """The same in bytes."""
        return round(self.usable_gib * GIB)

    @property
    def computes_bf16(self) -> bool:
        """Whether its compute capability has bf16."""
        return self.capability[0] >= BF16_SINCE

    def words(self) -> str:
        """One line on the card."""
        bf16 = say("card.bf16" if self.computes_bf16 else "card.no_bf16")
        capability, basis = ".".join(map(str, self.capability)), say(f"card.{self.basis}")
        return phrase(
            "card.words", name=self.name, usable=gib(self.usable_bytes), basis=basis, capability=capability, bf16=bf16
        )


SEVERAL = re.compile(r"\d+\s*[x*]\s*(?P<after>.+)|(?P<before>.+)\s[x*]\s*\d+", re.IGNORECASE)  # 2x T4, T4 x2
_ROWS = tomllib.loads(Path(__file__).with_name("cards.toml").read_text(encoding="utf-8"))
CARDS: Mapping[str, Card] = MappingProxyType(
    {name: Card(name, **{**row, "capability": tuple(row["capability"])}) for name, row in _ROWS.items()}
)


def card_by_name(name: str) -> Card:
    """The card of that name, as people, its maker or nvidia-smi write it; raises ValueError naming those known.

    Case, blanks, makers' words and a form (`SXM4`, `PCIe`) are no part of it; `RTX` may lack, and the gigabytes it is
    sold with may stand behind. `A100 20GB` is the slice of that size.
    """
    plain = _plain(name)

    def named(written: str) -> Card | None:
        return next((card for card in CARDS.values() if _plain(written) in _spellings(card)), None)

    if card := named(name):
        return card
    several = SEVERAL.fullmatch(name.strip())
    if several is not None and named(several["before"] or several["after"]):
        raise ValueError(say("card.several", name=name))
    close = [card.name for card in CARDS.values() if plain and _plain(card.name).startswith(plain)]
    if close:
        raise ValueError(say("card.close", name=name, names=close))
    raise ValueError(say("card.unknown", name=name, known=list(CARDS)))


def _spellings(card: Card) -> set[str]:
    """How a card is written, without and with its gigabytes."""
    plain = _plain(card.name)
    shorts = {plain, plain.removeprefix("rtx")}
    return shorts | {f"{short}{card.sold_as_gb}gb" for short in shorts}


# makers' words and forms, which are no part of a card's name
_MAKERS = re.compile(
    r"nvidia|geforce|tesla|quadro|blackwell|generation|(?:workstation|server) edition|slice|sxm\d?|pcie|hbm\d\w?"
    r"|[^a-z0-9]"
)


def _plain(name: str) -> str:
    return _MAKERS.sub("", name.casefold())


MAX_STEPS_BY_HEART = 60


_Model = TypeVar("_Model", bound=Value)


class ProfileError(ValueError):
    """A profile can't be used; each argument is one line, of file, key, value and what is allowed."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


MAX_SECONDS = 7 * 24 * 3600  # a week
Filled = Annotated[str, Field(min_length=1, pattern=r"\S")]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=16, le=MAX_TOKENS)]
Rows = Annotated[int, Field(ge=1, le=MAX_ROWS)]


class Machine(Value):
    """What the profile expects to run on; `device = "cpu"` makes every run a rehearsal."""

    title: Filled
    """What the report calls this machine."""
    device: Literal["gpu", "cpu"] = "gpu"
    """`"cpu"` makes every run a rehearsal."""


class Models(Value):
    """The model candidates in order of preference; the first `preferred` ones pass without being a substitute."""

    candidates: Annotated[tuple[Filled, ...], Field(min_length=1)]
    """Models in order of preference, as ids on the Hub."""
    preferred: Annotated[int, Field(ge=1, le=1000)] = 2
    """So many of the first candidates pass as they are; a later one is a substitute (PASS_DEGRADED)."""
    min_parameters: Annotated[int, Field(ge=0, le=MAX_PARAMETERS)] = 1_500_000_000
    """A smaller model fails H-1, unless `--steph-model` named it."""
    max_parameters: Annotated[int, Field(gt=0, le=MAX_PARAMETERS)] = 4_100_000_000
    """A larger model likewise."""
    twin: bool = False
    """Use a random-weight twin of the first candidate, as `--steph-twin`, but not if `--steph-model` is a folder."""


class _Finite(Value):
    model_config = ConfigDict(allow_inf_nan=False)


def bounded(
    plain: type[Value], *, optional: bool = False, besides: Collection[str] = ()
) -> Callable[[type[_Model]], type[_Model]]:
    """A decorator: adds each setting of `plain` within its `Bounds`, or None where `optional`; refuses NaN."""
    settings: dict[str, Any] = {}
    for name, field in plain.model_fields.items():
        marks = [asdict(mark) for mark in field.metadata if isinstance(mark, Bounds)]
        limits = {key: limit for mark in marks for key, limit in mark.items() if limit is not None}
        kind: Any = Annotated[field.annotation, Field(**limits)] if limits else field.annotation
        if name not in besides:
            settings[name] = (kind | None, None) if optional else (kind, field.default)

    def derived(cls: type[_Model]) -> type[_Model]:
        made = create_model(
            cls.__name__, __base__=(cls, _Finite), __module__=cls.__module__, __doc__=cls.__doc__, **settings
        )
        return cast("type[_Model]", made)

    return derived


# the settings of the first rung and of an evaluation, within the spec's ban on heavy experiments
ProfileTrain, ProfileEvaluate = bounded(TrainSettings)(TrainSettings), bounded(EvalSettings)(EvalSettings)


@bounded(ProductionTarget)
class ProfileProduction(ProductionTarget):
    """H-4's production run: nothing is run at these settings, so the ban on heavy experiments does not bind them."""

    @model_validator(mode="after")
    def _card_is_known(self) -> ProfileProduction:
        if self.card_memory_gib is None:
            try:
                card_by_name(self.card)
            except ValueError as error:
                raise ValueError(say("setting.card", reason=error)) from error
        return self


class Rung(Value):
    """One step down the ladder: the settings that it changes, each None where it leaves them."""

    max_seq_length: Tokens | None = None
    """The length from here on."""
    batch_size: Rows | None = None
    """The batch size from here on."""
    gradient_accumulation_steps: Rows | None = None
    """The accumulation from here on."""
    use_4bit: bool | None = None
    """`false`: without 4-bit from here on, in bf16, or fp16 where the card has no bf16."""

    @model_validator(mode="after")
    def _changes_something(self) -> Rung:
        if not self.model_dump(exclude_none=True):
            raise ValueError(say("setting.empty_rung"))
        return self


class ByHeart(Value):
    """How the eight answers of H-3heart are learnt; the other settings are those that H-2 ended on."""

    learning_rate: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 1e-3
    """Higher than a real training's, so that eight rows are known after some fifty steps; tiny models need more."""
    max_steps: Annotated[int, Field(ge=1, le=MAX_STEPS_BY_HEART)] = MAX_STEPS_BY_HEART
    """Steps on all eight rows; a loss that is not near zero by then leaves the stage unmeasured."""


class Telling(Value):
    """How what was found is told to people."""

    language: Language = "ja"
    """Language of report, pictures and terminal: `"ja"` or `"en"`; `--steph-language` comes before it."""


class Limits(Value):
    """How long things may take, in seconds, and when an answer counts as slow."""

    h1_seconds: Seconds = 3600
    """All of H-1, the download included."""
    h2_seconds: Seconds = 3600
    """All attempts of H-2; as much again for those of H-2cot, H-2step and H-3heart."""
    h3_seconds: Seconds = 1200
    """All attempts of H-3; as much again for each extended evaluation."""
    train_attempt_seconds: Seconds = 1800
    """One training; then it is ended and counts as TIMEOUT."""
    evaluate_attempt_seconds: Seconds = 900
    """One evaluation; likewise."""
    hub_request_seconds: Seconds = 20
    """One request to the Hub."""
    terminate_grace_seconds: Seconds = 10
    """Between SIGTERM and SIGKILL."""
    memory_return_seconds: Seconds = 30
    """How long the GPU's memory may take to come back after an attempt."""


@dataclass(frozen=True)
class Within:
    """A table that is validated by `bounds` and kept as the plain settings that it refines.

    Pydantic calls values of two classes unequal, and the record reads the plain ones back.
    """

    bounds: type[Value]

    def __get_pydantic_core_schema__(self, plain: type[Value], handler: GetCoreSchemaHandler) -> CoreSchema:
        """Errors are those of `bounds`, key by key."""
        bounded = handler.generate_schema(self.bounds)
        return core_schema.no_info_after_validator_function(lambda value: plain(**value.model_dump()), bounded)


class Profile(Value):
    """One validated profile; `path` and `sha256` say which file it was."""

    machine: Machine
    model: Models
    train: Annotated[TrainSettings, Within(ProfileTrain)] = TrainSettings()
    evaluate: Annotated[EvalSettings, Within(ProfileEvaluate)] = EvalSettings()
    by_heart: ByHeart = ByHeart()
    ladder: tuple[Rung, ...] = ()
    limits: Limits = Limits()
    report: Telling = Telling()
    production: Annotated[ProductionTarget, Within(ProfileProduction)] = ProductionTarget()
    path: str = ""
    sha256: str = ""

    @model_validator(mode="after")
    def _launchers_are_possible(self) -> Profile:
        for section, asked in (("train", self.train), ("evaluate", self.evaluate)):
            if asked.num_processes > 1 and asked.launcher == "none":
                raise ValueError(say("setting.no_launcher", section=section, count=asked.num_processes))
            if asked.num_processes > 1 and asked.launcher == "accelerate" and self.machine.device == "cpu":
                raise ValueError(say("setting.one_on_cpu", section=section, count=asked.num_processes))
        return self

    @property
    def name(self) -> str:
        """The profile's name: the file's name without its ending."""
        return Path(self.path).stem

    def language(self, options: Options) -> Language:
        """What a run under these options is told in."""
        return options.language or self.report.language

    def uses_twin(self, options: Options) -> bool:
        """Whether a run makes its model itself: asked for, or by the profile, whose twin no named model folder has."""
        names_folder = options.model is not None and Path(options.model).is_absolute()
        return options.twin or (self.model.twin and not names_folder)

    @property
    def num_processes(self) -> int:
        """The most processes that a stage runs in at once, and so the GPUs that the profile needs."""
        return max(self.train.num_processes, self.evaluate.num_processes)


def profile_path(name_or_path: str, near: Path) -> Path:
    """Find a profile: a path as it is, else a name in `near`/profiles, else one that comes with the suite.

    Raises ProfileError naming every place that was looked at and the names that exist.
    """
    if name_or_path.endswith(".toml"):
        path = (near / name_or_path).resolve()
        if path.is_file():
            return path
        raise ProfileError(_of_profile(path, say("setting.no_file")))
    folders = [near / "profiles", builtin_profiles()]
    for folder in folders:
        if (folder / f"{name_or_path}.toml").is_file():
            return folder / f"{name_or_path}.toml"
    known = sorted({found.stem for folder in folders if folder.is_dir() for found in folder.glob("*.toml")})
    raise ProfileError(say("setting.no_profile", name=repr(name_or_path), known=known))


def builtin_profiles() -> Path:
    """The folder of the profiles that come with the suite: in the wheel, else at the root of a clone."""
    packaged = Path(str(resources.files("steph"))) / "profiles"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / "profiles"


def load_profile(path: Path) -> Profile:
    """Read and validate a profile whole; raises ProfileError with one line per bad key."""
    try:
        data = path.read_bytes()
        table = tomllib.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise ProfileError(_of_profile(path, verbatim(error.strerror))) from error
    except UnicodeDecodeError as error:
        raise ProfileError(_of_profile(path, say("setting.not_utf8", byte=str(error.start)))) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ProfileError(_of_profile(path, say("setting.no_toml", reason=error))) from error
    for reserved in ("path", "sha256"):
        if reserved in table:
            reason = say("setting.of", place=reserved, reason=say("setting.unknown_key"))
            raise ProfileError(_of_profile(path, reason))
    try:
        return strictly(Profile, {**table, "path": str(path), "sha256": hashlib.sha256(data).hexdigest()})
    except ValidationError as error:
        raise ProfileError(*validation_messages(say("setting.profile", path=path), error)) from error


def _of_profile(path: Path, reason: Message) -> Message:
    return say("setting.of", place=say("setting.profile", path=path), reason=reason)


def language_in(path: Path) -> Language:
    """The language that a profile names, also one that can't be used; "ja" where it names none."""
    try:
        named = tomllib.loads(path.read_bytes().decode("utf-8-sig"))["report"]["language"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        named = None
    return next((language for language in LANGUAGES if language == named), "ja")


def strictly(model: type[_Model], table: dict[str, object]) -> _Model:
    """The table as this model, each value of its type: `"10"` is no number, `true` is not 1; raises ValidationError."""
    return model.model_validate_json(json.dumps(table, default=str), strict=True)


def validation_messages(place: Message | str, error: ValidationError) -> list[Message]:
    """One line per bad key of a pydantic error: place, dotted key, value and what is allowed."""
    found = []
    for item in error.errors(include_url=False):
        reason, key = _reason(item), _dotted(item["loc"])
        found.append(
            say("setting.of", place=place, reason=say("setting.of", place=key, reason=reason) if key else reason)
        )
    return found


def _dotted(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


# what a value must be, by pydantic's type of its error; the ids are of messages
_MUST = {
    "bool_type": "setting.must.switch",
    "dict_type": "setting.must.table",
    "finite_number": "setting.must.finite",
    "float_type": "setting.must.number",
    "greater_than": "setting.must.more",
    "greater_than_equal": "setting.must.least",
    "int_from_float": "setting.must.whole",
    "int_type": "setting.must.whole",
    "less_than": "setting.must.less",
    "less_than_equal": "setting.must.most",
    "model_attributes_type": "setting.must.table",
    "model_type": "setting.must.table",
    "string_too_short": "setting.must.filled",
    "string_type": "setting.must.text",
    "too_short": "setting.must.filled",
    "tuple_type": "setting.must.list",
}
_NOT_HERE = {"max_steps": "setting.no_heavy", "samples": "setting.no_full"}  # the spec's ban on heavy experiments


def _reason(item: ErrorDetails) -> Message:
    kind, value, key = item["type"], item["input"], _dotted(item["loc"])
    context = item.get("ctx", {})
    if kind == "extra_forbidden":
        return say("setting.unknown_key")
    if kind == "missing":
        return say("setting.missing")
    if kind == "tuple_type" and isinstance(value, dict):
        return say("setting.tables", key=key)
    if kind in ("model_type", "model_attributes_type", "dict_type") and isinstance(value, list):
        return say("setting.one_table", key=key)
    limit = next((f"{context[name]:.12g}" for name in ("ge", "gt", "le", "lt") if name in context), "")
    if kind == "value_error":
        must = words_of(context["error"])
    elif kind == "literal_error":
        must = say("setting.must.one_of", allowed=re.findall(r"'[^']*'", str(context["expected"])))
    elif kind == "string_pattern_mismatch":
        must = say("setting.must.filled" if "S" in str(context["pattern"]) else "setting.must.name")
    elif kind in _MUST:
        must = say(_MUST[kind], limit=limit)
    else:
        must = verbatim(item["msg"])
    if kind == "less_than_equal" and item["loc"][-1] in _NOT_HERE:
        must = say(_NOT_HERE[str(item["loc"][-1])], must=must)
    shown = str(value).lower() if isinstance(value, bool) else repr(value)  # as TOML has it
    return must if isinstance(value, dict) else say("setting.refused", value=shown, must=must)
