"""What the documents promise: their links lead somewhere, and their commands can be typed as they stand."""

from __future__ import annotations

import importlib.util
import re
import shlex
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from steph.cli import app
from steph.contract.options import OPTIONS, REPLACED
from typer.testing import CliRunner

CLONE = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "pipeline/**/*.md", "reports/examples/README*.md")
    for path in CLONE.glob(pattern)
    if not {"runs", "results", ".venv"} & set(path.relative_to(CLONE).parts)
)
NAMES = [str(path.relative_to(CLONE)) for path in DOCUMENTS]
PAGE_COLUMNS = 90  # what GitHub's narrower page shows without scrolling
FOR_CONTRIBUTORS = ("CONTRIBUTING.md", "CHANGELOG.md")  # read in an editor
OWN_OPTIONS = {option.flag for option in OPTIONS}
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
_LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]+)?\)")


def anchors(text: str) -> set[str]:
    """A heading's anchor as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(word: str) -> Iterator[tuple[str, list[str]]]:
    """Every line of a shell block that begins with this word: its document and its words, without the remark."""
    for name, path in zip(NAMES, DOCUMENTS, strict=True):
        for block in re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words and words[0] == word:
                    yield name, words[1:]


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    """Of every relative link of a document: the file is there, and the heading is in it."""
    for target, anchor in _LINK.findall(path.read_text(encoding="utf-8")):
        if "://" in target or target.startswith("mailto:"):
            continue
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor[1:] in anchors(found.read_text(encoding="utf-8")), f"{path.name}: {target}{anchor}"


def test_pytest_commands_name_options_markers_and_tests_that_exist() -> None:
    """`pytest` in a shell block: StepH's options, marker expressions and test ids are all real."""
    seen = list(commands("pytest"))
    assert len(seen) > 5
    for name, words in seen:
        own = {word.partition("=")[0] for word in words if word.startswith("--steph-")}
        assert own <= OWN_OPTIONS, (name, own - OWN_OPTIONS)
        for before, word in pairwise(words):
            if before == "-m":
                assert set(re.findall(r"\w+", word)) <= {"gpu", "extended", "not", "or", "and"}, (name, word)
        for module, test in re.findall(r"(\S+?)::(\w+)", " ".join(words)):
            file = (
                CLONE / module
                if module.endswith(".py")
                else CLONE / "tests/acceptance" / f"{module.removeprefix('steph.acceptance.')}.py"
            )
            assert f"def {test}(" in file.read_text(encoding="utf-8"), (name, module, test)


def test_the_readmes_table_is_the_table_of_options() -> None:
    """README names each option in its order, with a value where it takes one, and its default."""
    text = (CLONE / "README.md").read_text(encoding="utf-8")
    rows = [re.findall(r"`([^`]+)`", line) for line in text.splitlines() if line.startswith("| `--steph-")]
    assert [words[0].partition(" ")[0] for words in rows] == [option.flag for option in OPTIONS]
    for words, option in zip(rows, OPTIONS, strict=True):
        assert (" " in words[0]) is not option.is_flag
        assert option.default in (word.removesuffix("/") for word in ("", *words))


def test_every_option_that_a_document_names_exists() -> None:
    """Also in prose and in the workflows; what tells of earlier versions may name one that is gone."""
    gone = {option.flag for option in REPLACED}
    for name, path in zip(NAMES, DOCUMENTS, strict=True):
        named = set(re.findall(r"--steph-[a-z-]*[a-z]", path.read_text(encoding="utf-8")))
        assert named - (gone if name == "CHANGELOG.md" else set()) <= OWN_OPTIONS, name


def code_blocks(text: str) -> list[str]:
    """What stands in each code block of a document."""
    return re.findall(r"```[a-z]*\n(.*?)```", text, re.S)


