"""Which requests, and when? A plan: every request of a run, drawn before it starts, from one seeded stream.

A plan is made of chains. A chain starts at an absolute time; each of its requests waits for the end of the one before
plus a think time. An open loop has chains of one request (arrivals do not wait for answers), a closed loop has one
chain per client, a session is a chain whose prompts grow. Request number k is the same whatever the number of workers:
a worker takes every n-th chain of the same plan.

Prompts are token ids, drawn from their own stream when they are sent (`Prompt.draw_ids`), or given.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from labkit.errors import LabkitError
from labkit.load.arrivals import draw_arrivals
from labkit.load.lengths import Lengths, read_lengths
from labkit.load.trace import TraceRow
from labkit.workload import Workload

__all__ = ["Chain", "Plan", "Planned", "Prompt", "draw_closed_plan", "draw_open_plan", "draw_session_plan"]

IDS = (10, 1000)  # smaller than every vocabulary in use, above the special tokens that stand first
_LENGTHS, _ARRIVALS, _PROMPTS, _SHARED, _THINK = range(5)  # one stream of the seed each


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids: `given`, or parts of (key, number of tokens); the same key gives the same tokens.

    Two prompts that begin with the same parts share a prefix; two different keys do not (the ids are random).
    """

    parts: tuple[tuple[tuple[int, ...], int], ...] = ()
    given: tuple[int, ...] = ()
    seed: int = 0
    ids: tuple[int, int] = IDS

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return len(self.given) + sum(num for _, num in self.parts)

    def draw_ids(self) -> list[int]:
        """Return the token ids."""
        drawn = list(self.given)
        for key, num in self.parts:
            drawn += np.random.default_rng((self.seed, *key)).integers(*self.ids, size=num).tolist()
        return drawn


@dataclass(frozen=True, slots=True)
class Planned:
    """One request: its number in the run, prompt, output tokens, turn in its chain, and the pause before it."""

    number: int
    prompt: Prompt
    num_output_tokens: int
    turn: int = 0
    think_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Chain:
    """Requests that wait for each other; `requests` may be made when they are needed (a closed loop has no last)."""

    number: int
    start_s: float
    requests: Sequence[Planned]


@dataclass(frozen=True, slots=True)
class Plan:
    """A run's requests.

    `loop`: "open" or "closed". `name`: the arrival process in words. `duration_s`: after it no request is sent any
    more in a closed loop. `max_concurrency`: a cap; it turns an open loop into a closed one, and the name says so.
    """

    chains: tuple[Chain, ...]
    loop: str
    name: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    duration_s: float | None = None
    max_concurrency: int | None = None

    @property
    def num_requests(self) -> int | None:
        """Number of requests; None where only the duration ends the run."""
        counts = [len(chain.requests) for chain in self.chains]
        return None if _ENDLESS in counts else sum(counts)

    @property
    def last_start_s(self) -> float:
        """Start of the last chain; in a closed loop, the end of the sending."""
        return self.duration_s or max((chain.start_s for chain in self.chains), default=0.0)

    def cap(self, max_concurrency: int) -> Plan:
        """Return the plan with at most so many requests in flight: a closed loop, and labelled so."""
        if max_concurrency < 1:
            raise LabkitError(f"a cap of {max_concurrency} requests in flight lets none through.")
        name = f"{self.name}, capped at {max_concurrency} in flight: closed"
        return dataclasses.replace(self, loop="closed", name=name, max_concurrency=max_concurrency)

    def split(self, worker: int, num_workers: int) -> Plan:
        """Return the part of one of `num_workers` workers: every n-th chain, at its own time."""
        if self.max_concurrency and num_workers > 1:
            raise LabkitError("a cap on the concurrency cannot be shared by workers.", next_step="use one worker.")
        return dataclasses.replace(self, chains=self.chains[worker::num_workers])

    def to_dict(self) -> dict:
        """What a report keeps: name, loop, parameters, counts, and a digest of the schedule (sha256)."""
        rows = [
            (chain.number, chain.start_s, request.number, request.prompt.num_tokens, request.num_output_tokens)
            for chain in self.chains
            for request in _first(chain.requests)
        ]
        return {
            "name": self.name, "loop": self.loop, "parameters": dict(self.parameters), "duration_s": self.duration_s,
            "num_requests": self.num_requests, "num_chains": len(self.chains), "max_concurrency": self.max_concurrency,
            "sha256": hashlib.sha256(repr(rows).encode()).hexdigest(),
        }  # fmt: skip


def draw_open_plan(
    arrivals: str | Workload | Sequence[TraceRow] = "poisson",
    *,
    prompt: str | int | Lengths = 128,
    output: str | int | Lengths = 64,
    seed: int = 0,
    ids: tuple[int, int] = IDS,
    **process: object,
) -> Plan:
    """Draw an open loop: requests come at their own times, whatever the server does.

    `arrivals`: an arrival process of `labkit.load.arrivals` with its options (`rate_per_s`, `num_requests`,
    `duration_s`, `cv`, `end_rate_per_s`), the rows of a trace (which bring their lengths), or a `Workload` (which
    brings everything). `ids`: range of the token ids, [low, high).
    """
    if isinstance(arrivals, Workload):
        made = [
            Chain(k, r.arrival_s, (Planned(k, Prompt(given=r.prompt_ids), r.num_output_tokens),))
            for k, r in enumerate(arrivals.measured)
        ]
        return Plan(tuple(made), "open", arrivals.name, dict(arrivals.parameters))
    if not isinstance(arrivals, str):
        rows = [(row.arrival_s, row.num_prompt_tokens, row.num_output_tokens) for row in arrivals]
        name, parameters = "replay of a trace", {"num_requests": len(rows), "seed": seed}
    else:
        prompt, output = read_lengths(prompt), read_lengths(output)
        times = draw_arrivals(arrivals, seed=_stream(seed, _ARRIVALS), **process)
        lengths = _stream(seed, _LENGTHS)
        rows = list(
            zip(times.tolist(), *(one.draw(len(times), lengths).tolist() for one in (prompt, output)), strict=True)
        )
        name = arrivals
        parameters = {**process, "prompt": str(prompt), "output": str(output), "seed": seed}
    made = [
        Chain(k, at_s, (Planned(k, Prompt((((_PROMPTS, k), num_in),), seed=seed, ids=ids), num_out),))
        for k, (at_s, num_in, num_out) in enumerate(rows)
    ]
    return Plan(tuple(made), "open", name, parameters)


