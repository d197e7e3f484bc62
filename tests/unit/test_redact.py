"""Secrets out of text and streams."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import steph.base.text
from hypothesis import example, given, settings
from hypothesis import strategies as st
from steph.base.text import HOLD_BYTES, StreamRedactor, redact, redact_bytes, redact_tree

SECRET = "hf_QwErTyUiOpAsDfGhJkLzXcVbNm0123456789"


@pytest.mark.parametrize(
    "text",
    [
        "login with {} now",
        "Authorization: Bearer {}",
        "{{'Authorization': 'Bearer {}'}}",
        "authorization: Basic {}",
        "HF_TOKEN={}",
        "export HUGGING_FACE_HUB_TOKEN='{}'",
        "WANDB_API_KEY={}",
        "MY_SERVICE_SECRET={}",
        "OPENAI_API_KEY: {}",
        "AWS_SECRET_ACCESS_KEY={}",
        "python train.py --token {} --bf16",
        "--hf-token={}",
        "['python', 'train.py', '--token', '{}']",
        "from_pretrained(name, token='{}')",
        'from_pretrained(name, use_auth_token="{}")',
        '{{"token": "{}"}}',
        '{{\\"api_key\\": \\"{}\\"}}',
        "os.environ['HF_TOKEN'] = '{}'",
        "git clone https://user:{}@huggingface.co/org/m",
        "https://{}@huggingface.co/org/m",
        "GET https://cdn.example/x?X-Amz-Signature={}&x=1",
        "password: {}",
    ],
)
@pytest.mark.parametrize("secret", [SECRET, "api_org_QwErTyUiOpAsDfGhJkLzXcVb", "k3y-with-dashes-0123456789"])
def test_secrets_are_masked(text: str, secret: str) -> None:
    """Whatever names or carries a secret, it is gone, and the rest stays."""
    if text == "login with {} now":
        secret = SECRET  # nothing around it says so: only its own form can
    shown = redact(text.format(secret))
    assert secret not in shown
    assert secret[4:] not in shown
    assert "***" in shown
    assert shown.startswith(text.format(secret)[:4])


@pytest.mark.parametrize(
    "issued",
    [
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "github_pat_11ABCDEFG0123456789_abcdefghij",
        "glpat-AbCdEfGhIjKlMnOpQrSt",
        "xoxb-123456789012-abcdefghijkl",
        "nvapi-AbCdEfGhIjKlMnOpQrStUvWxYz0123",
        "gsk_AbCdEfGhIjKlMnOpQrStUvWxYz01",
        "r8_AbCdEfGhIjKlMnOpQrStUvWxYz01",
        "npm_AbCdEfGhIjKlMnOpQrStUvWxYz01",
        "pypi-AgEIcHlwaS5vcmcCJDAxMjM0NTY3",
        "dckr_pat_AbCdEfGhIjKlMnOp",
        "wandb_v1_AbCdEfGhIjKlMnOpQrStUvWx",
        "hf_oauth_AbCdEfGhIjKlMnOp",
        "AKIAIOSFODNN7EXAMPLE",
        "AIzaSyA1234567890abcdefghijklmnopqrstuv",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4",
    ],
)
def test_a_token_is_known_by_what_its_issuer_begins_it_with(issued: str) -> None:
    """With nothing beside it that says what it is; where it is part of a longer word, it is none."""
    for text in (f"used {issued} here", f"({issued})", f"{issued}\n", f"x={issued}"):
        shown = redact(text)
        assert issued not in shown
        assert issued[-8:] not in shown
        assert redact(shown) == shown
    assert redact(f"word{issued}") == f"word{issued}"


def test_a_proxy_and_a_storage_address_lose_their_passwords() -> None:
    """User and password before the host, whatever the scheme, and the signature of an address."""
    said = "http_proxy=http://corp%5Ctaro:pa55@proxy:8080 all_proxy=socks5h://u:p@h sig https://a.blob/x?sv=1&sig=AbC%2Fd0123456789xyz%3D&e=1"
    assert redact(said) == (
        "http_proxy=http://***@proxy:8080 all_proxy=socks5h://***@h sig https://a.blob/x?sv=1&sig=***&e=1"
    )


@pytest.mark.parametrize(
    "text",
    [
        "420.5 tokens per second, num_input_tokens_seen: 1024",
        "tokenizer.eos_token='<|im_end|>' pad_token='!' bos_token: <s>",
        "from huggingface_hub import hf_hub_download; app/llm/hf_llm.py --hf-lora-path runs/x hf_lora_path=runs/x",
        "hf_transformers hf_generation hf_quantizer.preprocess_model",
        "token=None, use_auth_token=True, max_new_tokens=512, token=args.token, HF_TOKEN=$HF_TOKEN",
        "Next token: hello; Invalid token: please log in",
        "Secret: none; password authentication is not supported",
        "git@github.com:org/repo.git ssh://git@host/x file://a@b",
        "KeyError: 'output' key=value keys: 3",
        "npm_config_registry pypi-mirror xai-org/grok r8_model glpat- AIzawa asia asian-languages AKIAK eyJ.eyJ",
        "python:3.11@sha256:0123456789abcdef torch@2.11 sig=0.1 sigmoid",
        "{'loss': '1.2', 'grad_norm': '0.3'}",
        "2% 1/50 [00:03<02:31, 3.09s/it]",
    ],
)
def test_harmless_text_is_untouched(text: str) -> None:
    """Names that only look alike stay readable."""
    assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "/etc/passwd: no folder",
        "steph: /etc/passwd: No such file or directory",
        "--steph-pipeline-root=/etc/passwd: no such folder",
        "cat: '/run/secrets/db_password': Permission denied",
        "~/keys/api_key: can't be read",
        "C:\\Users\\taro\\password: is a folder",
        "../home/auth_token: is no JSON at all",
        "--model /etc/passwd: Hub のモデルでもフォルダでもない",
        "/etc/passwd: フォルダでない",
    ],
)
def test_the_last_part_of_a_path_is_no_keyword(text: str) -> None:
    """An error about a file of that name says what is the matter with it."""
    assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "password: {}",
        "enter user/password: {}",
        "GET ?password={}",
        "GET /login?passwd={}",
        "GET /login/form?user=a&passwd={}",
        "https://host/a/password={}",
        "https://host/a/password: {} x",
        "/prod/db/password={}",
        "/prod/db/password: {}",
        "/prod/db/password: '{}'",
        "/password: {} is set",
        "/prod/x password: {} is set",
        "/prod/db/--password: {} is set",
    ],
)
@pytest.mark.parametrize("secret", ["hunter2", "hunter"])
def test_a_password_beside_a_path_or_in_an_address_is_masked(text: str, secret: str) -> None:
    """A query, a route, a parameter store's path with its one word, and `user/password`."""
    assert redact(text.format(secret)) == text.format("***")


