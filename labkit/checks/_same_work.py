"""What makes two runs the same work? Pairs of runs that differ in one thing or in several, and the classic mistakes."""

__all__ = ["NAMES", "PAIRS", "WORK_MISTAKES", "change_run", "find_differences"]

# 12.2: two runs, what differs.
_RUN = {
    "dtype": "float32",
    "sampling": {"temperature": 0, "top_p": 1.0},
    "requests": {"a": (10, 100), "b": (30, 20), "c": (30, 60)},
}


def change_run(**parts):
    """Return the standard run with some parts replaced."""
    return {**_RUN, **parts}


def _with_requests(**requests):
    return change_run(requests={name: size for name, size in {**_RUN["requests"], **requests}.items() if size})


_LATE = change_run(requests={name: _RUN["requests"][name] for name in "cab"})
PAIRS = [
    (_RUN, change_run(), [], "nothing differs: the list is empty."),
    (_RUN, _LATE, [], "only the order in which the requests ended differs: match them by name."),
    (_RUN, change_run(dtype="bfloat16"), ["dtype"], "half the bytes are half the work."),
    (_RUN, change_run(sampling={"temperature": 0.7, "top_p": 1.0}), ["sampling"], "the temperature differs."),
    (_RUN, change_run(sampling={"temperature": 0}), ["sampling"], "one run says nothing about top_p."),
    (_RUN, _with_requests(b=(30, 19)), ["output lengths"], "request b stopped one token early."),
    (_RUN, _with_requests(a=(11, 100)), ["prompt lengths"], "request a was read as 11 tokens: another tokenizer?"),
    (_RUN, _with_requests(a=(10, 20), b=(30, 100)), ["output lengths"],
     "the totals agree and the requests do not: who is long decides how a batch is filled."),
    (_RUN, _with_requests(a=(10, 90), b=(30, 30)), ["output lengths"],
     "the totals agree and the requests do not: a static batch runs until its longest answer is done."),
    (_RUN, _with_requests(a=(30, 100), b=(10, 20)), ["prompt lengths"],
     "the totals agree and the requests do not: compare each request with itself."),
    (_RUN, _with_requests(a=(20, 100), b=(20, 20)), ["prompt lengths"],
     "the totals agree and the requests do not: who has a long prompt waits longer for the first token."),
    (_RUN, _with_requests(c=None), ["requests"], "request c is missing: it failed, and its work was not done."),
    (_with_requests(c=None), _RUN, ["requests"], "request c is missing in the first run."),
    (_RUN, change_run(requests={"a": (10, 100), "b": (30, 20), "d": (30, 60)}), ["requests"],
     "each run has three requests, and they are not the same ones: c is missing in one, d in the other."),
    (_RUN, change_run(sampling={"top_p": 1.0, "temperature": 0}), [], "the same settings, written in another order."),
    (_RUN, _with_requests(c=None, a=(10, 99)), ["requests", "output lengths"],
     "c is missing, and of those that both have, a differs."),
    (change_run(dtype="float16"), _with_requests(a=(9, 98), b=(30, 20)), ["prompt lengths", "output lengths", "dtype"],
     "three things differ: name all of them."),
    (_RUN, change_run(dtype="bfloat16", sampling={"temperature": 1, "top_p": 1.0}, requests={"a": (10, 100)}),
     ["requests", "dtype", "sampling"], "three things differ: name all of them."),
]  # fmt: skip
NAMES = ("requests", "prompt lengths", "output lengths", "dtype", "sampling")


def find_differences(a, b, *, shared=None, lengths=None, places=(0, 1)):
    """Answer 12.2, in the order of the names; wrongly when a part is given (`lengths`: at `places` only)."""
    both = a["requests"].keys() & b["requests"].keys()

    def has_other_lengths(k):
        if lengths and k in places:
            return lengths(*([size[k] for size in run["requests"].values()] for run in (a, b)))
        return any(a["requests"][name][k] != b["requests"][name][k] for name in both)

    differs = {
        "requests": shared(a, b) if shared else a["requests"].keys() != b["requests"].keys(),
        "prompt lengths": has_other_lengths(0),
        "output lengths": has_other_lengths(1),
        "dtype": a["dtype"] != b["dtype"],
        "sampling": a["sampling"] != b["sampling"],
    }
    return [name for name in NAMES if differs[name]]


_IN_ORDER = "the requests are compared in the order in which they ended: match them by name."
# Sentence, and when the lengths of all requests of two runs would differ.
_WRONG_LENGTHS = (
    ("the totals are compared: request by request they can still differ, and then a batch is filled otherwise.",
     lambda xs, ys: sum(xs) != sum(ys)),
    ("sorted lengths are compared: that forgets which request had which. Match them by name.",
     lambda xs, ys: sorted(xs) != sorted(ys)),
    (_IN_ORDER, lambda xs, ys: xs != ys),
    (_IN_ORDER, lambda xs, ys: any(x != y for x, y in zip(xs, ys, strict=False))),
)  # fmt: skip
WORK_MISTAKES = (
    *((sentence, lambda a, b, lengths=lengths, places=places: find_differences(a, b, lengths=lengths, places=places))
      for sentence, lengths in _WRONG_LENGTHS for places in ((0, 1), (0,), (1,))),
    ("the numbers of requests are compared: as many of them can be other ones. Compare their names.",
     lambda a, b: find_differences(a, b, shared=lambda a, b: len(a["requests"]) != len(b["requests"]))),
    ("a missing request is not seen: compare the names of both runs first.",
     lambda a, b: find_differences(a, b, shared=lambda a, b: False)),
    ("a missing request is seen only in one of the two runs: either may lack one.",
     lambda a, b: find_differences(a, b, shared=lambda a, b: bool(a["requests"].keys() - b["requests"].keys()))),
    ("only the temperature is compared: `sampling` has other settings too.",
     lambda a, b: [name for name in find_differences(a, b) if name != "sampling"]
     + (["sampling"] if a["sampling"].get("temperature") != b["sampling"].get("temperature") else [])),
    *((f"`{name}` is never named: two runs that differ in it alone are not the same work.",
       lambda a, b, name=name: [one for one in find_differences(a, b) if one != name]) for name in NAMES),
    ("only the first difference is named: name all of them.", lambda a, b: find_differences(a, b)[:1]),
    ("those are the names of what agrees: name what differs.",
     lambda a, b: [name for name in NAMES if name not in find_differences(a, b)]),
)  # fmt: skip
