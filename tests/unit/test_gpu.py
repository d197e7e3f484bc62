"""GPUs as NVML names them, CUDA_VISIBLE_DEVICES as CUDA reads it, and the cap for torch's allocator."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from fake_nvml import FakeNvml, Gpu, Running
from japanese import is_told_in_japanese
from steph.base.messages import speaking, words_of
from steph.base.units import GIB
from steph.record.values import DevicePeak
from steph.run import gpu
from steph.run.gpu import (
    DeviceError,
    capped_alloc_conf,
    has_nvidia_nodes,
    memory_fraction_for_cap,
)
from steph.run.runner import SLACK_BYTES, MemoryWatch, is_back

TWO_CARDS = FakeNvml(Gpu("GPU-aaaa-1"), Gpu("GPU-aabb-2"))
MIG_CARD = FakeNvml(Gpu("GPU-cc", slices=(None, Gpu("MIG-1", "A100 MIG 3g.20gb"), Gpu("MIG-2"), None)))
UseCards = Callable[[FakeNvml], ModuleType]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> UseCards:
    """Put an NVML over made-up cards in pynvml's place and give the module that asks it."""

    def put(nvml: FakeNvml) -> ModuleType:
        monkeypatch.setattr("steph.run.gpu._load", lambda: nvml)
        return gpu

    return put


def test_device_has_its_names_figures_and_versions(use: UseCards) -> None:
    """A card is listed with UUID, memory, driver and CUDA version and compute capability, and NVML is closed again."""
    nvml = FakeNvml(Gpu("GPU-aaaa-1"))
    (device,) = use(nvml).devices()
    assert (device.uuid, device.index, device.total_bytes, device.used_bytes) == ("GPU-aaaa-1", 0, 10 * GIB, GIB)
    assert (device.driver_version, device.cuda_driver_version, device.compute_capability) == (
        "580.65.06",
        "13.0",
        "8.6",
    )
    assert nvml.open == 0


def test_card_in_mig_mode_is_listed_as_its_slices(use: UseCards) -> None:
    """Each slice is a device of its own with its own UUID; the card around it, which no program can use, is not."""
    devices = use(MIG_CARD).devices()
    assert [(device.uuid, device.index, device.is_mig) for device in devices] == [
        ("MIG-1", 0, True),
        ("MIG-2", 0, True),
    ]


@pytest.mark.parametrize(
    ("code", "words"),
    [(12, "libnvidia-ml.so.1"), (9, "driver is not loaded"), (18, "reboot or reload the driver"), (77, "error 77")],
)
def test_each_nvml_error_is_one_line(use: UseCards, code: int, words: str) -> None:
    """What NVML can't do is told in one line with its number, a number without a line of its own too."""
    with pytest.raises(DeviceError) as caught:
        use(FakeNvml(failure=code)).devices()
    with speaking("en"):
        assert words in str(caught.value)
        assert f"NVML error {code}: " in str(caught.value)
    assert is_told_in_japanese(words_of(caught.value))
    assert "\n" not in str(caught.value)
    assert caught.value.code == code


def test_used_memory_is_read_by_uuid(use: UseCards) -> None:
    """A slice's used memory is its own, and an unknown UUID is an error, not a zero."""
    assert use(MIG_CARD).used_bytes("MIG-1") == GIB
    with pytest.raises(DeviceError, match="この UUID の GPU がない"):
        use(MIG_CARD).used_bytes("GPU-gone")


def test_hidden_process_memory_is_none_not_zero(use: UseCards) -> None:
    """Where the driver hides a process's memory the holder is still shown."""
    nvml = FakeNvml(Gpu("GPU-a", processes=(Running(41, 5 * GIB), Running(42, None))))
    assert use(nvml).held_bytes_by_pid("GPU-a") == {41: 5 * GIB, 42: None}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "GPU-aaaa-1 GPU-aabb-2"),
        ("", ""),
        ("1", "GPU-aabb-2"),
        ("1,0", "GPU-aabb-2 GPU-aaaa-1"),
        ("2", ""),
        ("1,2,0", "GPU-aabb-2"),
        ("-1", ""),
        ("-1,0", ""),
        ("1,1", "GPU-aabb-2"),
        ("GPU-aabb-2", "GPU-aabb-2"),
        ("GPU-aab", "GPU-aabb-2"),
        ("GPU-aa", ""),
        ("all", ""),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(use: UseCards, value: str | None, expected: str) -> None:
    """Indices, whole and shortened UUIDs choose cards in their order; an ambiguous or invalid entry ends the list."""
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    devices = use(TWO_CARDS).visible_devices(environ)
    assert " ".join(device.uuid for device in devices) == expected


