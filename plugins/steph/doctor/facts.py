"""The values of the doctor: what it has read of the world, what the run needs of it, and the lines that it says.

Pure; sizes are bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import ConfigDict, Field

from steph.base.messages import Language, Message, Value, text
from steph.base.terms import TrainerName
from steph.base.text import one_line
from steph.contract.options import Options
from steph.contract.settings import Profile
from steph.memory.shapes import BUILT_IN, TINY, TINY_NAME, parameter_count
from steph.memory.terms import DEFAULT_TARGETS, Workload, embedding_bytes, linear_bytes, lora_parameters, norm_bytes
from steph.record.settings import DataFile, Device
from steph.record.values import ModelChoice, RejectedCandidate
from steph.run.gpu import OUTSIDE_ALLOCATOR_BYTES
from steph.run.output import HEAD_BYTES, TAIL_BYTES


class Level(StrEnum):
    """How bad a line is; only FAIL makes the doctor's exit status 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    NOT_APPLICABLE = "n/a"


@dataclass(frozen=True)
class Line:
    """One check's outcome; `is_certain` where a run is certain to fail as well."""

    check: str
    level: Level
    message: str
    remedy: str = ""
    is_certain: bool = False


# how much a trouble weighs, and whether a run is certain to fail as well: what the gate stops
WARN, FAIL, CERTAIN = (Level.WARN, False), (Level.FAIL, False), (Level.FAIL, True)


@dataclass(frozen=True)
class DoctorCheck:
    """One row of the table, with the ways in which it may not hold; the catalogs have when that is, and what to do."""

    id: str
    troubles: Mapping[str, tuple[Level, bool]]
    gpu_only: bool = False  # does not apply to a profile with device = "cpu"

    def words(self, key: str, language: Language | None = None) -> str:
        """The catalog's text of `looks_at`, `TROUBLE.when` or `TROUBLE.remedy`."""
        return text(f"doctor.{self.id}.{key}", language)

    def ok(self, *said: Message | str) -> Line:
        """The line of a check that holds; what is said in parts is told in one line, in the language in use."""
        return Line(self.id, Level.OK, _one_line(said))

    def not_applicable(self, why: Message) -> Line:
        """The line of a check that has nothing to look at here."""
        return Line(self.id, Level.NOT_APPLICABLE, _one_line((why,)))

    def trouble(self, key: str, *said: Message | str) -> Line:
        """The line of a check that does not hold; KeyError for a trouble that is not in the table."""
        level, is_certain = self.troubles[key]
        return Line(self.id, level, _one_line(said), self.words(f"{key}.remedy"), is_certain)


def _one_line(said: Iterable[Message | str]) -> str:
    return one_line("; ".join(str(part) for part in said if part))


HALF_BYTES = 2  # one parameter in bf16 or fp16, as models are published
# of a LoRA parameter: fp32 in the adapter and again in the checkpoint, there with AdamW's two moments
SAVED_LORA_BYTES = 4 + 4 + 8
SAVED_TOKENIZER_BYTES = 2 * (12 << 20)  # beside adapter and checkpoint; Qwen's tokenizer.json has 11 MB
LOG_BYTES = 2 * (HEAD_BYTES + 2 * TAIL_BYTES)  # stdout and the whole output of one attempt
SPARE_BYTES = 1 << 30


@dataclass(frozen=True)
class Unread:
    """Facts that could not be had, and why."""

    reason: str


@dataclass(frozen=True)
class MemoryUser:
    """A process that holds GPU memory; None where the driver hides how much."""

    pid: int
    name: str
    used_bytes: int | None


@dataclass(frozen=True)
class GpuFacts:
    """Facts of NVML."""

    has_nodes: bool
    count: int = 0  # GPUs and slices
    device: Device | None = None  # that a run would use
    visible: str | None = None  # CUDA_VISIBLE_DEVICES
    error: str | None = None  # NVML's own in one line
    users: tuple[MemoryUser, ...] = ()


@dataclass(frozen=True)
class RootFacts:
    """The pipeline root as a run would find it; `error` is what it would refuse to start with."""

    root: str
    error: str | None = None
    dataset: DataFile | None = None
    train_script: str | None = None  # absolute
    python: str | None = None
    python_error: str | None = None


@dataclass(frozen=True)
class Busy:
    """Who holds the card and the root, in one line each; None where nobody does. `place`: why no lock can be kept."""

    gpu: str | None = None
    place: str | None = None
    root: str | None = None


@dataclass(frozen=True)
class HostFacts:
    """The machine without its GPU; `available_bytes` of RAM within the container's limit."""

    is_wsl: bool
    ram_bytes: int
    available_bytes: int
    file_name_encoding: str


