"""What a model may look at, what steers it, and whether its weights are the file's: the rules, case by case."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np  # noqa: F401 - the hooks find it where a library has loaded it
import pytest
from steph.base.files import matrix_numbers
from steph.base.fingerprint import fingerprints, text_hash
from steph.base.terms import Severity
from steph.child.inject._steph_witness import generation, tokens
from steph.contract.results import Row
from steph.contract.training_files import ADAPTER_CONFIG_NAME
from steph.judge.checks_seen import (
    answering_weight_checks,
    inputs_check,
    is_even,
    recorded_prompts_check,
    steering_check,
    trained_weight_checks,
)
from steph.judge.witness import Generation, TrainingEnds

PAD = 0
EYE = [[float(key <= query) for key in range(16)] for query in range(1, 16, 2)]  # what a causal mask lets each see


@pytest.mark.parametrize(
    ("ids", "mask", "hidden", "bare"),
    [
        ([0, 0, 0, 5, 6, 7], [0, 0, 0, 1, 1, 1], 0, 0),  # padded on the left
        ([5, 6, 7, 0, 0, 0], [1, 1, 1, 0, 0, 0], 0, 0),  # and on the right
        ([9, 9, 9, 5, 6, 7], [0, 0, 0, 1, 1, 1], 0, 0),  # by another token than the tokenizer names
        ([5, 0, 6, 7, 8, 4], [1, 0, 1, 1, 1, 1], 0, 0),  # an end token that is the pad token, hidden by its id
        ([5, 6, 7, 8, 9, 4], [0, 0, 0, 1, 1, 1], 2, 0),  # a prompt that is hidden; its first token may be padding
        ([5, 6, 7, 8, 9, 4], [1, 1, 0, 0, 1, 1], 2, 0),
        ([0, 0, 0, 5, 6, 7], [1, 1, 1, 1, 1, 1], 0, 3),
        ([0, 5, 6, 7, 8, 9], [1, 1, 1, 1, 1, 1], 0, 0),  # one alone may begin the row
        ([0, 0, 0, 5, 6, 7], [0, 0, 1, 1, 1, 1], 0, 0),  # behind padding as well
        ([0, 0, 0, 5, 6, 7], [0, 1, 1, 1, 1, 1], 0, 2),
    ],
)
def test_a_mask_hides_padding_and_nothing_else(ids: list[int], mask: list[int], hidden: int, bare: int) -> None:
    """Whatever the padding's side and token; a row's own tokens count, and so does padding that is read."""
    seen = tokens.attended([ids], [mask], None, PAD, reads_padding=False)
    assert (seen["hidden"], seen["bare_padding"]) == ([hidden], [bare])


class Cache:
    """Of transformers' kind, with so many tokens."""

    def __init__(self, length: int) -> None:
        self.length = length

    def get_seq_length(self) -> int:
        return self.length


def test_a_cache_is_held_against_what_itself_was_given() -> None:
    """Two chats may take turns, each with a cache of its own; one that still holds another question hides tokens."""
    one, other, fresh = Cache(5), Cache(4), Cache(3)
    known = generation._cached
    known[one], known[other] = [1, 2, 3, 4, 5], [1, 7, 8, 9]
    assert generation._stale_cache_tokens([[1, 2, 3, 4, 5, 6]], one) == 0
    assert generation._stale_cache_tokens([[1, 7, 8, 9, 6]], other) == 0
    assert generation._stale_cache_tokens([[1, 7, 8, 9, 6]], one) == 4
    one.length = 1  # cropped to what both begin with
    assert generation._stale_cache_tokens([[1, 7, 8, 9, 6]], one) == 0
    assert generation._stale_cache_tokens([[1, 2, 3, 4]], fresh) == 0
    assert generation._stale_cache_tokens([[1, 2, 3, 4]], ((0, 1),)) == 0


