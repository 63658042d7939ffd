"""A plan as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from amd_plugin.plan.memory import RESERVED
from amd_plugin.plan.planner import Plan

COLUMNS = ("weights", "gradients", "optimizer", "average", "buffers", "activations")


def show(plan: Plan) -> Sequence[Table | str]:
    """Tables of memory by role, phases, traffic and time, and what to change if it does not fit."""
    head = f"{plan.recipe} on {plan.gpus} GPU{'s' * (plan.gpus > 1)} of {plan.gpu_memory / 1e9:g} GB\nmodel: {plan.source}\n"
    return head, _memory(plan), _phases(plan), _cycle(plan), "\n".join(_words(plan))


def _memory(plan: Plan) -> Table:
    table = Table(title="GB per GPU", title_justify="left", box=None)
    table.add_column("role")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, row in plan.rows.items():
        table.add_row(name.replace("_", " "), *(_gigabytes(getattr(row, column)) for column in COLUMNS))
    return table


def _phases(plan: Plan) -> Table:
    table = Table(title="\nmost GB at a time", title_justify="left", box=None, show_header=False)
    for name, most in plan.phases.items():
        table.add_row(name.replace("_", " "), _gigabytes(most))
    table.add_row("reserved beside that", _gigabytes(RESERVED))
    return table


def _cycle(plan: Plan) -> Table:
    table = Table(title="\nper cycle and GPU", title_justify="left", box=None)
    for column in ("role", "PFLOP", "GB received"):
        table.add_column(column, justify="left" if column == "role" else "right")
    for name, operations in plan.flops.items():
        table.add_row(name.replace("_", " "), f"{operations / 1e15:.3f}", _gigabytes(plan.received.get(name, 0)))
    return table


def _words(plan: Plan) -> list[str]:
    each = ", ".join(f"{name} {plan.seconds[name]:.3g} s" for name in ("compute", "network", "memory"))
    best, worst = plan.seconds["overlapped"], plan.seconds["one after the other"]
    apart = f", or {worst:.3g} s if traffic does not overlap" if any(plan.received.values()) else ""
    lines = [f"\na cycle takes at least {best:.3g} s{apart} ({each})"]
    fastest, slowest = plan.hours
    hours, spent = _range(fastest, slowest), _range(fastest * plan.gpus, slowest * plan.gpus)
    lines.append(
        f"the whole run, {plan.updates:,} cycles, takes at least {hours} hours: {spent} GPU-hours, "
        "beside evaluations and checkpoints"
    )
    lines += [f"not in these numbers: {'; '.join(plan.notes)}"] if plan.notes else []
    needs = f"needs {plan.peak / 1e9:.1f} GB of {plan.gpu_memory / 1e9:g} GB"
    if plan.fits:
        return [*lines, f"{'what is counted fits' if plan.notes else 'fits'}: {needs}"]
    lines.append(f"does not fit: {needs}")
    if not plan.changes:
        return [*lines, "no change that the planner can propose makes it smaller"]
    lines.append("changes, in order of what they cost, each on top of those before:")
    lines += [f"  {change}: {peak / 1e9:.1f} GB" for change, peak in plan.changes]
    if min(peak for _, peak in plan.changes) > plan.gpu_memory:
        lines.append("and still it does not fit: take more or larger GPUs, or fewer pixels or frames")
    return lines


def _range(low: float, high: float) -> str:
    least, most = f"{low:.3g}", f"{high:.3g}"
    return least if least == most else f"{least} to {most}"


def _gigabytes(size: float) -> str:
    return "-" if not size else f"{size / 1e9:.2f}" if size >= 5e6 else f"{size / 1e9:.2g}"
