"""What a log says about its run: program, batch, length, 4-bit, card, workers, losses.

Advice reads these so that nobody is told what they did already. A value that the log does not say is None. Pure.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from steph.base.units import GIB
from steph.diagnose.collectives import Collective, behind, unlike
from steph.diagnose.losses import Losses
from steph.diagnose.ranks import RankEnd
from steph.diagnose.table import Program, common_settings, package_of, programs
from steph.record.values import OomNumbers

_SIGTERM = 15
_MUCH_TRAINED_PERCENT = 10.0  # of the weights; LoRA on all linear layers at rank 64 stays below 5
_FEW_MAP_WORKERS = 4
_SHORT_ROWS = 256
_NUMBER = r"[\"']?\s{0,5}[=:]?\s{0,5}(\d{1,7})\b"
_BATCH = re.compile(
    r"(?:per_device_train_batch_size|micro_batch_size(?:_per_gpu)?|(?:Instantaneous )?[Bb]atch size per (?:device|GPU)"
    rf"|--batch[-_]size|--train_batch_size){_NUMBER}"
)
_LENGTH = re.compile(
    rf"(?:max_seq_length|max-seq-length|cutoff_len|sequence_len|model_max_length|max_seq_len|block_size){_NUMBER}"
)
_TOKENIZER_LIMIT = re.compile(r"specified maximum sequence length for this model \(\d{1,9} > (\d{1,9})\)")
_WINDOWS = re.compile(r"(?:^|[\s\"'(])[A-Za-z]:\\{1,2}[\w.]|WinError|Platform: Windows|\bwin32\b|\bWSAStartup\b", re.M)
_WSL = re.compile(r"/mnt/[c-e]/|\bWSL2?\b|/usr/lib/wsl|microsoft-standard")
_CONTAINER = re.compile(r"^\S{1,80} exited with code \d|\bdocker\b|/kubepods|\bkubelet\b|OOMKilled|/\.dockerenv", re.M)
_EIGHT_BIT_FLAG = re.compile(r"--use_8bit_adam\b")
_SAFETENSORS = re.compile(r"\.safetensors\b")
_BNB_WITHOUT_GPU = re.compile(r"bitsandbytes was compiled without GPU support")
_LIBRARY = re.compile(r"(?:site|dist)-packages[/\\](\w{1,80})")
_FOUR_BIT = re.compile(
    r"load_in_4bit[\"']?\s{0,5}[=:]\s{0,5}[Tt]rue|[(\[]4-?bit[)\]]|bnb-4bit|\bqlora\b|--use-4bit|--load_in_4bit|quantization_bit\W{1,4}4\b"
    r"|[Ll]oading .{0,80}in 4-?bit|-Int4\b|-GPTQ-Int4|Params4bit|Linear4bit|4bit and LoRA",
)
_CHECKPOINTING = re.compile(
    r"gradient_checkpointing[\"']?\s{0,5}[=:]\s{0,5}[Tt]rue|[Gg]radient checkpointing (?:enabled|is enabled|on\b)"
    r"|incompatible with gradient checkpointing|torch[/\\]utils[/\\]checkpoint\.py|Unsloth: Will smartly offload"
)
_TRAINED = re.compile(
    r"trainable%: ?(\d{1,3}(?:\.\d{1,20})?)|\((\d{1,3}(?:\.\d{1,20})?)% trained\)|trainable: (\d{1,3}(?:\.\d{1,20})?)\b"
)
_MAP_WORKERS = re.compile(r"\(num_proc=(\d{1,5})\)")
_CARD = re.compile(
    r"\b((?:NVIDIA )?(?:GeForce )?(?:RTX|GTX)(?: PRO)? [A-Z]?\d{3,4}(?: ?(?:Ti|SUPER|Ada|D)){0,3}(?: Laptop GPU)?"
    r"|(?:NVIDIA |Tesla )?\b(?:A100|H100|H200|B200|A10G?|A40|L4|L40S?|V100|T4|P100|K80)\b(?:-[A-Z0-9-]{3,16})?)"
)
_CAPABILITY = re.compile(r"\b(sm_\d{2,3}|gfx\d{3,4}[a-z]?)\b")
_GPUS = re.compile(
    r"(?:Num GPUs(?: used)? = |--nproc_per_node[= ]|--num_processes[= ]|world_size[\"': =]{1,4})(\d{1,4})"
)
_RANK = re.compile(r"\[rank[1-9]\d{0,3}\]|\[Rank[: ][1-9]|local_rank: [1-9]|\bGPU [1-7] has a total")

SIGNS = {
    "on_windows": _WINDOWS,
    "on_wsl": _WSL,
    "in_container": _CONTAINER,
    "eight_bit_flag": _EIGHT_BIT_FLAG,
    "reads_safetensors": _SAFETENSORS,
    "bnb_without_gpu": _BNB_WITHOUT_GPU,
}


@dataclass(frozen=True)
class Facts:
    """What one log says about its run."""

    program: Program | None
    batch_size: int | None
    length: int | None
    four_bit: bool
    checkpointing: bool
    trained_percent: float | None
    map_workers: int | None
    card: str | None
    several_gpus: bool
    oom: OomNumbers | None
    losses: Losses
    ends: tuple[RankEnd, ...]
    collectives: tuple[Collective, ...]
    importer: str | None  # the library whose code raised, None for a script of one's own
    signs: frozenset[str]  # names of what the text shows by itself

    @functools.cached_property
    def flags(self) -> frozenset[str]:
        """The names, as the tables use them, of what holds."""
        oom = self.oom or OomNumbers()
        total, own, slack = oom.total_bytes, oom.reserved_bytes or oom.allocated_bytes, _slack(oom)
        free = oom.free_bytes or 0
        held_by_others = total is not None and own is not None and own + free < 0.6 * total
        holds = {
            "batch_is_one": self.batch_size == 1,
            "rows_are_short": self.length is not None and self.length <= _SHORT_ROWS,
            "four_bit_on": self.four_bit,
            "checkpointing_on": self.checkpointing,
            "several_gpus": self.several_gpus,
            "trains_too_much": self.trained_percent is not None and _MUCH_TRAINED_PERCENT <= self.trained_percent < 95,
            "many_map_workers": self.map_workers is not None and self.map_workers > _FEW_MAP_WORKERS,
            "card_held_by_others": held_by_others,
            "memory_fragmented": slack is not None and slack > max(oom.requested_bytes or GIB, 2 * GIB),
            "only_ended_ranks": bool(self.ends) and all(end.status == -_SIGTERM for end in self.ends),
            "nan_gradient_at_start": self.losses.gradient_broke_at == 0,
            "zero_loss_at_start": self.losses.is_zero_from_start,
            "loss_diverged": self.losses.diverged,
            "importer_known": self.importer is not None,
            "under_lm_eval": self.program is not None and self.program.name == "lm-evaluation-harness",
            "a_rank_is_behind": behind(self.collectives) is not None,
            "collectives_differ": unlike(self.collectives) is not None,
        }
        return self.signs | {name for name, is_so in holds.items() if is_so}

    def values(self) -> dict[str, str]:
        """The values for the words of cases and steps: settings as the program spells them, and what the log says."""
        oom = self.oom or OomNumbers()
        program = dict(self.program.settings) if self.program else {}
        length = self.length or 0
        late, pair = behind(self.collectives), unlike(self.collectives)
        said: Mapping[str, object] = {
            "batch_size": self.batch_size,
            "half_batch": self.batch_size and max(1, self.batch_size // 2),
            "length": self.length,
            "shorter": self.length and max(_SHORT_ROWS, 1 << (length - 1).bit_length() - 1 if length > 1 else 1),
            "trained_share": self.trained_percent and f"{self.trained_percent:.0f}",
            "map_count": self.map_workers,
            "card": self.card,
            "importer": self.importer and package_of(self.importer),
            "late_rank": late and str(late.rank),
            "late_number": late and late.number,
            "first_rank": pair and str(pair[0].rank),
            "second_rank": pair and str(pair[1].rank),
            "first_work": pair and pair[0].work,
            "second_work": pair and pair[1].work,
            "shared_number": pair and pair[0].number,
            "program": self.program and self.program.name,
            "card_total": _size(oom.total_bytes),
            "allocated": _size(oom.allocated_bytes),
            "unallocated": _size(_slack(oom)),
        }
        return {**common_settings(), **program, **{key: str(value) for key, value in said.items() if value}}


def _slack(oom: OomNumbers) -> int | None:
    both = oom.reserved_bytes is not None and oom.allocated_bytes is not None
    return (oom.reserved_bytes or 0) - (oom.allocated_bytes or 0) if both else None


def _size(size: int | None) -> str | None:
    return None if size is None else f"{size / GIB:.1f} GiB"


def facts_of(
    text: str,
    losses: Losses,
    ends: tuple[RankEnd, ...],
    oom: OomNumbers | None,
    collectives: tuple[Collective, ...] = (),
    last_frame: str = "",
) -> Facts:
    """Read the whole log once for each kind of fact; where it says one several times, the last counts.

    `last_frame` is the innermost frame of the exception that counts.
    """
    library = _LIBRARY.search(last_frame)
    return Facts(
        program=next((one for one in programs() if one.seen.search(text)), None),
        batch_size=_last_number(_BATCH, text),
        length=_last_number(_LENGTH, text) or _last_number(_TOKENIZER_LIMIT, text),
        four_bit=_FOUR_BIT.search(text) is not None,
        checkpointing=_CHECKPOINTING.search(text) is not None,
        trained_percent=_last_figure(_TRAINED, text),
        map_workers=_last_number(_MAP_WORKERS, text),
        card=next((match[1] for pattern in (_CARD, _CAPABILITY) if (match := pattern.search(text))), None),
        several_gpus=(_last_number(_GPUS, text) or 0) > 1 or _RANK.search(text) is not None,
        oom=oom,
        losses=losses,
        ends=ends,
        collectives=collectives,
        importer=library[1] if library else None,
        signs=frozenset(name for name, pattern in SIGNS.items() if pattern.search(text)),
    )


def _last_number(pattern: re.Pattern[str], text: str) -> int | None:
    figure = _last_figure(pattern, text)
    return None if figure is None else int(figure)


def _last_figure(pattern: re.Pattern[str], text: str) -> float | None:
    last = None
    for match in pattern.finditer(text):
        last = next(value for value in match.groups() if value)
    return None if last is None or not math.isfinite(float(last)) else float(last)
