"""The witness as it is put into a process: hooks that nobody notices, facts that survive; without torch."""

from __future__ import annotations

import gc
import inspect
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from steph.base.fingerprint import fingerprints, text_hash
from steph.child import supervisor
from steph.child.inject._steph_witness import batches, facts, models, splice, tokens, weights
from steph.judge.witness import Batch, Blind, Hooked, Logged, read_witness

INJECT = Path(supervisor.__file__).parent / "inject"

LIBRARY = '''
import functools
import warnings

def decorated(function):
    @functools.wraps(function)
    def call(*arguments, **named):
        return function(*arguments, **named)
    return call

class Base:
    def told(self, text):
        return [text]

class Model(Base):
    """A class as libraries have them."""

    __secret = 7

    @decorated
    def generate(
        self,
        inputs,  # a comment
        *more,
        limit=3,
        **options,
    ):
        """Say something.

    Less indented than its body."""
        if inputs is None:
            raise ValueError(
                "nothing to say"
            )
        text = """
over several lines
"""
        def inner():
            return self.__secret
        if options.get("warn"):
            warnings.warn("look out", stacklevel=2)
        if limit > 3:
            return
        for one in more:
            if one == "early":
                return [one, Model.__name__]
        return super().told(text) + [inner(), limit, (lambda: inputs)()]

    @classmethod
    def made(cls, name):
        try:
            return cls.__name__ + name
        finally:
            name = None

def closing_over(value):
    def function(more):
        return value + more
    return function

def counted():
    yield 1
'''


