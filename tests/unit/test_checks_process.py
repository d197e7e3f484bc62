"""What the machine says of an attempt: libraries and card, an emulated card's limit, and memory that came back."""

from __future__ import annotations

from pathlib import Path

import pytest
from steph.base.terms import Severity, StageId
from steph.base.units import GIB
from steph.contract.commands import Place, evaluate_call, needed_libraries, train_call
from steph.contract.description import Description
from steph.judge.checks_process import ProcessEvidence, machine_checks
from steph.record.settings import EvalSettings, TrainSettings
from steph.record.values import Check, Probe
from steph.run.gpu import memory_fraction_for_cap
from steph.run.journal import read_record

EXAMPLES = Path(__file__).parents[2] / "reports" / "examples"
ASKED = 0.1105  # 9.64 GiB emulated on a card of 80 GB
LAUNCHER = Probe(pid=1)  # imports torch and never touches a card


def on_card(fraction: float | None, rank: int | None = None) -> Probe:
    """A process that worked on a card, held to this share of it; None: its torch can't say."""
    return Probe(pid=2, rank=rank, device_uuid="GPU-0", peak_reserved_bytes=1 << 30, memory_fraction=fraction)


def found(check_id: str, evidence: ProcessEvidence) -> Check:
    """The check of this id."""
    return next(check for check in machine_checks(evidence, "") if check.id == check_id)


@pytest.mark.parametrize(
    ("probes", "holds"),
    [
        ((on_card(ASKED),), True),
        ((LAUNCHER, on_card(ASKED, rank=0), on_card(ASKED, rank=1)), True),
        ((on_card(ASKED + 5e-7),), True),
        ((on_card(0.95),), False),
        ((on_card(ASKED + 0.01),), False),
        ((on_card(ASKED, rank=0), on_card(0.95, rank=1)), False),
        ((on_card(None), on_card(0.95)), False),
        ((on_card(ASKED), on_card(None)), None),
        ((on_card(ASKED, rank=0), Probe(pid=3, rank=1)), None),
        ((LAUNCHER,), None),
        ((), None),
    ],
)
def test_the_cap_is_honoured_where_every_process_kept_to_the_fraction_that_was_asked(
    probes: tuple[Probe, ...], holds: bool | None
) -> None:
    """A share above the asked one, in any process, breaks the check; one that shows none leaves it unmeasured, red."""
    check = found("vram_cap_honoured", ProcessEvidence(1, probes, asked_fraction=ASKED))
    assert (check.holds, check.severity) == (holds, Severity.FAIL)


@pytest.mark.parametrize(("taken_gib", "holds"), [(None, True), (9.8, True), (9.9, False), (63.0, False)])
def test_a_cap_does_not_hold_what_other_libraries_take(taken_gib: float | None, holds: bool) -> None:
    """torch keeps to its fraction while JAX in the same process claims the rest of the card: no emulation at all."""
    taken = None if taken_gib is None else round(taken_gib * GIB)
    evidence = ProcessEvidence(1, (on_card(ASKED),), ASKED, round(9.64 * GIB), peak_own_bytes=taken)
    assert found("vram_cap_honoured", evidence).holds is holds


def test_a_cap_that_the_card_can_not_be_held_to_is_not_honoured() -> None:
    """A limit above the whole card emulates nothing, whatever torch says."""
    assert found("vram_cap_honoured", ProcessEvidence(1, (on_card(1.0),), asked_fraction=1.0)).holds is False


@pytest.mark.parametrize("returned", [True, False, None])
def test_memory_that_did_not_come_back_is_a_warning(returned: bool | None) -> None:
    """The check says what NVML saw after the end, also that it saw nothing."""
    check = found("memory_returned", ProcessEvidence(1, (), memory_returned=returned))
    assert (check.holds, check.severity) == (returned, Severity.WARN)


def test_without_a_card_and_without_a_cap_there_is_nothing_to_check() -> None:
    """On the CPU no check of the card is made; on a card without a cap none of the cap."""
    on_cpu = machine_checks(ProcessEvidence(1, (), asked_fraction=ASKED, on_gpu=False), "")
    assert [check.id for check in on_cpu] == ["no_process_left"]
    on_a_card = [check.id for check in machine_checks(ProcessEvidence(1, ()), "")]
    assert on_a_card == ["no_process_left", "gpu_used", "memory_returned"]


@pytest.mark.parametrize(
    ("evidence", "severity", "said"),
    [
        (ProcessEvidence(1, (), left_behind=("sleep (pid 7)",)), Severity.INFO, "sleep (pid 7)。すべて終わらせた"),
        (ProcessEvidence(1, (), left_behind=("x (pid 7)",), left_alive=1), Severity.WARN, "1 個は終わらせられない"),
        (ProcessEvidence(1, (), left_alive=1), Severity.WARN, "1 個は終わらせられない"),
        (
            ProcessEvidence(1, (), left_behind=("x (pid 7)",), written_late=("adapter_model.safetensors",)),
            Severity.FAIL,
            "プログラムの終了後に書かれたファイル: adapter_model.safetensors",
        ),
    ],
)
def test_a_process_that_is_left_behind_is_named_and_weighs_as_much_as_it_did(
    evidence: ProcessEvidence, severity: Severity, said: str
) -> None:
    """A note where it was ended, a warning where it lives on, a failure where it wrote the result after the end."""
    check = found("no_process_left", evidence)
    assert (check.holds, check.severity) == (False, severity)
    assert said in str(check.message)


# what a process leaves that asked for the card's name, or for its free memory, and then computed on the CPU
ASKED_ITS_NAME = Probe(
    pid=4, device_uuid="GPU-0", peak_allocated_bytes=0, peak_reserved_bytes=2 << 20, memory_fraction=1.0
)


