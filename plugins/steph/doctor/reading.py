"""Reads the doctor's facts, each by a question to the machine in a process of its own, with a deadline.

NVML, the pipeline root, locks, host, disks, the Hub. Judges nothing, downloads nothing. A driver or a network disk that
hangs can't be interrupted from within, and a library that crashes takes its process along; a forked child may do both,
and so may `child/checkup.py` in the pipeline's Python. One that even SIGKILL does not end is left behind.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

import psutil
from pydantic import ValidationError

from steph.base.files import parse_json
from steph.base.messages import phrase
from steph.base.terms import StageId
from steph.conduct.preparation import cache_dir, pipeline_python, read_inputs
from steph.contract.commands import passed_names
from steph.contract.options import Options
from steph.contract.settings import Profile, ProfileError
from steph.doctor.facts import (
    Busy,
    Checkup,
    GpuFacts,
    HostFacts,
    HubFacts,
    MemoryUser,
    ModelFacts,
    Place,
    RootFacts,
    Unread,
)
from steph.record.settings import Device
from steph.run import gpu, hub, model_files
from steph.run.fetch import classify
from steph.run.gpu import DeviceError, GpuBusyError, GpuLockError, gpu_lock, has_nvidia_nodes, visible_among
from steph.run.inputs import InputError, RootBusyError, is_wsl, root_lock
from steph.run.processes import Child, set_parent_death_signal

Answer = TypeVar("Answer")

_CHUNK_BYTES = 1 << 16
_REAP_SECONDS = 0.5
_SAID_WORDS = 40
SCRIPT = Path(__file__).parents[1] / "child" / "checkup.py"
NOT_STARTED = 126  # a shell's exit status for a program that can't be run
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_held() -> Iterator[set[signal.Signals]]:
    """Let signals wait while a process is started; gives the mask that the new process is to have.

    What a handler raises in the middle of a fork, Python's own hooks around it would swallow.
    """
    mask = {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)}
    try:
        yield mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Question(Generic[Answer]):
    """Asks at once; `answer` waits until `deadline_seconds` after that. Fork before any thread is started."""

    def __init__(self, ask: Callable[[], Answer], deadline_seconds: float) -> None:
        self._deadline_seconds = deadline_seconds
        self._ends_at = time.monotonic() + deadline_seconds
        self._has_ended = False
        self._pipe, writing = os.pipe()
        with signals_held() as mask:
            self._pid = os.fork()
            os.setpgid(self._pid, self._pid)  # so that what it starts ends with it
            if self._pid == 0:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                _answer(ask, writing)
        os.close(writing)

    def answer(self) -> Answer | Unread:
        """The answer, or why there is none."""
        data = bytearray()
        try:
            while select.select([self._pipe], [], [], max(0.0, self._ends_at - time.monotonic()))[0]:
                chunk = os.read(self._pipe, _CHUNK_BYTES)
                if chunk:
                    data += chunk
                    continue
                try:
                    found: Answer | Unread = pickle.loads(data)  # noqa: S301 - from our own child
                except (EOFError, pickle.UnpicklingError):
                    return Unread(phrase("doctor.unread.ended"))
                return found
            return Unread(phrase("doctor.unread.late", seconds=self._deadline_seconds))
        finally:
            self.end()

    def end(self) -> None:
        """End the process that was asked and what it started; said again it changes nothing."""
        if not self._has_ended:
            self._has_ended = True
            os.close(self._pipe)
            os.killpg(self._pid, signal.SIGKILL)
            end = time.monotonic() + _REAP_SECONDS
            while os.waitpid(self._pid, os.WNOHANG) == (0, 0) and time.monotonic() < end:
                time.sleep(0.01)


def _answer(ask: Callable[[], object], writing: int) -> NoReturn:
    """The child: says nothing on the terminal, and never returns into the parent's code."""
    try:
        set_parent_death_signal(signal.SIGKILL)
        silence = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(silence, number)
        sys.stdout = sys.stderr = os.fdopen(1, "w", closefd=False)
        try:
            found = ask()
        except Exception as error:
            found = Unread(f"{type(error).__name__}: {error}")
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(pickle.dumps(found))
    finally:
        os._exit(0)


