"""Masks what tells who and where: names of users and hosts, home folders, and the secrets that `redact` knows.

For what leaves the machine. A home folder becomes `~`, so that a command can still be pasted; a name becomes `***`.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from steph.base.messages import LANGUAGES, catalog
from steph.base.redact import redact

NAME_MASK = "***"
_SEPARATOR = r"(?:\\?/|\\{1,4}|%2F|%5C)"  # of a path, also in JSON and in an address
_NAME = r"""((?:[^\\/\s"'`<>:,;()|%&]|%(?!2F|5C)[0-9A-F]{2})+)"""
# below any folders of a path (/nfs/home/NAME, \\wsl$\Ubuntu\home\NAME); /home of a site's address is none
_HOME = re.compile(
    rf"(?:(?<![\w./\\%])|(?<=file://)|(?<=file:///)|(?<![\w./\\])(?=%2F|%5C))(?:[a-z](?::|%3A))?"
    rf"(?:\\\\)?(?:{_SEPARATOR}[\w$.-]{{1,40}}){{0,4}}?{_SEPARATOR}(?:home|Users){_SEPARATOR}{_NAME}",
    re.I,
)
_ROOT_HOME = re.compile(r"(?<![\w./\\-])/root(?![\w.-])")
_WHO = r"(?<![\w.+-])[\w.+-]{1,64}@[\w.-]{1,253}"
_PROMPT = re.compile(rf"{_WHO}(?=:[~/])|(?<=\[){_WHO}(?= [~/\w.-]{{1,99}}\][$#])")  # of a shell: user@host:~/folder$
_REMOTE = re.compile(rf"(?<=\bssh ){_WHO}|(?<=://)(?!git@)[\w.%+-]{{1,64}}@(?=[\w.-])")
_ADDRESS = re.compile(r"(?<![\w.+-])(?!git@)[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,6}[a-z]{2,63}\b(?!@)", re.I)
_VARIABLE = re.compile(r"\b((?:SUDO_USER|USER|LOGNAME|USERNAME|HOSTNAME|COMPUTERNAME|SLURMD_NODENAME)=)([\w.-]+)")
# accounts and hosts of images, runners and handbooks: they tell nobody, and are words of any log
_SHARED_NAMES = frozenset(
    (
        *("root", "user", "users", "home", "nobody", "default", "guest", "public", "shared", "admin", "administrator"),
        *("app", "docker", "ubuntu", "debian", "ec2-user", "runner", "jovyan", "vscode", "localhost"),
    )
)
_LEAST_CHARACTERS = 3  # a shorter name is part of any text


def mask_for(whole: str) -> Callable[[str], str]:
    """Give the function that masks a text; names of other users are taken from the home folders in `whole`.

    A name that is also a word of the suite (`max`, `gpu`) is masked where it stands as a name of user, host or folder.
    """
    own = {name for name in _own_names() if name.lower() not in _SHARED_NAMES}
    found = {*_HOME.findall(whole), *(value for _, value in _VARIABLE.findall(whole))}
    theirs = {name for name in found if name.lower() not in _SHARED_NAMES and not _is_common(name)}
    theirs |= _hosts(whole, own | theirs)
    names = sorted(own | theirs | {unquote(name) for name in theirs}, key=len, reverse=True)
    patterns = [re.compile(_whole(name), re.I) for name in names]
    own_home = _own_home()
    spellings = {own_home, quote(own_home), quote(own_home, safe=""), own_home.replace("/", r"\/")} - {""}
    homes = [re.compile(rf"(?<![\w.]){re.escape(one)}(?![\w.-])", re.I) for one in spellings]

    def masked(text: str) -> str:
        text = redact(text)
        for home in homes:
            text = home.sub("~", text)
        text = _ROOT_HOME.sub("~", _HOME.sub("~", text))
        text = _PROMPT.sub(f"{NAME_MASK}@{NAME_MASK}", text)
        text = _REMOTE.sub(lambda found: f"{NAME_MASK}@{NAME_MASK if found[0][-1] != '@' else ''}", text)
        text = _ADDRESS.sub(f"{NAME_MASK}@{NAME_MASK}", text)
        text = _VARIABLE.sub(
            lambda found: found[0] if found[2].lower() in _SHARED_NAMES else found[1] + NAME_MASK, text
        )
        for pattern in patterns:
            text = pattern.sub(NAME_MASK, text)
        return text

    return masked


def _hosts(whole: str, users: Iterable[str]) -> set[str]:
    """The hosts that stand behind a shell's prompt or behind a known user's name, with and without their domain."""
    known = "|".join(map(re.escape, sorted(users, key=len, reverse=True)))
    told = {found.partition("@")[2] for found in _PROMPT.findall(whole)}
    if known:
        told |= set(re.findall(rf"(?<![\w.-])(?:{known})@([\w-]{{1,64}}(?:\.[\w-]{{1,64}}){{0,6}})", whole, re.I))
    hosts = {name for host in told for name in (host, host.partition(".")[0])}
    return {host for host in hosts if host.lower() not in _SHARED_NAMES and not _is_common(host)}


def _is_common(name: str) -> bool:
    return len(name) < _LEAST_CHARACTERS or name.lower() in _suite_words()


def _whole(name: str) -> str:
    """Where a name stands alone; of one that is a common word, where what is beside it says that it is a name."""
    if not _is_common(name):
        return rf"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-F][0-9A-F])){re.escape(name)}(?![A-Za-z0-9])"
    said = r"(?<=[/\\@])|(?<=user )|(?<=user=)|(?<=users )|(?<=host )|(?<=host=)|(?<=node )|(?<=by )"
    return rf"(?:{said}){re.escape(name)}(?![A-Za-z0-9_-])|(?<![\w-]){re.escape(name)}(?=@[\w-])"


@functools.cache
def _suite_words() -> frozenset[str]:
    words = " ".join(" ".join(catalog(language).values()) for language in LANGUAGES)
    return frozenset(re.findall("[a-z0-9]+", words.lower()))


def _own_names() -> Iterator[str]:
    """Who runs this, and on which host, with and without its domain; nothing where the system does not say."""
    with contextlib.suppress(OSError, KeyError):  # a user id without a name; OSError since Python 3.13
        yield getpass.getuser()
    if host := socket.gethostname():
        yield host
        yield host.partition(".")[0]
    if home := _own_home():
        yield Path(home).name


def _own_home() -> str:
    """The home folder, empty where there is none or it is the root of the disk."""
    try:
        home = str(Path.home())
    except RuntimeError:
        return ""
    return home if len(home) > 1 else ""
