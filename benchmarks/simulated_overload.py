"""What the simulation says of one small server, beside what :mod:`benchmarks.overload` measured on a real one.

The same settings (four jobs at once, two runners, a line of 3 s), the same 24 lengths of audio from the same decks, the same
phases and clients. What is put in: the seconds of engine calls per job (the cost prior, scaled to the measured mean), by how
much jobs differ from it, and how long an upload takes to be decoded.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from random import Random
from typing import Any

from app.admission.prior import Work, job_seconds
from app.admission.ticket import Ask
from benchmarks.corpus import lognormal_lengths
from benchmarks.fleet import Fleet, Shape
from benchmarks.openloop import Shot, poisson
from benchmarks.scenarios import Scene
from benchmarks.virtual import Request, jain, quantile

FACTORS = (1.0, 2.0, 5.0, 10.0)
LIKE = Shape(streams=4, runners=2, width=2, bytes=20_000_000_000, queued=1000, queue_s=3.0)
CHUNK_S = 10.0
WRONG = 0.2  # of log-normal noise; the median error is 14 % then
INTAKE_S = 0.25
PATIENCE_S = 40.0
FULL_RATE = 6.0
MEASURED: dict[str, dict[str, float]] = {  # docs/benchmarks.md, "Overload on a real server"
    "1x": {"audio": 71.9, "jobs": 1.75, "busy": 1.86, "p50_s": 3.6, "p99_s": 7.5, "refused_share": 31 / (0.8 * 40 * 3 * 2.18)},
    "2x": {"audio": 84.7, "jobs": 2.07, "busy": 2.04, "p50_s": 4.7, "p99_s": 7.1, "refused_share": 216 / (0.8 * 40 * 3 * 4.35)},
    "5x": {
        "audio": 84.4,
        "jobs": 2.26,
        "busy": 2.03,
        "p50_s": 4.2,
        "p99_s": 6.5,
        "refused_share": 799 / (0.8 * 40 * 3 * 10.88),
    },
    "10x": {
        "audio": 81.5,
        "jobs": 2.03,
        "busy": 1.96,
        "p50_s": 4.7,
        "p99_s": 7.1,
        "refused_share": 1844 / (0.8 * 40 * 3 * 21.77),
    },
}


@dataclass
class Replica:
    """The benchmark's course on one simulated server. ``service_s``: mean seconds of engine calls per job."""

    service_s: float = 0.97
    phase_s: float = 40.0
    seed: int = 1

    def __post_init__(self) -> None:
        self.lengths = lognormal_lengths(24, 30.0, 0.7, 6.0, 150.0, seed=11)
        work = [sum(job_seconds(Work("demo", "int8", "cpu", length, CHUNK_S))) for length in self.lengths]
        scale = self.service_s / statistics.fmean(work)
        self.work = [scale * seconds for seconds in work]
        guess_s = math.exp(statistics.fmean(map(math.log, self.lengths)))
        self.guess = scale * sum(job_seconds(Work("demo", "int8", "cpu", guess_s, CHUNK_S)))
        self.scene = Scene(Fleet([1.0], LIKE, self.seed), math.inf)

    def request(self, shot: Shot, tries: int) -> Request:
        """Its length is known only when it has been decoded."""
        random, key, seconds = self.scene.world.random, f"key-{shot.key}", self.work[shot.file]
        asked = Ask(key, "demo", self.guess, fingerprint=f"{key}-{shot.file}")
        known = Ask(key, "demo", seconds, audio_s=self.lengths[shot.file], fingerprint=asked.fingerprint)
        work = seconds * random.lognormvariate(-WRONG * WRONG / 2, WRONG)
        return Request(asked, work, tries > 1, tries, INTAKE_S * random.uniform(0.6, 1.4), known)

    def phase(self, shots: list[Shot], tries: int = 1) -> list[Request]:
        """Send everything, and wait until everybody has been answered."""
        world = self.scene.world
        began = world.time
        came = [world.comes(self.request(shot, tries), began + shot.at) for shot in shots]
        world.run()
        self.began = began
        return came

    def seen(self, came: list[Request], phase_s: float) -> dict[str, float]:
        """As the benchmark counts: goodput by the time of the answer, latency by that of arrival, after the first fifth."""
        cut, end = self.began + phase_s / 5, self.began + phase_s
        late = [one for one in came if one.came_at >= cut]
        good = [one for one in late if one.ended_at is not None and one.latency_s < PATIENCE_S]
        ended = [one for one in came if one.ended_at is not None and cut <= one.ended_at <= end]
        audio = sum(one.settled.audio_s for one in ended if one.settled is not None)
        latencies = [one.latency_s for one in good]
        return {
            "audio": audio / (end - cut),
            "jobs": len(ended) / (end - cut),
            "busy": sum(one.work for one in ended) / (end - cut),
            "p50_s": quantile(latencies, 0.5),
            "p99_s": quantile(latencies, 0.99),
            "refused_share": 1 - sum(one.admitted_at is not None for one in late) / len(late),
        }

    def capacity(self, seed: int = 3) -> float:
        """Jobs per second while more comes than the line takes."""
        shots = poisson(FULL_RATE, self.phase_s, len(self.lengths), 0, Random(seed))
        return self.seen(self.phase(shots), self.phase_s)["jobs"]

    def levels(self, rounds: int) -> dict[str, dict[str, float]]:
        """The levels in turn, as many times; p99 over all phases together is taken as the mean of each three."""
        rows: dict[str, list[dict[str, float]]] = {f"{factor:g}x": [] for factor in FACTORS}
        for number in range(rounds):
            capacity = self.capacity(3)
            for factor in FACTORS:
                shots = poisson(factor * capacity, self.phase_s, len(self.lengths), 0, Random(self.seed * 1000 + number))
                rows[f"{factor:g}x"].append(self.seen(self.phase(shots), self.phase_s))
        return {name: _mean(each) for name, each in rows.items()}

    def obeying(self, times: int) -> dict[str, Any]:
        """2x for one and a half phases of 80 s; everybody comes back. Each time on a key of its own, as in a fresh server."""
        retries, longest, unserved = [0, 0], 0.0, 0
        for number in range(times):
            again = Replica(self.service_s, self.phase_s, self.seed + number)
            capacity = again.capacity()
            shots = poisson(2 * capacity, 60.0, len(self.lengths), 1, Random(7 + number))
            again.scene.retries.clear()
            came = again.phase(shots, tries=20)
            unserved += sum(one.ended_at is None for one in came)
            world = again.scene.world
            retries[0] += world.honoured
            retries[1] += world.broken
            longest = max(longest, *world.told)
        return {
            "tries": sum(retries),
            "as_told": retries[0] / max(1, sum(retries)),
            "longest_told_s": longest,
            "unserved": unserved,
        }

    def flood(self, times: int) -> dict[str, Any]:
        """Nine keys at 0.7 of the capacity, then the same beside one that sends 50 times as much as one of them; none obeys."""
        rows = []
        for number in range(times):
            again = Replica(self.service_s, self.phase_s, self.seed + number)
            rate, end = 0.7 * again.capacity() / 9, 80.0
            normal = [shot for key in range(1, 10) for shot in poisson(rate, end, 24, key, Random(key + 100 * number))]
            flooding = poisson(50 * rate, end, 24, 0, Random(99 + number))
            quiet = [one for one in again.phase(normal) if one.ended_at is not None]
            beside = again.phase(sorted(normal + flooding, key=lambda shot: shot.at))
            mine = [one for one in beside if one.ask.key != "key-0"]
            done = [one for one in mine if one.ended_at is not None]
            shares = [
                statistics.fmean(one.ended_at is not None for one in mine if one.ask.key == f"key-{key}")
                for key in range(1, 10)
            ]
            rows.append(
                {
                    "quiet_p99_s": quantile([one.latency_s for one in quiet], 0.99),
                    "flooded_p99_s": quantile([one.latency_s for one in done], 0.99),
                    "normal_ok_quiet": len(quiet) / len(normal),
                    "normal_ok_flooded": len(done) / len(mine),
                    "jain": jain(shares),
                }
            )
        return _mean(rows)


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
