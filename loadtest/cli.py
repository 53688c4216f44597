"""From the command line to the exit status."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

from loadtest import audio, options, plot, preflight, report, table
from loadtest.advice import INTERRUPTED, recommend
from loadtest.client import Target
from loadtest.options import Options
from loadtest.progress import Progress
from loadtest.records import Record, Run, Unusable
from loadtest.runner import Plan, Session
from loadtest.stats import summarize

UNUSABLE = 2
SIGINT_STATUS = 130


@dataclass
class Found:
    """What is known so far; it outlives a Ctrl-C."""

    model: str | None = None
    warm_up: Record | None = None
    runs: list[Run] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a sign must not end the test
    try:
        return _main(options.parse(argv))
    except Unusable as problem:
        print(f"test_concurrency.py: {problem}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        return SIGINT_STATUS


def _main(wanted: Options) -> int:
    started = datetime.now(timezone.utc)
    plan = _plan(wanted)
    _allow_many_sockets()
    found, progress = Found(), Progress()
    complete = True
    try:
        plan = asyncio.run(_measure(plan, found, progress))
    except KeyboardInterrupt:
        complete = False
        print("Interrupted; this is what was measured until then.", file=sys.stderr)
    finally:
        progress.end()
    summaries = tuple(summarize(run) for run in found.runs)
    advice = recommend(summaries, report.latencies(found.runs)) if complete else INTERRUPTED
    outcome = report.Outcome(started, found.model, found.warm_up, tuple(found.runs), summaries, advice, complete)
    _print(plan, outcome)
    written = _write(wanted, plan, outcome)
    if not complete:
        return SIGINT_STATUS
    return status(outcome.records) or (0 if written else UNUSABLE)


def status(records: Sequence[Record]) -> int:
    """1: an answer was wrong, a request was lost, or none was answered at all."""
    bad = any(record.kind in ("wrong", "lost") for record in records)
    return int(bad or not any(record.kind == "ok" for record in records))


def _plan(wanted: Options) -> Plan:
    return Plan(
        target=Target(wanted.url, wanted.key, wanted.model, wanted.timeout_s),
        recordings=tuple(audio.find(wanted.audio)),
        loads=wanted.loads,
        requests=wanted.requests,
        duration_s=wanted.duration_s,
        tries=wanted.tries,
        seed=wanted.seed,
    )


async def _measure(plan: Plan, found: Found, progress: Progress) -> Plan:
    """Fills ``found``; the plan with the model that the server turned out to use."""
    found.model = await preflight.check(plan.target)
    plan = dataclasses.replace(plan, target=dataclasses.replace(plan.target, model=found.model))
    session = Session(plan, progress)
    for load in plan.loads:
        if session.expected_requests(load) == 0:
            raise Unusable(f"At {load.label} no request falls into {plan.duration_s:g} s. Give a longer --duration.")
    progress.begin("warm-up", 1)
    found.warm_up = await session.warm_up()
    preflight.judge_warm_up(found.warm_up)
    for load in plan.loads:
        progress.begin(f"{load.label:>5} {'at once' if load.level is not None else ''}", session.expected_requests(load))
        await session.run(load, found.runs)
    return plan


def _print(plan: Plan, outcome: report.Outcome) -> None:
    files = f"{len(plan.recordings)} file{'s' * (len(plan.recordings) > 1)}"
    print(f"{preflight.shown(plan.target.url)}, model {outcome.model or '(default)'}, {files}\n")
    if outcome.summaries:
        print(table.render(outcome.summaries))
    for line in table.failures(outcome.records):
        print(line)
    if outcome.summaries:
        print(f"\n{outcome.advice.text}")
    for warning in outcome.advice.warnings:
        print(f"Warning: {warning}")


def _write(wanted: Options, plan: Plan, outcome: report.Outcome) -> bool:
    """The files that were asked for; false where one could not be written. A missing matplotlib is no failure."""
    try:
        if wanted.json:
            report.write(wanted.json, plan, outcome)
            print(f"Figures and {len(outcome.records)} records: {wanted.json}")
        if wanted.plot and outcome.runs:
            title = f"Stenopool load test, model {outcome.model or '(default)'}"
            plot.draw(wanted.plot, title, outcome.runs, outcome.summaries, outcome.advice.level)
            print(f"Plot: {wanted.plot}")
    except OSError as error:
        print(f"test_concurrency.py: could not write: {error}", file=sys.stderr)
        return False
    except Unusable as problem:
        print(problem, file=sys.stderr)
    return True


def _allow_many_sockets() -> None:
    """macOS allows 256 open files unless one asks for more."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
