"""What the judge is given about one finished attempt (paths, settings, output), and what lies in its folders.

The evidence is values only; the functions say what a model's folder and an attempt's hold, and whether two names mean
one model or one folder.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from steph.base.files import UnreadableError, read_header, read_json_object, sha256_of
from steph.contract.commands import passed_names
from steph.contract.description import Description
from steph.contract.placeholders import filled
from steph.contract.questions import Question
from steph.contract.results import ResultsForm, Row
from steph.contract.rows import RowFormat
from steph.contract.training_files import OwnFigures, TrainerState, TrainingLog
from steph.judge.witness import Logged, ModelSaved, Witness
from steph.record.settings import EvalSettings, TrainSettings
from steph.record.values import Artifact

MAX_CONFIG_BYTES = 4 << 20
MOST_SHARDS = 400
TWIN_MARKER = "twin.json"
LEAST_WIDTH = 64  # of the narrowest language models that ever learned something
MAX_ARTIFACTS = 200
MAX_HASHED_BYTES = 8 << 30  # hashing more would hold up the run for minutes
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d{1,4})\.")


def same_path(one: str, other: str) -> bool:
    """Whether two paths agree, where one may be absolute and the other relative to an unknown folder."""
    first, second = _parts(one), _parts(other)
    if not first or not second:
        return False
    if one.strip().startswith("/") == other.strip().startswith("/"):
        return first == second
    relative, absolute = sorted((first, second), key=len)
    return absolute[-len(relative) :] == relative


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(path.strip()).parts if part not in ("/", "."))


def same_model(asked: str, named: str) -> bool:
    """Whether `named` is the model `asked`: the same id or folder, or the id's snapshot in the Hub's cache."""
    cached = "models--" + asked.strip().strip("/").replace("/", "--")
    return same_path(asked, named) or cached in _parts(named)


def names_model(text: str, asked: str) -> bool:
    """Whether a printed value names the model `asked`, alone or with a remark beside it."""
    if same_model(asked, text):
        return True
    whole_name = rf"(?<![\w./-]){re.escape(asked.strip().rstrip('/'))}/?(?![\w./-])"
    return re.search(whole_name, text) is not None


@dataclass(frozen=True)
class BaseModel:
    """`layers` and `vocabulary` from `config.json`; `matrices` are the shapes of its weights by module name.

    `is_mixed`: its layers are not all of one kind. Empty or None where the folder does not say.
    """

    layers: int | None = None
    vocabulary: int | None = None
    is_mixed: bool = False
    matrices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def layer_of(name: str) -> tuple[int, str] | None:
    """The number of the layer that a module stands in, and its name within the layer; None outside of layers."""
    found = _LAYER.search(name)
    return (int(found[1]), name[found.end() :]) if found else None


def has_random_weights(name: str, folder: Path) -> bool:
    """Whether nothing was ever learned: a twin, a model that is named so, or one too narrow for anything but tests."""
    width = read_config(folder, "hidden_size", "n_embd")
    is_toy = width is not None and width < LEAST_WIDTH
    return is_toy or (folder / TWIN_MARKER).is_file() or bool(re.search(r"(?i)(?<![a-z])random(?![a-z])", name))


def read_config(folder: Path, *keys: str) -> int | None:
    """The first of these counts that the folder's `config.json` has; None where it has none or can't be read."""
    return _count(_configs(folder), *keys)


def read_base(folder: Path | None) -> BaseModel:
    """Read a model's folder; what is not there or not readable is left empty."""
    if folder is None:
        return BaseModel()
    parts = _configs(folder)
    kinds = next((found for part in parts if isinstance(found := part.get("layer_types"), list)), [])
    try:
        files = sorted(folder.glob("*.safetensors"))[:MOST_SHARDS]
        weights = [t for path in files for t in read_header(path) if t.name.endswith(".weight") and len(t.shape) == 2]
    except (OSError, UnreadableError):
        weights = []
    return BaseModel(
        layers=_count(parts, "num_hidden_layers", "n_layer"),
        vocabulary=_count(parts, "vocab_size"),
        is_mixed=len({str(kind) for kind in kinds}) > 1,
        matrices={one.name.removesuffix(".weight"): one.shape for one in weights if math.prod(one.shape) > 0},
    )


def _configs(folder: Path) -> tuple[Mapping[str, object], ...]:
    """The configuration of the text model, which stands one level down beside other towers, and the whole."""
    try:
        raw = read_json_object(folder / "config.json", MAX_CONFIG_BYTES, finite=False)
    except UnreadableError:
        return ()
    text = raw.get("text_config")
    return (text, raw) if isinstance(text, Mapping) else (raw,)


def _count(parts: tuple[Mapping[str, object], ...], *keys: str) -> int | None:
    values = (part.get(key) for part in parts for key in keys)
    return next((value for value in values if type(value) is int and 0 < value < 10**9), None)


