"""The rows of the doctor's table: card, host and disks, then the pipeline, its interpreter and the Hub. Values only."""

from __future__ import annotations

from steph.doctor.lines import DoctorCheck, Level, Trouble

FAIL, WARN = Level.FAIL, Level.WARN
_BUSY_REMEDY = "wait for that run to end, or end it"

BUSY = DoctorCheck(
    "busy",
    "the locks that a run takes on its card and on its pipeline root",
    (
        Trouble("gpu", FAIL, "another run holds the card", _BUSY_REMEDY, is_certain=True),
        Trouble(
            "place",
            FAIL,
            "the card's lock can't be kept",
            "set XDG_CACHE_HOME to a folder that can be written",
            is_certain=True,
        ),
        Trouble("root", FAIL, "another run works in the pipeline root", _BUSY_REMEDY, is_certain=True),
    ),
)
DRIVER = DoctorCheck(
    "driver",
    "/dev/nvidia* (on WSL2 /dev/dxg), NVML's driver version and the CUDA version that it can run",
    (
        Trouble(
            "absent",
            FAIL,
            "there is no NVIDIA card to be seen",
            "install NVIDIA's driver (for WSL2: in Windows only; in a container: give it the GPU), or rehearse on the "
            "CPU with --steph-profile cpu",
            is_certain=True,
        ),
        Trouble(
            "refuses",
            FAIL,
            "the driver answers with an error",
            "do what the line says until `nvidia-smi` works; a driver that was just updated needs a reboot",
            is_certain=True,
        ),
        Trouble("unread", FAIL, "the driver does not answer", "`nvidia-smi` hangs as well? Reboot"),
    ),
    gpu_only=True,
)
CARD = DoctorCheck(
    "card",
    "the card or MIG slice that a run would use: name, real size, compute capability",
    (
        Trouble(
            "hidden",
            FAIL,
            "CUDA_VISIBLE_DEVICES leaves no card visible",
            "unset CUDA_VISIBLE_DEVICES, or name an index or UUID that `nvidia-smi -L` lists",
            is_certain=True,
        ),
    ),
    gpu_only=True,
)
MEMORY = DoctorCheck(
    "memory",
    "free memory of the card, and which processes hold the rest",
    (
        Trouble(
            "short",
            FAIL,
            "less is free than the smallest candidate's weights and its process need",
            "end the processes that `nvidia-smi` lists; or name a smaller model with --steph-model",
        ),
        Trouble(
            "held",
            WARN,
            "more than a tenth of it is in use before the run",
            "end what is not needed (`nvidia-smi`; on a desktop browsers and games hold memory too): a run with less "
            "memory may have to go down the ladder",
        ),
    ),
    gpu_only=True,
)
BF16 = DoctorCheck(
    "bf16",
    "whether the card computes in bf16 (compute capability 8.0 and above)",
    (
        Trouble(
            "emulated",
            WARN,
            "the profile computes in bf16 and the card has none",
            'set bnb_4bit_compute_dtype = "float16" in the profile; torch emulates bf16 there, slowly',
        ),
        Trouble("unknown", WARN, "the driver does not tell the compute capability", "update the driver"),
    ),
    gpu_only=True,
)
WSL = DoctorCheck(
    "wsl",
    "WSL2, whose driver may move GPU memory into system RAM where it runs out, instead of an out-of-memory error",
    (
        Trouble(
            "spills",
            WARN,
            "this is WSL2: a full card may become ten times slower and report no error",
            "in Windows: NVIDIA Control Panel, Manage 3D settings, CUDA - Sysmem Fallback Policy: Prefer No Sysmem "
            "Fallback; then `wsl --shutdown`",
        ),
    ),
    gpu_only=True,
)
RAM = DoctorCheck(
    "ram",
    "RAM that is available, within a container's limit",
    (
        Trouble(
            "short",
            WARN,
            "less is available than the first candidate's weights in half precision",
            "close other programs, or give the container or WSL2 more (`memory` and `swap` in .wslconfig)",
        ),
    ),
)
LOCALE = DoctorCheck(
    "locale",
    "how file names are spelled here, and how the pipeline's Python prints into a pipe",
    (
        Trouble(
            "ascii",
            WARN,
            "one of them is not UTF-8: a pipeline that prints Japanese, or a path that holds some, may fail",
            "export PYTHONUTF8=1, or LC_ALL=C.UTF-8",
        ),
    ),
)
DISK_MODEL = DoctorCheck(
    "disk-model",
    "free disk where models go (the Hub's cache: HF_HUB_CACHE, HF_HOME; a twin's: STEPH_CACHE)",
    (
        Trouble(
            "short",
            FAIL,
            "the model that is to be fetched does not fit",
            "make room (`hf cache ls`, `hf cache rm`), or move the cache: export HF_HOME=/a/larger/disk",
        ),
        Trouble("readonly", FAIL, "it can't be written", "mend the folder's rights, or export HF_HOME=/another/folder"),
        Trouble(
            "twin readonly",
            FAIL,
            "a twin's place can't be written",
            "mend the folder's rights, or export STEPH_CACHE=/another/folder",
        ),
        Trouble(
            "twin short",
            FAIL,
            "the twin that is to be made does not fit",
            "make room, or move the twins: export STEPH_CACHE=/a/larger/disk",
        ),
        Trouble("unread", WARN, "the disk does not answer", "is it a network disk that is away?"),
    ),
)
DISK_OUTPUT = DoctorCheck(
    "disk-output",
    "free disk where checkpoints, adapters and logs of every attempt go: the pipeline root and the reports",
    (
        Trouble(
            "short",
            FAIL,
            "what the ladder's attempts may leave does not fit",
            "make room, or write the reports elsewhere with --steph-report",
        ),
        Trouble(
            "readonly",
            FAIL,
            "it can't be written",
            "mend the folder's rights, or give another with --steph-report or --steph-pipeline-root",
        ),
        Trouble("unread", WARN, "the disk does not answer", "is it a network disk that is away?"),
    ),
)
MACHINE = (BUSY, DRIVER, CARD, MEMORY, BF16, WSL, RAM, LOCALE, DISK_MODEL, DISK_OUTPUT)


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
