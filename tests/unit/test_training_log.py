"""Which of a training's lines belong to the run that counts: repeated, printed again, tried again, cut."""

from __future__ import annotations

import pytest
from steph.contract.lines import parse_metrics
from steph.contract.training_files import read_log


def loss(step: int, *, of: int = 4) -> str:
    """A Trainer's line."""
    return f"{{'loss': '{2 / step:.4g}', 'grad_norm': '{1 / step:.4g}', 'epoch': '{step / of:.4g}'}}"


FINAL = "{'train_runtime': '9.0', 'train_loss': '1.0', 'epoch': '1'}"
RUN = [loss(step) for step in range(1, 5)]


@pytest.mark.parametrize(
    "prefix",
    ["[rank0]: ", "[default0]:", "0: ", "INFO:trainer:", "INFO ", "2026-01-01 12:00:00,123 - app - INFO - ",
     "(w pid=3) ", "[2026-01-01 12:00:00][INFO] ", "100%|████| 4/4 [00:01<00:00]", "app-1  | "],
)  # fmt: skip
def test_a_line_is_read_behind_what_loggers_and_launchers_put_before_it(prefix: str) -> None:
    """Rank tags, times, logger names, levels and progress bars hide no loss."""
    found = parse_metrics(prefix + RUN[0])
    assert found is not None
    assert found.get("loss") == 2.0


@pytest.mark.parametrize("text", ["{'loss': np.float64(2.0)}", '{"loss": 2.0}', "{'loss': tensor(2.0)}"])
def test_a_number_is_read_as_numpy_json_and_torch_write_it(text: str) -> None:
    """A callback that prints its dict as it is gives the same numbers."""
    found = parse_metrics(text)
    assert found is not None
    assert found.get("loss") == 2.0


@pytest.mark.parametrize(
    ("lines", "losses", "earlier", "has_final"),
    [
        ([*RUN, FINAL], 4, 0, True),
        ([line for line in RUN for _ in range(2)] + [FINAL], 4, 0, True),
        ([*RUN, FINAL, *RUN, FINAL], 4, 0, True),
        ([*RUN, FINAL, *RUN[-2:]], 4, 0, True),
        ([*RUN[:2], "RuntimeError: gone. Retrying", *RUN, FINAL], 4, 2, True),
        ([*RUN[:2], *RUN, FINAL], 4, 2, True),
        ([*RUN, "failed to save, once more", *RUN, FINAL], 4, 4, True),
        ([FINAL, *RUN], 4, 0, False),
        ([*RUN, "{'eval_loss': 1.0, 'epoch': 1.0}", FINAL], 4, 0, True),
        (["{'loss': 1.5}"] * 3, 3, 0, False),
        ([], 0, 0, False),
    ],
)
def test_only_the_last_run_counts_and_each_step_once(
    lines: list[str], losses: int, earlier: int, has_final: bool
) -> None:
    """What is printed again is one run; what was begun again is two, and a final line before the losses is none."""
    log = read_log("\n".join(lines))
    assert (len(log.losses), log.earlier, log.final is not None) == (losses, earlier, has_final)


def test_a_log_without_its_middle_is_one_run() -> None:
    """Of a long output the middle is cut; what is left goes on and does not begin anew."""
    log = read_log("\n".join([RUN[0], "[... 30000000 bytes cut ...]", RUN[3], FINAL]))
    assert [m.get("epoch") for m in log.losses] == [0.25, 1.0]
    assert log.earlier == 0
