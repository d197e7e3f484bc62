"""The rows of the doctor's table for the pipeline, its interpreter and the Hub. Values only."""

from __future__ import annotations

from steph.doctor.lines import DoctorCheck, Level, Trouble

FAIL, WARN = Level.FAIL, Level.WARN
_SLOW = "run it again: the first import from a cold disk takes long; if it stays, start the named Python by hand"

_KERNELS = "pip install -U bitsandbytes: its kernels do not fit this card"

PIPELINE = DoctorCheck(
    "pipeline",
    "the pipeline root as a run checks it before it starts: steph.toml, scripts, data set, training file",
    (
        Trouble(
            "refused",
            FAIL,
            "a run would not start with it",
            "do what the line says; --steph-pipeline-root names another pipeline",
            is_certain=True,
        ),
        Trouble("unread", WARN, "its files do not answer", "is it on a network disk that is away?"),
    ),
)
HUB = DoctorCheck(
    "hub",
    "the Hub (HF_ENDPOINT): whether it answers, and whether it knows the token (HF_TOKEN, `hf auth login`)",
    (
        Trouble("offline", WARN, "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set", "unset it to reach the Hub"),
        Trouble(
            "unreachable",
            WARN,
            "it was not reached",
            "check network and proxy (HTTPS_PROXY), or name a mirror with HF_ENDPOINT",
        ),
        Trouble(
            "refused",
            WARN,
            "it refuses the token: then it refuses open models as well",
            "log in again (`hf auth login`), or unset HF_TOKEN",
        ),
        Trouble("unread", WARN, "there was no answer in time", "check network and proxy (HTTPS_PROXY)"),
    ),
)
MODEL = DoctorCheck(
    "model",
    "which candidate H-1 would take now, by H-1's own choice; nothing is downloaded",
    (
        Trouble(
            "none",
            FAIL,
            "no candidate can be had, neither from the Hub nor from this disk",
            "do what the line says, or give a model folder with --steph-model",
        ),
        Trouble(
            "substitute",
            WARN,
            "only a later candidate can be had: PASS_DEGRADED at best",
            "do what the line says about the first candidates",
        ),
        Trouble(
            "unconfirmed",
            WARN,
            "only a copy on this disk can be had, unconfirmed by the Hub",
            "see the line hub",
        ),
        Trouble("unread", WARN, "there was no answer in time", "see the line hub"),
    ),
)
PYTHON = DoctorCheck(
    "python",
    "the interpreter of the pipeline's scripts",
    (
        Trouble(
            "missing",
            FAIL,
            "there is none at the path that was asked for",
            "give one with --steph-pipeline-python",
            is_certain=True,
        ),
        Trouble(
            "broken",
            FAIL,
            "it can't be started",
            "make its environment again, or give another with --steph-pipeline-python",
            is_certain=True,
        ),
        Trouble(
            "silent",
            FAIL,
            "it ran a script of the suite's and gave no answer",
            "make its environment again; where it is a wrapper, let it see the suite's folder",
        ),
        Trouble("unread", FAIL, "it gave no answer in time", _SLOW),
    ),
)
PACKAGES = DoctorCheck(
    "packages",
    "the packages of that interpreter: their requirements on each other, whether transformers and peft import, and "
    "whether the train script's calls of Trainer and TrainingArguments fit this transformers",
    (
        Trouble(
            "missing",
            FAIL,
            "transformers, peft, accelerate or bitsandbytes is not installed there",
            "install them into that Python (for the reference pipeline: `make setup`, or steph's extra `pipeline`), or "
            "give another with --steph-pipeline-python",
        ),
        Trouble(
            "conflict",
            WARN,
            "the installed versions do not meet each other's requirements",
            "install versions that fit together (`pip check`; constraints.txt names a set)",
        ),
        Trouble(
            "import",
            FAIL,
            "transformers or peft can't be imported",
            "install versions that fit together (constraints.txt names a set)",
        ),
        Trouble(
            "unavailable",
            FAIL,
            "transformers finds the version of torch, accelerate or bitsandbytes too old and goes without it",
            "pip install -U the package that the line names",
        ),
        Trouble(
            "arguments",
            WARN,
            "the train script passes arguments that this transformers no longer has (transformers 5 removed "
            "`Trainer(tokenizer=)` and `TrainingArguments(warmup_ratio=)`, among others)",
            "pin the transformers that the script was written for in its own environment, or rename the arguments",
        ),
        Trouble(
            "bnb-cuda",
            FAIL,
            "bitsandbytes brings no library for the CUDA major version that torch was built for",
            "pip install -U bitsandbytes, or a torch for a CUDA version that the line names",
        ),
        Trouble(
            "numpy",
            WARN,
            "torch can't hand arrays to this numpy: it was built for another ABI",
            'pip install -U torch, or pip install "numpy<2"',
        ),
        Trouble(
            "cap",
            FAIL,
            "--steph-vram-cap was given and torch is older than 2.10, which knows no per_process_memory_fraction",
            "pip install -U torch, or leave the cap out",
        ),
        Trouble("unread", FAIL, "there was no answer in time", _SLOW),
        Trouble("crashed", FAIL, "importing them ended the process", "install versions that fit together"),
    ),
)
TORCH = DoctorCheck(
    "torch",
    "torch in that interpreter: its CUDA build against the driver, kernels for the card, a small product on the device",
    (
        Trouble(
            "import",
            FAIL,
            "torch can't be imported",
            "install it into that Python (README, Installation), or give another with --steph-pipeline-python",
            is_certain=True,
        ),
        Trouble(
            "cpu-build",
            FAIL,
            "it is a build without CUDA",
            "install a CUDA build: pip install --force-reinstall torch "
            "--index-url https://download.pytorch.org/whl/cu126 (cu130 for driver 580 and newer)",
            is_certain=True,
        ),
        Trouble(
            "driver",
            FAIL,
            "it was built for a newer CUDA major version than the driver can run",
            "update the driver, or install a build for its CUDA version: pip install --force-reinstall torch "
            "--index-url https://download.pytorch.org/whl/cu126",
            is_certain=True,
        ),
        Trouble(
            "blind",
            FAIL,
            "it sees no card although the driver does",
            "the line has torch's own words; in a container give it the driver's libraries (--gpus all), else reboot",
            is_certain=True,
        ),
        Trouble(
            "kernels",
            FAIL,
            "it has no kernels for the card's compute capability",
            "install a build of torch that has them: a newer one for a newer card, an older one for an old card",
        ),
        Trouble("product", FAIL, "a small product on the device fails", "the line has torch's own words"),
        Trouble("wrong", FAIL, "a small product on the device comes out wrong", "install torch again; check the card"),
        Trouble("unread", FAIL, "there was no answer in time", _SLOW),
        Trouble("crashed", FAIL, "it ended the process", "install torch again"),
    ),
)
FOUR_BIT = DoctorCheck(
    "4-bit",
    "bitsandbytes on the device: quantise, multiply forward and backward, and for one row, against the dequantised "
    "reference",
    (
        Trouble(
            "fails",
            FAIL,
            "the operation raises (a training can still pass without 4-bit, with conditions)",
            "run `python -m bitsandbytes` with the pipeline's Python; pip install -U bitsandbytes",
        ),
        Trouble("wrong", FAIL, "the numbers are wrong", _KERNELS),
        Trouble("crashed", FAIL, "it ended the process", _KERNELS),
        Trouble("unread", FAIL, "there was no answer in time", _SLOW),
    ),
)
SOFTWARE = (PIPELINE, HUB, MODEL, PYTHON, PACKAGES, TORCH, FOUR_BIT)
