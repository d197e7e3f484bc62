"""How much memory and disk the profile's run needs, as far as the built-in shapes tell. Pure; sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass

from steph.base.terms import TrainerName
from steph.gpu.driver import OUTSIDE_ALLOCATOR_BYTES
from steph.memory.shapes import BUILT_IN, TINY, TINY_NAME, ModelShape, parameter_count
from steph.memory.terms import embedding_bytes, linear_bytes, lora_parameters, norm_bytes
from steph.memory.trainers import DEFAULT_TARGETS, Workload
from steph.plan.options import Options
from steph.plan.settings import Profile
from steph.run.output import HEAD_BYTES, TAIL_BYTES

HALF_BYTES = 2  # one parameter in bf16 or fp16, as models are published
# of a LoRA parameter: fp32 in the adapter and again in the checkpoint, there with AdamW's two moments
SAVED_LORA_BYTES = 4 + 4 + 8
SAVED_TOKENIZER_BYTES = 2 * (12 << 20)  # beside adapter and checkpoint; Qwen's tokenizer.json has 11 MB
LOG_BYTES = 2 * (HEAD_BYTES + 2 * TAIL_BYTES)  # stdout and the whole output of one attempt
SPARE_BYTES = 1 << 30


@dataclass(frozen=True)
class Needs:
    """What a run needs at least; None where no candidate's shape is known.

    `loaded_bytes`: GPU memory of the smallest candidate's weights and of a process that holds them.
    `weights_bytes`: the first candidate's weights in half precision, on disk and in the RAM of a loader that does not
    map the file. `output_bytes`: what every attempt of the ladder together leaves on the disk, and some to spare.
    """

    is_gpu: bool
    is_twin: bool
    first: str
    loaded_bytes: int | None
    weights_bytes: int | None
    output_bytes: int
    vram_cap_bytes: int | None = None
    compute_dtype: str = "bfloat16"


def needs_of(options: Options, profile: Profile) -> Needs:
    """The needs of this profile under these options."""
    names = (options.model,) if options.model else profile.model.candidates
    known = {**BUILT_IN, TINY_NAME: TINY}
    shapes = [known[name] for name in names if name in known]
    is_small = profile.machine.device == "cpu" and profile.uses_twin(options)
    first = TINY if is_small else known.get(names[0])
    work = Workload(TrainerName.ANSWER, 1, 1, use_4bit=profile.train.use_4bit)
    weights = [linear_bytes(one, work) + embedding_bytes(one, work) + norm_bytes(one, work) for one in shapes]
    loaded = [int(each) + OUTSIDE_ALLOCATOR_BYTES for each in weights]
    return Needs(
        is_gpu=profile.machine.device == "gpu",
        is_twin=profile.uses_twin(options),
        first=names[0],
        loaded_bytes=min(loaded, default=None),
        weights_bytes=parameter_count(first) * HALF_BYTES if first else None,
        output_bytes=SPARE_BYTES + (1 + len(profile.ladder)) * _attempt_bytes(first, profile),
        vram_cap_bytes=options.vram_cap_bytes,
        compute_dtype=profile.train.bnb_4bit_compute_dtype,
    )


def _attempt_bytes(shape: ModelShape | None, profile: Profile) -> int:
    fixed_bytes = SAVED_TOKENIZER_BYTES + LOG_BYTES
    if shape is None:
        return fixed_bytes
    targets = profile.train.target_modules or DEFAULT_TARGETS
    work = Workload(TrainerName.ANSWER, 1, 1, lora_r=profile.train.lora_r, target_modules=targets)
    try:
        return fixed_bytes + lora_parameters(shape, work) * SAVED_LORA_BYTES
    except ValueError:  # modules of another architecture
        return fixed_bytes
