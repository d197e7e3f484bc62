"""The witness: what a process really did with its model.

`sitecustomize` loads this package by path, under its private name, where STEPH_PROBE_DIR is set; it is never found
on a path. `finder` sets the hooks when a library's module loads: those in `training`, `adapters`, `generation` and
`models`. What they see goes to `witness-<rank>-<pid>.jsonl`, one fact a line, flushed as it happens (`facts`).

It changes nothing. No hook stands between a caller and what is called: `splice` puts its calls into a library's
function itself, under the same name and lines, so that tracebacks, warnings and sources are those without it.
It imports no library, starts no thread, draws no random number. A hook that fails says so and is not called again.
"""

from __future__ import annotations

from . import finder


def start(folder: str) -> None:
    """Watch this process; facts go to `folder`. Until a library with hooks is imported it costs next to nothing."""
    finder.watch_imports(folder)
