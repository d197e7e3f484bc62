"""H-1's choice and download, against a Hub on 127.0.0.1 that answers, refuses, hangs and cuts as the real one does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_hub import (
    FIRST_SHA,
    SECOND_SHA,
    Breakage,
    FakeHub,
    FakeModel,
    answer,
    cut_after,
    hang,
    safetensors_bytes,
    write_model,
)
from japanese import is_told_in_japanese
from steph.base.messages import speaking
from steph.base.terms import Cause
from steph.conduct.models import find_qwen_tokenizer
from steph.memory.shapes import TINY, config_of, parameter_count
from steph.record.values import ModelChoice
from steph.run import hub as hub_module
from steph.run.fetch import HubError
from steph.run.hub import Hub, NoModelError, choose, download

A = "Qwen/Qwen1.5-1.8B-Chat"
B = "Qwen/Qwen1.5-4B-Chat"
C = "Qwen/Qwen3-1.7B"
TOKEN = "hf_SecretSecretSecret"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, token or offline switch of the machine's own."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "http_proxy", "HTTP_PROXY", "STEPH_TOKENIZER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A Hub that has the three candidates."""
    with FakeHub({A: FakeModel(), B: FakeModel(), C: FakeModel()}) as server:
        yield server


@dataclass
class Asker:
    """Asks one Hub with one cache; keeps what was logged."""

    endpoint: str
    cache_dir: Path
    lines: list[str] = field(default_factory=list)

    def choose(self, *candidates: str, timeout_seconds: float = 250.0, **options: object) -> ModelChoice:
        """Choose among candidates."""
        settings: dict[str, object] = {"spare_disk_bytes": 0, **options}
        hub = Hub(timeout_seconds, self.endpoint, self.cache_dir)
        return choose(candidates, hub, log=self.lines.append, **settings)  # type: ignore[arg-type]

    def why_not(self, name: str = A, **options: object) -> tuple[Cause, str]:
        """Cause and message of a candidate that can't be had."""
        with pytest.raises(NoModelError) as caught:
            self.choose(name, **options)  # type: ignore[arg-type]
        (rejected,) = caught.value.rejected
        assert rejected.name == name
        assert "\n" not in str(rejected.message)
        assert is_told_in_japanese(rejected.message)
        return rejected.cause, rejected.message.text("en")

    def download(self, model: ModelChoice, **options: object) -> ModelChoice:
        """Download a choice."""
        settings: dict[str, object] = {"deadline_seconds": 60.0, **options}
        return download(model, Hub(30.0, self.endpoint, self.cache_dir), **settings)  # type: ignore[arg-type]


@pytest.fixture
def asker(hub: FakeHub, tmp_path: Path) -> Asker:
    """Asks the fake Hub, with an empty cache."""
    return Asker(hub.url, tmp_path / "cache")


def write_cached(cache_dir: Path, name: str, weights: bytes | None = None) -> Path:
    """A model in the Hub's cache, under refs/main."""
    repository = cache_dir / ("models--" + name.replace("/", "--"))
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(SECOND_SHA)
    return write_model(repository / "snapshots" / SECOND_SHA, weights)