def draw_closed_plan(
    *,
    num_clients: int,
    requests_per_client: int | None = None,
    duration_s: float | None = None,
    think_s: float = 0.0,
    prompt: str | int | Lengths = 128,
    output: str | int | Lengths = 64,
    seed: int = 0,
    ids: tuple[int, int] = IDS,
) -> Plan:
    """Draw a closed loop: each client sends, waits for the end of the answer, thinks, sends again.

    Give the requests of each client, a duration, or both. `think_s`: mean of exponential think times (0: none).
    """
    if num_clients < 1 or (requests_per_client is None and duration_s is None):
        raise LabkitError(
            "A closed loop needs at least one client and an end.", next_step="give requests_per_client or duration_s."
        )
    drawer = _Drawer(read_lengths(prompt), read_lengths(output), think_s, seed, ids, num_clients)
    num = _ENDLESS if requests_per_client is None else requests_per_client
    chains = tuple(Chain(client, 0.0, _Requests(drawer, client, num)) for client in range(num_clients))
    parameters = {
        "num_clients": num_clients, "requests_per_client": requests_per_client, "think_s": think_s,
        "prompt": str(drawer.prompt), "output": str(drawer.output), "seed": seed,
    }  # fmt: skip
    return Plan(chains, "closed", f"{num_clients} clients", parameters, duration_s=duration_s)


def draw_session_plan(
    arrivals: str = "poisson",
    *,
    turns: int = 3,
    shared: int = 64,
    think_s: float = 1.0,
    prompt: str | int | Lengths = 32,
    output: str | int | Lengths = 32,
    seed: int = 0,
    ids: tuple[int, int] = IDS,
    **process: object,
) -> Plan:
    """Draw sessions of several turns that all begin with the same `shared` tokens (a system prompt).

    The prompt of a turn is the one before, an answer, and a new question of `prompt` tokens. The answers in the
    history are drawn beforehand, of the length that was asked for: what the server really said is not known yet, so
    only what was once a prompt can be found in its prefix cache. Sessions start by an arrival process.
    """
    prompt, output = read_lengths(prompt), read_lengths(output)
    starts = draw_arrivals(arrivals, seed=_stream(seed, _ARRIVALS), **process).tolist()
    lengths, think = _stream(seed, _LENGTHS), _stream(seed, _THINK)
    chains = []
    for session, start_s in enumerate(starts):
        questions, answers = (one.draw(turns, lengths).tolist() for one in (prompt, output))
        pauses = think.exponential(think_s, size=turns).tolist() if think_s else [0.0] * turns
        parts, made = [((_SHARED,), shared)] if shared else [], []
        for turn in range(turns):
            parts.append(((_PROMPTS, session, turn, 0), questions[turn]))
            pause_s = pauses[turn] if turn else 0.0
            made.append(
                Planned(session * turns + turn, Prompt(tuple(parts), seed=seed, ids=ids), answers[turn], turn, pause_s)
            )
            parts.append(((_PROMPTS, session, turn, 1), answers[turn]))
        chains.append(Chain(session, start_s, tuple(made)))
    parameters = {**process, "turns": turns, "shared": shared, "think_s": think_s, "prompt": str(prompt),
                  "output": str(output), "seed": seed}  # fmt: skip
    return Plan(tuple(chains), "open", f"sessions of {turns} turns, {arrivals}", parameters)


_ENDLESS = 10**9


@dataclass(frozen=True, slots=True)
class _Drawer:
    """Makes request k of client c of a closed loop from a stream of its own, in any order."""

    prompt: Lengths
    output: Lengths
    think_s: float
    seed: int
    ids: tuple[int, int]
    num_clients: int

    def draw(self, client: int, k: int) -> Planned:
        stream = np.random.default_rng((self.seed, _LENGTHS, client, k))
        num_in, num_out = (int(one.draw(1, stream)[0]) for one in (self.prompt, self.output))
        think_s = float(stream.exponential(self.think_s)) if self.think_s and k else 0.0
        prompt = Prompt((((_PROMPTS, client, k), num_in),), seed=self.seed, ids=self.ids)
        return Planned(client + k * self.num_clients, prompt, num_out, k, think_s)


@dataclass(frozen=True, slots=True)
class _Requests(Sequence):
    """The requests of one client, made when they are asked for."""

    drawer: _Drawer
    client: int
    num: int

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, k: int) -> Planned:
        if not 0 <= k < self.num:
            raise IndexError(k)
        return self.drawer.draw(self.client, k)


def _stream(seed: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng((seed, purpose))


def _first(requests: Sequence[Planned]) -> Iterator[Planned]:
    """All requests of a chain, or the first four where they are made on demand."""
    return (requests[k] for k in range(min(4, len(requests)))) if isinstance(requests, _Requests) else iter(requests)
