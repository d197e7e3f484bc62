"""What a person sees while a child runs: one live line on a terminal, few lines in a log."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from steph.conduct.preparation import HEARTBEAT_SECONDS, LIVE_SECONDS, Console, progress_text
from steph.run.runner import Progress

GIB = 2**30


@dataclass
class Clock:
    """A clock that stands still until it is set."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (Progress(61.9), "1:01"),
        (Progress(3700, step=3, total_steps=50), "1:01:40  step 3/50"),
        (Progress(5, step=3), "0:05"),
        (Progress(5, step=290, total_steps=291, label="Loading weights"), "0:05  Loading weights 290/291"),
        (Progress(5, used_bytes=GIB, peak_bytes=round(2.25 * GIB)), "0:05  VRAM 1.00 GiB (peak 2.25 GiB)"),
        (Progress(5, used_bytes=GIB), "0:05"),
    ],
)
def test_only_what_is_known_is_shown(shown: Progress, text: str) -> None:
    """Elapsed time always, steps and memory each as a pair; a bar that isn't the training's has its own name."""
    assert progress_text(shown) == text


def test_a_line_can_be_said_once_and_no_more() -> None:
    """What several steps come upon alike is told by the first of them."""
    said: list[str] = []
    console = Console(said.append, False)
    for text in ("a", "b", "a"):
        console.line_once(text)
    assert said == ["a\n", "b\n"]


def test_a_terminal_has_one_line_that_is_written_over() -> None:
    """The live line is rewritten twice a second at most, and a whole line that follows leaves nothing of it."""
    said: list[str] = []
    clock = Clock()
    console = Console(said.append, is_terminal=True, clock=clock)
    console.progress("H-2", Progress(LIVE_SECONDS / 2))
    assert said == []
    console.progress("H-2", Progress(10, step=10, total_steps=50))
    console.progress("H-2", Progress(11))
    assert said == ["\rH-2  0:10  step 10/50"]
    clock.now += LIVE_SECONDS
    console.progress("H-2", Progress(11))
    assert said[1:] == ["\rH-2  0:11            "]
    console.line("H-2 PASS")
    console.line("next")
    assert said[2:] == ["\rH-2 PASS \n", "next\n"]


def test_a_log_has_a_line_now_and_then() -> None:
    """Nothing for a child that ends within the half minute, then one whole line each."""
    said: list[str] = []
    clock = Clock()
    console = Console(said.append, is_terminal=False, clock=clock)
    console.progress("H-2", Progress(HEARTBEAT_SECONDS - 1))
    assert said == []
    console.progress("H-2", Progress(HEARTBEAT_SECONDS))
    clock.now += HEARTBEAT_SECONDS - 1
    console.progress("H-2", Progress(2 * HEARTBEAT_SECONDS - 1))
    clock.now += 1
    console.transfer("H-1 m", GIB, 4 * GIB)
    assert said == ["H-2  0:30\n", "H-1 m  1.00 GiB of 4.00 GiB\n"]
