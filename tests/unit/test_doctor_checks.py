"""The doctor's checks on made-up facts: every row of its table, and what is no trouble."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import record_factory as factory
from japanese import JAPANESE, english_in
from steph.base.messages import Language, say, speaking, verbatim
from steph.base.terms import Cause
from steph.contract.options import Options
from steph.contract.settings import builtin_profiles, load_profile
from steph.doctor import checks
from steph.doctor.checks import CATALOG
from steph.doctor.facts import (
    CERTAIN,
    Busy,
    Checkup,
    FourBitStep,
    GpuFacts,
    HostFacts,
    HubFacts,
    Level,
    LibrariesStep,
    Line,
    MemoryUser,
    ModelFacts,
    Needs,
    Place,
    ProductStep,
    PythonStep,
    RootFacts,
    TorchStep,
    needs_of,
)
from steph.doctor.reading import NOT_STARTED
from steph.record.values import RejectedCandidate

GIB = 1 << 30
CARD = factory.device()
PYTHON = "/home/user/steph/.venv/bin/python"
PACKAGES: dict[str, str | None] = {
    "torch": "2.13.0+cu130",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "numpy": "2.4.6",
}
SOUND = Checkup(
    python=PythonStep(version="3.11.9", packages=PACKAGES, bnb_cuda_libraries=("126", "130"), conflicts=()),
    torch=TorchStep(
        version="2.13.0+cu130",
        cuda="13.0",
        architectures=("sm_75", "sm_80", "sm_86", "compute_120"),
        is_available=True,
        device_name=CARD.name,
    ),
    product=ProductStep(relative_error=0.002),
    libraries=LibrariesStep(),
    four_bit=FourBitStep(dequantised_error=0.092, forward_error=0.002, backward_error=0.002, single_row_error=0.002),
)
REJECTED = RejectedCandidate(
    name="Qwen/Qwen1.5-1.8B-Chat", cause=Cause.DISK_FULL, message=verbatim("the download needs 3 GiB")
)


@pytest.fixture(autouse=True)
def english() -> Iterator[None]:
    """The words that these tests look for are English ones, unless a test asks for another language."""
    with speaking("en"):
        yield


def options(**changes: object) -> Options:
    """What a person asks for without any option."""
    fields: dict[str, object] = {
        "profile": "rtx3080",
        "pipeline_root": Path("/home/user/pipeline"),
        "pipeline_python": None,
        "model": None,
        "twin": False,
        "vram_cap_bytes": None,
        "report": Path("/home/user/reports"),
    }
    return Options(**(fields | changes))  # type: ignore[arg-type]


def needs(profile: str = "rtx3080", **changes: object) -> Needs:
    """The needs of a profile that comes with the suite."""
    return needs_of(options(**changes), load_profile(builtin_profiles() / f"{profile}.toml"))


def host(**changes: object) -> HostFacts:
    """A machine with 32 GiB, no WSL, UTF-8."""
    return HostFacts(**({
        "is_wsl": False, "ram_bytes": 32 * GIB, "available_bytes": 28 * GIB, "file_name_encoding": "utf-8"
    } | changes))  # type: ignore[arg-type]  # fmt: skip


def place(role: str = "models", free_gib: float = 100, *, is_writable: bool = True) -> Place:
    """A folder on a disk."""
    return Place(role, f"/home/user/{role}", int(free_gib * GIB), is_writable)


def checkup(**changes: object) -> Checkup:
    """The sound checkup with other steps."""
    return SOUND.model_copy(update=changes)


def torch(**changes: object) -> TorchStep:
    """The sound torch with other facts."""
    assert SOUND.torch is not None
    return SOUND.torch.model_copy(update=changes)


def python(**changes: object) -> PythonStep:
    """The sound interpreter with other facts."""
    assert SOUND.python is not None
    return SOUND.python.model_copy(update=changes)


def card(**changes: object) -> GpuFacts:
    """A GPU with other facts about it."""
    return GpuFacts(has_nodes=True, count=1, device=CARD.model_copy(update=changes))


def memory(used_gib: float, needed: Needs) -> Line:
    """The memory's line where so much is in use."""
    device = CARD.model_copy(update={"used_bytes": int(used_gib * GIB)})
    return checks.check_memory(device, (MemoryUser(4321, "python", int(used_gib * GIB)),), needed)


def package_line(found: Checkup, needed: Needs | None = None) -> Line:
    """The one line about the packages."""
    (line,) = checks.check_packages(found, needed or needs())
    return line


