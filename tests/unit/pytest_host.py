"""Runs pytest as a person does, each time in a process of its own that begins with the suite's modules loaded.

`python pytest_host.py` reads jobs from stdin, a JSON object a line: `argv` (pytest's words), `folder`, `environment`,
`umask` and `output` (a file for stdout and stderr). It forks for each and answers with its pid; asked to `wait` for a
pid, with its exit status. Loading pytest, pydantic, matplotlib, the suite and its templates takes longer than the three
stages on a pipeline without torch.
Plugins are loaded by each run itself, so that what pytest does with them is what it always does.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import sys
from functools import partial
from io import BytesIO

import steph
from forked import end_after
from matplotlib.figure import Figure
from steph.base.messages import LANGUAGES, catalog
from steph.judge.checks_process import library_warnings
from steph.judge.reading import stated_labels
from steph.tell import report

LOADED = (
    "pytest", "pdb", "xml.etree.ElementTree", "execnet", "jinja2.defaults", "jinja2.compiler",
    "matplotlib.backends.backend_svg", "huggingface_hub.constants", "tokenizers", "steph.conduct.training",
    "steph.conduct.preparation", "steph.conduct.session",
)  # fmt: skip


def run(job: dict[str, object]) -> None:
    """Become `python -m pytest`, as far as it can tell."""
    os.environ.clear()
    os.environ.update(job["environment"])  # type: ignore[call-overload]
    os.chdir(str(job["folder"]))
    os.umask(int(job["umask"]))  # type: ignore[call-overload]
    ends = os.open(os.devnull, os.O_RDONLY), os.open(str(job["output"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor, end in enumerate((*ends, ends[1])):
        os.dup2(end, descriptor)
    sys.orig_argv[1:] = ["-m", "pytest", *map(str, job["argv"])]  # type: ignore[call-overload]
    sys.argv[1:] = sys.orig_argv[3:]
    sys.path[:1] = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]  # noqa: PTH109
    runpy.run_module("pytest", run_name="__main__", alter_sys=True)


steph.__doc__ = f"{steph.__doc__} PYTEST_DONT_REWRITE"  # else pytest warns of a package that was there before it
for module in LOADED:
    importlib.import_module(module)
for language in LANGUAGES:
    catalog(language)
for name in (templates := report._templates()).list_templates():
    templates.get_template(name)  # a fifth of a run is compiling them
library_warnings()  # a tenth of a run is compiling these patterns and drawing for the first time
for labels in ("abcd", "123456789"):
    stated_labels("a", labels)
drawn = Figure()
drawn.add_subplot().set_title("a")
drawn.savefig(BytesIO(), format="svg")
gc.freeze()
for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child == 0:
        end_after(partial(run, asked))
    print(child, flush=True)
