"""Does the controller keep up with R1's job? The real decisions, a simulated cluster.

    python -m benchmarks.controller                      a twentieth of the problems, a minute
    python -m benchmarks.controller --problems 800000    the whole job

800,000 problems of up to 16 samples, thousands in flight, lognormal lengths that are longer where
problems are hard and traces wrong (`distill.simulate.draw`, the mix of NuminaMath 1.5), 1% of the
requests failing and asked again, 0.05% refused for good. Decided by what the sampler uses: a
`Course` per problem, `Turns` for who is next, `allocate` for the rounds of a budget. The teacher is
a heap of answers under way, each growing at its share of open-r1's rate (180,000 traces a
day on 512 H100s, huggingface.co/blog/open-r1/update-2; of R1's mean length).

`ratio` is CPU seconds on one core, the simulator's own included, over the seconds that the job
would take: below 1 the controller keeps up. Requests over HTTP (`benchmarks.sampler_overhead`) and
grading are not part of it.
"""

from __future__ import annotations

import argparse
import heapq
import random
import resource
import time
from dataclasses import dataclass

from distill.course import CERTAIN, LIKELY, Course, Result
from distill.policy import Policy, State, allocate
from distill.simulate import Outcomes, draw
from distill.stream import Turns

GOAL = 1.0
TOKENS = 5355
"""R1's mean length (arXiv 2501.12948v2, Table 5)."""
RATE = 180_000 * TOKENS / 86_400
"""Tokens per second of open-r1's 512 GPUs."""
FAULTS, REFUSED = 0.01, 0.0005
BACKOFF_S = 30.0
BUDGET = 0.5
"""Of what sampling everything to its end would take: a budget that has to choose."""


@dataclass(slots=True)
class Ran:
    """What a simulated job took: seconds of the cluster, seconds of one core."""

    name: str
    samples: int
    accepted: int
    surplus: int
    retried: int
    tokens: int
    wall_s: float
    cpu_s: float
    rounds: int

    def row(self) -> str:
        hours = self.wall_s / 3600
        return (
            f"{self.name:<22} {self.samples:>10,} {self.surplus / self.samples:8.2%} "
            f"{self.retried:>8,} {self.rounds:>7} {hours:>9,.1f} {self.cpu_s:>8.1f} "
            f"{self.cpu_s / hours:>10.3f} {self.samples / self.cpu_s:>12,.0f}"
        )


HEAD = (
    f"{'policy':<22} {'samples':>10} {'surplus':>8} {'retried':>8} {'rounds':>7} {'hours':>9} "
    f"{'CPU s':>8} {'CPU s/hour':>10} {'samples/CPU s':>12}"
)


class Cluster:
    """Answers under way, by the time at which they end; `slots` at most."""

    def __init__(self, outcomes: Outcomes, slots: int, seed: int) -> None:
        self._tokens = memoryview(outcomes.tokens.ravel())  # type: ignore[arg-type]
        self._accepted = memoryview(outcomes.accepted.ravel())  # type: ignore[arg-type]
        self._width = outcomes.accepted.shape[1]
        self._random = random.Random(seed)
        self._heap: list[tuple[float, int, int]] = []
        self.slots, self.clock, self.retried = slots, 0.0, 0
        self.tokens = 0

    @property
    def full(self) -> bool:
        return len(self._heap) >= self.slots

    def ask(self, at: int, index: int, wait: float = 0.0) -> None:
        """Send a request: it ends when its tokens are decoded."""
        seconds = self._tokens[at * self._width + index] * self.slots / RATE
        heapq.heappush(self._heap, (self.clock + wait + seconds, at, index))

    def answer(self) -> tuple[int, int, Result] | None:
        """The next answer; failed requests are sent again on the way. None: nothing under way."""
        while self._heap:
            self.clock, at, index = heapq.heappop(self._heap)
            luck = self._random.random()
            if luck < FAULTS:
                self.retried += 1
                self.ask(at, index, self._random.uniform(0, BACKOFF_S))
                continue
            if luck > 1 - REFUSED:
                return at, index, Result(lost=True)
            place = at * self._width + index
            self.tokens += self._tokens[place]
            return at, index, Result(bool(self._accepted[place]), tokens=self._tokens[place])
        return None


def run(name: str, policy: Policy, outcomes: Outcomes, slots: int, budget: int | None) -> Ran:
    """The job to its end; with a budget in rounds, each waited for to its last sample."""
    begin = time.process_time()
    courses = [Course(policy) for _ in outcomes.bucket]
    cluster, samples, rounds = Cluster(outcomes, slots, seed=0), 0, 0
    while True:
        if budget is not None:
            states = [State(c.tries, c.accepted, c.tokens, c.reason is not None) for c in courses]
            given = allocate(policy, states, max(0, budget - cluster.tokens), least=slots)
            for course, more in zip(courses, given, strict=True):
                course.allowance = more
        answered = _round(courses, cluster, LIKELY if budget is None else CERTAIN)
        if not answered:
            return _ran(name, cluster, courses, samples, rounds, begin)
        samples, rounds = samples + answered, rounds + 1


def _round(courses: list[Course], cluster: Cluster, least: float) -> int:
    """Ask and answer until nobody has anything to ask. The number of samples."""
    turns, samples = Turns(courses, least), 0
    while True:
        while not cluster.full and (found := turns.pop()) is not None:
            at, (index, _) = found
            cluster.ask(at, index)
        answer = cluster.answer()
        if answer is None:
            return samples
        at, index, result = answer
        samples += not result.lost
        courses[at].tell((index, 0), result)
        turns.again(at)


def _ran(
    name: str,
    cluster: Cluster,
    courses: list[Course],
    samples: int,
    rounds: int,
    begin: float,
) -> Ran:
    cpu = time.process_time() - begin
    return Ran(
        name,
        samples,
        sum(course.accepted for course in courses),
        samples - sum(course.tries for course in courses),
        cluster.retried,
        cluster.tokens,
        cluster.clock,
        cpu,
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=40_000, help="R1's job: 800000")
    parser.add_argument("--slots", type=int, default=4096, help="requests in flight")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcomes = draw(options.problems, 16, sample_tokens=TOKENS, seed=options.seed)
    print(
        f"{options.problems:,} problems, {options.slots:,} in flight, {RATE:,.0f} tokens/s, "
        f"{outcomes.accepted.mean():.0%} of the samples accepted"
    )
    print(HEAD)
    found = []
    for want in (1, 4):
        policy = Policy(want=want, most=16)
        found.append(run(f"want {want}", policy, outcomes, options.slots, None))
        print(found[-1].row(), flush=True)
        half = int(BUDGET * found[-1].tokens)
        found.append(run(f"want {want}, half budget", policy, outcomes, options.slots, half))
        print(found[-1].row(), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.2f} GiB, the outcomes of the simulation included")
    worst = max(ran.cpu_s / ran.wall_s for ran in found)
    print(f"controller ratio={worst:.2g} goal={GOAL:g}")


if __name__ == "__main__":
    main()
