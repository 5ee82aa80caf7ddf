"""Exercise 33.1: one request from its log of events; hand-worked cases, classic mistakes, and a slow oracle."""

import random

from labkit.checks.cases import Case

__all__ = ["READ_CASES", "READ_MISTAKES", "draw_read_cases", "make_reader"]

CONTENT = ("content", "reasoning_content", "tool_calls")
_TOOL = {"tool_calls": [{"index": 0, "function": {"name": "look", "arguments": ""}}]}
_ROLE = {"role": "assistant"}

# scheduled, sent, events (arrival, delta), output tokens -> TTFT, TTFT from the schedule, TPOT, gaps.
READ_CASES = [
    Case((0.5, 0.75, 0.25, [0.25, 0.25]),
         (9.75, 10.0, [(10.5, {"content": "a"}), (10.75, {"content": "b"}), (11.0, {"content": "c"})], 3),
         why="three tokens have two gaps, and the request was due 0.25 s before it was sent."),
    Case((1.0, 1.0, 0.5, [0.5]),
         (2.0, 2.0, [(2.125, _ROLE), (3.0, {"content": "a"}), (3.5, {"content": "b"})], 2),
         why="a delta with only a role says that the server is there: no token has come yet."),
    Case((1.0, 1.5, 0.25, [0.5]),
         (3.5, 4.0, [(4.25, {"role": "assistant", "content": ""}), (5.0, {"role": "assistant", "content": "a"}),
                     (5.5, {"content": "bc"}), (5.75, {"content": ""}), (6.0, {})], 3),
         why="the empty deltas around the answer carry nothing; one chunk carried two tokens."),
    Case((0.5, 0.5, 0.25, [0.25, 0.5]),
         (0.0, 0.0, [(0.5, {"reasoning_content": "hm"}), (0.75, {"content": "a"}), (1.25, {"content": "b"})], 4),
         why="reasoning is content: the user sees it, and the server has made it."),
    Case((0.5, 1.5, 0.5, [1.0]),
         (7.0, 8.0, [(8.25, _ROLE), (8.5, _TOOL), (9.5, {"tool_calls": [{"index": 0}]})], 3),
         why="a tool call is content: it is all that this answer has."),
    Case((0.25, 0.25, 0.25, [0.25]),
         (1.0, 1.0, [(1.25, {"content": "\n"}), (1.5, {"content": " "})], 2),
         why="a space or a new line is content as well: a token made it."),
    Case((1.25, 2.25, None, []), (3.0, 4.0, [(4.5, _ROLE), (5.25, {"content": "a"}), (5.5, {"content": None})], 1),
         why="one token has no gap: its TPOT is None and there are no gaps."),
    Case((0.75, 0.75, 0.0, []), (6.0, 6.0, [(6.75, {"content": "abc"})], 4),
         why="four tokens in one chunk: their TPOT is 0, and 0 is known, not None."),
    Case((None, None, None, []), (1.0, 1.5, [(2.0, _ROLE), (2.5, {"content": ""}), (3.0, {})], 0),
         why="no content came: three times None, and no gap."),
    Case((None, None, None, []), (1.0, 1.5, [], 0), why="no event came: three times None, and no gap."),
]  # fmt: skip


def has_content(delta: dict) -> bool:
    """Whether a delta carries text, reasoning or a tool call."""
    return any(delta.get(key) for key in CONTENT)


def make_reader(ttft=None, scheduled=None, tpot=None, gaps=None, *, keep=has_content):
    """Make an answer to 33.1 from four formulas over (scheduled, sent, arrivals, n); the right ones unless given."""
    ttft = ttft or (lambda d, s, t, n: t[0] - s)
    scheduled = scheduled or (lambda d, s, t, n: t[0] - d)
    tpot = tpot or (lambda d, s, t, n: (t[-1] - t[0]) / (n - 1) if n > 1 else None)
    gaps = gaps or (lambda d, s, t, n: [b - a for a, b in zip(t, t[1:], strict=False)])

    def answer(scheduled_s, sent_s, events, num_tokens):
        times = [at_s for at_s, delta in events if keep(delta)]
        if not times:
            return None, None, None, []
        return tuple(formula(scheduled_s, sent_s, times, num_tokens) for formula in (ttft, scheduled, tpot, gaps))

    return answer


def _read_ms(*args):
    return tuple(
        [1e3 * x for x in value] if isinstance(value, list) else None if value is None else 1e3 * value
        for value in make_reader()(*args)
    )