def torch_line(found: Checkup) -> Line:
    """torch's line on the card."""
    return checks.check_torch(found, needs(), CARD)


def gone(step: str, returncode: int | None) -> Checkup:
    """A checkup that came as far as before this step and ended so (None: at its deadline)."""
    later = ("torch", "product", "libraries", "four_bit")
    missing = dict.fromkeys(later[later.index(step) :]) if step in later else dict.fromkeys(("python", *later))
    return checkup(**missing, returncode=returncode, said="Killed")


ROOT = RootFacts("/home/user/pipeline", python=PYTHON)
FULL_PLACES = (place("pipeline", 0.5), place("reports"))
LOCKED_PLACES = (place("pipeline"), place("reports", is_writable=False))
WRONG = FourBitStep(dequantised_error=1.0, forward_error=0.0, backward_error=0.0, single_row_error=0.0)
# every trouble of the table (`check.key`) and facts that lead to it; `unread` where a check itself decides it
CASES: dict[str, Callable[[], Line]] = {
    "pipeline.refused": lambda: checks.check_pipeline(RootFacts("/r", error="/r: missing script")),
    "busy.gpu": lambda: checks.check_busy(Busy(gpu=str(say("lock.gpu", uuid="GPU-1", who=say("lock.process"))))),
    "busy.place": lambda: checks.check_busy(Busy(place=str(say("lock.no_home", error="none")))),
    "busy.root": lambda: checks.check_busy(Busy(root=str(say("lock.root", root="/r", who=say("lock.run"))))),
    "driver.absent": lambda: checks.check_driver(GpuFacts(has_nodes=False)),
    "driver.refuses": lambda: checks.check_driver(GpuFacts(has_nodes=True, error="NVML error 18: versions differ")),
    "card.hidden": lambda: checks.check_card(GpuFacts(has_nodes=True, count=2, visible="7")),
    "memory.short": lambda: memory(9.5, needs()),
    "memory.held": lambda: memory(2.0, needs()),
    "bf16.emulated": lambda: checks.check_bf16(CARD.model_copy(update={"compute_capability": "7.5"}), needs()),
    "bf16.unknown": lambda: checks.check_bf16(CARD.model_copy(update={"compute_capability": None}), needs()),
    "wsl.spills": lambda: checks.check_wsl(host(is_wsl=True)),
    "ram.short": lambda: checks.check_ram(host(available_bytes=2 * GIB), needs()),
    "locale.ascii": lambda: checks.check_locale(host(), "ANSI_X3.4-1968"),
    "disk-model.short": lambda: checks.check_disk_model(place(free_gib=4), ModelFacts(factory.model_choice()), needs()),
    "disk-model.twin-short": lambda: checks.check_disk_model(place(free_gib=1), None, needs(twin=True)),
    "disk-model.twin-readonly": lambda: checks.check_disk_model(place(is_writable=False), None, needs(twin=True)),
    "disk-model.readonly": lambda: checks.check_disk_model(place(is_writable=False), None, needs()),
    "disk-output.short": lambda: checks.check_disk_output(FULL_PLACES, needs()),
    "disk-output.readonly": lambda: checks.check_disk_output(LOCKED_PLACES, needs()),
    "hub.offline": lambda: checks.check_hub(HubFacts("https://huggingface.co", is_offline=True)),
    "hub.unreachable": lambda: checks.check_hub(HubFacts("https://huggingface.co", error="no network")),
    "hub.refused": lambda: checks.check_hub(HubFacts("https://huggingface.co", has_token=True, is_refused=True)),
    "model.none": lambda: checks.check_model(ModelFacts(None, (REJECTED,))),
    "model.substitute": lambda: checks.check_model(
        ModelFacts(factory.model_choice("Qwen/Qwen3-1.7B", automatic_substitute=True), (REJECTED,))
    ),
    "model.unconfirmed": lambda: checks.check_model(
        ModelFacts(factory.model_choice(source="cache", reason=say("model.local")))
    ),
    "python.missing": lambda: checks.check_python(RootFacts("/r", python_error="/p: no such interpreter"), None),
    "python.broken": lambda: checks.check_python(ROOT, gone("python", NOT_STARTED)),
    "python.silent": lambda: checks.check_python(ROOT, gone("python", 3)),
    "python.unread": lambda: checks.check_python(ROOT, gone("python", None)),
    "packages.missing": lambda: package_line(checkup(python=python(packages={**PACKAGES, "peft": None}))),
    "packages.conflict": lambda: package_line(checkup(python=python(conflicts=(("peft 1", "torch<2", "2.13.0"),)))),
    "packages.import": lambda: package_line(checkup(libraries=LibrariesStep(error="ImportError: x"))),
    "packages.unavailable": lambda: package_line(checkup(libraries=LibrariesStep(unavailable=("bitsandbytes",)))),
    "packages.arguments": lambda: package_line(
        checkup(libraries=LibrariesStep(unknown_arguments=("Trainer(tokenizer=)",)))
    ),
    "packages.bnb-cuda": lambda: package_line(checkup(python=python(bnb_cuda_libraries=("118", "126")))),
    "packages.numpy": lambda: package_line(checkup(torch=torch(numpy_error="RuntimeError: Numpy is not available"))),
    "packages.cap": lambda: package_line(checkup(torch=torch(version="2.9.1+cu130")), needs(vram_cap_bytes=8 * GIB)),
    "packages.unread": lambda: package_line(gone("libraries", None)),
    "packages.crashed": lambda: package_line(gone("libraries", -11)),
    "torch.import": lambda: torch_line(checkup(torch=TorchStep(error="ModuleNotFoundError: No module named 'torch'"))),
    "torch.cpu-build": lambda: torch_line(checkup(torch=torch(cuda=None, is_available=False))),
    "torch.driver": lambda: torch_line(checkup(torch=torch(cuda="14.0", is_available=False, said=("too old",)))),
    "torch.blind": lambda: torch_line(checkup(torch=torch(is_available=False, said=("CUDA unknown error",)))),
    "torch.kernels": lambda: torch_line(
        checkup(torch=torch(architectures=("sm_90",)), product=ProductStep(error="no kernel image is available"))
    ),
    "torch.product": lambda: torch_line(checkup(product=ProductStep(error="CUDA error: out of memory"))),
    "torch.wrong": lambda: torch_line(checkup(product=ProductStep(relative_error=float("inf")))),
    "torch.unread": lambda: torch_line(gone("torch", None)),
    "torch.crashed": lambda: torch_line(gone("product", -6)),
    "4-bit.fails": lambda: checks.check_four_bit(checkup(four_bit=FourBitStep(error="RuntimeError: CUDA SETUP"))),
    "4-bit.wrong": lambda: checks.check_four_bit(checkup(four_bit=WRONG)),
    "4-bit.crashed": lambda: checks.check_four_bit(gone("four_bit", -6)),
    "4-bit.unread": lambda: checks.check_four_bit(gone("four_bit", None)),
}
# of the cases: what other programs said, commands, and terms that Japanese writes so, too
VERBATIM = (
    "missing script",
    "versions differ",
    "no network",
    "the download needs",
    "no such interpreter",
    "Numpy is not available",
    "No module named",
    "too old",
    "unknown error",
    "no kernel image is available",
    "out of memory",
    "compute capability",
    "--steph-profile cpu",
    "hf cache ls",
    "hf cache rm",
    "hf auth login",
    "make setup",
    "pip check",
    "pip install",
    "--force-reinstall torch",
    "--index-url https",
    "--gpus all",
)
ASKED = {f"{kind.id}.unread" for kind in CATALOG} - set(CASES)  # decided where the question is asked