@pytest.fixture
def library(tmp_path: Path) -> Iterator[ModuleType]:
    """A module to put hooks into, new for each test."""
    path = tmp_path / "library.py"
    path.write_text(LIBRARY)
    spec = spec_from_file_location("library", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that facts of this very process go to, as if it had just begun."""
    folder = tmp_path / "facts"
    folder.mkdir()
    monkeypatch.setattr(facts._Output, "folder", str(folder))
    monkeypatch.setattr(facts, "_off", set())
    yield folder
    if facts._Output.file is not None:
        facts._Output.file.close()
        facts._Output.file = None


def told(call: Callable[[], object]) -> tuple[object, str, list[str]]:
    """What a caller sees of a call: its result, its traceback, and where its warnings point."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result, trace = call(), ""
        except Exception:
            result, trace = None, traceback.format_exc()
    return result, trace, [f"{one.filename}:{one.lineno}: {one.message}" for one in caught]


def test_a_spliced_function_is_the_same_to_its_callers(library: ModuleType) -> None:
    """Results, tracebacks, the places of warnings, source, signature and the function object stay what they were."""
    model, function = library.Model(), library.Model.generate
    other = library.closing_over(5)
    calls = [
        lambda: model.generate("x"),
        lambda: model.generate("x", 1, "early", limit=2),
        lambda: model.generate("x", limit=9),
        lambda: model.generate(None),
        lambda: model.generate("x", warn=True),
        lambda: model.generate(),
        lambda: library.Model.made("!"),
        lambda: library.Model.made(3),
        lambda: other(2),
        lambda: other("2"),
    ]
    before = [told(call) for call in calls]
    source, signature, code = inspect.getsource(function), inspect.signature(function), other.__code__
    for one in (function, library.Model.made, other):
        splice.around(one, before=lambda given: None, after=lambda token, result: None)
    assert [told(call) for call in calls] == before
    assert library.Model.generate is function
    assert (inspect.getsource(function), inspect.signature(function)) == (source, signature)
    assert other.__code__ is not code


def test_what_a_call_was_given_and_gave_is_seen(library: ModuleType) -> None:
    """Arguments come by name, each result belongs to its own call, an exception is seen and goes on."""
    seen: list[Any] = []
    splice.around(
        library.Model.generate,
        before=lambda given: (given["inputs"], given["more"], given["limit"], given["options"]),
        after=lambda token, result: seen.append((token, result)),
        failed=lambda token, error: seen.append((token, type(error).__name__)),
    )
    library.Model().generate("x", "early", warm=1)
    library.Model().generate("y", limit=4)
    with pytest.raises(ValueError, match="nothing to say"):
        library.Model().generate(None)
    assert seen == [
        (("x", ("early",), 3, {"warm": 1}), ["early", "Model"]),
        (("y", (), 4, {}), None),
        ((None, (), 3, {}), "ValueError"),
    ]


def test_a_copy_with_hooks_changes_nothing_else(library: ModuleType) -> None:
    """It calls one first and hands its result to another, and has the original's name, lines and traceback."""
    seen: list[Any] = []
    original = library.Model.generate.__wrapped__
    left: list[Any] = []

    def leave(result: Any) -> Any:  # noqa: ANN401
        left.append(result)
        return result

    copy = splice.copy_between(original, seen.append, leave, unless=lambda: len(seen) > 1)
    model = library.Model()
    assert told(lambda: copy(model, "x")) == told(lambda: original(model, "x"))
    traces = [told(lambda call=call: call(model, None))[1] for call in (copy, original)]  # type: ignore[misc]
    assert traces[0] == traces[1]
    copy(model, "not seen any more")
    assert [given["inputs"] for given in seen] == ["x", None]
    assert left == [original(model, "x")]


def test_a_function_that_is_not_its_source_is_left_alone(library: ModuleType, tmp_path: Path) -> None:
    """A file that changed after its import, a generator or no source at all means no hook, and the old code."""
    codes = [library.Model.generate.__wrapped__.__code__, library.counted.__code__]
    path = tmp_path / "library.py"
    path.write_text(LIBRARY.replace("limit > 3", "limit > 4"))
    with pytest.raises(splice.CannotSpliceError):
        splice.around(library.Model.generate, before=lambda given: None)
    with pytest.raises(splice.CannotSpliceError):
        splice.around(library.counted, before=lambda given: None)
    path.unlink()
    with pytest.raises(splice.CannotSpliceError):
        splice.around(library.Model.made, before=lambda given: None)
    with pytest.raises(splice.CannotSpliceError):
        splice.around(len, before=lambda given: None)
    assert [library.Model.generate.__wrapped__.__code__, library.counted.__code__] == codes


def test_a_failing_hook_says_so_once_and_is_off(library: ModuleType, written: Path) -> None:
    """Its function works on, the fact names the place and the error, and it is not called again."""
    calls: list[object] = []

    def breaks(given: dict[str, Any]) -> None:
        calls.append(given)
        raise KeyError("gone")

    splice.around(library.Model.made, before=breaks, after=lambda token, result: calls.append(token))
    assert [library.Model.made("!"), library.Model.made("?")] == ["Model!", "Model?"]
    (blind,) = read_witness(written).of(Blind)
    assert (blind.where, blind.error) == ("Model.made", "KeyError: 'gone'")
    assert [given if given is None else "given" for given in calls] == ["given", None, None]


def test_numbers_without_a_json_form_are_written_as_words(written: Path) -> None:
    """NaN and infinities arrive at the reader as what they are, and the line stays JSON."""
    facts.write("logged", step=1, loss=float("nan"), grad_norm=float("-inf"))
    text = next(written.glob("witness-*.jsonl")).read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["loss"] == "nan"
    (logged,) = read_witness(written).of(Logged)
    assert logged.grad_norm == float("-inf")


def test_hook_time_counts_once(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook inside a hook adds nothing of its own to the seconds that hooks took."""
    ticks = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    before = facts.hook_seconds()

    def hook() -> None:
        """See nothing."""

    facts.guarded("outer")(facts.guarded("inner")(hook))()
    assert facts.hook_seconds() - before == pytest.approx(2.0)


# what a process is like with the hooks and without


PROGRAMS = {
    "quiet": "import openai; print(openai.answer(), sys.path, sys.argv, sys.flags)",
    "raises while it loads": "import openai.broken",
    "catches it": "try:\n    import sglang\nexcept Exception:\n    traceback.print_exc()",
    "missing": "import vllm",
    "of its own name": "import facts, splice; print(facts.x, splice.x)",
    "forks": "import openai\npid = os.fork()\nprint('child' if not pid else os.waitpid(pid, 0)[1], flush=True)",
    "reloads": "import importlib, openai; importlib.reload(openai); print(openai.__spec__ is not None)",
    "draws": "import openai, random; random.seed(1); print(random.random())",
    "spec": "import openai; print(type(openai.__spec__).__name__, openai.__spec__.name, openai.__loader__ is not None)",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with stand-ins of libraries to import."""
    (tmp_path / "openai").mkdir()
    (tmp_path / "openai" / "__init__.py").write_text("__version__ = '1.2'\ndef answer():\n    return 'a'\n")
    (tmp_path / "openai" / "broken.py").write_text("def f():\n    raise OSError('no')\nf()\n")
    (tmp_path / "sglang.py").write_text("import nowhere_at_all\n")
    for name in ("facts", "splice"):
        (tmp_path / f"{name}.py").write_text("x = 'own'\n")
    return tmp_path


def ran(place: Path, program: str, *, watched: bool, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code there, with the hooks or without."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV", "STEPH_PROBE"))}
    path = f"{INJECT}{os.pathsep}{place}" if watched else str(place)
    environment = {**own, "PYTHONPATH": path, "STEPH_PROBE_DIR": str(folder or place / "probes")}
    (place / "probes").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", f"import os, sys, traceback\n{program}"],
        cwd=place, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_process_does_not_notice_the_hooks(place: Path, name: str) -> None:
    """stdout, stderr and exit status are those without them, also where an import raises or is done again."""
    plain, watched = (ran(place, PROGRAMS[name], watched=flag) for flag in (False, True))
    assert (watched.stdout, watched.stderr, watched.returncode) == (plain.stdout, plain.stderr, plain.returncode)