def test_the_first_candidate_on_the_hub_is_chosen_and_recorded(asker: Asker) -> None:
    """A model on the Hub comes with parameters, commit, licence, download size and free disk."""
    choice = asker.choose(A, B)
    assert (choice.name, choice.source, choice.automatic_substitute) == (A, "hub", False)
    assert (choice.parameters, choice.revision, choice.licence) == (1_836_828_672, FIRST_SHA, "apache-2.0")
    wanted = FakeModel().files
    for unwanted in (".gitattributes", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx"):
        del wanted[unwanted]
    assert choice.download_bytes == sum(map(len, wanted.values()))
    assert choice.free_disk_bytes is not None
    assert choice.free_disk_bytes > choice.download_bytes
    assert "第1候補" in str(choice.reason)


def test_a_primary_candidate_after_a_failed_one_is_no_substitute(hub: FakeHub, asker: Asker) -> None:
    """The second of two primary candidates is a pass, and its reason names the first and why not."""
    del hub.models[A]
    choice = asker.choose(A, B, C)
    assert (choice.name, choice.automatic_substitute) == (B, False)
    assert [rejected.name for rejected in choice.rejected] == [A]
    assert f"{A}(Hub にない" in str(choice.reason)


def test_a_later_candidate_is_an_automatic_substitute(hub: FakeHub, asker: Asker) -> None:
    """A candidate behind the primary ones is marked as a substitute, with what was passed over."""
    del hub.models[A], hub.models[B]
    choice = asker.choose(A, B, C)
    assert (choice.name, choice.automatic_substitute) == (C, True)
    assert "自動代替" in str(choice.reason)
    assert A in str(choice.reason)
    assert B in str(choice.reason)


def test_a_named_model_is_never_a_substitute(asker: Asker) -> None:
    """What the user named is what the user gets, wherever it stands."""
    choice = asker.choose(C, primary_count=0, is_explicit=True)
    assert not choice.automatic_substitute
    assert "--steph-model" in str(choice.reason)


def test_without_safetensors_metadata_the_shape_counts(hub: FakeHub, asker: Asker) -> None:
    """Where the Hub gives no count, a built-in shape does."""
    hub.models[A].parameters = None
    assert asker.choose(A).parameters == 1_836_828_672


@pytest.mark.parametrize(
    ("config", "parameters"), [(config_of(TINY, "t"), parameter_count(TINY)), ({}, None), (None, None)]
)
def test_an_unknown_model_is_counted_by_the_config_that_the_hub_shows(
    hub: FakeHub, asker: Asker, config: dict[str, object] | None, parameters: int | None
) -> None:
    """Without metadata and a built-in shape its config tells the size, or nothing does."""
    hub.models["a/b"] = FakeModel(parameters=None, described={"config": config})
    assert asker.choose("a/b").parameters == parameters


@pytest.mark.parametrize(
    ("described", "licence"),
    [
        ({"cardData": None, "tags": ["license:mit", "license:other"]}, "mit"),
        ({"cardData": None, "tags": ["text-generation"]}, None),
        ({"cardData": {}, "tags": None}, None),
    ],
)
def test_a_licence_is_read_off_the_tags_where_the_card_names_none(
    hub: FakeHub, asker: Asker, described: dict[str, object], licence: str | None
) -> None:
    """And where neither does, none is made up."""
    hub.models[A].described = described
    assert asker.choose(A).licence == licence


def test_a_hub_that_names_no_revision_can_pin_none(hub: FakeHub, asker: Asker) -> None:
    """What can't be had again byte for byte is not taken."""
    hub.models[A].described = {"sha": None}
    cause, message = asker.why_not()
    assert cause is Cause.HUB_UNREACHABLE
    assert "names no revision" in message


@pytest.mark.parametrize(
    ("breakage", "cause", "words"),
    [
        (
            answer(401, X_Error_Message="Invalid credentials in Authorization header"),
            Cause.HUB_GATED,
            "refused the token (401)",
        ),
        (answer(401, X_Error_Code="RepoNotFound"), Cause.HUB_NOT_FOUND, "private"),
        (answer(403, X_Error_Code="GatedRepo"), Cause.HUB_GATED, "is gated: accept its terms"),
        (answer(403, b'{"error":"forbidden"}'), Cause.HUB_GATED, "(403)"),
        (answer(404, X_Error_Code="RepoNotFound"), Cause.HUB_NOT_FOUND, "(404): check the name"),
        (answer(404), Cause.HUB_NOT_FOUND, "(404): check the name"),
        (answer(429, RateLimit='"api";r=0;t=55'), Cause.HUB_UNREACHABLE, "(429): try again in 55 s"),
        (answer(429, Retry_After="7"), Cause.HUB_UNREACHABLE, "(429): try again in 7 s"),
        (answer(429), Cause.HUB_UNREACHABLE, "(429): try again later"),
        (answer(500, b"oops"), Cause.HUB_UNREACHABLE, "out of order (500)"),
        (answer(503, b"oops"), Cause.HUB_UNREACHABLE, "out of order (503)"),
        (answer(418), Cause.HUB_UNREACHABLE, "answered 418"),
        (answer(200, b"<html>log in</html>", Content_Type="text/html"), Cause.HUB_UNREACHABLE, "captive portal"),
        (answer(302, Location="/portal"), Cause.HUB_NOT_FOUND, "(404)"),
        (answer(302, Location="/api/models/x/loop"), Cause.HUB_UNREACHABLE, "captive portal"),
    ],
)
def test_each_refusal_has_its_own_line(
    hub: FakeHub, asker: Asker, breakage: Breakage, cause: Cause, words: str
) -> None:
    """Each way in which the Hub refuses gives its own cause and a line that says what to do."""
    hub.break_on("/api/models/", breakage)
    got_cause, message = asker.why_not()
    assert got_cause is cause
    assert words in message


def test_a_hanging_hub_costs_no_more_than_the_time_out(hub: FakeHub, asker: Asker) -> None:
    """A Hub that accepts and never answers is given up in time, once for all candidates."""
    hub.break_on("/api/models/", hang)
    with pytest.raises(NoModelError, match=r"0.4 秒以内に応答がない") as caught:
        asker.choose(A, B, C, timeout_seconds=0.4)
    assert [rejected.cause for rejected in caught.value.rejected] == [Cause.HUB_UNREACHABLE] * 3
    assert len(hub.asked("/api/models/")) == 1


def test_a_dripping_hub_costs_no_more_than_the_time_out(hub: FakeHub, asker: Asker) -> None:
    """A Hub that sends a byte now and then can't stretch the time-out."""

    def drip(handler: object) -> None:
        handler.send_response(200)  # type: ignore[attr-defined]
        handler.send_header("Content-Length", "1000")  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]
        while not hub.closing.wait(0.05):
            handler.wfile.write(b" ")  # type: ignore[attr-defined]

    hub.break_on("/api/models/", drip)
    asker.why_not(timeout_seconds=0.5)