def test_slice_is_chosen_by_its_own_uuid(use: UseCards) -> None:
    """CUDA_VISIBLE_DEVICES=MIG-… names one slice of a card."""
    (device,) = use(MIG_CARD).visible_devices({"CUDA_VISIBLE_DEVICES": "MIG-2"})
    assert device.uuid == "MIG-2"


@pytest.mark.parametrize(
    ("node", "expected"), [("nvidia0", True), ("dxg", True), ("nvidiactl", False), ("null", False)]
)
def test_gpu_nodes_are_seen_without_any_library(tmp_path: Path, node: str, expected: bool) -> None:
    """A card's own node or WSL2's paravirtual one means a GPU; the driver's control node alone does not."""
    (tmp_path / node).touch()
    assert has_nvidia_nodes(tmp_path) is expected


def test_cap_of_a_3080_leaves_its_allocator_8_8_gib() -> None:
    """9.64 GiB less the 0.84 GiB outside the allocator are 8.8 GiB, as a share of whatever card there is."""
    total = 80 * GIB
    fraction = memory_fraction_for_cap(int(9.64 * GIB), total)
    assert fraction * total / GIB == pytest.approx(8.8, abs=0.001)


def test_cap_below_the_context_is_refused_and_one_above_the_card_is_the_card() -> None:
    """A cap that leaves nothing is an error with the figures; more than the card can't be asked of the allocator."""
    with pytest.raises(ValueError, match=r"0\.50 GiB ではアロケータの分が残らない"):
        memory_fraction_for_cap(GIB // 2, 80 * GIB)
    assert memory_fraction_for_cap(90 * GIB, 80 * GIB) == 1.0


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        (None, "per_process_memory_fraction:0.110000"),
        ("", "per_process_memory_fraction:0.110000"),
        ("expandable_segments:True", "expandable_segments:True,per_process_memory_fraction:0.110000"),
        ("per_process_memory_fraction:0.9, a:1", "a:1,per_process_memory_fraction:0.110000"),
        (
            "roundup_power2_divisions:[256:1,512:2]",
            "roundup_power2_divisions:[256:1,512:2],per_process_memory_fraction:0.110000",
        ),
    ],
)
def test_fraction_joins_what_is_set(existing: str | None, expected: str) -> None:
    """The user's other settings stay, lists in brackets whole; an older fraction is replaced."""
    environ = {} if existing is None else {"PYTORCH_CUDA_ALLOC_CONF": existing}
    assert capped_alloc_conf(environ, 0.11) == {"PYTORCH_CUDA_ALLOC_CONF": expected}


def test_the_cap_is_under_every_name_that_torch_may_read() -> None:
    """What is set under the newer name keeps its place, and neither name leaves the cap out."""
    newer = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    capped = "per_process_memory_fraction:0.110000"
    assert capped_alloc_conf(newer, 0.11) == {
        "PYTORCH_ALLOC_CONF": f"expandable_segments:True,{capped}",
        "PYTORCH_CUDA_ALLOC_CONF": capped,
    }


def test_nvml_is_started_once_for_all_questions_of_a_session(use: UseCards) -> None:
    """Kept loaded, NVML has a user from the first question to the last, and none afterwards."""
    nvml = FakeNvml(Gpu("GPU-1"))
    with use(nvml).kept_open():
        assert nvml.open == 1
        use(nvml).devices()
        assert nvml.open == 1
    assert nvml.open == 0


def test_an_nvml_that_does_not_start_is_the_first_questions_affair(use: UseCards) -> None:
    """Keeping it loaded neither fails nor ends what was never started."""
    nvml = FakeNvml(failure=9)
    with use(nvml).kept_open(), pytest.raises(DeviceError, match="ドライバが読み込まれていない"):
        use(nvml).devices()
    assert nvml.open == 0