@pytest.mark.parametrize("name", CASES)
def test_facts_lead_to_the_trouble_with_its_level_and_remedy(name: str) -> None:
    """Each row of the table is reached by facts that mean it, and its line has that row's level and remedy."""
    check, _, key = name.partition(".")
    line = CASES[name]()
    kind = {kind.id: kind for kind in CATALOG}[check]
    assert line == kind.trouble(key, line.message)
    assert line.level in (Level.WARN, Level.FAIL)
    assert line.message
    assert line.remedy


def test_every_row_of_the_table_has_facts_that_lead_to_it() -> None:
    """No trouble stands in the table, and so in the documentation, that nothing can lead to."""
    rows = {f"{kind.id}.{key}" for kind in CATALOG for key in kind.troubles}
    assert rows - ASKED == set(CASES)


def sound_lines() -> list[Line]:
    """Every check's line on a healthy 3080 with a sound interpreter."""
    model = ModelFacts(factory.model_choice())
    return [
        checks.check_pipeline(ROOT),
        checks.check_busy(Busy()),
        checks.check_driver(card()),
        checks.check_card(card()),
        checks.check_memory(CARD, (), needs()),
        checks.check_bf16(CARD, needs()),
        checks.check_ram(host(), needs()),
        checks.check_locale(host(), "UTF-8"),
        checks.check_disk_model(place(), model, needs()),
        checks.check_disk_output((place("pipeline"), place("reports")), needs()),
        checks.check_hub(HubFacts("https://huggingface.co", has_token=True, user="me")),
        checks.check_model(model),
        checks.check_python(ROOT, SOUND),
        *checks.check_packages(SOUND, needs()),
        torch_line(SOUND),
        checks.check_four_bit(SOUND),
    ]