@pytest.mark.parametrize(
    ("probes", "taken_gib", "holds"),
    [
        ((on_card(None),), 2.0, True),
        ((on_card(None),), None, True),
        ((LAUNCHER, on_card(None, rank=0)), 2.0, True),
        ((ASKED_ITS_NAME,), 63.0, False),
        ((ASKED_ITS_NAME, on_card(None)), 2.0, True),
        ((ASKED_ITS_NAME.model_copy(update={"peak_reserved_bytes": 39_845_888}),), 0.7, True),
        ((LAUNCHER,), 0.1, False),
        ((LAUNCHER,), None, False),
        ((), 0.1, False),
        ((LAUNCHER,), 2.0, True),
        ((), 2.0, True),
        ((), None, None),
        ((on_card(None).model_copy(update={"device_uuid": "GPU-9"}),), 2.0, False),
        ((on_card(None), on_card(None).model_copy(update={"device_uuid": "GPU-9"})), 2.0, False),
    ],
)
def test_a_stage_must_have_computed_on_the_card_that_it_was_given(
    probes: tuple[Probe, ...], taken_gib: float | None, holds: bool | None
) -> None:
    """A script that fell back to the CPU, or chose a larger card itself, says nothing of this one."""
    taken = None if taken_gib is None else int(taken_gib * 2**30)
    check = found("gpu_used", ProcessEvidence(1, probes, device_uuids=("GPU-0",), peak_own_bytes=taken))
    assert check.holds is holds
    assert check.severity is (Severity.INFO if holds is None else Severity.FAIL)


def test_a_slice_is_not_told_by_the_uuid_that_torch_gives() -> None:
    """Of a MIG slice torch may name the whole card; that is no other card."""
    evidence = ProcessEvidence(1, (on_card(None),), device_uuids=("MIG-1",))
    assert found("gpu_used", evidence).holds is True


@pytest.mark.parametrize(
    ("packages", "holds"),
    [
        (({"torch", "peft", "bitsandbytes"},), True),
        (({"torch", "peft"}, {"torch", "bitsandbytes"}), True),
        (({"torch", "transformers"},), False),
        (({"torch", "peft"},), False),
        ((), None),
    ],
)
def test_what_was_asked_needs_its_library_in_a_process(packages: tuple[set[str], ...], holds: bool | None) -> None:
    """Without peft no adapter was applied, without bitsandbytes nothing was loaded in 4 bits, whatever was printed."""
    probes = tuple(Probe(pid=n, packages=dict.fromkeys(names, "1")) for n, names in enumerate(packages))
    check = found("libraries_loaded", ProcessEvidence(1, probes, on_gpu=False, libraries=("peft", "bitsandbytes")))
    assert check.holds is holds
    assert check.severity is (Severity.INFO if holds is None else Severity.WARN)


def test_a_launchers_probe_does_not_speak_for_its_ranks() -> None:
    """torchrun imports torch and nothing else: where its ranks left no probe, their libraries are not known."""
    evidence = ProcessEvidence(2, (Probe(pid=1, packages={"torch": "1"}),), on_gpu=False, libraries=("peft",))
    assert found("libraries_loaded", evidence).holds is None


def test_the_commands_say_which_libraries_they_need() -> None:
    """Training needs peft, evaluation only with an adapter; 4-bit needs bitsandbytes."""
    described, train, evaluate = Description(), TrainSettings(), EvalSettings()
    half = train.model_copy(update={"use_4bit": False})
    place = Place(Path(), "python", on_gpu=True, train_file="rows.jsonl", dataset="d.json")
    commands = [
        train_call(described, place, "m", train, cap_steps=False).argv,
        train_call(described, place, "m", half, cap_steps=False).argv,
        evaluate_call(described, place, "m", evaluate, adapter="runs/x").argv,
        evaluate_call(described, place, "m", evaluate, adapter=None).argv,
        ("python", "-c", ""),
    ]
    assert [needed_libraries(argv) for argv in commands] == [
        ("peft", "bitsandbytes"), ("peft",), ("peft", "bitsandbytes"), ("bitsandbytes",), ()
    ]  # fmt: skip


ON_A_CARD = sorted({path.parents[1] for path in EXAMPLES.glob("*/runs/*/*/vram.txt")})


@pytest.mark.parametrize("folder", ON_A_CARD, ids=lambda folder: folder.parents[1].name)
def test_runs_of_a_real_card_hold(folder: Path) -> None:
    """The probes that torch left are the given card's, at the share that was asked, with what was needed."""
    record = read_record(folder)
    device, cap_bytes = record.context.environment.device, record.context.vram_cap_bytes
    assert device is not None
    asked = memory_fraction_for_cap(cap_bytes, device.total_bytes) if cap_bytes else None
    for stage in (StageId.H2, StageId.H3):
        for attempt in record.stages[stage].attempts:
            evidence = ProcessEvidence(
                ranks=1,
                probes=attempt.probes,
                asked_fraction=asked,
                memory_returned=attempt.memory_returned,
                device_uuids=(device.uuid,),
                peak_own_bytes=attempt.peak_own_bytes,
                libraries=needed_libraries(attempt.argv),
            )
            held = {check.id: check.holds for check in machine_checks(evidence, "")}
            assert held.pop("no_process_left")  # nobody counted them then
            looked_at = {"gpu_used", "memory_returned"}
            looked_at |= {"vram_cap_honoured"} if cap_bytes else set()
            looked_at |= {"libraries_loaded"} if needed_libraries(attempt.argv) else set()  # known of lawqa's flags
            assert held == dict.fromkeys(looked_at, True)
