"""Masks what tells who and where: names of users and hosts, home folders, and the secrets that `redact` knows.

For what leaves the machine. A home folder becomes `~`, so that a command can still be pasted; a name becomes `***`.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from steph.base.messages import LANGUAGES, catalog
from steph.base.redact import redact

NAME_MASK = "***"
_HOME = re.compile(
    r"""(?<![\w.])(?:[a-z]:)?(?:/|\\{1,2})(?:mnt/[a-z]/)?(?:home|Users)(?:/|\\{1,2})([^\\/\s"'`<>:,;()|]+)""", re.I
)
_PROMPT = re.compile(r"[\w.-]+@[\w.-]+(?=:[~/])")  # of a shell: user@host:~/folder$
# accounts and hosts of images, runners and handbooks: they tell nobody, and are words of any log
_SHARED_NAMES = frozenset(
    (
        *("root", "user", "users", "home", "nobody", "default", "guest", "public", "shared", "admin", "administrator"),
        *("app", "docker", "ubuntu", "debian", "ec2-user", "runner", "jovyan", "vscode", "localhost"),
    )
)


def mask_for(whole: str) -> Callable[[str], str]:
    """Give the function that masks a text; names of other users are taken from the home folders in `whole`.

    A name that is also a word of the suite (`max`) is masked where it stands alone, not inside `--max-steps`.
    """
    own = {name for name in _own_names() if name.lower() not in _SHARED_NAMES}
    theirs = {name for name in _HOME.findall(whole) if name.lower() not in _SHARED_NAMES | _suite_words()}
    names = sorted(own | theirs, key=len, reverse=True)
    patterns = [re.compile(_whole(name), re.I) for name in names]
    own_home = _own_home()
    home = re.compile(rf"(?<![\w.]){re.escape(own_home)}(?![\w.-])") if own_home else None

    def masked(text: str) -> str:
        text = redact(text)
        if home is not None:
            text = home.sub("~", text)
        text = _PROMPT.sub(f"{NAME_MASK}@{NAME_MASK}", _HOME.sub("~", text))
        for pattern in patterns:
            text = pattern.sub(NAME_MASK, text)
        return text

    return masked


def _whole(name: str) -> str:
    inside = "A-Za-z0-9_-" if name.lower() in _suite_words() else "A-Za-z0-9"
    return rf"(?<![{inside}]){re.escape(name)}(?![{inside}])"


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