def test_sound_facts_are_ok_in_every_check() -> None:
    """A healthy 3080 with a sound interpreter has no trouble at all."""
    assert [line for line in sound_lines() if line.level is not Level.OK] == []


@pytest.mark.parametrize("chosen", ["ja", "en"])
def test_every_line_and_remedy_is_in_one_language(chosen: Language) -> None:
    """Japanese holds no English but names, commands and what other programs said; English holds no Japanese."""
    with speaking(chosen):
        told = [*sound_lines(), *(case() for case in CASES.values())]
    if chosen == "en":
        assert [line for line in told if JAPANESE.search(line.message + line.remedy)] == []
    else:
        assert [found for line in told if (found := english_in(f"{line.message} / {line.remedy}", VERBATIM))] == []
        assert [line.check for line in told if line.remedy and not JAPANESE.search(line.remedy)] == []


def test_commands_and_options_of_the_table_are_the_same_in_both_languages() -> None:
    """What a person types is no matter of language."""
    typed = re.compile(r"`[^`]+`|--[a-z][\w-]*|\b[A-Z]+_[A-Z_]+\b")
    for kind in CATALOG:
        for key in ("looks_at", *(f"{row}.{part}" for row in kind.troubles for part in ("when", "remedy"))):
            japanese, english = (set(typed.findall(kind.words(key, one))) for one in ("ja", "en"))
            assert japanese == english, (kind.id, key)


def test_only_what_no_run_survives_is_certain() -> None:
    """A failing 4-bit layer, a silent Hub or a full disk does not count as certain: the suite measures those itself."""
    certain = {f"{kind.id}.{key}" for kind in CATALOG for key, weight in kind.troubles.items() if weight is CERTAIN}
    assert {name.partition(".")[0] for name in certain} == {"pipeline", "busy", "driver", "card", "python", "torch"}
    assert not certain & {
        "torch.product",
        "torch.kernels",
        "torch.crashed",
        "driver.unread",
        "torch.unread",
        "python.silent",
    }


def test_a_mig_slice_is_named_with_its_own_size() -> None:
    """The card's line gives the slice's real memory, not the whole card's name-plate."""
    line = checks.check_card(card(is_mig=True, total_bytes=int(19.5 * GIB), name="NVIDIA A100-SXM4-40GB MIG 3g.20gb"))
    assert "MIG slice of 19.50 GiB" in line.message


def test_memory_names_who_holds_it_also_where_the_driver_hides_how_much() -> None:
    """Pid and name of each process are there; a hidden figure is left out."""
    users = (MemoryUser(7, "Xorg", None), MemoryUser(9, "python", 3 * GIB))
    device = CARD.model_copy(update={"used_bytes": 4 * GIB})
    assert "held by pid 7 Xorg, pid 9 python 3.00 GiB" in checks.check_memory(device, users, needs()).message


def test_under_a_cap_only_the_capped_memory_must_be_free() -> None:
    """10 GiB in use on an 80 GiB card leave a capped 9.64 GiB whole."""
    big = CARD.model_copy(update={"total_bytes": 80 * GIB, "used_bytes": 10 * GIB})
    capped = needs(vram_cap_bytes=int(9.64 * GIB))
    assert checks.check_memory(big, (), capped).level is Level.OK
    assert checks.check_memory(big, (), needs()).level is Level.WARN


def test_a_profile_that_computes_in_fp16_needs_no_bf16() -> None:
    """A Turing card is no trouble for a profile that does not ask for bf16."""
    turing = CARD.model_copy(update={"compute_capability": "7.5"})
    profile = load_profile(builtin_profiles() / "rtx3080.toml")
    train = profile.train.model_copy(update={"bnb_4bit_compute_dtype": "float16"})
    asked = needs_of(options(), profile.model_copy(update={"train": train}))
    assert checks.check_bf16(turing, asked).level is Level.OK