def test_an_engine_that_can_not_be_seen_into_is_named(place: Path) -> None:
    """That one was loaded is a fact, with its version; nothing is known of what it did."""
    assert ran(place, "import openai", watched=True).returncode == 0
    assert [(hook.module, hook.version) for hook in read_witness(place / "probes").of(Hooked)] == [("openai", "1.2")]


def test_a_process_without_such_libraries_leaves_no_file(place: Path) -> None:
    """And has loaded none of the hooks, only the part that looks for them."""
    program = "print(sorted(name for name in sys.modules if 'steph' in name))"
    assert ran(place, program, watched=True).stdout == "['_steph_witness']\n"
    assert not list((place / "probes").iterdir())


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/null", "gone"])
def test_a_folder_that_takes_no_file_is_not_noticed(place: Path, folder: str) -> None:
    """Facts that can't be written are lost without a word."""
    done = ran(place, "import openai; print(1)", watched=True, folder=Path(folder))
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "", 0)


def test_forked_children_have_their_own_files(place: Path) -> None:
    """Each process's file has only its own facts, and each says that it ended."""
    program = "import openai\npid = os.fork()\nsys.modules.pop('openai')\nimport openai\npid and os.waitpid(pid, 0)"
    assert ran(place, program, watched=True).returncode == 0
    processes = read_witness(place / "probes").processes
    assert len({process.pid for process in processes}) == 2
    assert sorted(len(process.of(Hooked)) for process in processes) == [1, 2]


