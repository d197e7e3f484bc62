"""The rows of the doctor's table: card, host and disks, then the pipeline, its interpreter and the Hub. Values only.

What each looks at, when a row holds and what to do then stand in the catalogs: `doctor.CHECK.looks_at`,
`doctor.CHECK.ROW.when` and `.remedy`.
"""

from __future__ import annotations

from steph.doctor.lines import DoctorCheck, Level, Trouble

FAIL, WARN = Level.FAIL, Level.WARN

BUSY = DoctorCheck(
    "busy",
    (
        Trouble("gpu", FAIL, is_certain=True),
        Trouble("place", FAIL, is_certain=True),
        Trouble("root", FAIL, is_certain=True),
    ),
)
DRIVER = DoctorCheck(
    "driver",
    (
        Trouble("absent", FAIL, is_certain=True),
        Trouble("refuses", FAIL, is_certain=True),
        Trouble("unread", FAIL),
    ),
    gpu_only=True,
)
CARD = DoctorCheck("card", (Trouble("hidden", FAIL, is_certain=True),), gpu_only=True)
MEMORY = DoctorCheck(
    "memory",
    (
        Trouble("short", FAIL),
        Trouble("held", WARN),
    ),
    gpu_only=True,
)
BF16 = DoctorCheck(
    "bf16",
    (
        Trouble("emulated", WARN),
        Trouble("unknown", WARN),
    ),
    gpu_only=True,
)
WSL = DoctorCheck("wsl", (Trouble("spills", WARN),), gpu_only=True)
RAM = DoctorCheck("ram", (Trouble("short", WARN),))
LOCALE = DoctorCheck("locale", (Trouble("ascii", WARN),))
DISK_MODEL = DoctorCheck(
    "disk-model",
    (
        Trouble("short", FAIL),
        Trouble("readonly", FAIL),
        Trouble("twin-readonly", FAIL),
        Trouble("twin-short", FAIL),
        Trouble("unread", WARN),
    ),
)
DISK_OUTPUT = DoctorCheck(
    "disk-output",
    (
        Trouble("short", FAIL),
        Trouble("readonly", FAIL),
        Trouble("unread", WARN),
    ),
)
PIPELINE = DoctorCheck(
    "pipeline",
    (
        Trouble("refused", FAIL, is_certain=True),
        Trouble("unread", WARN),
    ),
)
HUB = DoctorCheck(
    "hub",
    (
        Trouble("offline", WARN),
        Trouble("unreachable", WARN),
        Trouble("refused", WARN),
        Trouble("unread", WARN),
    ),
)
MODEL = DoctorCheck(
    "model",
    (
        Trouble("none", FAIL),
        Trouble("substitute", WARN),
        Trouble("unconfirmed", WARN),
        Trouble("unread", WARN),
    ),
)
PYTHON = DoctorCheck(
    "python",
    (
        Trouble("missing", FAIL, is_certain=True),
        Trouble("broken", FAIL, is_certain=True),
        Trouble("silent", FAIL),
        Trouble("unread", FAIL),
    ),
)
PACKAGES = DoctorCheck(
    "packages",
    (
        Trouble("missing", FAIL),
        Trouble("conflict", WARN),
        Trouble("import", FAIL),
        Trouble("unavailable", FAIL),
        Trouble("arguments", WARN),
        Trouble("bnb-cuda", FAIL),
        Trouble("numpy", WARN),
        Trouble("cap", FAIL),
        Trouble("unread", FAIL),
        Trouble("crashed", FAIL),
    ),
)
TORCH = DoctorCheck(
    "torch",
    (
        Trouble("import", FAIL, is_certain=True),
        Trouble("cpu-build", FAIL, is_certain=True),
        Trouble("driver", FAIL, is_certain=True),
        Trouble("blind", FAIL, is_certain=True),
        Trouble("kernels", FAIL),
        Trouble("product", FAIL),
        Trouble("wrong", FAIL),
        Trouble("unread", FAIL),
        Trouble("crashed", FAIL),
    ),
)
FOUR_BIT = DoctorCheck(
    "4-bit",
    (
        Trouble("fails", FAIL),
        Trouble("wrong", FAIL),
        Trouble("crashed", FAIL),
        Trouble("unread", FAIL),
    ),
)
