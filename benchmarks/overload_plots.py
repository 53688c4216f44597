"""Plots of the overload benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(results: dict[str, Any], into: Path) -> None:
    """``overload-levels.png`` and ``overload-baselines.png``, of what has been measured."""
    if "levels" in results:
        _levels(results, into / "overload-levels.png")
    if "baselines" in results:
        _baselines(results, into / "overload-baselines.png")


def _levels(results: dict[str, Any], path: Path) -> None:
    levels = results["levels"]
    factors = [row["factor"] for row in levels]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.plot(factors, [row["goodput_jobs_per_s"] for row in levels], "o-", label="right answers")
    left.plot(factors, [row["offered_per_s"] for row in levels], ":", color="grey", label="offered")
    left.axhline(results["capacity_jobs_per_s"], ls="--", color="grey", lw=1, label="capacity")
    left.set(xlabel="load / capacity", ylabel="jobs per second", title="Goodput", xscale="log", yscale="log")
    left.legend()
    for name, style in (("p50_s", "s--"), ("p99_s", "o-")):
        right.plot(factors, [row[name] for row in levels], style, label=name[:3])
    right.set(xlabel="load / capacity", ylabel="seconds", title="Latency of admitted jobs", xscale="log")
    right.set_ylim(bottom=0)
    right.legend()
    for axis in (left, right):
        axis.set_xticks(factors, [f"{factor:g}x" for factor in factors])
        axis.minorticks_off()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _baselines(results: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12, 4))
    names = list(results["baselines"])
    rows = list(results["baselines"].values())
    for axis, field, title in zip(
        axes,
        ("goodput_jobs_per_s", "p99_s", "peak_mb"),
        ("right answers within 40 s, per second", "p99 of answered, seconds", "peak memory (PSS), MB"),
        strict=True,
    ):
        axis.barh(names, [row[field] for row in rows], color=["tab:green", "tab:blue", "tab:orange", "tab:red"])
        axis.set_title(title, fontsize=10)
        axis.invert_yaxis()
        if axis is not axes[0]:
            axis.set_yticks([])
    figure.suptitle("Five times as much as fits")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