def test_a_kill_loses_nothing_that_was_seen(place: Path) -> None:
    """Facts are in the file as soon as they happen."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    probes = place / "probes"
    probes.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", "import openai, time; print('there', flush=True); time.sleep(60)"],
        env={**own, "PYTHONPATH": f"{INJECT}{os.pathsep}{place}", "STEPH_PROBE_DIR": str(probes)},
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert [hook.module for hook in read_witness(probes).of(Hooked)] == ["openai"]


# what is written of rows and batches


class Whole:
    """A tokenizer of letters: id n is the n-th letter, 0 ends, 1 pads."""

    eos_token_id, pad_token_id, bos_token_id, unk_token_id = 0, 1, 2, 3

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(ord("a") + one) for one in ids if one > 3)

    def convert_tokens_to_ids(self, names: list[str]) -> list[int]:
        return [self.unk_token_id for _ in names]

    def __len__(self) -> int:
        return 30


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> Whole:
    """The tokenizer that the process would have loaded."""
    own = Whole()
    monkeypatch.setattr(tokens, "_last_tokenizer", [lambda: own])
    return own


def batch(
    ids: list[list[int]], labels: list[list[int]] | None = None, *, packed: bool = False, **more: list[list[int]]
) -> Batch:
    """The fact that these rows make; 0 ends, 1 pads, 2 begins."""
    known = {
        "at": 1.0, "training": True, "grad": True, "packed": packed, "ends": {0}, "bos": 2, "pad": 1,
        "with_texts": True, "masked": "attention_mask" in more,
    }  # fmt: skip
    read = {"input_ids": ids, **({"labels": labels} if labels else {}), **more}
    return Batch.model_validate(batches._described(known, read))


IGNORED = -100


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ([IGNORED, IGNORED, 6, 0], {"supervised": (2,), "ends_with_end_token": (True,), "unsupervised_tail": (0,)}),
        ([IGNORED, IGNORED, 6, IGNORED], {"ends_with_end_token": (False,), "unsupervised_tail": (1,)}),
        ([4, 5, IGNORED, IGNORED], {"first_supervised": (0,), "unsupervised_tail": (2,), "aligned": True}),
        ([5, 6, 0, IGNORED], {"aligned": False, "shifted": True}),
        ([9, 9, 9, 9], {"aligned": False, "shifted": False, "unshifted": False}),
        ([IGNORED, 4, 5, 6], {"aligned": False, "shifted": False, "unshifted": True}),
        ([IGNORED, IGNORED, 6, 0], {"aligned": True, "unshifted": False}),
        ([IGNORED] * 4, {"supervised": (0,), "first_supervised": (None,), "aligned": None, "shifted": None}),
        ([6, 0], {"supervised": (2,), "first_supervised": (2,), "aligned": True}),
    ],
)
def test_labels_are_held_against_their_tokens(labels: list[int], wanted: dict[str, object]) -> None:
    """Where they stand in the row, whether they end it, and whether they are the tokens they stand on."""
    fact = batch([[4, 5, 6, 0]], [labels])
    assert {key: getattr(fact, key) for key in wanted} == wanted


@pytest.mark.parametrize(
    ("mask", "labels", "outside"),
    [
        ([1, 1, 0, 0], [IGNORED, 5, 1, 1], 2),
        ([0, 0, 1, 1], [1, 1, IGNORED, 5], 2),
        ([1, 1, 0, 0], [IGNORED, 5, IGNORED, IGNORED], 0),
        ([1, 1, 1, 0], [5, 1, 1], 1),  # narrower than the tokens: at their right edge
    ],
)
def test_labels_outside_of_a_row_are_counted(mask: list[int], labels: list[int], outside: int) -> None:
    """What the mask hides at a row's ends is padding; without a mask nothing is said."""
    ids = [4, 5, 1, 1] if mask[0] else [1, 1, 4, 5]
    assert batch([ids], [labels], attention_mask=[mask]).labelled_padding == (outside,)
    assert batch([ids], [labels]).labelled_padding is None


