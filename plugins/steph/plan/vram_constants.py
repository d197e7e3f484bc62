"""What no formula gives: library workspaces, the allocator's slack and the CUDA context, measured once.

`MEASURED` holds where nothing has been measured on the card at hand; `vram_calibration` takes a card's own figures.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Constants:
    """Sizes in bytes, shares as fractions.

    `workspace_bytes`: cuBLAS' workspaces (32 MiB on Hopper, for the forward's and the backward's thread) and small
    allocations, inside the allocator. `context_bytes`: driver, kernels and libraries, outside it. Slack is reserved
    less allocated: a fixed part and a share of what comes and goes in a step; after an upcast, which leaves holes, a
    part and a share of their own.

    Two measured lengths set the last three: what a pipeline's logits and its other activations take for each of the
    formulas' bytes, and what it holds at any length beyond (or below) them.
    """

    workspace_bytes: float = 0.1 * GIB
    context_bytes: float = 0.74 * GIB
    slack_fixed_bytes: float = 0.05 * GIB
    slack_share: float = 0.07
    slack_upcast_bytes: float = 0.95 * GIB
    slack_logits_share: float = 0.0
    relative_error: float = 0.03
    slack_error: float = 0.5
    logits_scale: float = 1.0
    activation_scale: float = 1.0
    offset_bytes: float = 0.0

    def slack_bytes(self, upcasts: bool, moving_bytes: float, logits_bytes: float) -> float:
        """Reserved less allocated at the peak; `moving_bytes` is what the step allocates beside the weights."""
        if upcasts:
            return self.slack_upcast_bytes + self.slack_logits_share * logits_bytes
        return self.slack_fixed_bytes + self.slack_share * moving_bytes


MEASURED = Constants()
