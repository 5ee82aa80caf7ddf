"""Exercise 11.1: nested events, their self times by brute force, and the classic mistakes."""

__all__ = ["SELF_MISTAKES", "TREES", "draw_tree", "find_self_times"]

# 11.1: events (name, start, end) of one thread -> {name: self seconds}, here as sorted pairs.
_TREE = [("linear", 0.0, 10.0), ("matmul", 1.0, 8.0), ("mm", 2.0, 7.0), ("add", 8.0, 9.0)]
TREES = [
    (_TREE, "linear holds matmul and add, matmul holds mm: 10 - 7 - 1, 7 - 5, 5 and 1."),
    ([("a", 0.0, 2.0), ("b", 2.0, 3.0), ("a", 3.0, 7.0)], "nobody is inside: self is total, and a has two calls."),
    ([("b", 5.0, 6.0), ("a", 4.0, 8.0), ("b", 1.0, 3.0), ("a", 0.0, 3.5)], "the list may stand in any order."),
    ([("child", 0.0, 1.0), ("parent", 0.0, 4.0), ("last", 3.0, 4.0)],
     "a child may begin with its parent, or end with it: of two that begin together the longer one is the parent."),
    ([("f", 0.0, 8.0), ("f", 1.0, 6.0), ("g", 2.0, 4.0)], "a call may lie in a call of its own name: 3 s + 3 s."),
    ([("a", 0.0, 16.0), ("b", 1.0, 15.0), ("c", 2.0, 14.0), ("d", 3.0, 13.0)],
     "only the direct children are taken off: c is inside b, and b's time holds it already."),
    ([], "no events, no times."),
]  # fmt: skip


def _nest(events):
    """Return for each event the list of its direct children, by brute force over all pairs."""

    def holds(a, b):
        return a is not b and a[1] <= b[1] and b[2] <= a[2] and b[2] - b[1] < a[2] - a[1]

    found = []
    for one in events:
        inside = [e for e in events if holds(one, e)]
        found.append([e for e in inside if not any(holds(other, e) for other in inside)])
    return found


def find_self_times(events, *, children=_nest, take=sum, add=lambda old, new: old + new):
    """Answer 11.1; wrongly when a part is given."""
    found: dict[str, float] = {}
    for one, inside in zip(events, children(events), strict=True):
        own = one[2] - one[1] - take(e[2] - e[1] for e in inside)
        found[one[0]] = add(found[one[0]], own) if one[0] in found else own
    return found


def _inside(events):
    return [[e for e in events if e is not one and one[1] <= e[1] and e[2] <= one[2]] for one in events]


def _next_only(events):
    """Children as a stack gives them when the list is taken in its order, unsorted."""
    found, stack = [[] for _ in events], []
    for index, one in enumerate(events):
        while stack and events[stack[-1]][2] <= one[1]:
            stack.pop()
        if stack:
            found[stack[-1]].append(one)
        stack.append(index)
    return found


def _means(events):
    counts = {name: sum(e[0] == name for e in events) for name, *_ in events}
    return {name: value / counts[name] for name, value in find_self_times(events).items()}


def _shares(events, scale=1.0):
    own = find_self_times(events)
    return {name: scale * value / sum(own.values()) for name, value in own.items()}


SELF_MISTAKES = (
    ("those are total times: take the direct children's time off, or a second counts for a child and every parent.",
     lambda events: find_self_times(events, children=lambda es: [[] for _ in es])),
    ("everything inside is taken off, grandchildren too: a child's time holds its own children already.",
     lambda events: find_self_times(events, children=_inside)),
    ("only the longest child is taken off: take off all direct children.",
     lambda events: find_self_times(events, take=lambda lengths: max(lengths, default=0.0))),
    ("only one call of each name is kept: add the calls of a name up.",
     lambda events: find_self_times(events, add=lambda old, new: new)),
    ("only one call of each name is kept: add the calls of a name up.",
     lambda events: find_self_times(events, add=lambda old, new: old)),
    ("the events are taken in the order of the list: sort them by their start, the longer first.",
     lambda events: find_self_times(events, children=_next_only)),
    ("of two that begin together the longer one is the parent: sort by start, then by end from the latest.",
     lambda events: find_self_times(sorted(events, key=lambda e: e[1:]), children=_next_only)),
    ("that is the mean of a name's calls: add them up.", _means),
    ("those are shares: return seconds.", _shares),
    ("those are percent: return seconds.", lambda events: _shares(events, 100.0)),
    ("those are milliseconds: return seconds.",
     lambda events: {name: 1e3 * value for name, value in find_self_times(events).items()}),
)  # fmt: skip


def draw_tree(draw) -> list[tuple[str, float, float]]:
    """Random nested events with eighths of seconds, no two with the same interval, shuffled."""
    found: set = set()

    def fill(start, end, depth):
        at = start
        while at < end - 1 and draw.random() < 0.8:
            begin = draw.randrange(at, end - 1)
            stop = draw.randrange(begin + 1, end + 1)
            if (begin, stop) not in {one[1:] for one in found}:
                found.add((draw.choice("abcd"), begin, stop))
                if depth < 3 and stop - begin > 2:
                    fill(begin, stop, depth + 1)
            at = stop

    fill(0, 64, 0)
    events = [(name, begin / 8, stop / 8) for name, begin, stop in sorted(found)]
    draw.shuffle(events)
    return events
