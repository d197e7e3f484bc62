"""Runs a pipeline's scripts, each in a process of its own that begins with the large libraries loaded.

`python fork_host.py` reads jobs from stdin, a JSON object a line: `root` (a pipeline folder), `script`, `argv`,
`output` and `errors` (files for stdout and stderr, which may be one). It forks for each and answers with a line: `pid`
and `returncode`. Importing torch, transformers and PEFT takes ten times as long as training a tiny model, also where it
is done as the pipeline does it; hooks that are set here are in each child too.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import sys
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parents[2] / "pipeline")]
from app.fast.startup import lean_imports  # noqa: E402 - it lies in the pipeline
from forked import end_after  # noqa: E402 - it lies in the folder above

with lean_imports():
    import bitsandbytes  # noqa: F401
    import huggingface_hub
    import jinja2
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers
    from transformers import Trainer  # noqa: F401

    transformers.Qwen2ForCausalLM, transformers.AutoModelForCausalLM  # noqa: B018 - loaded when first spoken of
    with contextlib.suppress(ImportError):  # patterns of every model's weights, compiled when the first one is loaded
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("qwen2")
    for late in (
        "numpy.ctypeslib", "peft.tuners.lora.bnb", "peft.utils.transformers_weight_conversion",
        "transformers.integrations.bitsandbytes", "transformers.models.qwen2.tokenization_qwen2",
    ):  # fmt: skip
        with contextlib.suppress(ImportError):
            importlib.import_module(late)
# PEFT writes a card from a template with each checkpoint: an eighth of a small training is compiling it
jinja2.Environment.compile = functools.cache(jinja2.Environment.compile)  # type: ignore[method-assign, assignment]
huggingface_hub.ModelCard.from_template(huggingface_hub.ModelCardData())
for name in [name for name in sys.modules if name.partition(".")[0] == "app"]:
    del sys.modules[name]  # each job has its own
del sys.path[-2:]
gc.freeze()


def run(job: dict[str, object]) -> None:
    """Become the script, as far as it can tell."""
    root, script = str(job["root"]), str(job["script"])
    for descriptor, place in enumerate(("output", "errors"), start=1):
        os.dup2(os.open(str(job[place]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), descriptor)
    os.chdir(root)
    sys.argv = [script, *map(str, job["argv"])]  # type: ignore[call-overload]
    sys.path[0] = os.path.dirname(os.path.join(root, script))  # noqa: PTH118, PTH120
    runpy.run_path(script, run_name="__main__")


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        end_after(partial(run, json.loads(line)))
    _, status = os.waitpid(child, 0)
    print(json.dumps({"pid": child, "returncode": os.waitstatus_to_exitcode(status)}), flush=True)
