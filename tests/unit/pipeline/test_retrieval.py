"""Retrieval: passages, the index and its refusals, and prompts that carry as much of the passages as fits."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from app.core.errors import PipelineError
from app.core.lawqa import Question, load_questions
from app.core.rag_config import RAGConfig
from app.retrieval.bm25 import MANIFEST, BM25Retriever, grams, load_retriever
from app.retrieval.passages import Passage, corpus_of, passages_of
from app.retrieval.rag_pipeline import RAGPipeline
from small_run import PIPELINE, TOPICS, CallScript, RunScript, question

CONTEXT = """## 民法
### 第5条
#### 第1項
未成年者が法律行為をするには、同意を得なければならない。
##### 第1号
ただし書
#### 第２項
取り消すことができる。
### 第4条
成年とする。
#### 第１号
十八歳
## 商法
### 第1条
商事は、この法律による。"""


@pytest.fixture(scope="module")
def index(questions_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of the made-up questions."""
    folder = tmp_path_factory.mktemp("index")
    BM25Retriever.build(corpus_of(load_questions(questions_file, "--data"))).save(folder, questions_file)
    return folder


@pytest.fixture
def copied(index: Path, tmp_path: Path) -> Path:
    """An index to break."""
    return Path(shutil.copytree(index, tmp_path / "index"))


def test_a_passage_is_an_article_or_paragraph_with_its_items() -> None:
    """Headings become the source; items stay with their sentence, also directly below an article."""
    assert [(passage.source, passage.text.splitlines()[1:]) for passage in passages_of(CONTEXT)] == [
        ("民法 第5条 第1項", ["未成年者が法律行為をするには、同意を得なければならない。", "第1号", "ただし書"]),
        ("民法 第5条 第２項", ["取り消すことができる。"]),
        ("民法 第4条", ["成年とする。", "第１号", "十八歳"]),
        ("商法 第1条", ["商事は、この法律による。"]),
    ]
    assert passages_of("") == passages_of("## 民法\n### 第1条") == []
    assert passages_of("見出しのない文") == [Passage("", "見出しのない文")]


def test_tokens_are_level_in_width_case_and_blanks() -> None:
    """Full-width and half-width forms are the same tokens, runs of two and of three characters."""
    assert grams("第１条Ａ") == grams("第1条 a") == ["第1", "1条", "条a", "第1条", "1条a"]
    assert (grams("ab"), grams("a"), grams(" ")) == (["ab"], [], [])


def test_the_loaded_index_finds_what_the_built_one_finds(index: Path, questions_file: Path) -> None:
    """For each question the passage of its own article comes first, before and after the way through the disk."""
    questions = load_questions(questions_file, "--data")
    built, loaded = BM25Retriever.build(corpus_of(questions)), load_retriever(index, questions_file)
    for number, asked in enumerate(questions):
        found = loaded.retrieve(asked.text, 3)
        assert found == built.retrieve(asked.text, 3)
        assert found[0].source == f"架空法 第{number}条 第1項"


@pytest.mark.parametrize("query", ["", "unrelated words"])
def test_nothing_in_common_is_nothing_found(index: Path, questions_file: Path, query: str) -> None:
    """A query that shares no token with any passage gets none, instead of the first ones."""
    assert load_retriever(index, questions_file).retrieve(query, 3) == ()


def test_an_index_of_other_questions_is_refused(index: Path, questions_file: Path, tmp_path: Path) -> None:
    """One byte more in the data set is another data set; the message names both and the command that helps."""
    other = tmp_path / "other.json"
    other.write_bytes(questions_file.read_bytes() + b"\n")
    with pytest.raises(PipelineError, match=rf"another data set than {other}: {questions_file}.*build_index\.py"):
        load_retriever(index, other)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (MANIFEST, None, "holds no index"),
        (MANIFEST, "[", "no manifest"),
        (MANIFEST, "[]", "no manifest"),
        (MANIFEST, "{}", "no manifest"),
        (MANIFEST, '{"dataset_sha256": 1, "tokenisation": 1, "files": []}', "no manifest"),
        ("passages.json", None, r"is broken \(passages\.json\)"),
        ("passages.json", "[]", r"is broken \(passages\.json\)"),
        ("vocab.index.json", "{}", r"is broken \(vocab\.index\.json\)"),
        ("data.csc.index.npy", None, r"is broken \(data\.csc\.index\.npy\)"),
    ],
)
def test_a_broken_index_is_named(
    copied: Path, questions_file: Path, name: str, content: str | None, words: str
) -> None:
    """Whatever is missing or changed, the error is one line with the folder and the remedy."""
    (copied / name).unlink()
    if content is not None:
        (copied / name).write_text(content)
    with pytest.raises(PipelineError, match=rf"{words}.*scripts/build_index\.py"):
        load_retriever(copied, questions_file)