def test_a_model_that_is_here_needs_no_disk() -> None:
    """A whole copy on a full disk is no trouble; the same disk is too small for a download."""
    here = ModelFacts(factory.model_choice(download_bytes=0))
    assert checks.check_disk_model(place(free_gib=1), here, needs()).level is Level.OK
    assert checks.check_disk_model(place(free_gib=1), None, needs()).level is Level.FAIL


def test_a_candidate_refused_for_its_size_is_told_in_h1s_own_words() -> None:
    """Where H-1 would pass over a candidate for want of disk, the disk's line says so."""
    facts = ModelFacts(factory.model_choice("Qwen/Qwen3-1.7B", automatic_substitute=True), (REJECTED,))
    line = checks.check_disk_model(place(), facts, needs())
    assert line.level is Level.FAIL
    assert str(REJECTED.message) in str(line.message)


def test_candidates_of_one_reason_are_named_together() -> None:
    """Five candidates behind one dead network are one sentence."""
    dead = [RejectedCandidate(name=name, cause=Cause.HUB_UNREACHABLE, message=verbatim("no network")) for name in "abc"]
    assert checks.check_model(ModelFacts(None, tuple(dead))).message == "a, b, c: no network"


def test_several_package_troubles_are_a_line_each() -> None:
    """What is missing and what conflicts have remedies of their own, so they are two lines."""
    bad = python(packages={**PACKAGES, "bitsandbytes": None}, conflicts=(("peft 1", "torch<2", "2.13.0"),))
    assert len(list(checks.check_packages(checkup(python=bad), needs()))) == 2


def test_where_torch_is_missing_only_its_own_line_says_so() -> None:
    """The libraries that fail for want of torch add no second line about it."""
    found = checkup(torch=TorchStep(error="no torch"), libraries=LibrariesStep(error="no torch"))
    assert package_line(found).level is Level.OK


def test_a_card_that_works_despite_its_architectures_is_ok() -> None:
    """What was measured counts: a product that comes out right needs no matching entry in torch's list."""
    assert torch_line(checkup(torch=torch(architectures=("sm_90",)))).level is Level.OK


def test_on_the_cpu_a_cpu_build_is_ok() -> None:
    """The rehearsal's torch needs no CUDA."""
    found = checkup(torch=torch(cuda=None, is_available=False))
    assert checks.check_torch(found, needs("cpu"), None).level is Level.OK


def test_without_a_card_torch_is_judged_by_its_build_alone() -> None:
    """Where the driver does not answer, a CUDA build that sees no card is not torch's trouble."""
    found = checkup(torch=torch(is_available=False), product=None, libraries=None, four_bit=None)
    assert checks.check_torch(found, needs(), None).level is Level.OK


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("sm_80", (8, 6), True),
        ("sm_86", (8, 0), False),
        ("sm_80", (9, 0), False),
        ("compute_80", (9, 0), True),
        ("compute_90", (8, 6), False),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (9, 1), False),
        ("sm_120", (12, 1), True),
        ("gfx90a", (9, 0), False),
        ("", (8, 6), False),
    ],
)
def test_kernels_run_where_cuda_says_so(architectures: str, capability: tuple[int, int], expected: bool) -> None:
    """Binary code within its major version upwards, PTX upwards, lettered names on their own card only."""
    assert checks.has_kernels(architectures.split(), capability) is expected


def test_a_lines_message_is_one_short_line_without_secrets() -> None:
    """Words of other programs lose line feeds, tokens and all that is too long to read."""
    hub = HubFacts("https://huggingface.co", error="Bearer hf_abcdefghij0123456789\nno\n" + "x" * 1000)
    line = checks.check_hub(hub)
    assert "hf_abcdefghij" not in line.message
    assert "\n" not in line.message
    assert len(line.message) <= 300


def test_the_needs_follow_from_the_first_and_the_smallest_candidate() -> None:
    """Weights are the first candidate's at two bytes a parameter; at least loaded must be the smallest one in 4-bit."""
    asked = needs()
    assert asked.weights_bytes == 2 * 1_836_828_672
    assert asked.loaded_bytes is not None
    assert 1.5 * GIB < asked.loaded_bytes < 2.5 * GIB
    assert needs(model="someone/unknown").loaded_bytes is None
    assert 1 * GIB < asked.output_bytes < 3 * GIB
