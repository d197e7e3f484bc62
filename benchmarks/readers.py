"""How fast the suite reads what a pipeline printed, over text made to slow each reader down: MB/s, one line each.

`python -m benchmarks.readers [--megabytes 20] [--reader NAME] [--input NAME]`. No GPU, no torch. A reader whose rate
falls as the text grows has a pattern that reads a line again and again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from steph.base.text import StreamRedactor, redact_bytes
from steph.child.supervisor import Capture
from steph.contract.lines import (
    adapter_trouble_in,
    is_metrics,
    missing_weights_in,
    parse_evaluation,
    parse_metrics,
    split_lines,
    tracebacks_in,
)
from steph.diagnose.engine import diagnose, first_traceback
from steph.judge import reading
from steph.judge.reading import looping
from steph.run.runner import last_bar

MB = 10**6
RESPONSE_CHARS = 20_000  # one answer; what is longer is looked at no further
SLOWEST_SHARE = 0.1  # of a reader's rate on honest text: below it a line is marked


def _lines(unit: str, length: int, size: int) -> str:
    line = (unit * (length // len(unit) + 1))[:length]
    return f"{line}\n" * (size // (length + 1))


INPUTS: dict[str, Callable[[int], str]] = {
    "honest": lambda size: _lines("{'loss': '1.23', 'epoch': '0.5'}\nstep 3 of 50 took 1.2 s\n", 56, size),
    "1 KB lines without spaces": lambda size: _lines("a", 1000, size),
    "the same, words and marks": lambda size: _lines("aB3_x-y.z/", 1000, size),
    "digits": lambda size: _lines("0123456789", 1000, size),
    "Japanese without spaces": lambda size: _lines("回答は選択肢の中から正しいものを選ぶ", 1000, size),
    "spaces": lambda size: _lines(" ", 1000, size),
    "empty lines": lambda size: "\n" * size,
    "quotes and braces": lambda size: _lines("{'\"", 1000, size),
    "dict pairs": lambda size: _lines("{'a': '1', ", 1000, size),
    "bars": lambda size: _lines(" 50%|█████     | 1/2 [00:01<00:01,  1.00it/s]\r", 1000, size),
    "names of secrets": lambda size: _lines("token=", 1000, size),
    "words of failures": lambda size: _lines("CUDA error bitsandbytes NCCL NVML exit ", 1000, size),
    "exceptions": lambda size: _lines("Traceback (most recent call last)\nValueError: models--a\n", 56, size),
    "one line": lambda size: "a" * size,
    "one Japanese line": lambda size: "回答は" * (size // 3),
    "one line of secrets": lambda size: "token=" * (size // 6),
    "one line of dict pairs": lambda size: "{'a': '1', " * (size // 11),
}


def _read_lines(text: str) -> None:
    split_lines(text)
    missing_weights_in(text)
    adapter_trouble_in(text)
    tracebacks_in(text)


def _read_answers(text: str) -> None:
    for at in range(0, len(text), RESPONSE_CHARS):
        answer = text[at : at + RESPONSE_CHARS]
        looping(answer)
        reading.is_exception_text(answer)
        reading.reasoning_of(answer)
        for cot in (False, True):
            reading.strict_letter(answer, cot=cot)


def _read_failure(text: str) -> None:
    diagnose(text, 1)
    first_traceback(text)


def _read_progress(text: str) -> None:
    lines = text.split("\n")
    last_bar(lines)
    for line in lines:
        is_metrics(line)


def _redact(text: str) -> None:
    data = text.encode()
    redact_bytes(data)
    stream = StreamRedactor()
    for at in range(0, len(data), 65_536):
        stream.feed(data[at : at + 65_536])
    stream.flush()


def _capture(text: str) -> None:
    """Through a pipe to the disk, as a child's output goes."""
    data, poll = text.encode(), select.poll()
    with tempfile.TemporaryDirectory() as folder:
        capture = Capture(Path(folder), poll)
        end = os.dup(capture.stdout_end)
        capture.close_ends()
        writer = threading.Thread(target=_write_all, args=(end, data))
        writer.start()
        while writer.is_alive() or capture.is_waiting:
            ready = poll.poll(10)
            for fd, _ in ready:
                capture.pump(fd)
            capture.work(idle=not ready)
        capture.close()
        writer.join()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    with contextlib.closing(os.fdopen(fd, "wb", 0)) as pipe:
        while view:
            view = view[pipe.write(view[:65_536]) or 0 :]


READERS: dict[str, Callable[[str], None]] = {
    "lines": _read_lines,
    "metrics": lambda text: _drop(tuple(map(parse_metrics, split_lines(text)))),
    "evaluation": lambda text: _drop(parse_evaluation(text)),
    "answers": _read_answers,
    "diagnose": _read_failure,
    "progress": _read_progress,
    "redaction": _redact,
    "capture": _capture,
}


def _drop(_: object) -> None:
    """Take a result that is not needed."""


def rate(reader: Callable[[str], None], text: str) -> float:
    """MB of UTF-8 a second."""
    started = time.perf_counter()
    reader(text)
    return len(text.encode()) / MB / max(time.perf_counter() - started, 1e-9)


def main() -> None:
    """Print a table: inputs down, readers across, MB/s."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--reader", choices=READERS, action="append")
    parser.add_argument("--input", choices=INPUTS, action="append")
    asked = parser.parse_args()
    readers = asked.reader or list(READERS)
    print(f"MB/s over {asked.megabytes:g} MB; * is under {SLOWEST_SHARE:.0%} of the same reader's rate on honest text")
    print(f"{'':28}" + "".join(f"{name:>12}" for name in readers))
    honest = {name: rate(READERS[name], INPUTS["honest"](int(MB))) for name in readers}
    for name in asked.input or INPUTS:
        made = INPUTS[name](int(asked.megabytes * MB))
        text = made.encode()[: int(asked.megabytes * MB)].decode(errors="ignore")
        print(f"{name:28}", end="", flush=True)
        for reader in readers:
            found = rate(READERS[reader], text)
            print(f"{found:>11.1f}{'*' if found < SLOWEST_SHARE * honest[reader] else ' '}", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