@dataclass(frozen=True)
class Place:
    """A folder that a run writes into; it need not exist yet."""

    role: str
    folder: str
    free_bytes: int
    is_writable: bool


@dataclass(frozen=True)
class HubFacts:
    """The Hub's answer to the question who we are; `user` is None without a token."""

    endpoint: str
    is_offline: bool = False
    has_token: bool = False
    is_refused: bool = False
    user: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class ModelFacts:
    """The model that H-1 would choose now, None where no candidate can be had."""

    choice: ModelChoice | None
    rejected: tuple[RejectedCandidate, ...] = ()


class Step(Value):
    """One step of `child/checkup.py`; `error` where it raised. Keys of a newer one are passed over."""

    model_config = ConfigDict(extra="ignore")

    error: str | None = None


class PythonStep(Step):
    """The pipeline's interpreter."""

    version: str = ""
    output_encoding: str | None = None
    packages: dict[str, str | None] = Field(default_factory=dict)
    conflicts: tuple[tuple[str, str, str], ...] | None = None  # package, what it requires, what there is; None: unknown
    bnb_cuda_libraries: tuple[str, ...] = ()


class TorchStep(Step):
    """torch: what it was built for and what it sees; `said` are its own warnings about the driver."""

    version: str = ""
    cuda: str | None = None
    architectures: tuple[str, ...] = ()
    is_available: bool = False
    said: tuple[str, ...] = ()
    numpy_error: str | None = None
    device_name: str | None = None


class ProductStep(Step):
    """A small matrix product on the device against the same in fp32 on the CPU."""

    relative_error: float | None = None


class LibrariesStep(Step):
    """transformers and peft imported."""

    unavailable: tuple[str, ...] = ()  # what transformers would not use
    unknown_arguments: tuple[str, ...] = ()  # keywords of the train script's calls that its signatures do not have


class FourBitStep(Step):
    """A 4-bit layer: relative errors against the original weight and against the dequantised reference."""

    dequantised_error: float | None = None
    forward_error: float | None = None
    backward_error: float | None = None
    single_row_error: float | None = None


class Checkup(Value):
    """The steps in their order, None where one was not reached; `returncode` None where the deadline ended it."""

    python: PythonStep | None = None
    torch: TorchStep | None = None
    product: ProductStep | None = None
    libraries: LibrariesStep | None = None
    four_bit: FourBitStep | None = None
    returncode: int | None = 0
    said: str = ""  # its last lines on stderr


@dataclass(frozen=True)
class Needs:
    """The least that a run needs; None where no candidate's shape is known."""

    is_gpu: bool
    is_twin: bool
    first: str
    loaded_bytes: int | None  # GPU memory of the smallest candidate's weights and of a process that holds them
    weights_bytes: int | None  # the first candidate's in half precision, on disk and in a loader's RAM
    output_bytes: int  # what all attempts of the ladder leave on the disk, and some to spare
    vram_cap_bytes: int | None = None
    compute_dtype: str = "bfloat16"


def needs_of(options: Options, profile: Profile) -> Needs:
    """The needs of this profile under these options."""
    names = (options.model,) if options.model else profile.model.candidates
    known = {**BUILT_IN, TINY_NAME: TINY}
    shapes = [known[name] for name in names if name in known]
    is_small = profile.machine.device == "cpu" and profile.uses_twin(options)
    first, train = TINY if is_small else known.get(names[0]), profile.train
    work = Workload(
        TrainerName.REFERENCE,
        1,
        1,
        use_4bit=train.use_4bit,
        lora_r=train.lora_r,
        target_modules=train.target_modules or DEFAULT_TARGETS,
    )
    weights = [linear_bytes(one, work) + embedding_bytes(one, work) + norm_bytes(one, work) for one in shapes]
    loaded = [int(each) + OUTSIDE_ALLOCATOR_BYTES for each in weights]
    attempt_bytes = SAVED_TOKENIZER_BYTES + LOG_BYTES
    if first is not None:
        with contextlib.suppress(ValueError):  # modules of another architecture
            attempt_bytes += lora_parameters(first, work) * SAVED_LORA_BYTES
    return Needs(
        is_gpu=profile.machine.device == "gpu",
        is_twin=profile.uses_twin(options),
        first=names[0],
        loaded_bytes=min(loaded, default=None),
        weights_bytes=parameter_count(first) * HALF_BYTES if first else None,
        output_bytes=SPARE_BYTES + (1 + len(profile.ladder)) * attempt_bytes,
        vram_cap_bytes=options.vram_cap_bytes,
        compute_dtype=train.bnb_4bit_compute_dtype,
    )