def artifact(path: Path, name: str) -> Artifact:
    """Describe one file under the name by which the pipeline knows it."""
    printable = name.encode("utf-8", "replace").decode()
    return Artifact(path=printable, size_bytes=path.stat().st_size, sha256=sha256_of(path))


def artifacts_under(folder: Path, name: str) -> tuple[Artifact, ...]:
    """Describe the regular files under a folder in name order, at most `MAX_ARTIFACTS`, without links and giants."""
    regular = []
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, one) for one in names):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_size <= MAX_HASHED_BYTES:
                regular.append(path)

    def described(path: Path) -> Artifact | None:
        try:
            return artifact(path, f"{name.rstrip('/')}/{path.relative_to(folder).as_posix()}")
        except OSError:
            return None  # a file that vanishes or can't be read is no artifact

    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        return tuple(one for one in pool.map(described, sorted(regular)[:MAX_ARTIFACTS]) if one is not None)


@dataclass(frozen=True)
class CardMemory:
    """The card over an attempt: its size, samples of (seconds since the attempt's start, used bytes) in time's order,
    and the most that one process's torch had reserved."""

    total_bytes: int
    samples: tuple[tuple[float, int], ...] = ()
    peak_reserved_bytes: int | None = None


@dataclass(frozen=True)
class TrainEvidence:
    """A finished training attempt.

    `output_dir` is absolute, `output_dir_name` is the folder as the pipeline was given it. `train_rows` counts the rows
    of the file that this attempt really trained on. `attempt_started_unix` is by the files' clock, for their ages;
    `line_arrivals` are (seconds since the attempt's start, line). `lost_answers` is (rows without their answer, rows).
    `card` is None where no GPU was used. `base_tokenizer` is the model's own `tokenizer.json`, None where it has none,
    `base_folder` the folder of its files. `seconds` is how long the process lived, `attempt_ended_unix` its end by the
    files' clock. `output_place` is where the output folder really was before it, `inputs` are the files that it was
    given, each with the sha256 that it had then.
    `witness` is what was seen in its processes, None where nobody looked; `train_file` is what it was given, in rows of
    `row_format`; `questions` are the data set's, None where there is none to read. `unsaid` are the settings that its
    description neither passes nor fixes: nobody asked for them; `words` are those that it calls the program with.
    """

    output_dir: Path
    output_dir_name: str
    settings: TrainSettings
    model_name: str
    stdout: str
    output: str
    returncode: int | None
    attempt_started_unix: float
    train_rows: int | None = None
    line_arrivals: tuple[tuple[float, str], ...] = ()
    lost_answers: tuple[int, int] | None = None
    card: CardMemory | None = None
    base_tokenizer: Path | None = None
    base_folder: Path | None = None
    seconds: float | None = None
    attempt_ended_unix: float | None = None
    output_place: Path | None = None
    inputs: tuple[tuple[Path, str], ...] = ()
    random_weights: bool = False
    rehearsal: bool = False
    witness: Witness | None = None
    train_file: Path | None = None
    row_format: RowFormat = "input_output"
    questions: tuple[Question, ...] | None = None
    description: Description = field(default_factory=Description)
    unsaid: frozenset[str] = frozenset()
    words: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        """The pipeline root."""
        return self.output_dir.parents[max(0, len(Path(self.output_dir_name).parts) - 1)]

    @property
    def is_scripted(self) -> bool:
        """Whether the program is the published pipeline's script, whose lines and files are the spec's."""
        return any("{train_script}" in word for word in self.description.train.command or ())

    def says(self, pattern: str) -> bool:
        """Whether the description's words for the training match a pattern, in any case: asked for on purpose."""
        return any(re.search(pattern, word, re.IGNORECASE) for word in self.words)

    def filled(self, pattern: str) -> str:
        """A path of the description, with the output folder filled in."""
        return filled(pattern, {"output_dir": self.output_dir_name})