@pytest.mark.parametrize(
    ("ids", "marks", "outside"),
    [
        (["4500", "4567"], ["1100", "1111"], (1, 0)),  # no row has an end: the first one may be a row's own
        (["4500", "4560"], ["1100", "1110"], (1, 0)),  # padding has a label, too
        (["450", "460"], ["110", "110"], (0, 0)),
        (["4500", "4560"], ["1100", "1111"], (2, 0)),  # the longer row shows that an end is seen
        (["40", "50"], ["11", "10"], (0, 1)),
        (["245", "246"], ["011", "011"], (0, 0)),  # BOS
        (["4511", "4560"], ["1100", "1110"], (2, 0)),
    ],
)
def test_an_end_that_a_mask_made_of_the_tokens_hides_is_no_padding(
    ids: list[str], marks: list[str], outside: tuple[int, ...]
) -> None:
    """One token next to each row, where it ends or begins one, unless another row is whole without such a one."""
    rows, mask = ([[*map(int, row)] for row in given] for given in (ids, marks))
    assert batch(rows, rows, attention_mask=mask).labelled_padding == outside


@pytest.mark.parametrize(
    ("row", "more"),
    [
        ([1, 1, 4, 5], {"attention_mask": [[0, 0, 1, 1]]}),
        ([4, 5, 1, 1], {"attention_mask": [[1, 1, 0, 0]]}),
        ([1, 1, 4, 5], {"position_ids": [[0, 0, 0, 1]]}),
        ([4, 5, 1, 1], {"position_ids": [[0, 1, 1, 1]]}),
        ([1, 1, 4, 5], {}),
        ([4, 5, 1, 1], {}),
    ],
)
def test_padding_is_no_part_of_a_row(row: list[int], more: dict[str, Any]) -> None:
    """By the mask, by positions, or by the pad token's own runs: the row is what is left, and so is its hash."""
    fact = batch([row], **more)
    assert (fact.padding, fact.row_hashes) == (0.5, (tokens.row_hash([4, 5]),))


def test_pads_are_no_double_bos() -> None:
    """Two BOS tokens in a row count within a row's own tokens, and only there."""
    padded = batch([[2, 2, 2, 4]], attention_mask=[[0, 0, 1, 1]])
    twice = batch([[2, 2, 4, 5]], attention_mask=[[1, 1, 1, 1]])
    assert (padded.double_bos, twice.double_bos) == (0, 1)


def test_rows_behind_each_other_are_packed() -> None:
    """Positions that begin again within a row are several rows in one; left padding is not."""
    assert batch([[4, 5, 6, 7]], position_ids=[[0, 1, 0, 1]]).packed is True
    assert batch([[1, 1, 4, 5]], position_ids=[[0, 0, 0, 1]]).packed is False


def test_rows_that_the_trainer_packs_are_packed_without_positions() -> None:
    """Texts cut at the width and put together, as TRL's strategy `wrapped` does: padding is still none of them."""
    fact = batch([[4, 0, 6, 7], [4, 5, 1, 1]], packed=True, attention_mask=[[1, 1, 1, 1], [1, 1, 0, 0]])
    assert (fact.packed, fact.padding, fact.hidden) == (True, 0.25, (0, 0))


def test_text_is_known_by_its_fingerprints(tokenizer: Whole) -> None:
    """A row's fingerprints and its answer's hash are the suite's own of the decoded text."""
    row = [4 + (7 * place * place + place) % 22 for place in range(200)]
    fact = batch([[*row, 0]], [[IGNORED] * 190 + row[190:] + [0]])
    text = tokenizer.decode(row, True)
    assert fact.row_fingerprints == (fingerprints(text),)
    assert fact.answer_hashes == (text_hash(text[190:]),)