def test_an_index_with_other_tokens_is_refused(copied: Path, questions_file: Path) -> None:
    """Queries are cut into other tokens than the index has: nothing would be found, or the wrong things."""
    manifest = json.loads((copied / MANIFEST).read_text(encoding="utf-8"))
    (copied / MANIFEST).write_text(json.dumps(manifest | {"tokenisation": "words"}))
    with pytest.raises(PipelineError, match="has tokens 'words'"):
        load_retriever(copied, questions_file)


def test_an_index_that_was_not_finished_is_none(copied: Path, questions_file: Path) -> None:
    """A build that fails halfway leaves no manifest behind, so the old files don't pass for the new index."""
    (copied / "vocab.index.json").unlink()
    (copied / "vocab.index.json").mkdir()
    with pytest.raises(OSError, match="vocab"):
        BM25Retriever.build(passages_of(CONTEXT)).save(copied, questions_file)
    with pytest.raises(PipelineError, match="holds no index"):
        load_retriever(copied, questions_file)


class TwoPassages:
    """A retriever that always finds the same."""

    def retrieve(self, query: str, top_k: int) -> tuple[Passage, ...]:
        return (Passage("一", "甲" * 50), Passage("二", "乙" * 50))[:top_k]


@pytest.mark.parametrize("limit", [10_000, 260, 240, 200, 150, 10])
def test_a_prompt_is_cut_in_the_passages_alone(questions_file: Path, limit: int) -> None:
    """As much of the best passages as fits, to the character; the question and its choices stay whole at any limit."""
    asked = load_questions(questions_file, "--data")[0]
    pipeline = RAGPipeline(RAGConfig(rag_enabled=True, few_shot_enabled=False), TwoPassages())
    bare = RAGPipeline(RAGConfig(few_shot_enabled=False)).prepare(asked).prompt
    prepared = pipeline.prepare(asked, lambda prompt: len(prompt) <= limit)
    kept = prepared.prompt.count("甲") + prepared.prompt.count("乙")
    assert prepared.prompt.endswith(bare.partition("\n\n")[2])
    assert prepared.dropped_characters == 100 - kept
    assert len(prepared.passages) == 2
    if kept:
        assert len(prepared.prompt) <= limit
    if kept < 100:
        more = pipeline.prepare(asked, lambda prompt: prompt.count("甲") + prompt.count("乙") <= kept + 1)
        assert len(more.prompt) > limit
    assert "乙" not in prepared.prompt or prepared.prompt.count("甲") == 50


def ask(tiny_model: Path, data: Path, output: Path) -> list[object]:
    """The evaluation's flags of the tiny model as it is, with retrieval."""
    return [
        *("--data", data, "--output", output, "--top-k", 1, "--no-few-shot"),
        *("--llm-backend", "hf", "--hf-model-name", tiny_model),
    ]