@pytest.mark.parametrize(
    ("places", "share"),
    [
        ([0, 1, 2, 3, 4, 5], 0.0),
        ([7, 8, 9, 10, 11, 12], 0.0),  # from a cache on
        ([0, 1, 2, 0, 1, 2], 0.0),  # two texts in a row
        ([0, 0, 0, 0, 0, 0], 1.0),
        ([5, 4, 3, 2, 1, 0], 0.6),
        ([0, 2, 4, 6, 8, 10], 1.0),
    ],
)
def test_positions_rise_one_by_one(places: list[int], share: float) -> None:
    """They may begin anywhere, and anew with each text of a packed row."""
    seen = tokens.attended([[5, 6, 7, 8, 9, 4]], None, [places], PAD, reads_padding=False)
    assert seen["misplaced"] == [share]


def _masked(change: Any) -> list[list[list[float]]]:  # noqa: ANN401
    return [[[change(query, key, EYE[n][key]) for key in range(16)] for n, query in enumerate(range(1, 16, 2))]]


@pytest.mark.parametrize(
    ("change", "hidden", "foreseen"),
    [
        (lambda query, key, seen: seen, False, False),
        (lambda query, key, seen: 0.0 if seen else -math.inf, False, False),  # to be added
        (lambda query, key, seen: float(seen and query - key < 4), False, False),  # a sliding window
        (lambda query, key, seen: float(seen and not key < 8 <= query), True, False),  # the answer without its prompt
        (lambda query, key, seen: 1.0, False, True),
    ],
    ids=["causal", "additive", "window", "prompt_hidden", "not_causal"],
)
def test_a_mask_for_each_position(change: Any, hidden: bool, foreseen: bool) -> None:  # noqa: ANN401
    """Every position sees all before it in its text, or a window of one width, and nothing after it."""
    found = tokens.of_queries([list(range(1, 17))], _masked(change), None, PAD, [(0, 16)])
    assert (found["hidden"][0] > 0, found["foreseen"][0] > 0) == (hidden, foreseen)


WIDTH = 16
END, TURN = 2, 3


def _hidden(sees: Any, ids: list[int], spans: tuple[int, int] = (0, WIDTH)) -> int:  # noqa: ANN401
    """Positions that lose some of their text, where every position's view is there."""
    queries = [[[float(key <= query and sees(query, key)) for key in range(WIDTH)] for query in range(WIDTH)]]
    return tokens.of_queries([ids], queries, None, PAD, [spans], ({END}, {END, TURN}))["hidden"][0]


@pytest.mark.parametrize(
    ("sees", "hidden"),
    [
        (lambda query, key: query - key < 4, 0),
        (lambda query, key: query - key < 15, 0),  # the last position alone loses the first token
        (lambda query, key: query not in (5, 7) or query - key <= 2, 2),
        (lambda query, key: query != 15 or query - key <= 2, 1),
        (lambda query, key: query < 8 or query - key < 4, 8),  # a window for the second half alone
        (lambda query, key: query - key < 4 or key == 4, 12),  # and one token that is older
        (lambda query, key: query - key not in (3, 4), 13),  # a hole
        (lambda query, key: query == key, 15),
    ],
    ids=["window", "wide", "two_cut", "last_cut", "half", "sink", "hole", "itself"],
)
def test_a_window_is_one_width_for_every_position(sees: Any, hidden: int) -> None:  # noqa: ANN401
    """What is older than it is hidden from all of them, and nothing else from any."""
    assert _hidden(sees, list(range(10, 10 + WIDTH))) == hidden
    padded = [PAD] * 3 + list(range(10, 7 + WIDTH))
    assert (_hidden(sees, padded, (3, WIDTH)) > 0) is (hidden > 0)


@pytest.mark.parametrize(
    ("ids", "hidden"),
    [
        ([10, 11, 12, 13, 14, 15, 16, END, 20, 21, 22, 23, 24, 25, 26, END], 0),
        ([10, 11, 12, 13, 14, 15, 16, 17, 10, 11, 22, 23, 24, 25, 26, 27], 0),  # no end, but it begins as the row does
        ([10, 11, 12, 13, 14, 15, 16, PAD, 10, 11, 22, 23, 24, 25, 26, PAD], 0),
        ([10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25], 8),  # an answer without its prompt
        ([TURN, 11, 12, 13, 14, 15, 16, END, TURN, 21, 22, 23, 24, 25, 26, END], 8),  # a turn without the one before
    ],
    ids=["end", "alike", "pad", "answer", "turn"],
)
def test_texts_that_are_packed_by_their_mask_alone(ids: list[int], hidden: int) -> None:
    """Positions that run on, and each text sees itself: behind an end, or where the row's beginning comes again."""
    assert _hidden(lambda query, key: (query < 8) == (key < 8), ids) == hidden


