"""How is the client itself? Its timer, its requests in flight, its share of the processor, watched through a run."""

import time
from dataclasses import dataclass

__all__ = ["TICK_S", "ClientHealth", "ClientWatch"]

TICK_S = 0.01


@dataclass(frozen=True, slots=True)
class ClientHealth:
    """What the client saw of itself.

    `delays_s`: how late its timer was, every 10 ms; `concurrency`: mean requests in flight, counted at those ticks;
    `cpu_fraction`: processor time of its thread over wall time; `window_s`: from the first tick to the last.
    """

    delays_s: tuple[float, ...]
    concurrency: float
    cpu_fraction: float
    window_s: float


class ClientWatch:
    """Counts how late a timer is, and what is in flight; ticks that a stall swallowed are counted too.

    `run`: has `loop`, `num_running` and `sleep_until`; its `late_s` is set at each tick.
    """

    def __init__(self, run) -> None:
        self.run, self.delays_s, self.total = run, [], 0
        self.begin_s, self.cpu_s, self.wall_s = run.loop.time(), time.thread_time(), time.perf_counter()

    async def tick(self) -> None:
        """Tick until it is cancelled."""
        due_s = self.begin_s + TICK_S
        while True:
            await self.run.sleep_until(due_s)
            now_s = self.run.loop.time()
            self.run.late_s = now_s - due_s
            while due_s <= now_s:
                self.delays_s.append(now_s - due_s)
                self.total += self.run.num_running
                due_s += TICK_S

    def stop(self) -> ClientHealth:
        """Return what was seen so far."""
        wall_s = time.perf_counter() - self.wall_s
        num, cpu = max(1, len(self.delays_s)), time.thread_time() - self.cpu_s
        window_s = self.run.loop.time() - self.begin_s
        # In virtual time the processor's share of the wall time means nothing.
        share = cpu / wall_s if wall_s > 0 and window_s <= 2 * wall_s else 0.0
        return ClientHealth(tuple(self.delays_s), self.total / num, share, window_s)
