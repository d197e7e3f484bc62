"""What leaves the machine names neither its user nor its host, and stays readable."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path

import pytest
from steph.tell.page import mask_for

TOKEN = "hf_" + "Q7x" * 8


@pytest.fixture
def sato(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is sato's, who is at home elsewhere than in /home."""
    as_user(monkeypatch, "sato")


def as_user(monkeypatch: pytest.MonkeyPatch, name: str, home: str = "/data/people/sato") -> None:
    """The machine has this user, with this home."""
    monkeypatch.setattr(getpass, "getuser", lambda: name)
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-box7.lab.example")
    monkeypatch.setenv("HOME", home)


@pytest.mark.usefixtures("sato")
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cd /data/people/sato/pipe", "cd ~/pipe"),
        ("/data/people/satoshi/x", "/data/people/satoshi/x"),
        ("/home/tanaka/pipe and runs/tanaka_lora", "~/pipe and runs/***_lora"),
        ("file:///Users/Tanaka/a.py", "file://~/a.py"),
        (r"C:\Users\tanaka\a.py", r"~\a.py"),
        (r"C:\\Users\\tanaka\\a.py", r"~\\a.py"),
        ("/mnt/c/Users/tanaka/a.py", "~/a.py"),
        ("https://example.org/home/page", "https://example.org/home/page"),
        ("SATO@gpu-box7: killed", "***@***: killed"),
        ("tanaka@other-box:~/work$ ls", "***@***:~/work$ ls"),
        ("[gpu-box7.lab.example]:29500", "[***]:29500"),
        ("ユーザーsatoが", "ユーザー***が"),
        (f"token={TOKEN}", "token=***"),
        ("--max-steps 4, satoshi", "--max-steps 4, satoshi"),
        ("/home/datasets/law and the datasets", "~/law and the datasets"),
        ("/nfs/home/tanaka/x and /mnt/data/Users/tanaka", "~/x and ~"),
        (r"\\wsl$\Ubuntu\home\tanaka\x", r"~\x"),
        ("file:///C:/Users/tanaka/x file:///home/tanaka/y", "file:///~/x file://~/y"),
        ("%2Fhome%2Ftanaka%2Fx /home/%E7%94%B0%E4%B8%AD/y by 田中", "~%2Fx ~/y by ***"),
        ("C%3A%5CUsers%5Ctanaka%5Cx", "~%5Cx"),
        ('{"at": "\\/home\\/tanaka\\/x"}', '{"at": "~\\/x"}'),
        ("%2Fdata%2Fpeople%2Fsato%2Fx and /cache%2Fsato", "~%2Fx and /cache%2F***"),
        ("/root/.cache/x, /x/root, /rootfs", "~/.cache/x, /x/root, /rootfs"),
        ("USER=suzuki HOSTNAME=node7 USER=root: suzuki", "USER=*** HOSTNAME=*** USER=root: ***"),
        ("mail suzuki@lab.example.jp, ssh suzuki@node7", "mail ***@***, ssh ***@***"),
        ("[suzuki@node7 work]$ ls", "[***@*** work]$ ls"),
        ("https://suzuki@git.example/x git@github.com:o/r", "https://***@git.example/x git@github.com:o/r"),
        ("/home/tanaka/x (tanaka@big-iron) big-iron: killed", "~/x (***@***) ***: killed"),
        ("kato@a100-box.lab.example:~$ ls; a100-box is up", "***@***:~$ ls; *** is up"),
        ("torch@2.11 Qwen/Qwen3@abc123 @ray.remote a@b", "torch@2.11 Qwen/Qwen3@abc123 @ray.remote a@b"),
        ("see https://example.org/users/guide and /home page", "see https://example.org/users/guide and /home page"),
    ],
)
def test_names_and_homes_are_masked(text: str, shown: str) -> None:
    """Own and others', in every form of path; a word that only holds a name stays."""
    assert mask_for(text)(text) == shown


def test_a_name_that_is_found_in_one_text_is_masked_in_all() -> None:
    """What a path at the end says is known at the beginning."""
    assert mask_for("by tanaka: /home/tanaka/x")("tanaka said") == "*** said"


def test_a_user_whose_name_is_a_word_of_the_suite_does_not_lose_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """`max` alone is the user; `--max-steps` and `max_seq_length` are not."""
    as_user(monkeypatch, "max")
    text = "--max-steps max_seq_length /data/max/x: denied for user max, at most the max of 3"
    assert mask_for(text)(text) == ("--max-steps max_seq_length /data/***/x: denied for user ***, at most the max of 3")


def test_a_host_that_is_called_like_what_it_is_for_does_not_empty_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """`gpu` and `train` are words of every line; the host stands behind `@` and in addresses."""
    as_user(monkeypatch, "t")
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu")
    text = "GPU memory of the gpu: t@gpu:~/x, -m gpu, at a time t"
    assert mask_for(text)(text) == "GPU memory of the gpu: ***@***:~/x, -m gpu, at a time t"


def test_an_account_of_everybody_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container root's home is masked, and the word root stays."""
    as_user(monkeypatch, "root", "/root")
    text = "the pipeline root is /root/pipe, not /rootfs or /x/root"
    assert mask_for(text)(text) == "the pipeline root is ~/pipe, not /rootfs or /x/root"


def test_a_machine_without_a_user_name_or_a_home_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's numeric user, and a home that is the root of the disk."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    as_user(monkeypatch, "", "/")
    monkeypatch.setattr(getpass, "getuser", nobody)
    assert mask_for("/etc/x")("/etc/x") == "/etc/x"
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert mask_for("/etc/x")("/etc/x") == "/etc/x"


@pytest.mark.parametrize("one", ["/a", "\\", "%2F", "a@", "a.", "a@a.", "/home/", "USER=", "[a@a ", "://a"])
def test_a_long_line_of_anything_is_masked_as_fast_as_it_is_read(one: str) -> None:
    """No pattern reads the rest of a line anew from each place in it: a megabyte would take hours."""
    text = one * (1_000_000 // len(one))
    assert len(mask_for(text)(text)) <= len(text) + 3