def test_a_refused_connection_says_so(tmp_path: Path) -> None:
    """A port on which nobody listens is told apart from a Hub that is silent."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    cause, message = Asker(endpoint, tmp_path).why_not()
    assert cause is Cause.HUB_UNREACHABLE
    assert f"{endpoint} refused the connection" in message


def test_an_unknown_host_says_dns(tmp_path: Path) -> None:
    """A name that no DNS server knows is called that."""
    cause, message = Asker("http://hub.invalid", tmp_path).why_not(timeout_seconds=20.0)
    assert cause is Cause.HUB_UNREACHABLE
    assert "(DNS)" in message


def test_offline_mode_asks_nobody(hub: FakeHub, asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """With HF_HUB_OFFLINE set no request leaves, and the line names the switch."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cause, message = asker.why_not()
    assert (cause, hub.requests) == (Cause.HUB_UNREACHABLE, [])
    assert "HF_HUB_OFFLINE is set" in message


@pytest.mark.parametrize("name", ["a/b/c", "Qwen/Qwen 1.5", "", "Qwen/--x"])
def test_a_malformed_name_is_refused_before_the_network(hub: FakeHub, asker: Asker, name: str) -> None:
    """A name that can't be a model's is not asked for."""
    cause, message = asker.why_not(name)
    assert (cause, hub.requests) == (Cause.HUB_NOT_FOUND, [])
    assert "no model name" in message


def test_a_folder_that_is_not_there_is_no_question_for_the_hub(hub: FakeHub, asker: Asker, tmp_path: Path) -> None:
    """A path is looked for on disk alone."""
    cause, message = asker.why_not(str(tmp_path / "nowhere"))
    assert (cause, hub.requests) == (Cause.HUB_NOT_FOUND, [])
    assert "nowhere: no such folder" in message


def test_a_gated_model_is_refused_though_its_description_is_public(hub: FakeHub, asker: Asker) -> None:
    """A gated model's description is public; its files aren't, and that is found out before the download."""
    hub.models[A].gated = "manual"
    hub.break_on("/auth-check", answer(403, X_Error_Code="GatedRepo"))
    assert asker.why_not()[0] is Cause.HUB_GATED
    hub.breakages.clear()
    assert asker.choose(A).source == "hub"


def test_a_repository_without_safetensors_is_refused(hub: FakeHub, asker: Asker) -> None:
    """Weights that need pickle are not loaded, and the line says what is missing."""
    for file in ("model.safetensors", "consolidated.safetensors"):
        del hub.models[A].files[file]
    assert asker.why_not() == (Cause.HUB_NOT_FOUND, f"{A} has no safetensors weights; nothing else is loaded")


@pytest.mark.parametrize(("file", "words"), [("config.json", "no config.json"), ("tokenizer.json", "no tokenizer")])
def test_a_repository_without_config_or_tokenizer_is_refused(hub: FakeHub, asker: Asker, file: str, words: str) -> None:
    """A repository that can't be loaded is passed over before the download."""
    del hub.models[A].files[file]
    assert words in asker.why_not()[1]