def test_an_evaluation_with_retrieval(
    call_script: CallScript,
    tiny_model: Path,
    questions_file: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The script builds the index, the evaluation reads it; the lines, the counts and the prompts say so."""
    output, index = tmp_path / "evaluation.json", tmp_path / "index"
    assert call_script("build_index", "--data", questions_file, "--index-dir", index) == 0
    assert f"Indexed {len(TOPICS)} passages" in capfd.readouterr().out
    flags = ask(tiny_model, questions_file, output)
    assert call_script("evaluate_multiple_choice", *flags, "--index-dir", index) == 0
    assert "RAG Mode: Enabled\nRetriever Type: bm25\n" in capfd.readouterr().out
    content = json.loads(output.read_text(encoding="utf-8"))
    assert content["config"]["rag_enabled"] is True
    for number, row in enumerate(content["results"]):
        assert (row["retrieved_docs_count"], row["dropped_context_characters"]) == (1, 0)
        assert row["retrieved_sources"] == [f"架空法 第{number}条 第1項"]
        assert f"参考条文:\n架空法 第{number}条 第1項\n{TOPICS[number]}は、別に定める" in row["prompt"]
        assert row["prompt"].endswith(f"{row['choices']}\n回答:")


def test_a_context_too_long_for_the_model_is_cut(call_script: CallScript, tiny_model: Path, tmp_path: Path) -> None:
    """The model takes 1024 tokens: a far longer passage is cut so far that prompt and answer fit, to a few tokens."""
    from app.llm.chat_tokens import encode_prompt, load_tokenizer

    asked = question(0) | {"コンテキスト": "## 架空法\n### 第0条\n" + "河川は、別に定めるところによる。" * 200}
    data, output, index = tmp_path / "long.json", tmp_path / "evaluation.json", tmp_path / "index"
    data.write_text(json.dumps({"samples": [asked]}, ensure_ascii=False), encoding="utf-8")
    assert call_script("build_index", "--data", data, "--index-dir", index) == 0
    flags = ask(tiny_model, data, output)
    assert call_script("evaluate_multiple_choice", *flags, "--index-dir", index) == 0
    (row,) = json.loads(output.read_text(encoding="utf-8"))["results"]
    tokens = len(encode_prompt(load_tokenizer(str(tiny_model)), row["prompt"]).ids)
    assert row["dropped_context_characters"] > 1000
    assert 1024 - 16 - 8 < tokens <= 1024 - 16
    assert row["prompt"].endswith("d 河川登録\n回答:")


def test_a_question_longer_than_the_model_is_an_error_row(
    call_script: CallScript, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What would have to lose part of the question is not asked at all."""
    asked = question(0) | {"問題文": "河川と" * 2000}
    data, output = tmp_path / "long.json", tmp_path / "evaluation.json"
    data.write_text(json.dumps({"samples": [asked]}, ensure_ascii=False), encoding="utf-8")
    assert call_script("evaluate_multiple_choice", *ask(tiny_model, data, output), "--no-rag") == 1
    (row,) = json.loads(output.read_text(encoding="utf-8"))["results"]
    assert row["predicted_answer"] == "error"
    assert "are more than the model's 1024" in row["response"]
    assert "are more than the model's 1024" in capfd.readouterr().out


def test_only_retrieval_needs_its_package(
    call_script: CallScript,
    index: Path,
    questions_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Without bm25s rows without passages are built; with passages one line says what to install."""
    monkeypatch.setitem(sys.modules, "bm25s", None)
    flags = ("--lawqa-path", questions_file, "--output-path", tmp_path / "rows.jsonl", "--index-dir", index)
    assert call_script("build_finetune_dataset", *flags, "--no-rag") == 0
    assert call_script("build_finetune_dataset", *flags) == 1
    assert "pip install bm25s, or pass --no-rag" in capfd.readouterr().err


def test_retrieval_leaves_the_gpu_alone(tmp_path: Path) -> None:
    """bm25s starts JAX where it is installed, and JAX claims most of the card: it is told to stay on the CPU."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax/__init__.py").write_text("import os\nprint(os.environ.get('JAX_PLATFORMS'))")
    (tmp_path / "jax/lax.py").write_text("top_k = print")
    code = "from app.retrieval.bm25 import BM25Retriever, Passage; BM25Retriever.build([Passage('a', '第一条')])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(PIPELINE)))}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split()[0] == "cpu"


def test_training_rows_carry_passages_too(
    call_script: CallScript, index: Path, questions_file: Path, tmp_path: Path
) -> None:
    """Without --no-rag the builder's prompts are the evaluation's, passages included, and the rows say so."""
    rows = tmp_path / "rows.jsonl"
    flags = ("--lawqa-path", questions_file, "--output-path", rows, "--index-dir", index, "--top-k", 1)
    assert call_script("build_finetune_dataset", *flags) == 0
    first = json.loads(rows.read_text(encoding="utf-8").splitlines()[0])
    assert first["meta"]["use_context"] is True
    assert "参考条文:\n架空法 第0条 第1項\n" in first["input"]


def test_a_reranker_is_refused(run_script: RunScript, tmp_path: Path) -> None:
    """This pipeline has none, and does not pretend to: one line, exit 1."""
    index, data = tmp_path / "index", PIPELINE / "datasets" / "sample" / "selection.json"
    built = run_script("build_index", "--data", data, "--index-dir", index)
    assert built.returncode == 0, built.stderr
    flags = ("--data", data, "--index-dir", index, "--llm-backend", "hf", "--hf-model-name", "some/model")
    done = run_script("evaluate_multiple_choice", *flags, "--use-reranker")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["Error: --use-reranker is not part of this pipeline; leave it out"]


def test_a_question_set_without_statute_text_gives_no_index(run_script: RunScript, tmp_path: Path) -> None:
    """Nothing to index is an error that names the key, and no folder is made."""
    data = tmp_path / "bare.json"
    data.write_text(json.dumps({"samples": [question(0) | {"コンテキスト": ""}]}), encoding="utf-8")
    done = run_script("build_index", "--data", data, "--index-dir", tmp_path / "index")
    assert done.returncode == 1
    assert "no text under the key 'コンテキスト'" in done.stderr
    assert not (tmp_path / "index").exists()


@pytest.fixture(scope="module")
def real_questions() -> list[Question]:
    """The 140 real questions."""
    folder = os.environ.get("STEPH_TEST_DATA")
    if not folder:
        pytest.skip("STEPH_TEST_DATA is not set: no real question set")
    return load_questions(Path(folder) / "lawqa_jp/data/selection.json", "--data")


def test_the_real_questions_find_their_statutes(real_questions: list[Question]) -> None:
    """Among the three best of all 288 passages is one of the question's own context, for all but two of 140."""
    retriever = BM25Retriever.build(corpus_of(real_questions))
    found = sum(
        bool({*passages_of(asked.context)} & {*retriever.retrieve(f"{asked.text}\n{asked.choices_text}", 3)})
        for asked in real_questions
    )
    assert len(retriever.passages) == 288
    assert found >= 138