def run_checkup(
    python: str, words: Sequence[str], environment: Mapping[str, str], deadline_seconds: float, first_seconds: float
) -> Checkup:
    """Run the script to its end or deadline, its first word within `first_seconds`; what it found until then."""
    try:
        process = Child[bytes](
            [python, str(SCRIPT), *words],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=partial(set_parent_death_signal, signal.SIGKILL),
        )
    except OSError as error:
        return Checkup(returncode=NOT_STARTED, said=str(error.strerror))
    output, errors = b"", b""
    for seconds in (first_seconds, deadline_seconds - first_seconds):
        try:
            output, errors = process.communicate(timeout=seconds)
            break
        except subprocess.TimeoutExpired as late:
            output, errors = late.output or b"", late.stderr or b""
            if not output:
                break
    returncode = process.poll()
    process.kill()
    return read_checkup(output.decode(errors="replace"), errors.decode(errors="replace"), returncode)


def read_checkup(output: str, errors: str, returncode: int | None) -> Checkup:
    """The steps from the script's lines; a line that is no step is passed over. `returncode` None: out of time."""
    steps = {}
    for line in output.splitlines():
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            found = parse_json(line.encode(errors="replace"), finite=False)
            steps[found.pop("step")] = found
    said = " ".join(errors.split()[-_SAID_WORDS:])
    known = {name: facts for name, facts in steps.items() if name in Checkup.model_fields}
    try:
        return Checkup.model_validate({**known, "returncode": returncode, "said": said})
    except ValidationError as error:
        return Checkup(
            returncode=returncode, said=phrase("doctor.python.printed", script=SCRIPT.name, error=str(error))
        )


HUB_SECONDS = 5.0  # for one question; an answer takes well under one
_CGROUP = Path("/sys/fs/cgroup")


def read_gpu() -> GpuFacts:
    """What NVML says of the GPUs and of the one that a run would use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not has_nvidia_nodes():
        return GpuFacts(has_nodes=False, visible=visible)
    try:
        devices = gpu.devices()
        device = next(iter(visible_among(visible, devices)), None)
        return GpuFacts(True, len(devices), device, visible, users=tuple(_users(device)) if device else ())
    except DeviceError as error:
        return GpuFacts(has_nodes=True, visible=visible, error=str(error))


def read_root(options: Options, profile: Profile) -> RootFacts:
    """The pipeline root's inputs, checked as a run checks them, and the interpreter of its scripts."""
    facts = RootFacts(str(options.pipeline_root))
    try:
        found = read_inputs(options, profile, tuple(StageId))
        has_script = "train_script" in passed_names(found.description.train)
        script = str(options.pipeline_root / found.description.paths.train_script) if has_script else None
        facts = replace(facts, dataset=found.dataset, train_script=script)
    except (ProfileError, InputError) as error:
        facts = replace(facts, error=str(error))
    try:
        return replace(facts, python=pipeline_python(options, options.pipeline_root))
    except InputError as error:
        return replace(facts, python_error=str(error))


def read_busy(root: Path, device: Device | None) -> Busy:
    """Whether another run holds the card or the root, by taking both locks for a moment."""
    gpu = place = held_root = None
    try:
        with gpu_lock(device.uuid) if device else contextlib.nullcontext():
            pass
    except GpuBusyError as error:
        gpu = str(error)
    except GpuLockError as error:
        place = str(error)
    try:
        with root_lock(root) if root.is_dir() else contextlib.nullcontext():
            pass
    except RootBusyError as error:
        held_root = str(error)
    return Busy(gpu, place, held_root)