def test_a_word_with_a_digit_behind_a_path_is_masked() -> None:
    """Whatever follows it: the words of an error have none."""
    assert redact("/prod/db/password: hunter2 is set") == "/prod/db/password: *** is set"


PIECES = st.sampled_from(
    [
        SECRET,
        "HF_TOKEN=",
        "token='",
        "Authorization: Bearer ",
        "https://u:",
        "@host/",
        "--token ",
        "hf_",
        "***",
        "'",
        '"',
        " ",
        "\n",
        "=",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES | st.text(max_size=8), max_size=12).map("".join))
@example("HF_TOKEN='HF_TOKEN=\\")  # two values side by side
def test_redacting_twice_changes_nothing(text: str) -> None:
    """The output of redaction is a fixed point, for any text, and holds no secret."""
    once = redact(text)
    assert redact(once) == once
    assert SECRET not in once


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["", "\n", "x" * 5000, "x " * 12000, "\r 1% ", "a=b&" * 6000]),
    st.sampled_from(["HF_TOKEN=", "Authorization: Bearer ", "", "--token ", "https://user:", 'token="']),
    st.sampled_from(["", "\n", "@host/x y" * 4000, '" tail', " z" * 20000]),
    st.lists(st.integers(50, 9000), min_size=1, max_size=6),
)
def test_a_secret_cut_across_chunks_never_gets_through(before: str, name: str, after: str, sizes: list[int]) -> None:
    """However a stream is cut, also without line ends, no secret comes out, and nothing else is lost."""
    data = f"{before} {name}{SECRET} {after}".encode()
    redactor = StreamRedactor()
    out, at, turn = b"", 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        out += redactor.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    out += redactor.flush()
    assert SECRET[3:].encode() not in out
    assert out == redact_bytes(data)


def test_a_secret_cut_at_every_place() -> None:
    """Two chunks, cut anywhere: the same output as in one."""
    data = f"x HF_TOKEN={SECRET} Authorization: Bearer abcdefgh12345 https://u:{SECRET}@h/ \n".encode()
    for cut in range(len(data)):
        redactor = StreamRedactor()
        assert redactor.feed(data[:cut]) + redactor.feed(data[cut:]) + redactor.flush() == redact_bytes(data)


def test_an_endless_secret_is_masked_and_not_hoarded() -> None:
    """A value without an end is swallowed in bounded memory; what follows it is let out."""
    redactor = StreamRedactor()
    out = redactor.feed(b"HF_TOKEN=")
    for _ in range(40):
        out += redactor.feed(b"A1" * 4096)
        assert len(redactor._held) <= HOLD_BYTES + 8192
    out += redactor.feed(b"tail and more\n") + redactor.flush()
    assert b"A1A1" not in out
    assert out.endswith(b" and more\n")


def test_a_long_line_is_let_out_in_bounded_memory() -> None:
    """1 MB without a line end is not held back."""
    redactor = StreamRedactor()
    out = b"".join(redactor.feed(b"progress... " * 512) for _ in range(160))
    assert len(out) > 900_000
    assert out + redactor.flush() == b"progress... " * 512 * 160


def test_a_value_of_json_loses_its_secrets_wherever_they_stand() -> None:
    """In keys and in lists; half a character, which no file takes, is replaced; what is no text stays."""
    value = {f"token={SECRET}": [{"said": f"HF_TOKEN={SECRET}"}, 1, None, "half \ud800"], "kept": 2.5}
    masked = {"token=***": [{"said": "HF_TOKEN=***"}, 1, None, "half ?"], "kept": 2.5}
    assert redact_tree(value) == masked


def test_invalid_utf8_passes() -> None:
    """Bytes that are no text come out as they went in."""
    data = bytes(range(256)) * 3
    assert redact_bytes(data) == data


def test_it_loads_without_site_packages() -> None:
    """A script under `python -I -S` can load the module by its path and use it."""
    path = Path(steph.base.text.__file__)
    script = (
        f"import importlib.util as u; s = u.spec_from_file_location('r', {str(path)!r}); m = u.module_from_spec(s); "
        f"s.loader.exec_module(m); print(m.redact('HF_TOKEN={SECRET}'))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "HF_TOKEN=***\n"