def columns(line: str) -> int:
    """How wide a line is in a fixed-width font, where Japanese takes two columns."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FOR_CONTRIBUTORS])
def test_code_blocks_fit_the_width_of_a_page_on_github(name: str) -> None:
    """No line of a block has to be scrolled to be read."""
    blocks = code_blocks((CLONE / name).read_text(encoding="utf-8"))
    assert [line for block in blocks for line in block.splitlines() if columns(line) > PAGE_COLUMNS] == []


SISTERS = [
    ("README.md", "README.ja.md"),
    ("reports/examples/README.md", "reports/examples/README.ja.md"),
    *((f"docs/{path.name}", f"docs/{path.name.replace('.en.md', '.md')}") for path in CLONE.glob("docs/*.en.md")),
]
WRITTEN_BY_HAND = [pair for pair in SISTERS if not re.search("checks|causes|planted", pair[0])]
sisters = pytest.mark.parametrize(("english", "japanese"), WRITTEN_BY_HAND, ids=lambda name: str(name))


@sisters
def test_a_page_and_its_sister_have_the_same_commands(english: str, japanese: str) -> None:
    """Block for block and line for line, remarks apart."""
    commands_of = [
        [shell_lines(block) for block in code_blocks((CLONE / name).read_text(encoding="utf-8"))]
        for name in (english, japanese)
    ]
    assert commands_of[1] == commands_of[0]


@sisters
def test_a_page_and_its_sister_have_the_same_facts(english: str, japanese: str) -> None:
    """The same sections, tables and questions, every name in code font, every figure and every link."""
    theirs, ours = (shape((CLONE / name).read_text(encoding="utf-8")) for name in (english, japanese))
    assert ours == theirs


def test_every_page_is_in_both_languages() -> None:
    """Each page of docs/ has its sister; the page says so below its title, where a reader sees it."""
    names = {path.name for path in CLONE.glob("docs/*.md")}
    english = {name for name in names if name.endswith(".en.md")}
    assert names - english == {name.replace(".en.md", ".md") for name in english}
    for one, other in SISTERS:
        for name, sister in ((one, other), (other, one)):
            assert f"]({Path(sister).name})" in (CLONE / name).read_text(encoding="utf-8")[:2000], name


def shell_lines(block: str) -> list[list[str]]:
    """The words of each line of a block, without remarks; what SLURM reads is none."""
    return [words for line in block.splitlines() if (words := re.sub(r"(^|\s)#(?!SBATCH).*", "", line).split())]


def shape(text: str) -> dict[str, object]:
    """What a translation leaves as it is."""
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    questions = [line for line in prose.splitlines() if re.match(r"\*\*.*[?？]\*\*", line)]
    first_cells = [line.split("|")[1].strip() for line in prose.splitlines() if line.startswith("| ")]
    return {
        "headings": [len(marks) for marks in re.findall(r"^(#+) ", prose, re.M)],
        "tables": [len(row) for row in re.findall(r"(?:^\|.*\n)+", prose, re.M) for row in [row.splitlines()]],
        "named rows": [cell for cell in first_cells if re.fullmatch(r"`[^`]+`|\d", cell)],
        "questions": len(questions),
        "code": set(re.findall(r"`([^`\n]+)`", prose)),
        "links": {
            re.sub(r"\.(en|ja)(\.md|\.png)", r"\2", link).partition("#")[0]
            for link in re.findall(r"\]\(([^)]*)\)", prose)
            if not link.startswith(("#", "README"))
        },
        "figures": set(re.findall(r"(?<![\w.-])\d+\.\d+(?!\w|\.\d)", prose)),
    }


def test_steph_commands_and_their_options_exist() -> None:
    """`steph` in a shell block: the command is one of the program's, and so is each of its options."""
    seen = list(commands("steph"))
    assert {words[0] for _, words in seen} >= {"doctor", "report", "list", "compare", "diagnose", "fit"}
    for name, words in seen:
        if words == ["--version"]:
            continue
        known = {option for parameter in COMMANDS[words[0]].params for option in parameter.opts}
        given = {word.partition("=")[0] for word in words[1:] if word.startswith("--")}
        assert given <= known | OWN_OPTIONS, (name, words[0], given - known)


def test_questions_of_fit_that_need_no_record_are_answered() -> None:
    """Each `steph fit` of the documents whose words are all real ends with 0."""
    asked = {tuple(words) for _, words in commands("steph") if words[0] == "fit" and not set(words) & {"RUN", "DIR"}}
    assert asked
    for words in asked:
        assert CliRunner().invoke(app, list(words)).exit_code == 0, words


def test_make_targets_exist() -> None:
    """`make` in a shell block names a target of the Makefile."""
    targets = set(re.findall(r"^(\w+):", (CLONE / "Makefile").read_text(encoding="utf-8"), re.M))
    for name, words in commands("make"):
        asked = {word for word in words if "=" not in word}
        assert asked <= targets, (name, asked - targets)


def test_python_modules_that_documents_run_exist() -> None:
    """`python -m …` of this project in a shell block can be imported."""
    for name, words in [*commands("python"), *commands("python3")]:
        if "-m" in words:
            module = words[words.index("-m") + 1]
            if module.startswith(("steph.", "benchmarks.")):
                assert importlib.util.find_spec(module), (name, module)