class Lazy:
    """A data set that makes a row when it is asked for one."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        pytest.fail("asked for a row")

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        pytest.fail("iterated")


def test_a_data_set_is_read_only_where_that_asks_nothing_of_it(tokenizer: Whole) -> None:
    """A list gives each row's hash and its text's fingerprints; one that makes or streams rows gives its length."""
    known = tokens.described_rows([{"input_ids": [4, 5]}, {"input_ids": [4, 5]}])
    assert (known["rows"], known["row_hashes"]) == (2, [tokens.row_hash([4, 5])] * 2)
    assert known["row_fingerprints"] == [[], []]
    unread = {"row_hashes": None, "row_fingerprints": None}
    assert tokens.described_rows(Lazy()) == {"rows": 7, **unread}
    assert tokens.described_rows(iter([])) == {"rows": None, **unread}
    assert tokens.described_rows([{"text": "x"}]) == {"rows": 1, **unread}


def test_the_gradients_that_lie_there_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their largest number; zero where there is none, and nothing without such matrices."""
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 2, bias=False)
    layers = [SimpleNamespace(_modules={"lora_B": {"default": layer}})]
    monkeypatch.setattr("steph.child.inject._steph_witness.models.lora_layers", lambda model: layers)
    model = torch.nn.Linear(1, 1)
    assert float(batches._gradient(model)["gradient"]) == 0
    layer.weight.grad = torch.full((2, 3), -0.5)
    assert float(batches._gradient(model)["gradient"]) == 0.5
    layers.clear()
    models.layers_changed()
    assert batches._gradient(model) == {}


@pytest.mark.parametrize(("is_seen", "wanted"), [(True, [2]), (False, [0])])
def test_padding_that_a_mask_of_all_positions_shows(is_seen: bool, wanted: list[int]) -> None:
    """Each of the row's own positions that sees what stands before the row counts."""
    pytest.importorskip("numpy")
    mask = [[[float(key <= place and (is_seen or key > 1)) for key in range(4)] for place in range(4)]]
    found = tokens.of_queries([[1, 1, 4, 5]], mask, None, 1, [(2, 4)])
    assert found == {"hidden": [0], "foreseen": [0], "bare_padding": wanted}


def test_an_answer_without_a_label_is_known_by_its_hash(tokenizer: Whole) -> None:
    """What stands behind the last label, without the row's end."""
    fact = batch([[4, 5, 6, 0], [4, 5, 6, 0]], [[4, 5, IGNORED, IGNORED], [IGNORED, IGNORED, 6, IGNORED]])
    assert fact.unlabelled_end_hashes == (text_hash("g"), text_hash(""))


def test_weights_that_are_laid_out_for_a_cpu_are_not_compared() -> None:
    """Where bitsandbytes evaluates on a CPU, its 4-bit weights are laid out anew: these are no other weights."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(3, 2))
    weights.loaded(model)
    model[0].weight.data *= 2
    assert (weights.base_changed(model) or {})["changed"] == 1
    model[0].weight.quant_state = SimpleNamespace(packing_format_for_cpu=True)
    assert weights.base_changed(model) == {"compared": 3, "changed": 0, "names": [], "trained": []}


@pytest.mark.parametrize(("layers", "kinds"), [(32, 7), (28, 7), (16, 4), (2, 2)])
def test_what_is_kept_of_the_matrices_is_told_of_all_their_kinds(layers: int, kinds: int) -> None:
    """However many a model has of them: where one in each layer shrank, most did not."""
    torch = pytest.importorskip("torch")
    before = {f"layers.{layer}.{kind}": (1.0, torch.ones(2)) for layer in range(layers) for kind in range(kinds)}
    now = {name: (1.0, first / (1 + name.endswith(".0"))) for name, (_, first) in before.items()}
    assert weights._median_norm_ratio(before, now) == (1.0 if kinds > 2 else 0.75)


def test_the_hook_that_asks_for_the_seconds_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training's end is told by a hook that takes time itself."""
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    before = facts.hook_seconds()
    assert facts.guarded("asks")(facts.hook_seconds)() == pytest.approx(before + 1)
    assert facts.hook_seconds() == pytest.approx(before + 2)


