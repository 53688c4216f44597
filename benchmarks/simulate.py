"""The product's own admission under a discrete-event clock, in front of 1 to 1,000 simulated machines.

    python -m benchmarks.simulate --into DIR                                     # everything; about ten minutes
    python -m benchmarks.simulate --into DIR --nodes 10 --scenarios losses       # one of them
    python -m benchmarks.simulate --like overload [--measured overload.json]     # one small server, beside a real one

Only work, machines and clients are simulated (:mod:`benchmarks.fleet`, :mod:`benchmarks.scenarios`); everything that is decided
is decided by ``app.admission``. The same seed gives the same run. Writes ``simulation.json`` after each run, and plots.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.scenarios import SCENARIOS
from benchmarks.simulated_overload import MEASURED, Replica

NODES = (1, 2, 10, 100, 1000)
Rows = dict[str, dict[str, Any]]
COLUMNS = {
    "came": "came",
    "of capacity": "goodput_of_capacity",
    "of peak": "goodput_of_peak",
    "while busy": "goodput_of_capacity_busy",
    "wait p50": "wait_p50_s",
    "wait p99": "wait_p99_s",
    "latency p50": "latency_p50_s",
    "latency p99": "latency_p99_s",
    "retries": "retries",
    "as told": "as_told",
    "as promised": "as_promised",
    "longest told": "longest_told_s",
    "Jain": "jain",
    "keys' wait p99": "normal_wait_p99_s",
    "keys' p99": "normal_p99_s",
    "lost": "lost",
    "run twice": "run_twice",
}
SHOWN = {  # in the tables
    "levels": "came,of capacity,of peak,wait p50,wait p99,latency p50,latency p99,lost",
    "day": "came,of capacity,while busy,wait p50,wait p99,latency p99,as told,as promised,longest told,Jain,lost",
    "losses": "came,of capacity,while busy,wait p50,wait p99,latency p99,as promised,longest told,Jain,lost,run twice",
    "slow": "came,of capacity,while busy,wait p50,wait p99,latency p99,as told,as promised,longest told,Jain,lost",
    "flood": "came,of capacity,keys' wait p99,keys' p99,as told,as promised,longest told,Jain,lost",
    "obeying": "came,retries,as told,as promised,longest told,wait p99,latency p99,Jain,lost",
}
SHARES = {"goodput_of_capacity", "goodput_of_peak", "goodput_of_capacity_busy", "as_told", "as_promised"}


def simulate(nodes: list[int], scenarios: list[str], seed: int, scale: float, into: Path | None) -> dict[str, Rows]:
    """Every scenario with every number of nodes; printed and written down one by one."""
    path = into / "simulation.json" if into else None
    results: dict[str, Rows] = json.loads(path.read_text()) if path and path.exists() else {}
    for name in scenarios:
        for count in nodes:
            began = time.perf_counter()
            rows = SCENARIOS[name](count, seed, scale)
            results.setdefault(name, {})[str(count)] = rows
            print(f"{name}, {count} nodes: {time.perf_counter() - began:.1f} s", flush=True)
            for part, row in rows.items():
                print("  " + " ".join([part, *(f"{title}={shown(key, row.get(key))}" for title, key in COLUMNS.items())]))
            if path:
                path.write_text(json.dumps(results, indent=1))
    return results


def shown(key: str, value: Any) -> str:
    """A figure of a table; a dash where there is none."""
    if value is None:
        return "–"
    if key in SHARES:
        return f"{100 * value:.1f} %"
    if key == "jain":
        return f"{value:.3f}"
    return f"{value:.0f}" if isinstance(value, int) or value >= 100 else f"{value:.1f}"


def tables(results: dict[str, Rows]) -> str:
    """Markdown: a table per scenario, and one of what a decision costs."""
    lines: list[str] = []
    for name, by_nodes in results.items():
        columns = {title: COLUMNS[title] for title in SHOWN[name].split(",")}
        doc = (SCENARIOS[name].__doc__ or "").strip().splitlines()[0]
        lines += [f"**{name}**: {doc}", "", "| nodes | " + " | ".join(columns) + " | refused |"]
        lines += ["|---|" + "---|" * (len(columns) + 1)]
        for count, rows in sorted(by_nodes.items(), key=lambda item: int(item[0])):
            for part, row in rows.items():
                title = count if len(rows) == 1 else f"{count}, {part}"
                refused = ", ".join(f"{reason} {number}" for reason, number in row["refused"].items()) or "–"
                cells = [shown(key, row.get(key)) for key in columns.values()]
                lines.append(f"| {title} | " + " | ".join(cells) + f" | {refused} |")
        lines.append("")
    return "\n".join([*lines, *costs(results)])


def costs(results: dict[str, Rows]) -> list[str]:
    """What the admission's code itself took, over all scenarios; microseconds of one decision."""
    kinds = ("admit", "refuse", "wait", "release", "admit in time", "deadline_unreachable", "quota_exceeded")
    lines = ["| nodes | " + " | ".join(f"{kind}, µs" for kind in kinds) + " | events/s |", "|---|" + "---|" * (len(kinds) + 1)]
    for count in sorted({int(count) for by_nodes in results.values() for count in by_nodes}):
        rows = [row for by_nodes in results.values() for row in by_nodes.get(str(count), {}).values()]
        cells = []
        for kind in kinds:
            calls = sum(row["decisions"].get(kind, 0) for row in rows)
            spent = sum(row["decisions"].get(kind, 0) * row["decision_us"].get(kind, 0.0) for row in rows)
            cells.append(f"{spent / calls:.0f}" if calls else "–")
        events = sum(row["events_per_s"] * row["wall_s"] for row in rows) / sum(row["wall_s"] for row in rows)
        lines.append(f"| {count} | " + " | ".join(cells) + f" | {events:.0f} |")
    return lines