def test_packed_texts_see_themselves_alone() -> None:
    """What stands before a text in its row is none of its own."""
    places = [[*range(8), *range(8)]]
    queries = _masked(lambda query, key, seen: float(seen and (key < 8) == (query < 8)))
    assert tokens.of_queries([list(range(1, 17))], queries, places, PAD, [(0, 16)])["hidden"] == [0]


def _call(**values: Any) -> Generation:  # noqa: ANN401
    return Generation(at=1.0, rows=1, **values)


def test_how_hard_a_mask_weighs() -> None:
    """Most rows fail, a few warn, and what no fact shows is not measured."""
    assert inputs_check([_call(hidden=[3])]).severity is Severity.FAIL
    assert inputs_check([_call(hidden=[3]), *[_call(hidden=[0])] * 3]).severity is Severity.WARN
    assert inputs_check([_call()]).holds is None


@pytest.mark.parametrize(
    ("steering", "severity"),
    [
        ({}, None),
        ({"repetition_penalty": 1.1, "min_new_tokens": 1.0}, None),
        ({"repetition_penalty": 0.5}, Severity.WARN),
        ({"bad_words_ids": 4.0}, Severity.WARN),
        ({"sequence_bias": 1.0}, Severity.FAIL),
        ({"forced_bos_token_id": 5.0}, Severity.FAIL),
    ],
)
def test_what_steers_an_answer(steering: dict[str, float], severity: Severity | None) -> None:
    """A mild penalty is usual; words that are forced are no answer of the model's."""
    check = steering_check([_call(steering=steering)])
    assert (check.severity if check.holds is False else None) is severity


def test_who_chooses_among_labels_alone_forces_none() -> None:
    """Only where they vary and are not all right; a letter that is favoured is no limit."""
    limited = [_call(steering={"prefix_allowed_tokens_fn": 1.0})]
    assert steering_check(limited).severity is Severity.FAIL
    assert steering_check(limited, says_labels=True).severity is Severity.INFO
    assert steering_check([_call(steering={"sequence_bias": 1.0})], says_labels=True).severity is Severity.FAIL


PROMPT = "次の問いに答えなさい。\n一 条文を引用しないこと。\n二 記号だけで答えること。\n答え:"


@pytest.mark.parametrize(
    ("given", "holds"),
    [
        (f"system\n{PROMPT}\nassistant\n", True),
        (f"指示: {PROMPT} 以上", True),  # a template's text on the first and the last line
        (PROMPT.replace("引用", "弓用"), False),
        (PROMPT.replace("二 記号だけで答えること。\n", ""), False),
    ],
)
def test_a_prompt_is_what_is_written_of_it(given: str, holds: bool) -> None:
    """Each of its lines was given, whatever a template has around them."""
    row = Row(question="q", correct_answer="a", predicted_answer="a", is_correct=True, response="a", prompt=PROMPT)
    lines = [text_hash(line)[:8] for line in given.splitlines() if line.strip()]
    assert recorded_prompts_check([row], [(lines, fingerprints(given))]).holds is holds


