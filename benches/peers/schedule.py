"""How long each case of a comparison may take, so that all of them fit a limit."""

import statistics
import sys
import time
from collections.abc import Iterator

LEAST_BUDGET_SECONDS = 0.005


class Schedule:
    """Seconds of each system's turn: as asked for, or fewer where a limit asks for it."""

    def __init__(self, budget: float, turns: int, limit: float | None) -> None:
        """`turns` of a case, of `budget` seconds each; `limit` seconds for all cases."""
        self.budget, self.turns, self.limit = budget, turns, limit
        # What cases took beside their turns: data, the reference, commands that start.
        self.beside: list[float] = []

    def cases(self, todo: list) -> Iterator[tuple]:
        """Each case with the seconds of its turns; says what all of them will and did take."""
        begin = time.perf_counter()
        expected = len(todo) * self.turns * self.budget
        expected = expected if self.limit is None else min(expected, self.limit)
        self.say(f"{len(todo)} cases of peers, about {expected:.0f} s and what starting takes")
        for place, case in enumerate(todo):
            case_begin = time.perf_counter()
            budget = self.share(case_begin - begin, len(todo) - place)
            yield case, budget
            elapsed = time.perf_counter() - case_begin
            self.beside.append(elapsed - budget * self.turns)
        self.say(f"{len(todo)} cases of peers took {time.perf_counter() - begin:.0f} s")

    def share(self, elapsed: float, left: int) -> float:
        """Seconds of a turn of the next of the cases that are left."""
        if self.limit is None:
            return self.budget
        beside = statistics.median(self.beside) if self.beside else 0.0
        share = ((self.limit - elapsed) / left - beside) / self.turns
        return min(self.budget, max(LEAST_BUDGET_SECONDS, share))

    def say(self, message: str) -> None:
        """Tell on stderr, beside the lines of results."""
        print(f"# {message}", file=sys.stderr, flush=True)
