"""The tables of causes, cases and steps, and their words: each row earns its place and is found."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from string import Formatter

import pytest
from steph.base.messages import LANGUAGES, Language, catalog, placeholders
from steph.base.terms import Cause
from steph.diagnose import table
from steph.diagnose.advice import facts_of, words_of
from steph.diagnose.engine import diagnose
from steph.diagnose.figures import losses_of
from steph.diagnose.reader import chains_of, lines_of
from steph.diagnose.table import (
    Case,
    Program,
    Where,
    cases,
    common_settings,
    compiled,
    programs,
    row_of,
    signs,
    steps,
    triggers,
)

TESTS = Path(__file__).parent
SUITE = TESTS.parents[1] / "plugins" / "steph"
WORDINGS = [line.split("\t", 1) for line in (TESTS / "samples" / "wordings.tsv").read_text("utf-8").splitlines()[1:]]
FLAGS = facts_of("", losses_of(()), (), None)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("micro_batch_size: 4", "batch_size", 4),
        ("train.py --batch-size 2", "batch_size", 2),
        ("ds.py --train_batch_size 8", "batch_size", 8),
        ("train.py --max-seq-length 512", "length", 512),
        ("cutoff_len: 2048", "length", 2048),
        ("sequence_len: 4096", "length", 4096),
        ('"model_max_length": 1024', "length", 1024),
        ("max_seq_len=768", "length", 768),
        ("--block_size 256", "length", 256),
        ("unsloth/Qwen2.5-1.5B-bnb-4bit", "shown", {"four_bit_on"}),
        ("train.py --qlora", "shown", {"four_bit_on"}),
        ("train.py --use-4bit", "shown", {"four_bit_on"}),
        ("train.py --load_in_4bit", "shown", {"four_bit_on"}),
        ("Loading base model in 4-bit", "shown", {"four_bit_on"}),
        ("bitsandbytes.nn.modules.Params4bit", "shown", {"four_bit_on"}),
        ("(q_proj): Linear4bit(in_features=1024)", "shown", {"four_bit_on"}),
        ("Gradient checkpointing enabled", "shown", {"checkpointing_on"}),
        ("Unsloth: Will smartly offload gradients to save VRAM!", "shown", {"checkpointing_on"}),
        ("torchrun --nproc_per_node 2 train.py", "several_gpus", True),
        ("accelerate launch --num_processes 2 train.py", "several_gpus", True),
        ("HIP error on gfx1100", "card", "gfx1100"),
        ("/usr/lib/wsl/lib/libcuda.so.1", "shown", {"on_wsl"}),
        ("platform win32 -- Python 3.11", "shown", {"on_windows"}),
    ],
)
def test_a_program_says_its_settings_in_its_own_way(line: str, name: str, value: object) -> None:
    """Each spelling of a fact that advice reads, alone in a log."""
    assert getattr(facts_of(line, losses_of(()), (), None), name) == value
    assert getattr(FLAGS, name) != value


def alternatives(where: Where) -> list[tuple[str, str]]:
    """Each wording of causes.toml, with its cause."""
    rows = tomllib.loads((table.FOLDER / "causes.toml").read_text(encoding="utf-8"))
    filled = re.sub(r"<<(\w+)>>", lambda match: rows["words"][match[1]].replace("\\", "\\\\"), "")
    assert filled == ""
    return [(row["name"], one) for row in rows["cause"] for group in row.get(where, {}).values() for one in group]


@functools.cache
def sample_texts() -> tuple[str, ...]:
    """Every sample: logs, single wordings, and those of the cases."""
    logs = [path.read_text(encoding="utf-8") for path in (TESTS / "samples" / "failures").glob("*.txt")]
    return (*logs, *(text for _, text in WORDINGS), *(sample for case in cases() for sample in case.samples))


@functools.cache
def said(where: Where) -> frozenset[str]:
    """What the rows for exceptions or for lines are searched in, over all samples."""
    lines = [lines_of(text) for text in sample_texts()]
    if where == "printed":
        return frozenset(line.text for each in lines for line in each)
    chains = [chain for each in lines for chain in chains_of(each)]
    return frozenset(text[:8000] for chain in chains for raised in chain for text in raised.texts)


@pytest.mark.parametrize("where", ["raised", "printed"])
def test_every_wording_of_a_cause_has_a_sample(where: Where) -> None:
    """An alternative that no sample has may be misspelt for years: it gets one or goes."""
    shared = tomllib.loads((table.FOLDER / "causes.toml").read_text(encoding="utf-8"))["words"]
    unseen = []
    for cause, alternative in alternatives(where):
        pattern = compiled(re.sub(r"<<(\w+)>>", lambda match: shared[match[1]], alternative))
        assert not pattern.search(""), f"{cause}: {alternative} is in every text"
        if not any(pattern.search(text) for text in said(where)):
            unseen.append((cause, alternative))
    assert unseen == []


@pytest.mark.parametrize(("cause", "text"), WORDINGS, ids=[text[:60] for _, text in WORDINGS])
def test_a_wording_alone_tells_its_cause(cause: str, text: str) -> None:
    """One line as programs print it is enough."""
    assert diagnose(text, 1).cause.value == cause


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_a_case_is_found_in_its_samples(case: Case) -> None:
    """Each sample of a row is diagnosed as that row, and each of its patterns has one."""
    for sample in case.samples:
        found = diagnose(sample, 1)
        assert (found.cause, found.case) == (case.cause, case.id), sample
    for pattern in (*case.raised, *case.printed, *((case.log,) if case.log else ())):
        for part in _branches(pattern.pattern):
            assert any(re.search(part, sample, re.I | re.M) for sample in case.samples), part


def _branches(pattern: str) -> list[str]:
    """The alternatives at the top of a pattern."""
    parts, depth, start, in_class, at = [], 0, 0, False, 0
    while at < len(pattern):
        character = pattern[at]
        if character == "\\":
            at += 2
            continue
        in_class = character == "[" or (in_class and character != "]")
        depth += 0 if in_class else (character == "(") - (character == ")")
        if character == "|" and not depth and not in_class:
            parts.append(pattern[start:at])
            start = at + 1
        at += 1
    return [*parts, pattern[start:]]


def test_there_are_enough_cases_and_each_id_stands_once() -> None:
    """At least sixty forms whose fix is known, under ids that a record can keep."""
    ids = [case.id for case in cases()]
    assert len(ids) >= 60
    assert len(set(ids)) == len(ids)


def test_the_fast_path_misses_no_sample_line() -> None:
    """Every line that a wording fits holds one of the words that are looked for first."""
    matched = [line for line in said("printed") if table.first_match("printed", line)]
    assert len(matched) > 40
    assert [line for line in matched if not any(word in line.lower() for word in triggers())] == []


def test_rows_name_only_what_exists() -> None:
    """Steps, facts and settings that a row names are known."""
    known = _flag_names() | signs("shown").keys()
    for case in cases():
        assert set(case.steps) <= set(steps())
        assert set(case.facts) <= known
    for step in steps().values():
        assert {*step.when, *step.unless} <= known
    assert {one for cause in Cause if cause is not Cause.NONE for one in row_of(cause).get("steps", ())} <= set(steps())
    for program in programs():
        assert set(program.settings) <= set(common_settings())


def _flag_names() -> set[str]:
    """The names that `Facts.flags` can give, read from its source: which of them hold depends on a log."""
    tree = ast.parse((SUITE / "diagnose" / "advice.py").read_text(encoding="utf-8"))
    flags = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "flags")
    keys = [key for node in ast.walk(flags) if isinstance(node, ast.Dict) for key in node.keys]
    return {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_cause_and_case_has_a_meaning_and_a_next_step(language: Language) -> None:
    """Whatever fails, a person is told what it means and what to do, in whole sentences."""
    end = "。" if language == "ja" else "."
    rows = [(case.cause, case) for case in cases()] + [(cause, None) for cause in Cause if cause is not Cause.NONE]
    for cause, case in rows:
        words = words_of(cause, case, FLAGS)
        assert words.steps
        said = [sentence.text(language) for sentence in (words.meaning, *words.steps)]
        assert all(sentence.rstrip(")").endswith(end) for sentence in said), said


@pytest.mark.parametrize("language", LANGUAGES)
def test_braces_of_code_in_words_are_doubled(language: Language) -> None:
    """A dictionary such as {"": 0} would be taken for a placeholder, and lost."""
    for name, words in catalog(language).items():
        fields = [field for _, field, _, _ in Formatter().parse(words) if field is not None]
        assert all(field.isidentifier() for field in fields), name


@pytest.mark.parametrize("program", programs(), ids=lambda program: program.name)
def test_no_setting_is_named_that_a_program_lacks(program: Program) -> None:
    """Neither as nothing nor as another program's; a meaning, which is always told, names none of those."""
    facts = replace(FLAGS, program=program)
    lacking = {name for name, spelled in program.settings.items() if not spelled}
    for case in cases():
        assert not lacking & placeholders(catalog("en")[f"diagnose.case.{case.id}.means"]), case.id
        steps_told = words_of(case.cause, case, facts).steps
        assert steps_told
        empty = re.compile(r"  |\b[Ss]et [ .,]|\( ?[,)]")
        assert not any(empty.search(step.text("en").replace("()", "")) for step in steps_told), steps_told


@functools.cache
def all_placeholders() -> frozenset[str]:
    """Those of every message."""
    return frozenset(name for message in catalog("en").values() for name in placeholders(message))


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_no_placeholder_is_left_in_what_a_sample_is_told(case: Case) -> None:
    """A value that the log does not say leaves no trace."""
    names = all_placeholders()
    for sample in case.samples:
        found = diagnose(sample, 1)
        left = names.intersection(
            re.findall(
                r"\[(\w+)\]",
                "\n".join(one.text("en") for one in (*((found.meaning,) if found.meaning else ()), *found.advice)),
            )
        )
        assert left == set(), sample
