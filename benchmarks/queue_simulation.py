"""Simulate the queue of a service that learns subjects all day: how many GPUs it needs, and how long one waits.

    python benchmarks/queue_simulation.py                   # the tables of docs/scale.md
    python benchmarks/queue_simulation.py --per-day 2000    # other loads

Subjects arrive at random, by day more often than by night, and wait in one queue for a worker with one GPU. A worker
keeps the base loaded. The first subject of a class noun pays for the class latents, which all later ones share. Spot
machines are taken away at random: the run goes on from its last state on the next free machine. The figures of a run
are those of `dreambooth plan`; nothing here trains.
"""

import argparse
import bisect
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

HOUR, DAY = 3600.0, 86400.0
DAYS = 4  # simulated; the first one fills the queue and the class latents, and is not counted


@dataclass(frozen=True)
class Load:
    """Hold what arrives. peak: arrivals at the busiest hour over the mean. nouns: class nouns, used by Zipf's law."""

    per_day: float = 10_000
    peak: float = 1.6
    nouns: int = 2_000


@dataclass(frozen=True)
class Run:
    """Hold what one subject costs on one GPU, seconds.

    latents: to make the class latents of a noun. load: a base into memory. save_every: between two states. spread:
    standard deviation of the time over its mean, as photos and prompts differ.
    """

    train: float
    latents: float
    load: float = 30.0
    save_every: float = 30.0
    spread: float = 0.1


@dataclass(frozen=True)
class Fleet:
    """Hold the machines. taken_per_hour: how often a spot machine is taken away. replace: seconds until another one."""

    gpus: int
    taken_per_hour: float = 0.05
    replace: float = 180.0


@dataclass
class Outcome:
    """Hold what was seen: seconds waited by each subject, and of GPU time what was used, lost and there."""

    waits: list[float] = field(default_factory=list)
    used: float = 0.0
    lost: float = 0.0
    there: float = 0.0
    longest_queue: int = 0
    num_taken: int = 0

    def wait(self, share: float) -> float:
        """Return the wait that this share of the subjects did not exceed, seconds."""
        ranked = sorted(self.waits)
        return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else math.nan


@dataclass
class Subject:
    """Hold one subject in the queue. left: seconds of training that are still to be done."""

    arrived: float
    noun: int
    left: float
    has_started: bool = False


def rate(load: Load, now: float) -> float:
    """Return the arrivals a second at a time of day: a sine with its peak at 15 h."""
    swing = (load.peak - 1) * math.cos(2 * math.pi * (now / DAY - 15 / 24))
    return load.per_day / DAY * (1 + swing)


def arrivals(load: Load, run: Run, rng: random.Random) -> Iterator[Subject]:
    """Yield subjects as they come, by thinning a Poisson process (Lewis & Shedler 1979)."""
    highest = load.per_day / DAY * load.peak
    weights = [*itertools.accumulate(1 / rank for rank in range(1, load.nouns + 1))]
    now = 0.0
    while True:
        now += rng.expovariate(highest)
        if now >= DAYS * DAY:
            return
        if rng.random() * highest < rate(load, now):
            noun = bisect.bisect(weights, rng.random() * weights[-1])
            yield Subject(now, noun, run.train * max(0.5, rng.gauss(1, run.spread)))