def like_overload(measured: Path | None, seed: int, rounds: int) -> dict[str, Any]:
    """Prediction beside measurement, for one server of two cores with a line of 3 s."""
    replica = Replica(seed=seed)
    found: dict[str, Any] = {
        "levels": replica.levels(rounds),
        "obeying": replica.obeying(rounds),
        "flood": replica.flood(rounds),
    }
    real = json.loads(measured.read_text()) if measured else {}
    levels = found["levels"]
    peaks = [max(rows[name]["audio"] for name in rows) for rows in (levels, MEASURED)]
    print("| load | " + " | ".join(f"{title}, predicted / measured" for title in LIKE_COLUMNS) + " |")
    print("|---|" + "---|" * len(LIKE_COLUMNS))
    for name, row in levels.items():
        pairs = [
            [rows[name]["audio"] / peak for rows, peak in zip((levels, MEASURED), peaks, strict=True)],
            *([row[key], MEASURED[name][key]] for key in ("audio", "jobs", "busy", "p50_s", "p99_s", "refused_share")),
        ]
        print(f"| {name} | " + " | ".join(f"{one:.2f} / {other:.2f}" for one, other in pairs) + " |")
    ratios = [rows["10x"]["p99_s"] / rows["1x"]["p99_s"] for rows in (levels, MEASURED)]
    print(f"\np99 at 10x against 1x: {ratios[0]:.2f} / {ratios[1]:.2f}")
    for part in ("obeying", "flood"):
        print(f"{part}: predicted {found[part]}")
        print(f"{part}: measured {real.get(part)}")
    return found | {"measured": {"levels": MEASURED} | {part: real[part] for part in ("obeying", "flood") if part in real}}


LIKE_COLUMNS = ("audio of peak", "audio/s", "jobs/s", "busy", "p50", "p99", "refused")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, help="folder for simulation.json, tables and plots")
    parser.add_argument("--nodes", type=int, nargs="+", default=list(NODES), help="how many machines; several runs")
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1: shorter runs")
    parser.add_argument("--like", choices=["overload"], help="predict what benchmarks.overload measures, and compare")
    parser.add_argument("--measured", type=Path, help="overload.json of a real run, to stand beside")
    parser.add_argument("--rounds", type=int, default=30, help="with --like: how often each phase is simulated")
    options = parser.parse_args()
    if options.into:
        options.into.mkdir(parents=True, exist_ok=True)
    if options.like:
        found = like_overload(options.measured, options.seed, options.rounds)
        if options.into:
            (options.into / "like-overload.json").write_text(json.dumps(found, indent=1))
        return
    results = simulate(options.nodes, options.scenarios, options.seed, options.scale, options.into)
    if options.into:
        from benchmarks import simulate_plots  # matplotlib is not needed otherwise

        (options.into / "simulation.md").write_text(tables(results))
        simulate_plots.draw(results, options.into)


if __name__ == "__main__":
    main()