@dataclass(frozen=True)
class Trained:
    """What a finished training printed, left and took, beside what was asked of it; None where unknown.

    `steps_due` are those that the rows of the file make, `steps_counted` those that the Trainer itself counted.
    `epochs` is of its last line, `rows` those of the file that it was given, of which `packed` ones may have become
    one. `seconds` is how long the process lived, `loss_arrivals` when its loss lines came, in seconds from its start.
    `output_place` is where the output folder really was before it, `inputs` are files with the sha256 that they had
    before. `witnessed` is what the Trainer gave to its callbacks.
    """

    settings: TrainSettings = field(default_factory=TrainSettings)
    log: TrainingLog = field(default_factory=TrainingLog)
    state: TrainerState = field(default_factory=TrainerState)
    own: OwnFigures = field(default_factory=OwnFigures)
    losses: tuple[float, ...] = ()
    steps_done: int | None = None
    steps_due: int | None = None
    steps_counted: int | None = None
    stopped_itself: bool = False  # by a callback, after an evaluation
    epochs: float | None = None
    rows: int | None = None
    packed: bool = False
    is_plain_text: bool = False  # rows without question and answer, which may be cut into blocks
    seconds: float | None = None
    loss_arrivals: tuple[float, ...] = ()
    output_dir: Path = Path()
    output_place: Path | None = None
    inputs: tuple[tuple[Path, str], ...] = ()
    witnessed: tuple[Logged, ...] = ()
    own_rates: tuple[float, ...] = ()  # of each step of a loop, which logs none
    vocabulary: int | None = None
    random_weights: bool = False
    rehearsal: bool = False

    @property
    def train_loss(self) -> float | None:
        """The mean loss of the Trainer's final line."""
        return self.log.final.get("train_loss") if self.log.final else None

    @property
    def logged_losses(self) -> tuple[float, ...]:
        """The losses of this run's `log_history`."""
        return self.state.losses if self.state.fresh else ()

    def printed(self, key: str) -> tuple[float, ...]:
        """This figure of all printed loss lines that have it."""
        return tuple(value for line in self.log.losses if (value := line.get(key)) is not None)

    def by_source(self, key: str) -> list[tuple[float, ...]]:
        """This figure of all steps, as printed and as logged on disk, where there is any."""
        history = self.state.history if self.state.fresh else ()
        logged = tuple(value for line in history if (value := line.get(key)) is not None)
        return [values for values in (self.printed(key), logged) if values]


@dataclass(frozen=True)
class EvalEvidence:
    """A finished evaluation attempt.

    `root` is the folder that the script ran in, `output_path` and `lora_path` are as it was given them (`lora_path`
    None: evaluated without an adapter), `output_pattern` names files that may stand in for `output_path` (None: its own
    name only, also behind a date). `seconds` is the whole run. `train_questions` and `train_template` come from
    `questions.questions_in` and `questions.prompt_template_in`; None means that no training file could be read.
    `h3_rows` are the rows of the record's H-3, where this evaluation is held against them. `questions` and
    `dataset_sha256` are the data set as it was before the script could write to it, `adapter_files` the hashes of the
    adapter's files then. `witness` is what was seen in its processes, `training_witness` in those that trained the
    adapter; None where nobody looked. `dataset` is None where only the evaluation knows its questions.
    """

    root: Path
    dataset: Path | None
    output_path: str
    settings: EvalSettings
    model_name: str
    lora_path: str | None
    stdout: str
    output: str
    returncode: int | None
    attempt_started_unix: float
    seconds: float | None = None
    adapter_sha256_expected: str | None = None
    adapter_sha256_actual: str | None = None
    train_questions: frozenset[str] | None = None
    train_template: tuple[str, str] | None = None
    h3_rows: tuple[Row, ...] | None = None
    output_pattern: str | None = None
    rehearsal: bool = False
    random_weights: bool = False
    on_gpu: bool = False
    witness: Witness | None = None
    training_witness: Witness | None = None
    questions: tuple[Question, ...] | None = None
    dataset_sha256: str | None = None
    adapter_files: Mapping[str, str] | None = None
    description: Description = field(default_factory=Description)

    @property
    def merged_folders(self) -> frozenset[str]:
        """Folders of models that H-2's adapter was merged into while the witness looked on."""
        wanted = self.adapter_sha256_expected
        seen = [witness for witness in (self.training_witness, self.witness) if witness]
        saves = [save for witness in seen for save in witness.of(ModelSaved)]
        return frozenset(save.path for save in saves if save.path and wanted and wanted in save.merged_sha256)

    @property
    def is_4bit_unsaid(self) -> bool:
        """Whether the description does not say if the program quantises; a file of settings may."""
        evaluate = self.description.evaluate
        said = {*passed_names(evaluate), *evaluate.fixed.given}
        return evaluate.config is None and not said & {"use_4bit", "load_in_4bit"}

    @property
    def form(self) -> ResultsForm:
        """How its results are written, with the place where they are filled in."""
        return results_form(self.description, self.output_path)


def results_form(description: Description, output_path: str) -> ResultsForm:
    """How an evaluation that was told to write there writes its results."""
    evaluate, output = description.evaluate, {"output": output_path}
    asked = evaluate.results
    return ResultsForm(
        format=asked.format,
        kind=evaluate.kind,
        lines=evaluate.lines,
        file=filled(asked.file, output) if asked.file else None,
        rows=filled(asked.rows, output) if asked.rows else None,
        score=asked.score,
        count=asked.count,
        model=asked.model,
        adapter=asked.adapter,
        row=asked.row.model_dump(exclude_none=True),
    )
