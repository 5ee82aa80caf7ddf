"""Exercise 33.5: which setting helped? Made-up rounds by a printed table of Student's t, then the learner's own."""

import math
import random
import statistics
from functools import partial

from labkit.checks._student import estimate_ends
from labkit.checks.cases import expect_answer, fail
from labkit.checks.learner import LearnerFunction, shorten, tidy
from labkit.stats import compare

__all__ = ["MADE_ROUNDS", "WORDS", "draw_rounds", "expect_tuning", "judge_rounds"]

WORDS = ("faster", "slower", "cannot tell")


def judge_rounds(rounds, *, word=None, pairs=None, pick=None):
    """Return (verdicts, best) by the rules of the exercise; a wrong answer when a part is given."""
    names = [name for name in rounds[0] if name != "default"]
    found = {name: (pairs or _pair)(rounds, name) for name in names}
    verdicts = {name: (word or _judge)(*found[name])[0] for name in names}
    ratios = {name: _judge(*found[name])[1] for name in names}
    return verdicts, (pick or _pick)(verdicts, ratios, rounds)


def _pair(rounds, name):
    both = [(r[name], r["default"]) for r in rounds if r[name][1] == r["default"][1] == "valid"]
    return [a[0] for a, _ in both], [b[0] for _, b in both]


def _pair_all(rounds, name):
    return [r[name][0] for r in rounds], [r["default"][0] for r in rounds]


def _pair_each(rounds, name):
    """The mistake of dropping INVALID rounds on each side by itself: pairs slip."""
    a, b = ([r[key][0] for r in rounds if r[key][1] == "valid"] for key in (name, "default"))
    return a[: len(b)], b[: len(a)]


def _pair_own(rounds, name):
    both = [r for r in rounds if r[name][1] == "valid"]
    return [r[name][0] for r in both], [r["default"][0] for r in both]


def _pair_whole(rounds, name):
    both = [r for r in rounds if all(verdict == "valid" for _, verdict in r.values())]
    return [r[name][0] for r in both], [r["default"][0] for r in both]


def _judge(a, b, *, t=None, gain=lambda x, y: math.log(y / x)):
    """(word, how many times as fast) of a over b in pairs, lower is better; a wrong answer when a part is given."""
    if len(a) < 2:
        return "cannot tell", 0.0
    mean, low, high = estimate_ends([gain(x, y) for x, y in zip(a, b, strict=True)], t=t)
    return ("faster" if low > 1e-9 else "slower" if high < -1e-9 else "cannot tell"), math.exp(mean)


def _means(a, b):
    if len(a) < 2:
        return "cannot tell", 0.0
    x, y = statistics.fmean(a), statistics.fmean(b)
    return ("faster" if x < y else "slower" if x > y else "cannot tell"), y / x


def _signs(a, b):
    if len(a) < 2:
        return "cannot tell", 0.0
    gain = _judge(a, b)[1]
    return ("faster" if gain > 1 else "slower" if gain < 1 else "cannot tell"), gain


def _unpaired(a, b):
    return (compare(a, b, is_paired=False).verdict if len(a) >= 2 else "cannot tell"), 0.0


def _turned(a, b):
    return {"faster": "slower", "slower": "faster"}.get(word := _judge(a, b)[0], word), 0.0


def _pick(verdicts, ratios, rounds, *, choose=lambda faster, ratios, _: max(faster, key=ratios.get)):
    if verdicts["control"] != "cannot tell":
        return None
    faster = [name for name, word in verdicts.items() if word == "faster"]
    return choose(faster, ratios, rounds) if faster else "default"


def _pick_any(verdicts, ratios, rounds):
    faster = [name for name, word in verdicts.items() if word == "faster" and name != "control"]
    return max(faster, key=ratios.get, default="default")


def _find_smallest_mean(names, rounds):
    return min(names, key=lambda name: statistics.fmean(r[name][0] for r in rounds))


def _pick_mean(verdicts, ratios, rounds):
    return _find_smallest_mean(rounds[0], rounds)


def _pick_ratio(verdicts, ratios, rounds):
    return None if verdicts["control"] != "cannot tell" else max(ratios, key=ratios.get)


def _make_rounds(default, bad=(), **others):
    """Rounds of (p95 in seconds, verdict); `bad`: (round, name) whose client was INVALID."""
    columns = {"default": default, **others}
    return [
        {name: (values[k], "INVALID" if (k, name) in bad else "valid") for name, values in columns.items()}
        for k in range(len(default))
    ]