class Simulation:
    """One queue, its workers and the class latents that are there. Events: a worker is free, or a subject arrives."""

    def __init__(self, load: Load, run: Run, fleet: Fleet, shares_latents: bool = True, seed: int = 0) -> None:
        self.run, self.fleet, self.shares_latents = run, fleet, shares_latents
        self.rng = random.Random(seed)
        self.subjects = arrivals(load, run, random.Random(f"arrivals/{seed}"))
        self.queue: deque[Subject] = deque()
        self.nouns: set[int] = set()  # whose class latents are made
        self.free_at = [0.0] * fleet.gpus  # a heap of the times at which workers become free
        self.outcome = Outcome()

    def play(self) -> Outcome:
        """Play all days; returns what was seen after the first one."""
        coming = next(self.subjects, None)
        while coming is not None or self.queue:
            now = self.free_at[0]
            while coming is not None and (coming.arrived <= now or not self.queue):
                self.queue.append(coming)
                now = max(now, self.queue[0].arrived)
                coming = next(self.subjects, None)
            if DAY <= now < DAYS * DAY:
                self.outcome.longest_queue = max(self.outcome.longest_queue, len(self.queue))
            heapq.heapreplace(self.free_at, self.serve(self.queue.popleft(), now))
        self.outcome.there = self.fleet.gpus * (DAYS - 1) * DAY
        return self.outcome

    def serve(self, subject: Subject, now: float) -> float:
        """Train a subject from `now` on; returns when its worker is free again. A machine may be taken away."""
        is_counted = subject.arrived >= DAY
        if is_counted and not subject.has_started:
            self.outcome.waits.append(now - subject.arrived)
        subject.has_started = True
        needs_latents = not self.shares_latents or subject.noun not in self.nouns
        latents = self.run.latents if needs_latents else 0.0
        needed = subject.left + latents
        until_taken = self.rng.expovariate(self.fleet.taken_per_hour / HOUR) if self.fleet.taken_per_hour else math.inf
        if until_taken >= needed:
            self.nouns.add(subject.noun)
            self.outcome.used += needed if is_counted else 0.0
            return now + needed
        lost = min(until_taken, self.rng.uniform(0, self.run.save_every))
        subject.left -= max(0.0, until_taken - latents - lost)
        if until_taken > latents:
            self.nouns.add(subject.noun)
        self.queue.appendleft(subject)
        if is_counted:
            self.outcome.used += until_taken - lost
            self.outcome.lost += lost + self.fleet.replace + self.run.load
            self.outcome.num_taken += 1
        return now + until_taken + self.fleet.replace + self.run.load


def fewest_gpus(load: Load, run: Run, most_wait: float, shares_latents: bool = True) -> int:
    """Return the fewest GPUs with which 95 of 100 subjects wait no longer than this, seconds; by bisection."""
    low, high = 1, 2
    while not is_enough(load, run, high, most_wait, shares_latents):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if is_enough(load, run, middle, most_wait, shares_latents):
            high = middle
        else:
            low = middle
    return high


def is_enough(load: Load, run: Run, gpus: int, most_wait: float, shares_latents: bool) -> bool:
    return Simulation(load, run, Fleet(gpus), shares_latents).play().wait(0.95) <= most_wait


def line(*words: object) -> str:
    return f"| {' | '.join(map(str, words))} |"


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def by_number(load: Load, run: Run, gpus: Sequence[int]) -> Iterator[str]:
    """Yield a table of waits by the number of GPUs."""
    yield line("GPUs", "busy", "lost to taken machines", "median wait", "95 of 100 wait at most", "longest queue")
    yield "|---|---|---|---|---|---|"
    for number in gpus:
        seen = Simulation(load, run, Fleet(number)).play()
        busy, lost = seen.used / seen.there, seen.lost / seen.there
        waits = minutes(seen.wait(0.5)), minutes(seen.wait(0.95))
        yield line(number, f"{busy:.0%}", f"{lost:.1%}", *waits, seen.longest_queue)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-day", type=float, default=Load().per_day, help="subjects a day (default: %(default)g)")
    parser.add_argument("--peak", type=float, default=Load().peak, help="busiest hour over the mean (%(default)s)")
    parser.add_argument("--wait", type=float, default=10, help="minutes that 95 of 100 may wait (default: %(default)g)")
    args = parser.parse_args()
    load, most_wait = Load(args.per_day, args.peak), args.wait * 60
    print(line("run", "seconds a subject", "GPUs, latents shared", "GPUs, not shared"))
    print("|---|---|---|---|")
    for name, run in RUNS.items():
        shared, own = (fewest_gpus(load, run, most_wait, shares) for shares in (True, False))
        print(line(name, f"{run.train:.0f} + {run.latents:.0f} for a new noun", shared, own))
    first, run = next(iter(RUNS.items()))
    least = math.ceil(load.per_day * run.train / DAY)
    print(f"\n{first}, {load.per_day:g} subjects a day:\n")
    print("\n".join(by_number(load, run, [round(least * scale) for scale in (1.0, 1.1, 1.3, 1.6, 1.8)])))
    spot = replace(Fleet(round(1.6 * least)), taken_per_hour=1.0)
    seen = Simulation(load, run, spot).play()
    print(f"\nspot machines that are taken once an hour: {seen.lost / seen.there:.1%} lost, 95 of 100 wait at most "
          f"{minutes(seen.wait(0.95))}")  # fmt: skip


# Seconds on one A100, as `dreambooth plan` estimates them from the paper's 0.3 s a step (arXiv 2208.12242).
RUNS = {
    "LoRA, 500 steps": Run(train=215, latents=195),
    "all weights, 1000 steps": Run(train=360, latents=195),
}

if __name__ == "__main__":
    main()