ASKED = [f"問{n}の届出はいつまでに要りますか。\na {n}日前\nb {n + 20}日前" for n in range(1, 5)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize(
    ("given", "holds"),
    [
        ([f"{PROMPT}\n{one}" for one in ASKED], True),
        ([f"{PROMPT}\n{one}\n{PROMPT}\n{ASKED[(n - 2) % 3]}" for n, one in enumerate(ASKED[:3])], False),
        ([f"{PROMPT}\n{one}\n{PROMPT}\n{ASKED[3]}" for one in ASKED[:3]], True),  # an example that all have
    ],
    ids=["one question each", "another row's question beside it", "the same example in each"],
)
def test_another_rows_question_in_a_prompt_is_found(given: list[str], holds: bool, order: tuple[int, ...]) -> None:
    """Of three rows too, where each question stands in two of three prompts, whatever order they were asked in."""
    told = [
        Row(
            question="q",
            correct_answer="a",
            predicted_answer="a",
            is_correct=True,
            response="a",
            prompt=f"{PROMPT}\n{one}",
        )
        for one in ASKED[:3]
    ]
    seen = [([text_hash(line)[:8] for line in given[n].splitlines()], fingerprints(given[n])) for n in order]
    assert recorded_prompts_check(told, seen).holds is holds


def _file(folder: Path, dtype: str, values: dict[str, list[float]]) -> None:
    header, data = {}, b""
    for name, numbers in values.items():
        raw = struct.pack(f"<{len(numbers)}{'e' if dtype == 'F16' else 'f'}", *numbers)
        if dtype == "BF16":
            raw = b"".join(raw[n + 2 : n + 4] for n in range(0, len(raw), 4))
        header[name] = {"dtype": dtype, "shape": [len(numbers)], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
SHORT = "model.layers.0.self_attn.q_proj.lora_B"
NUMBERS = [0.5, -0.25, 0.125, 1.0]
NORM, SUM = math.sqrt(sum(one * one for one in NUMBERS)), sum(NUMBERS)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_numbers_of_a_file(tmp_path: Path, dtype: str) -> None:
    """Norm, sum and size of each tensor, whatever its type."""
    _file(tmp_path, dtype, {NAME: NUMBERS})
    norm, total, size = matrix_numbers(tmp_path / "adapter_model.safetensors")[NAME]
    assert size == 4
    assert [norm, total] == pytest.approx([NORM, SUM])


@pytest.mark.parametrize(
    ("seen", "holds"),
    [
        ({SHORT: (NORM, SUM, 4)}, True),
        ({SHORT: (NORM * 1.001, SUM * 0.999, 4)}, True),  # rounded when it was saved
        ({SHORT: (0.0, 0.0, 4)}, False),
        ({SHORT: (NORM, -SUM, 4)}, False),
        ({SHORT: (NORM, SUM, 8)}, False),
        ({SHORT: (NORM, SUM, 4), SHORT.replace(".0.", ".1."): (NORM, SUM, 4)}, False),
        ({SHORT.replace("q_proj", "v_proj"): (NORM, SUM, 4)}, False),
    ],
)
def test_memory_and_file_hold_the_same_matrices(
    tmp_path: Path, seen: dict[str, tuple[float, float, int]], holds: bool
) -> None:
    """At the end of a training and while it answers: names, sizes, norms and sums."""
    _file(tmp_path, "F32", {NAME: NUMBERS})
    ends = TrainingEnds(at=1.0, matrices=seen)
    assert trained_weight_checks(ends, tmp_path)[0].holds is holds
    call = _call(matrices=seen)
    assert answering_weight_checks([call], [call], tmp_path)[0].holds is holds


def test_an_adapter_that_was_begun_from_the_base_is_not_compared(tmp_path: Path) -> None:
    """PiSSA's matrices may be converted when they are saved; a long list of modules hides none of it."""
    _file(tmp_path, "F32", {NAME: NUMBERS})
    config = {"init_lora_weights": "pissa", "target_modules": ["model.layers.0.self_attn.q_proj"] * 60_000}
    (tmp_path / ADAPTER_CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
    assert trained_weight_checks(TrainingEnds(at=1.0, matrices={SHORT: (0.0, 0.0, 4)}), tmp_path)[0].holds is None


def test_matrices_of_one_number_are_told_from_those_of_one_size() -> None:
    """An optimizer's first step moves all numbers as far, but not all in one direction."""
    assert is_even({SHORT: (4.0, 16.0, 16)})
    assert not is_even({SHORT: (4.0, 2.0, 16)})
    assert not is_even({SHORT: (0.0, 0.0, 16)})