_STEADY, _DRIFT = [0.40, 0.42, 0.41, 0.39], [0.20, 0.30, 0.45, 0.70]
_NOISE = [0.41, 0.41, 0.40, 0.40]
MADE_ROUNDS = (
    (_make_rounds(_STEADY, cache=[0.20, 0.22, 0.21, 0.20], seqs=[0.80, 0.83, 0.81, 0.80], control=_NOISE),
     "the cache halves the p95, the small batch doubles it."),
    (_make_rounds(_DRIFT, chunk=[0.18, 0.27, 0.41, 0.62], control=[0.21, 0.29, 0.46, 0.69]),
     "the machine slows down from round to round, and within each round the setting gains a tenth."),
    (_make_rounds(_STEADY, chunk=[0.30, 0.55, 0.36, 0.34], control=_NOISE),
     "the mean of three rounds looks better, one round says the opposite: you cannot tell."),
    (_make_rounds(_STEADY, cache=[0.30, 0.31, 0.30, 0.29], both=[0.20, 0.21, 0.20, 0.19], control=_NOISE),
     "two settings help, one of them more: take the larger gain."),
    (_make_rounds(_STEADY, cache=[0.20, 0.22, 0.21, 0.20], control=[0.35, 0.36, 0.36, 0.34]),
     "the control, which changes nothing, came out faster as well: something else made the difference."),
    (_make_rounds(_STEADY, cache=[0.20, 0.22, 0.21, 0.20], control=[0.45, 0.47, 0.46, 0.44]),
     "the control came out slower: the rounds differ in more than their setting."),
    (_make_rounds(_STEADY, bad=[(2, "cache")], cache=[0.20, 0.22, 3.00, 0.20], control=_NOISE),
     "one round of the setting was INVALID: leave that pair out, and the rest is clear."),
    (_make_rounds([0.2, 0.9, 0.3, 0.41, 0.6], bad=[(1, "default")], cache=[0.15, 0.24, 0.22, 0.32, 0.46],
                  control=[0.21, 0.5, 0.29, 0.42, 0.59]),
     "the INVALID round was the default's: then this round's pair is gone for all settings, and the others stay "
     "pairs."),
    (_make_rounds(_STEADY, bad=[(0, "cache"), (1, "cache"), (3,
     "cache")], cache=[0.20, 0.22, 0.21, 0.20], control=_NOISE),
     "one valid pair is left: a single pair has no interval, so you cannot tell."),
    (_make_rounds(_STEADY, bad=[(2, "cache")], cache=[0.10, 0.11, 3.00, 0.10], both=[0.30, 0.31, 0.30, 0.29],
                  control=_NOISE),
     "both settings help, `cache` by far more: its INVALID run says nothing about its gain."),
    (_make_rounds(_STEADY[:3], bad=[(0, "seqs")], seqs=[0.3, 0.30, 0.29], control=[0.41, 0.41, 0.41],
                  cache=[0.21, 0.22, 0.21]),
     "an INVALID run of one setting takes nothing from the others."),
)  # fmt: skip

_MISTAKES = (
    ("the gain is turned round: p95 is a time, lower is better.", {"word": _turned}),
    ("two means are compared, without an interval: say \"cannot tell\" where the interval holds 1.", {"word": _means}),
    ("only the ratio is looked at, without its interval: say \"cannot tell\" where the interval holds 1.",
     {"word": _signs}),
    ("the rounds are not paired: within a round both met the same machine, and the drift cancels.",
     {"word": _unpaired}),
    ("1.96 is for many rounds: with so few the interval is Student's, `stats.compare` has it.",
     {"word": partial(_judge, t=1.96)}),
    ("seconds are subtracted: a round on a slow machine then counts for several. Take the ratio within each pair, as "
     "`stats.compare` does.", {"word": partial(_judge, gain=lambda x, y: y - x)}),
    ("INVALID runs are used: a client that failed measured itself. Leave out every pair in which one run is INVALID.",
     {"pairs": _pair_all}),
    ("INVALID runs are dropped from each side by itself: then a round of one setting stands beside another "
     "round of the "
     "default. Drop the pair.", {"pairs": _pair_each}),
    ("an INVALID run of the default is used: the pair needs both.", {"pairs": _pair_own}),
    ("a whole round is dropped because one setting was INVALID in it: the other settings' pairs are good.",
     {"pairs": _pair_whole}),
    ("the control is not looked at: where it is not \"cannot tell\", the differences do not come from the "
     "settings alone, "
     "and the best one is None.", {"pick": _pick_any}),
    ("the best setting is the one with the smallest mean: take it from those that are \"faster\".",
     {"pick": _pick_mean}),
    ("the best setting is not the one with the smallest mean: take the largest gain, over valid pairs.",
     {"pick": partial(_pick, choose=lambda faster, _, rounds: _find_smallest_mean(faster, rounds))}),
    ("a setting is best without being \"faster\": where none is, \"default\" stays.", {"pick": _pick_ratio}),
    ("the first setting that helps is not the best: take the largest gain.",
     {"pick": partial(_pick, choose=lambda faster, *_: faster[0])}),
    ("that is the smallest gain of those that help: take the largest.",
     {"pick": partial(_pick, choose=lambda faster, ratios, _: min(faster, key=ratios.get))}),
)  # fmt: skip