def test_several_cards_are_watched_together(use: UseCards) -> None:
    """The fullest card gives the figures over time, each card keeps its own peaks, and all must give memory back."""
    first, second = Gpu("GPU-a", used=GIB), Gpu("GPU-b", used=2 * GIB)
    nvml = FakeNvml(first, second)
    with contextlib.ExitStack() as stack:
        use(nvml)
        watch = MemoryWatch(("GPU-a", "GPU-b"), stack)
        first.used = 6 * GIB
        watch.sample(1.0)
        first.used, second.used = GIB, 4 * GIB
        watch.sample(2.0)
        assert watch.samples == [(1.0, 6 * GIB), (2.0, 4 * GIB)]
        assert (watch.now, watch.peak) == (4 * GIB, 6 * GIB)
        assert [peaks.peak_own_bytes for peaks in watch.device_peaks] == [5 * GIB, 2 * GIB]
        assert watch.returned(0.0) is False
        second.used = 2 * GIB + SLACK_BYTES
        assert watch.returned(0.0) is True
    assert nvml.open == 0


def test_what_others_on_the_card_take_meanwhile_is_not_the_childs(use: UseCards) -> None:
    """A process that was there before grows, hides its figure, and ends: the child's own peak is the child's alone."""
    card = Gpu("GPU-a", used=5 * GIB, processes=[Running(7, 4 * GIB)])
    with contextlib.ExitStack() as stack:
        use(FakeNvml(card))
        watch = MemoryWatch(("GPU-a",), stack)
        card.used, card.processes = 17 * GIB, [Running(7, 13 * GIB), Running(8, 3 * GIB)]
        watch.sample(1.0)
        card.used, card.processes = 7 * GIB, [Running(7, None), Running(8, 2 * GIB)]
        watch.sample(2.0)
        card.used, card.processes = 3 * GIB, [Running(8, 2 * GIB)]
        watch.sample(3.0)
        assert watch.samples == [(1.0, 17 * GIB), (2.0, 7 * GIB), (3.0, 3 * GIB)]
        assert watch.device_peaks == (
            DevicePeak(uuid="GPU-a", peak_device_bytes=17 * GIB, peak_own_bytes=3 * GIB, used_before_bytes=5 * GIB),
        )
        assert watch.returned(0.0) is False
        card.used, card.processes = 13 * GIB, [Running(7, 12 * GIB)]
        assert watch.returned(0.0) is True


def test_a_card_that_cannot_be_read_is_not_said_to_be_back(use: UseCards) -> None:
    """Without figures there are no samples and no peaks, and whether memory came back is unknown."""
    with contextlib.ExitStack() as stack:
        use(FakeNvml(Gpu("GPU-a")))
        watch = MemoryWatch(("GPU-gone",), stack)
        watch.sample(1.0)
        assert (watch.samples, watch.peak, watch.returned(0.0)) == ([], None, None)


def test_memory_that_comes_back_later_is_seen(use: UseCards) -> None:
    """What a child took is back when every card's use is at most what it was before, and unknown for a card unseen."""
    peaks = [DevicePeak(uuid=f"GPU-{name}", peak_device_bytes=6 * GIB, peak_own_bytes=5 * GIB) for name in "ab"]
    card, other = Gpu("GPU-a", used=GIB + SLACK_BYTES), Gpu("GPU-b", used=GIB + SLACK_BYTES + 1)
    use(FakeNvml(card))
    assert is_back(peaks[:1]) is True
    use(FakeNvml(card, other))
    assert is_back(peaks) is False
    use(FakeNvml(card))
    assert is_back(peaks) is None
    use(FakeNvml(card))
    assert is_back([DevicePeak(uuid="GPU-a")]) is None
    beside = DevicePeak(uuid="GPU-a", peak_device_bytes=9 * GIB, peak_own_bytes=5 * GIB, used_before_bytes=GIB)
    use(FakeNvml(card))
    assert is_back([beside]) is True
    card.used += 1
    use(FakeNvml(card))
    assert is_back([beside]) is False
    use(FakeNvml(card))
    assert is_back([]) is None
