"""What the doctor has read of the world, before anybody judges it. Values only; sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict, Field

from steph.base.messages import Value
from steph.record.settings import DataFile, Device
from steph.record.values import ModelChoice, RejectedCandidate


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
    """What NVML says. `device` is the GPU that a run would use, `count` how many GPUs and slices there are.

    `visible` is CUDA_VISIBLE_DEVICES; `error` is NVML's own in one line.
    """

    has_nodes: bool
    count: int = 0
    device: Device | None = None
    visible: str | None = None
    error: str | None = None
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
    """What the Hub answered to the question who we are; `user` is None without a token."""

    endpoint: str
    is_offline: bool = False
    has_token: bool = False
    is_refused: bool = False
    user: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What H-1 would choose now, None where no candidate can be had."""

    choice: ModelChoice | None
    rejected: tuple[RejectedCandidate, ...] = ()


class Step(Value):
    """One step of `child/checkup.py`; `error` where it raised. Keys of a newer one are passed over."""

    model_config = ConfigDict(extra="ignore")

    error: str | None = None


class PythonStep(Step):
    """The pipeline's interpreter; `conflicts` are requirements that its packages do not meet, None: not known.

    Each is the package with its version, what it requires, and the version that is installed.
    """

    version: str = ""
    output_encoding: str | None = None
    packages: dict[str, str | None] = Field(default_factory=dict)
    conflicts: tuple[tuple[str, str, str], ...] | None = None
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
    """transformers and peft imported; `unavailable` is what transformers would not use, `unknown` what it would refuse.

    `unknown_arguments` are keywords of the train script's calls that this transformers' signatures do not have.
    """

    unavailable: tuple[str, ...] = ()
    unknown_arguments: tuple[str, ...] = ()


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