READ_MISTAKES = (
    ("a delta with only a role, or an empty one, is taken for content: a server can send that before it has computed "
     "anything.", make_reader(keep=lambda delta: True)),
    ("a delta with only a role is taken for content: nothing has been computed yet when it comes.",
     make_reader(keep=lambda delta: has_content(delta) or delta.get("role"))),
    ("an empty text is taken for content: `\"content\": \"\"` carries nothing.",
     make_reader(keep=lambda delta: any(key in delta for key in CONTENT))),
    ("an empty text is taken for content: `\"content\": \"\"` carries nothing.",
     make_reader(keep=lambda delta: any(delta.get(key) is not None for key in CONTENT))),
    ("reasoning and tool calls are left out: both are content, the server has made them and the user waits for them.",
     make_reader(keep=lambda delta: bool(delta.get("content")))),
    ("reasoning is left out: the first token of reasoning is the first token.",
     make_reader(keep=lambda delta: bool(delta.get("content") or delta.get("tool_calls")))),
    ("tool calls are left out: for an answer that only calls a tool they are the content.",
     make_reader(keep=lambda delta: bool(delta.get("content") or delta.get("reasoning_content")))),
    ("a text of white space is thrown away: a space or a new line is a token like any other.",
     make_reader(keep=lambda delta: bool((delta.get("content") or "").strip() or delta.get("reasoning_content")
                                         or delta.get("tool_calls")))),
    ("both count from the sending: `ttft_from_schedule` counts from the instant at which the request was due.",
     make_reader(scheduled=lambda d, s, t, n: t[0] - s)),
    ("both count from the schedule: the plain TTFT begins when the request was sent.",
     make_reader(ttft=lambda d, s, t, n: t[0] - d)),
    ("the two TTFTs are exchanged: the first counts from `sent_s`, the second from `scheduled_s`.",
     make_reader(ttft=lambda d, s, t, n: t[0] - d, scheduled=lambda d, s, t, n: t[0] - s)),
    ("the lateness is taken away from the TTFT: the user waited for it, so it is added.",
     make_reader(scheduled=lambda d, s, t, n: t[0] - s - (s - d))),
    ("chunks are counted as tokens: `num_tokens` says how many there are.",
     make_reader(tpot=lambda d, s, t, n: (t[-1] - t[0]) / (len(t) - 1) if len(t) > 1 else None)),
    ("chunks are counted as tokens: `num_tokens` says how many there are.",
     make_reader(tpot=lambda d, s, t, n: (t[-1] - t[0]) / max(1, len(t) - 1) if n > 1 else None)),
    ("n tokens have n - 1 gaps: the first one belongs to the TTFT.",
     make_reader(tpot=lambda d, s, t, n: (t[-1] - t[0]) / n if n > 1 else None)),
    ("n tokens have n - 1 gaps: the first one belongs to the TTFT.",
     make_reader(tpot=lambda d, s, t, n: (t[-1] - t[0]) / n)),
    ("the TPOT begins at the sending, so the TTFT is in it: one public tool does this, and the course does not.",
     make_reader(tpot=lambda d, s, t, n: (t[-1] - s) / n)),
    ("the TPOT begins at the sending: the wait for the first token stays out of it.",
     make_reader(tpot=lambda d, s, t, n: (t[-1] - s) / (n - 1) if n > 1 else None)),
    ("a single token gives TPOT 0, which looks very fast: what cannot be known is None.",
     make_reader(tpot=lambda d, s, t, n: (t[-1] - t[0]) / (n - 1) if n > 1 else 0.0)),
    ("a single token gives TPOT 0, which looks very fast: what cannot be known is None.",
     make_reader(tpot=lambda d, s, t, n: (t[-1] - t[0]) / max(1, n - 1))),
    ("TPOT 0 is turned into None: four tokens in one chunk have three gaps of 0 s.",
     make_reader(tpot=lambda d, s, t, n: (t[-1] - t[0]) / (n - 1) if n > 1 and len(t) > 1 else None)),
    ("one mean per request stands where the gaps were asked for: a mean hides the stall that the user feels.",
     make_reader(gaps=lambda d, s, t, n: [(t[-1] - t[0]) / (n - 1)] * (n - 1) if n > 1 else [])),
    ("the wait for the first chunk is among the gaps: that is the TTFT.",
     make_reader(gaps=lambda d, s, t, n: [b - a for a, b in zip([s, *t], t, strict=False)])),
    ("those are milliseconds: everything here is in seconds.", _read_ms),
    ("what cannot be known is None, not 0: a zero looks like a measurement.",
     lambda *args: tuple(0 if value is None else value for value in make_reader()(*args))),
)  # fmt: skip


def draw_read_cases(num: int) -> list[Case]:
    """Draw logs whose answer is known because they are built from their gaps."""
    draw, cases = random.Random(331), []
    for _ in range(num):
        scheduled_s = draw.randrange(1000) / 8
        sent_s = scheduled_s + draw.randrange(16) / 32
        wait_s = draw.randrange(8, 64) / 32
        gaps = [draw.randrange(1, 32) / 32 for _ in range(draw.randrange(6))]
        kinds = [draw.choice(CONTENT) for _ in range(len(gaps) + 1)]
        at_s, events = sent_s + wait_s, [(sent_s + wait_s / 2, draw.choice((_ROLE, {}, {"content": ""})))]
        for kind, gap_s in zip(kinds, [0.0, *gaps], strict=True):
            at_s += gap_s
            events.append((at_s, {kind: [{"index": 0}] if kind == "tool_calls" else "w"}))
            if draw.random() < 0.3:
                events.append((at_s, {"content": ""}))
        events += [(at_s + 0.5, {})]
        num_tokens = len(kinds) + draw.randrange(3)
        tpot_s = sum(gaps) / (num_tokens - 1) if num_tokens > 1 else None
        expected = (wait_s, wait_s + sent_s - scheduled_s, tpot_s, gaps)
        cases.append(Case(expected, (scheduled_s, sent_s, events, num_tokens),
                          why="only events with text, reasoning or a tool call count."))  # fmt: skip
    return cases
