"""What no formula gives: library workspaces and the CUDA context, measured once.

`MEASURED` holds where nothing has been measured on the card at hand; `vram_calibration` takes a card's own figures.
"""

from __future__ import annotations

from dataclasses import dataclass

from steph.base.units import GIB


@dataclass(frozen=True, slots=True)
class Constants:
    """Sizes in bytes, shares as fractions.

    `workspace_bytes`: cuBLAS' workspaces (32 MiB on Hopper, for the forward's and the backward's thread) and small
    allocations, inside the allocator. `context_bytes`: driver, kernels and libraries, outside it. `slack_extra_bytes`:
    what reserved exceeds allocated by beyond the played allocator's own slack (`vram_tape`).

    Two measured lengths set the last three: what a pipeline's logits and its other activations take for each of the
    formulas' bytes, and what it holds at any length beyond (or below) them.
    """

    workspace_bytes: float = 0.1 * GIB
    context_bytes: float = 0.74 * GIB
    slack_extra_bytes: float = 0.0
    relative_error: float = 0.03
    slack_error: float = 0.5
    logits_scale: float = 1.0
    activation_scale: float = 1.0
    offset_bytes: float = 0.0


MEASURED = Constants()