def read_host() -> HostFacts:
    """RAM within the container's limit, WSL, and how file names are spelled."""
    memory = psutil.virtual_memory()
    limit_bytes, used_bytes = _cgroup_memory_bytes()
    return HostFacts(
        is_wsl=is_wsl(),
        ram_bytes=min(memory.total, limit_bytes),
        available_bytes=max(0, min(memory.available, limit_bytes - used_bytes)),
        file_name_encoding=sys.getfilesystemencoding(),
    )


def read_places(options: Options, profile: Profile) -> tuple[Place, ...]:
    """The folders that a run writes into: models, the root's outputs, reports."""
    models = cache_dir() / "twins" if profile.uses_twin(options) else model_files.default_cache_dir()
    places = []
    for role, folder in (("models", models), ("pipeline", options.pipeline_root), ("reports", options.reports_dir)):
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        is_writable = os.access(nearest, os.W_OK | os.X_OK)
        places.append(Place(role, str(folder), model_files.free_disk_bytes(folder), is_writable))
    return tuple(places)


def read_model(options: Options, profile: Profile) -> ModelFacts:
    """The model that H-1 would choose now, by H-1's own choice; nothing is downloaded."""
    try:
        choice = hub.choose(
            (options.model,) if options.model else profile.model.candidates,
            hub.Hub(min(HUB_SECONDS, profile.limits.hub_request_seconds)),
            primary_count=profile.model.preferred,
            is_explicit=options.model is not None,
        )
    except hub.NoModelError as error:
        return ModelFacts(None, error.rejected)
    return ModelFacts(choice, choice.rejected)


def read_hub() -> HubFacts:
    """Ask the Hub of the environment (HF_ENDPOINT) who its token (HF_TOKEN, `hf auth login`) belongs to."""
    from huggingface_hub import constants, get_session, get_token

    endpoint = constants.ENDPOINT.rstrip("/")
    if hub.is_offline():
        return HubFacts(endpoint, is_offline=True)
    token = get_token()
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    try:
        answer = get_session().get(f"{endpoint}/api/whoami-v2", headers=headers, timeout=HUB_SECONDS)
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            answer.raise_for_status()
    except Exception as error:
        failure = classify(error, name="whoami", endpoint=endpoint, timeout_seconds=HUB_SECONDS)
        return HubFacts(endpoint, has_token=token is not None, error=str(failure.message))
    if token is None:
        return HubFacts(endpoint, has_token=False)
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        return HubFacts(endpoint, has_token=True, is_refused=True)
    try:
        name = str(parse_json(answer.text.encode())["name"])
    except (ValueError, KeyError, TypeError):
        name = None  # no answer of the Hub's: a mirror need not know the question
    return HubFacts(endpoint, has_token=True, user=name)


def _users(device: Device) -> Iterator[MemoryUser]:
    """The processes that hold this device's memory; none where the driver does not show them."""
    with contextlib.suppress(DeviceError):
        for pid, used_bytes in gpu.held_bytes_by_pid(device.uuid).items():
            name = "?"  # of another user, or outside this container
            with contextlib.suppress(psutil.Error):
                name = str(psutil.Process(pid).name())
            yield MemoryUser(pid, name, used_bytes)


def _cgroup_memory_bytes(folder: Path = _CGROUP) -> tuple[int, int]:
    """Limit and use of this control group (cgroup v2, as in a container); no limit: the largest number and 0.

    Use is `memory.current` less the file cache that the kernel can drop, as container runtimes count it.
    """
    try:
        limit_bytes = int((folder / "memory.max").read_text(encoding="ascii"))  # "max" where there is none
        used_bytes = int((folder / "memory.current").read_text(encoding="ascii"))
        statistics = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return sys.maxsize, 0
    droppable = (int(line.split()[1]) for line in statistics if line.startswith("inactive_file "))
    return limit_bytes, used_bytes - next(droppable, 0)
