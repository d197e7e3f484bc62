"""What a log without a sign of failure shows: how far it came, its losses, its warnings."""

from __future__ import annotations

import math

from steph.base.messages import text
from steph.diagnose.exceptions import chains_of
from steph.diagnose.facts import facts_of
from steph.diagnose.losses import losses_of
from steph.diagnose.phases import phase_of
from steph.diagnose.printed import is_final_metric
from steph.diagnose.reader import lines_of


def seen_in(log: str) -> tuple[str, ...]:
    """Sentences about a healthy or unfinished run, so that nobody takes "no failure found" for "all is well"."""
    lines = lines_of(log)
    losses = losses_of(lines)
    facts = facts_of("\n".join(line.text for line in lines), losses, (), None)
    found: list[tuple[str, dict[str, object]]] = [("nothing", {})]
    found.append(("lines", {"lines": sum(bool(line.text.strip()) for line in lines)}))
    if facts.program:
        found.append(("program", {"program": facts.program.name}))
    values = [value for value in losses.values if math.isfinite(value)]
    if values:
        found.append(("losses", {"count": len(values), "first": f"{values[0]:g}", "last": f"{values[-1]:g}"}))
    if handled := sum(not chain[0].ignored and "Error" in chain[0].type for chain in chains_of(lines)):
        found.append(("handled", {"count": handled}))
    if warnings := sum(line.is_mild and "WARN" in line.text.upper() for line in lines):
        found.append(("warnings", {"count": warnings}))
    if any(is_final_metric(line) for line in lines):
        found.append(("metrics", {}))
    else:
        phase = phase_of(lines, len(lines))
        if phase is not None:
            found.append(("phase", {"phase": text(f"diagnose.phase.{phase.value}")}))
        found.append(("no_metrics", {}))
    return tuple(text(f"diagnose.seen.{name}", values=values) for name, values in found)
