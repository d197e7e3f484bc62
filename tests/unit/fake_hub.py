"""A Hub on 127.0.0.1 that answers as huggingface.co does, whole or broken, and remembers what it was asked."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

FIRST_SHA = "a" * 40
SECOND_SHA = "b" * 40


def safetensors_bytes(elements: int = 64) -> bytes:
    """A whole safetensors file with one bf16 tensor of so many elements."""
    tensor = {"dtype": "BF16", "shape": [elements], "data_offsets": [0, 2 * elements]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "model.norm.weight": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * (2 * elements)


def model_files(elements: int = 64) -> dict[str, bytes]:
    """The files of a small model's repository, among them some that nobody should download."""
    return {
        ".gitattributes": b"*.safetensors filter=lfs\n",
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "config.json": b'{"model_type": "qwen2"}',
        "tokenizer.json": b'{"added_tokens": [{"content": "<|im_start|>"}]}',
        "tokenizer_config.json": b"{}",
        "model.safetensors": safetensors_bytes(elements),
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": safetensors_bytes(elements),
        "onnx/model.onnx": b"onnx",
    }


@dataclass
class FakeModel:
    """One repository: what its default branch holds."""

    files: dict[str, bytes] = field(default_factory=model_files)
    sha: str = FIRST_SHA
    parameters: int | None = 1_836_828_672
    gated: str | bool = False
    described: dict[str, object] = field(default_factory=dict)  # what the description says in other words


@dataclass(frozen=True)
class Request:
    """One request as the Hub saw it."""

    method: str
    path: str
    range: str | None
    authorization: str | None


Breakage = Callable[["Handler"], None]


def answer(status: int, body: bytes = b"", **headers: str) -> Breakage:
    """A fixed answer; underscores in header names stand for hyphens."""
    return lambda handler: handler.send(status, body, {name.replace("_", "-"): text for name, text in headers.items()})


def hang(handler: Handler) -> None:
    """Accept the request and say nothing until the Hub closes."""
    handler.hub.closing.wait()
    handler.close_connection = True


def cut_after(size_bytes: int, *, then: Breakage | None = None) -> Breakage:
    """Announce the whole file, send so many bytes of it, then close the connection or do something else."""

    def cut(handler: Handler) -> None:
        name, content = handler.resolved()
        handler.send_response(200)
        for key, text in handler.file_headers(name, content).items():
            handler.send_header(key, text)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:size_bytes])
        handler.wfile.flush()
        if then:
            then(handler)
        handler.close_connection = True

    return cut


class FakeHub(ThreadingHTTPServer):
    """Serves `models`; a breakage stands in for the normal answer to each GET whose path a pattern finds.

    With a count, a breakage happens so many times.
    """

    daemon_threads = True

    def __init__(self, models: dict[str, FakeModel] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = models or {}
        self.requests: list[Request] = []
        self.breakages: list[tuple[re.Pattern[str], Breakage, int]] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        """The endpoint to give to the client."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def break_on(self, pattern: str, breakage: Breakage, times: int = 1_000_000) -> None:
        """Answer so many matching GET requests with a breakage."""
        self.breakages.append((re.compile(pattern), breakage, times))

    def take_breakage(self, path: str) -> Breakage | None:
        """The breakage due for this path, counted down."""
        for index, (pattern, breakage, times) in enumerate(self.breakages):
            if times and pattern.search(path):
                self.breakages[index] = (pattern, breakage, times - 1)
                return breakage
        return None

    def asked(self, pattern: str) -> list[Request]:
        """The GET requests whose path the pattern finds, in order."""
        return [request for request in self.requests if request.method == "GET" and re.search(pattern, request.path)]

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: FakeHub

    @property
    def hub(self) -> FakeHub:
        """The Hub that this connection belongs to."""
        return self.server

    def log_message(self, *_: object) -> None:
        """Keep pytest's output clean."""

    def do_HEAD(self) -> None:
        """Answer as to GET, without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Route to the model's description, its file list or a file."""
        self.hub.requests.append(
            Request(self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        breakage = self.hub.take_breakage(self.path) if self.command == "GET" else None
        if breakage:
            breakage(self)
        elif self.path.startswith("/api/models/"):
            self.send_description()
        elif "/resolve/" in self.path:
            self.send_file()
        else:
            self.send_not_found()

    def send_description(self) -> None:
        """`/api/models/ID`, `/api/models/ID/revision/R`, `/api/models/ID/tree/R`, `/api/models/ID/auth-check`."""
        path = self.path.removeprefix("/api/models/").split("?")[0]
        name = "/".join(path.split("/")[:2])
        model = self.hub.models.get(name)
        if model is None:
            self.send_not_found()
        elif "/tree/" in path:
            files = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}  # noqa: S324
                for file, content in model.files.items()
            ]
            self.send_json(files)
        else:
            self.send_json(describe(name, model))

    def send_file(self) -> None:
        """`/ID/resolve/REVISION/FILE`, whole or from a byte on."""
        name, content = self.resolved()
        headers = self.file_headers(name, content)
        asked = self.headers.get("Range")
        if asked and self.command == "GET":
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send(206, content[start:], headers)
        else:
            self.send(200, content, headers)

    def resolved(self) -> tuple[str, bytes]:
        """Name and content of the file that is asked for."""
        repository, _, rest = self.path.strip("/").partition("/resolve/")
        file = rest.split("?")[0].partition("/")[2]
        return repository, self.hub.models[repository].files[file]

    def file_headers(self, name: str, content: bytes) -> dict[str, str]:
        """The headers by which the client knows file and commit."""
        etag = hashlib.sha1(content).hexdigest()  # noqa: S324 - git's name for a blob, no secret
        return {"ETag": f'"{etag}"', "X-Repo-Commit": self.hub.models[name].sha, "Accept-Ranges": "bytes"}

    def send_not_found(self) -> None:
        """A repository that isn't there."""
        self.send(404, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})

    def send_json(self, content: object) -> None:
        """A JSON answer."""
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """A whole answer; without its body for HEAD."""
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def describe(name: str, model: FakeModel) -> dict[str, object]:
    """What `/api/models/ID?blobs=true` answers."""
    description: dict[str, object] = {
        "id": name,
        "sha": model.sha,
        "siblings": [{"rfilename": file, "size": len(content)} for file, content in model.files.items()],
        "cardData": {"license": "apache-2.0"},
        "tags": ["license:apache-2.0"],
        "gated": model.gated,
        "private": False,
    }
    if model.parameters:
        description["safetensors"] = {"parameters": {"BF16": model.parameters}, "total": model.parameters}
    return description | model.described


def write_model(folder: Path, weights: bytes | None = None) -> Path:
    """A whole model folder, or one with these weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "tokenizer.json").write_text('{"added_tokens": [{"content": "<|im_start|>"}]}')
    (folder / "model.safetensors").write_bytes(safetensors_bytes(64) if weights is None else weights)
    return folder