def expect_tuning(judge_tuning: LearnerFunction, made) -> list:
    """Fail unless every set of rounds is judged right; `made`: (rounds, why, where it comes from)."""
    answers = []
    for rounds, why, where in made:
        right = judge_rounds(rounds)
        got = _read(judge_tuning, rounds, where)
        answers.append((rounds, got))
        if got != right:
            said = _name_mistake([*answers, *_ask_rest(judge_tuning, made, len(answers))])
            fail(f"{where}: got {shorten(repr(got), 110)}, expected {right!r}: {said or why}")
    if judge_tuning.changed:
        fail(f"{judge_tuning.changed} changes its arguments: work on a copy, the caller still needs them.")
    return [judge_rounds(rounds) for rounds, _, _ in made]


def _ask_rest(judge_tuning, made, num):
    found = []
    for rounds, _, where in made[num:]:
        try:
            found.append((rounds, _read(judge_tuning, rounds, where)))
        except Exception:
            continue  # the other rounds still tell the mistake
    return found


def _name_mistake(answers) -> str:
    """Explain the verdicts first, whatever was made of them; the best setting only where all verdicts are right."""
    is_verdict = any(judge_rounds(rounds)[0] != got[0] for rounds, got in answers)
    for sentence, parts in _MISTAKES:
        found = (judge_rounds(rounds, **parts) for rounds, _ in answers)
        if is_verdict is ("pick" not in parts) and all(
            mine[0] == got[0] if is_verdict else mine == got for mine, (_, got) in zip(found, answers, strict=True)
        ):
            return sentence
    return ""


def _read(judge_tuning, rounds, where):
    """Call the function and return (verdicts, best), or fail about their form."""
    got = judge_tuning(rounds)
    expect_answer(got, judge_tuning.call)
    if not isinstance(got, tuple | list) or len(got) != 2 or not isinstance(got[0], dict):
        fail(f"{where}: the answer is (verdicts, best), verdicts a dict, and this is {shorten(repr(got), 60)}.")
    verdicts, best = {name: tidy(word) for name, word in got[0].items()}, got[1]
    if "default" in verdicts:
        fail(f"{where}: `default` is what the others are compared with; it has no verdict of its own.")
    names = set(rounds[0]) - {"default"}
    if set(verdicts) != names:
        fail(f"{where}: verdicts for {', '.join(sorted(names))} were asked for, got {', '.join(map(str, verdicts))}.")
    unknown = [word for word in verdicts.values() if not (isinstance(word, str) and word in WORDS)]
    if unknown:
        fail(f"{where}: {shorten(repr(unknown[0]), 40)} is no verdict: write {', '.join(WORDS)}.")
    best = tidy(best)
    if isinstance(best, str) and best == "control":
        fail(f"{where}: the control is no candidate: it is there to catch a bench that sees differences everywhere.")
    if best is not None and not (isinstance(best, str) and best in rounds[0]):
        fail(f'{where}: the best setting is {shorten(repr(best), 40)}: give its name, "default", or None.')
    return verdicts, best


def draw_rounds(num: int):
    """Draw rounds with drift, gains of all sizes and some INVALID runs."""
    draw, made = random.Random(335), []
    for _ in range(num):
        drift = [0.3 * 1.3**k * draw.uniform(0.9, 1.1) for k in range(draw.choice((3, 4, 5, 6)))]
        gains = {"control": 1.0, "a": draw.choice((0.6, 0.9, 1.0)), "b": draw.choice((0.7, 1.0, 1.5))}
        columns = {name: [s * gain * draw.uniform(0.97, 1.03) for s in drift] for name, gain in gains.items()}
        bad = [(draw.randrange(len(drift)), draw.choice(("default", "a", "b"))) for _ in range(draw.randrange(2))]
        made.append((_make_rounds(drift, bad=bad, **columns), "pairs of valid runs, an interval each.", "drawn rounds"))
    return made
