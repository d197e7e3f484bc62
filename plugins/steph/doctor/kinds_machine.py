"""The rows of the doctor's table for card, host and disks. Values only."""

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