def test_too_little_disk_is_told_with_both_figures(asker: Asker) -> None:
    """A download that doesn't fit is refused with what it needs and what is free."""
    cause, message = asker.why_not(spare_disk_bytes=1 << 59)
    assert cause is Cause.DISK_FULL
    assert re.search(r"needs \d+ B and 536,870,912\.00 GiB to spare", message)
    assert "GiB are free" in message


def test_tokens_reach_no_message(hub: FakeHub, asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the token that was used nor any other that a server echoes is repeated."""
    hub.break_on("/api/models/", answer(418, b'{"error":"bad hf_OtherOtherOther and plain-secret"}'))
    for token in (TOKEN, "plain-secret"):
        monkeypatch.setenv("HF_TOKEN", token)
        message = asker.why_not()[1]
        assert "418" in message
        assert token not in message
        assert "hf_Other" not in message
    assert hub.requests[0].authorization == f"Bearer {TOKEN}"
    assert not any("secret" in line.lower() for line in asker.lines)


def test_credentials_in_the_endpoint_reach_no_message(tmp_path: Path) -> None:
    """A user name and password inside HF_ENDPOINT stay out of the message."""
    message = Asker("http://me:pass@hub.invalid", tmp_path).why_not(timeout_seconds=20.0)[1]
    assert "pass" not in message
    assert "@hub.invalid" in message


def test_a_whole_cached_copy_stands_in_for_a_silent_hub(hub: FakeHub, asker: Asker) -> None:
    """When the Hub is down, a whole copy in the cache is used and its reason says that the Hub was not checked."""
    hub.break_on("/api/models/", answer(503))
    snapshot = write_cached(asker.cache_dir, A)
    choice = asker.choose(A)
    assert (choice.name, choice.source, choice.revision) == (A, "cache", SECOND_SHA)
    assert (choice.parameters, choice.download_bytes, choice.snapshot_path) == (64, 0, str(snapshot))
    assert "Hub 未確認" in str(choice.reason)
    assert "(503)" in str(choice.reason)


def test_a_cut_cached_copy_is_not_used(hub: FakeHub, asker: Asker) -> None:
    """A cached copy whose weights are cut doesn't count as one."""
    hub.break_on("/api/models/", answer(503))
    write_cached(asker.cache_dir, A, safetensors_bytes(64)[:-1])
    assert asker.why_not()[0] is Cause.HUB_UNREACHABLE


def test_a_path_is_taken_as_it_is(hub: FakeHub, asker: Asker, tmp_path: Path) -> None:
    """A candidate that is a folder needs no Hub."""
    folder = write_model(tmp_path / "mine")
    choice = asker.choose(str(folder), is_explicit=True)
    assert (choice.name, choice.source, hub.requests) == (str(folder), "local", [])
    assert asker.download(choice) == choice


def test_a_broken_folder_is_not_passed_for_the_cached_copy_of_its_name(
    asker: Asker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline that is given this name loads the folder."""
    write_cached(asker.cache_dir, A)
    (tmp_path / A).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert asker.why_not()[0] is Cause.HUB_NOT_FOUND


def test_a_download_is_whole_pinned_and_usable_offline(hub: FakeHub, asker: Asker) -> None:
    """After the download the cache finds the model by its name without a network, and nothing unwanted came along."""
    steps: list[tuple[int, int]] = []
    choice = asker.choose(A)
    done = asker.download(choice, progress=lambda done_bytes, due_bytes: steps.append((done_bytes, due_bytes)))
    from huggingface_hub import hf_hub_download

    config = hf_hub_download(A, "config.json", cache_dir=asker.cache_dir, local_files_only=True)
    assert done.snapshot_path is not None
    assert Path(config).parent == Path(done.snapshot_path)
    assert (done.revision, done.parameters, done.reason) == (FIRST_SHA, 64, choice.reason)
    files = {path.name for path in Path(done.snapshot_path).rglob("*") if path.is_file()}
    assert files == {"README.md", "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert steps[-1] == (choice.download_bytes, choice.download_bytes)
    assert asker.choose(A).download_bytes == 0


def test_a_model_in_shards_comes_with_its_index_and_all_of_them(hub: FakeHub, asker: Asker) -> None:
    """Both shards and the index are downloaded and counted, and no file that only looks like one."""
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    files = hub.models[A].files
    shard = files.pop("model.safetensors")
    index = json.dumps({"weight_map": dict(zip("ab", names, strict=True))}).encode()
    files |= dict.fromkeys(names, shard) | {"model.safetensors.index.json": index, "model-x.safetensors": shard}
    choice = asker.choose(A)
    done = asker.download(choice)
    assert done.parameters == 2 * 64
    assert done.snapshot_path is not None
    weights = {path.name for path in Path(done.snapshot_path).glob("model*")}
    assert weights == {*names, "model.safetensors.index.json"}
    assert asker.choose(A).download_bytes == 0


def test_a_model_that_is_here_is_not_asked_for_twice(hub: FakeHub, asker: Asker) -> None:
    """Where nothing is left to download, a Hub that falls silent after the choice costs nothing."""
    asker.download(asker.choose(A))
    choice = asker.choose(A)
    main = asker.cache_dir / "models--Qwen--Qwen1.5-1.8B-Chat/refs/main"
    main.unlink()
    hub.break_on("/api/models/", answer(503))
    done = asker.download(choice)
    assert (done.revision, done.parameters, done.licence, done.download_bytes) == (FIRST_SHA, 64, "apache-2.0", 0)
    assert (Path(done.snapshot_path or "") / "config.json").is_file()
    assert main.read_text() == FIRST_SHA


def test_a_copy_that_was_emptied_since_is_downloaded(hub: FakeHub, asker: Asker) -> None:
    """What the choice found in the cache is looked at again before it is used."""
    done = asker.download(asker.choose(A))
    choice = asker.choose(A)
    (Path(done.snapshot_path or "") / "model.safetensors").unlink()
    again = asker.download(choice)
    assert (Path(again.snapshot_path or "") / "model.safetensors").is_file()


def test_a_cut_download_resumes(hub: FakeHub, asker: Asker) -> None:
    """A download that breaks off goes on from the last whole chunk instead of from the start."""
    hub.models[A].files["model.safetensors"] = safetensors_bytes(6 << 20)
    hub.break_on(r"/resolve/.*/model\.safetensors", cut_after(11 << 20), times=1)
    done = asker.download(asker.choose(A))
    assert [request.range for request in hub.asked(r"/model\.safetensors")] == [None, f"bytes={10 << 20}-"]
    assert done.parameters == 6 << 20


def test_the_chosen_commit_comes_also_where_the_branch_moved(hub: FakeHub, asker: Asker) -> None:
    """What was chosen is what is asked for and recorded, whatever main names by then."""
    choice = asker.choose(A)
    hub.requests.clear()
    done = asker.download(choice)
    assert done.revision == choice.revision == FIRST_SHA
    asked = [request.path for request in hub.asked("/api/models/|/resolve/")]
    assert [path for path in asked if FIRST_SHA not in path] == []
    assert (asker.cache_dir / "models--Qwen--Qwen1.5-1.8B-Chat/refs/main").read_text() == FIRST_SHA


def test_an_interrupted_download_leaves_no_half_file(hub: FakeHub, asker: Asker) -> None:
    """Ctrl-C in the middle of a file ends the downloading process and takes the half-written file with it."""
    hub.models[A].files["model.safetensors"] = safetensors_bytes(6 << 20)
    hub.break_on(r"/resolve/.*/model\.safetensors", cut_after(11 << 20, then=hang))
    seen: list[Path] = []

    def interrupt(done_bytes: int, due_bytes: int) -> None:
        if done_bytes >= 10 << 20:
            seen.extend(asker.cache_dir.rglob("*.incomplete"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asker.download(asker.choose(A), progress=interrupt)
    assert len(seen) == 1
    assert list(asker.cache_dir.rglob("*.incomplete")) == []
    assert list(asker.cache_dir.rglob("refs/main")) == []


def test_a_download_ends_with_the_process_that_asked(hub: FakeHub, asker: Asker) -> None:
    """Where the suite is killed, its downloading process goes too and takes the half-written file with it."""
    hub.models[A].files["model.safetensors"] = safetensors_bytes(6 << 20)
    hub.break_on(r"/resolve/.*/model\.safetensors", cut_after(11 << 20, then=hang))
    choice = asker.choose(A)
    suite = os.fork()
    if suite == 0:
        with contextlib.suppress(BaseException):
            asker.download(choice)
        os._exit(0)

    def half_written() -> list[Path]:
        found = []
        for path in asker.cache_dir.rglob("*.incomplete"):
            with contextlib.suppress(FileNotFoundError):  # a small file, whole by now
                found += [path] if path.stat().st_size > 1 << 20 else []
        return found

    try:
        while not half_written():
            time.sleep(0.05)
    finally:
        os.kill(suite, signal.SIGKILL)
        os.waitpid(suite, 0)
    while half_written():
        time.sleep(0.05)


def test_a_stalled_download_ends(hub: FakeHub, asker: Asker) -> None:
    """A download into which nothing flows is ended long before its limit."""
    hub.break_on("/resolve/", hang)
    with pytest.raises(HubError, match=r"http://127.0.0.1:\d+ から 0.5 秒間何も届かない") as caught:
        asker.download(asker.choose(A), stall_seconds=0.5)
    assert caught.value.failure.cause is Cause.HUB_UNREACHABLE


def test_a_download_has_a_deadline(hub: FakeHub, asker: Asker) -> None:
    """A download that is still running at its limit is ended there."""
    hub.break_on("/resolve/", hang)
    choice = asker.choose(A)
    with pytest.raises(HubError, match="時間の上限を超えた") as caught:
        asker.download(choice, deadline_seconds=0.5)
    assert caught.value.failure.cause is Cause.TIMEOUT


def test_files_that_are_refused_after_all_are_told(hub: FakeHub, asker: Asker) -> None:
    """A model whose files are refused at the download gives the same clear line as at the choice."""
    choice = asker.choose(A)
    hub.break_on("/api/models/.*/tree/", answer(403, X_Error_Code="GatedRepo"))
    with pytest.raises(HubError, match="利用条件への同意が必要") as caught:
        asker.download(choice)
    with speaking("en"):
        assert "is gated: accept its terms" in str(caught.value)
    assert caught.value.failure.cause is Cause.HUB_GATED


def test_what_is_whole_in_the_cache_needs_no_download(
    hub: FakeHub, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run starts no downloading process, unless a file of the snapshot is gone or cut."""
    snapshot = asker.download(asker.choose(A)).snapshot_path
    assert snapshot is not None
    started: list[object] = []

    def refused(*request: object) -> None:
        started.append(request)
        raise OSError("no process")

    monkeypatch.setattr(hub_module, "_fetch", refused)
    again = asker.download(asker.choose(A))
    assert (again.snapshot_path, started) == (snapshot, [])
    weights = (Path(snapshot) / "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(OSError, match="no process"):
        asker.download(asker.choose(A))
    (Path(snapshot) / "model.safetensors").unlink()
    with pytest.raises(OSError, match="no process"):
        asker.download(asker.choose(A))
    assert len(started) == 2


def test_weights_that_are_no_safetensors_fail_the_download(hub: FakeHub, asker: Asker) -> None:
    """Files that arrive whole but hold something else are not passed on."""
    hub.models[A].files["model.safetensors"] = b"version https://git-lfs.github.com/spec/v1\n"
    choice = asker.choose(A)
    with pytest.raises(HubError, match="ダウンロードが不完全") as caught:
        asker.download(choice)
    assert "model.safetensors" in str(caught.value)


def test_a_qwen_tokenizer_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ChatML tokenizer of a cached model is found; what the environment names goes first; another is not taken."""
    assert find_qwen_tokenizer(cache_dir=tmp_path) is None
    other = write_cached(tmp_path, "meta/other")
    (other / "tokenizer.json").write_text("{}")
    assert find_qwen_tokenizer([tmp_path / "nowhere"], cache_dir=tmp_path) is None
    cached = write_cached(tmp_path, A)
    assert find_qwen_tokenizer(cache_dir=tmp_path) == cached
    named = write_model(tmp_path / "named")
    monkeypatch.setenv("STEPH_TOKENIZER", str(named / "tokenizer.json"))
    assert find_qwen_tokenizer(cache_dir=tmp_path) == named
    monkeypatch.setenv("STEPH_TOKENIZER", str(other))
    with pytest.raises(ValueError, match="STEPH_TOKENIZER="):
        find_qwen_tokenizer(cache_dir=tmp_path)


def test_importing_the_chooser_imports_no_hub_client() -> None:
    """huggingface_hub is imported when a model is asked for, not before."""
    import subprocess
    import sys

    program = "import steph.run.hub, sys; sys.exit('huggingface_hub' in sys.modules)"
    root = Path(choose.__code__.co_filename).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0