def test_a_model_is_walked_once_in_a_hook() -> None:
    """By names, each module once; the next hook finds what was added meanwhile, and nothing is kept alive."""
    torch = pytest.importorskip("torch")
    shared = torch.nn.Linear(1, 1)
    model = torch.nn.Sequential(torch.nn.Sequential(shared), shared)

    @facts.guarded("walks")
    def walk(model: Any) -> Any:  # noqa: ANN401
        return models.modules_of(model), models.modules_of(model)

    one, two = walk(model)
    assert one is two
    assert one == [*model.named_modules()]
    model.append(torch.nn.ReLU())
    assert walk(model)[0] == [*model.named_modules()] != one
    gone = weakref.ref(model)
    del model, one, two
    gc.collect()
    assert gone() is None


class _Turns:
    """A tokenizer that knows the marks of several templates; a word is a token."""

    eos_token_id = bos_token_id = pad_token_id = unk_token_id = None
    MARKS = ("<start>", "<end>", "<head>", "</head>", "<bos>", "<user>", "<model>", "<pad>")

    def __init__(self) -> None:
        self.words: dict[str, int] = {}
        self.all_special_ids = list(map(self.id_of, self.MARKS))
        self.added_tokens_decoder = {one: SimpleNamespace(special=True) for one in self.all_special_ids}
        self.eos_token_id, self.pad_token_id = self.words["<end>"], self.words["<pad>"]

    def id_of(self, word: str) -> int:
        return self.words.setdefault(word, len(self.words))

    def decode(self, ids: list[int]) -> str:
        return " ".join(list(self.words)[one] for one in ids)


@pytest.mark.parametrize(
    ("once", "is_nested"),
    [
        ("<start> user \n 何 <end> \n <start> assistant \n", False),
        ("<start> system \n 短 <end> \n <start> user \n 何 <end> \n <start> assistant \n", False),
        ("<start> user \n <start> user \n 何 <end> \n <start> assistant \n <end> <start> assistant \n", True),
        ("<bos> <head> user </head> \n 何 <end> <head> assistant </head> \n", False),
        ("<bos> <head> user </head> \n <bos> <head> user </head> \n 何 <end>", True),
        ("<user> はい <model> ね <user> 何 <model>", False),  # no turn has an end
        ("<user> <user> 何 <model>", False),  # one mark after the other, as an image's are
        ("<head> 0 <head> 0 <head> 1 <head> 0 <end>", False),  # a mark that sets values apart
        ("<user> \n <user> \n 何 を し た か を 次 の 一 文 で 答 え よ <model> ね <user> \n 何 <model>", True),
        ("<pad> <pad> <pad> <start> user \n 何 <end>", False),
    ],
)
def test_a_turn_inside_of_a_header(once: str, is_nested: bool) -> None:
    """A template that was applied to its own result begins a turn within a header; short turns do not."""
    own = _Turns()
    tokens.use(own)
    assert tokens.is_nested(list(map(own.id_of, once.split(" ")))) is is_nested
    assert not tokens.thinks(list(map(own.id_of, ["答", "<start>", "assistant"])))
    assert tokens.thinks(list(map(own.id_of, ["<start>", "assistant", "<think>", "</think>"])))


@pytest.mark.parametrize(
    ("prompt", "is_known"),
    [
        ("<start> user \n 何 <end> \n <start> assistant \n", True),
        ("<start> user \n 何 <end> \n <start> assistant \n <think> \n </think> \n", True),
        ("<start> user \n 何 <end> \n <start> user \n い つ ま で に ど こ へ 出 す か", False),  # no answer's header
        ("何 か", False),
    ],
)
def test_what_stands_before_an_answers_turn(prompt: str, is_known: bool) -> None:
    """A question without the answer's header stands behind what many prompts have: that is no prompt's own."""
    own = _Turns()
    tokens.use(own)
    assert (tokens.turn_hash([*map(own.id_of, prompt.split(" "))], is_prompt=True) is not None) is is_known
