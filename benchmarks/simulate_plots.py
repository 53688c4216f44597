"""Plots of the simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Rows = dict[str, dict[str, Any]]


def draw(results: dict[str, Rows], into: Path) -> None:
    """``simulation-scale.png`` and ``simulation-time.png``, of what has been simulated."""
    _scale(results, into / "simulation-scale.png")
    _time(results, into / "simulation-time.png")


def _scale(results: dict[str, Rows], path: Path) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4))
    for number, (count, rows) in enumerate(sorted(results.get("levels", {}).items(), key=lambda item: int(item[0]))):
        factors = [float(name[:-1]) for name in rows]
        color = f"C{number}"
        left.plot(factors, [100 * row["goodput_of_capacity"] for row in rows.values()], "o-", color=color, label=_nodes(count))
        middle.plot(factors, [row["latency_p99_s"] for row in rows.values()], "o-", color=color, label=_nodes(count))
    left.set(title="Goodput under overload", ylabel="% of capacity", ylim=(0, 110))
    middle.set(title="p99 latency of admitted jobs", ylabel="seconds", yscale="log")
    middle.set_yticks([100, 200, 500, 1000], ["100", "200", "500", "1000"])
    for axis in (left, middle):
        axis.set(xlabel="load / capacity", xscale="log")
        axis.set_xticks([1, 2, 5, 10], ["1x", "2x", "5x", "10x"])
        axis.minorticks_off()
        axis.legend(fontsize=8)
    _costs(results, right)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _costs(results: dict[str, Rows], axis: Axes) -> None:
    counts = sorted({int(count) for by_nodes in results.values() for count in by_nodes})
    for kind, marker in (("admit", "o-"), ("refuse", "s-"), ("release", "^-")):
        line = []
        for count in counts:
            rows = [row for by_nodes in results.values() for row in by_nodes.get(str(count), {}).values()]
            calls = [row["decisions"].get(kind, 0) for row in rows]
            spent = sum(each * row["decision_us"].get(kind, 0.0) for each, row in zip(calls, rows, strict=True))
            line.append(spent / max(1, sum(calls)))
        axis.plot(counts, line, marker, label=kind)
    axis.set(title="What one decision takes", xlabel="nodes", ylabel="microseconds", xscale="log")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)


def _time(results: dict[str, Rows], path: Path) -> None:
    shown = [name for name in ("day", "losses") if name in results]
    if not shown:
        return
    figure, axes = plt.subplots(len(shown), 3, figsize=(13, 3.2 * len(shown)), squeeze=False)
    for line, name in zip(axes, shown, strict=True):
        picked = [count for count in ("1", "10", "1000") if count in results[name]]
        for axis, count in zip(line, picked, strict=False):
            row = results[name][count][name]
            offered, done, could = row["timeline"]
            unit, name_of = (3600.0, "hours") if row["virtual_s"] > 7200 else (60.0, "minutes")
            hours = [(number + 0.5) * row["virtual_s"] / len(done) / unit for number in range(len(done))]
            axis.fill_between(hours, offered, color="tab:orange", alpha=0.3, step="mid", label="offered")
            axis.step(hours, could, color="grey", where="mid", lw=1, label="machines alive")
            axis.step(hours, done, color="tab:blue", where="mid", label="done")
            axis.set(title=f"{name}, {_nodes(count)}", xlabel=name_of)
            axis.set_ylim(bottom=0)
        line[0].set_ylabel("seconds of work per second")
        for axis in line[len(picked) :]:
            axis.axis("off")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _nodes(count: str) -> str:
    return f"{count} node" + ("" if count == "1" else "s")
