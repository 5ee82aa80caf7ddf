"""You can ...: the sentence that ends a phase, as claims over the learner's own records.

A phase names the records that its claims stand on (`PHASES`), and one function that computes the right claims from
them. A claim cites its record by id; everything else is recomputed from that record's samples. What is missing is no
failure: `has_records` names the lab to run. Another phase is one more entry.

Phase 1: profile a model, find its slowest part and explain its memory; measure a serving baseline and name the main
latency component. It reads of lab 11 ("profile") decode_OPERATOR_self_fraction and weights_bytes, kv_cache_bytes,
activations_bytes; of lab 12 ("engines") mixed_vllm_tok_per_s; of lab 13 ("sweep") the setting `clients` and
clientsN_waiting_s, clientsN_prefill_s, clientsN_decode_s.
"""

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

from labkit.checks.cases import expect_answer, fail
from labkit.checks.learner import shorten, tidy
from labkit.errors import CheckError
from labkit.progress import load_course
from labkit.results import Record, load_records, verify_record
from labkit.stats import estimate_mean_interval

__all__ = ["PHASES", "Milestone", "expect_claims", "find_newest", "has_records"]


@dataclass(frozen=True, slots=True)
class Milestone:
    """A phase's last exercise, its sentence, the records it stands on (claim -> lab, name), and what computes it."""

    exercise: str
    sentence: str
    records: dict[str, tuple[str, str]]
    estimate: Callable[[dict], dict]
    mistakes: tuple[tuple[str, Callable[[dict], dict]], ...]


def _operators(record) -> dict[str, float]:
    ends = ("decode_", "_self_fraction")
    return {key.removeprefix(ends[0]).removesuffix(ends[1]): statistics.fmean(values)
            for key, values in record.samples.items() if key.startswith(ends[0]) and key.endswith(ends[1])}  # fmt: skip


def _bytes(record) -> dict[str, float]:
    return {name: statistics.fmean(record.samples[f"{name}_bytes"])
            for name in ("weights", "kv_cache", "activations")}  # fmt: skip


def _latencies(record, *, choose=max) -> dict[str, float]:
    clients = choose(record.settings["clients"])
    return {name: statistics.fmean(record.samples[f"clients{clients}_{name}_s"])
            for name in ("waiting", "prefill", "decode")}  # fmt: skip


def _rates(record, *, key="mixed_vllm_tok_per_s") -> dict[str, float]:
    logs = [math.log(value) for value in record.samples[key]]
    around = estimate_mean_interval(logs)
    return dict(zip(("tok_per_s", "low", "high"), map(math.exp, (statistics.fmean(logs), around.low, around.high)),
                    strict=True))  # fmt: skip


def _largest(values: dict[str, float]) -> str:
    return max(values, key=values.get)


def _claim_phase_1(found: dict) -> dict:
    return {
        "slowest_part": _largest(_operators(found["profile"])), "largest_memory": _largest(_bytes(found["profile"])),
        **_rates(found["engines"]), "main_latency": _largest(_latencies(found["sweep"])),
    }  # fmt: skip


def _plain_rates(found):
    values = found["engines"].samples["mixed_vllm_tok_per_s"]
    around = estimate_mean_interval(values)
    return {"tok_per_s": statistics.fmean(values), "low": around.low, "high": around.high}


PHASES = {
    "1": Milestone(
        "13.5",
        "you can profile a model, find its slowest part and explain its memory; measure a serving baseline and name "
        "the main latency component",
        {"profile": ("11", "profile"), "engines": ("12", "engines"), "sweep": ("13", "sweep")},
        _claim_phase_1,
        (
            ("that is the smallest share, and the largest one is the slowest part.",
             lambda f: {"slowest_part": min(_operators(f["profile"]), key=_operators(f["profile"]).get)}),
            ("that is the operator of the prefill: the share in a decode step was asked for.",
             lambda f: {"slowest_part": _largest({k.removeprefix("prefill_").removesuffix("_self_fraction"):
                        statistics.fmean(v) for k, v in f["profile"].samples.items()
                        if k.startswith("prefill_") and k.endswith("_self_fraction")})}),
            ("that is everything else (Python, libraries, the allocator's slack): of what the model itself holds, "
             "weights, kv_cache and activations, the largest was asked for.",
             lambda f: {"largest_memory": _largest({name: statistics.fmean(f["profile"].samples[f"{name}_bytes"])
                        for name in ("rest", "slack", "used") if f"{name}_bytes" in f["profile"].samples})}),
            ("that is the smallest category, and the largest one was asked for.",
             lambda f: {"largest_memory": min(_bytes(f["profile"]), key=_bytes(f["profile"]).get)}),
            ("those are the numbers of naive Transformers: the baseline is vLLM on mixed lengths.",
             lambda f: _rates(f["engines"], key="mixed_naive_tok_per_s")),
            ("those are the numbers of equal lengths: the baseline is vLLM on mixed lengths.",
             lambda f: _rates(f["engines"], key="equal_vllm_tok_per_s")),
            ("that is the plain mean of the rates: take logarithms, their mean and interval, then exp, as in lab 12.",
             _plain_rates),
            ("the ends of the interval are swapped: low is the smaller one.",
             lambda f: {"low": _rates(f["engines"])["high"], "high": _rates(f["engines"])["low"]}),
            ("that is what dominates with the fewest clients: look at the most.",
             lambda f: {"main_latency": _largest(_latencies(f["sweep"], choose=min))}),
            ("that is the smallest part of the latency, and the largest one was asked for.",
             lambda f: {"main_latency": min(_latencies(f["sweep"]), key=_latencies(f["sweep"]).get)}),
        ),
    ),
}  # fmt: skip


def find_newest(phase: str, records: Iterable) -> dict:
    """Return the newest record of each kind that the phase's milestone stands on; what is missing is left out."""
    needs, found = _find_phase(phase).records, {}
    for record in records:  # in the order of their times
        found |= {claim: record for claim, kind in needs.items() if kind == (record.lab, record.name)}
    return found


def has_records(phase: str) -> bool:
    """Tell whether all records of a phase's milestone are there; if not, say in one line which labs to run.

    The line begins like that of a check that is not attempted. Never raises in strict mode: a lab alone is complete
    without its phase.
    """
    milestone, found = _find_phase(phase), find_newest(phase, load_records())
    missing = [kind for claim, kind in milestone.records.items() if claim not in found]
    if missing:
        names = {lab.number: lab.name for lab in load_course().labs}
        steps = [f'record "{name}" of labs/{names.get(lab, lab)}' for lab, name in missing]
        print(f"○ {milestone.exercise} not attempted: the milestone of phase {phase} waits for {', '.join(steps)}")
    return not missing


def expect_claims(phase: str, claims: object, records: Iterable, *, where: str = "") -> dict:
    """Fail with a sentence unless the claims follow from the records that they cite; return the right claims.

    `claims` is a dict: the id of each record, and what follows from it. Cited records must be there, of the right kind,
    undamaged, and all of one machine.
    """
    milestone, records = _find_phase(phase), list(records)
    expect_answer(claims, "claims")
    if not isinstance(claims, dict):
        fail(f"{where}the claims are a dict, and this is {shorten(repr(claims), 60)}.")
    cited = {claim: _find_cited(milestone, claim, claims.get(claim), records, where) for claim in milestone.records}
    machines = {_format_machine(record): record for record in cited.values() if isinstance(record, Record)}
    if len(machines) > 1:
        said = " and ".join(f"record {record.id} on {machine}" for machine, record in machines.items())
        fail(f"{where}the records come from different machines ({said}), and a milestone is about one: run the labs of "
             "the foreign ones here.")  # fmt: skip
    try:
        right = milestone.estimate(cited)
    except (KeyError, ValueError, TypeError) as error:
        ids = ", ".join(record.id for record in cited.values())
        fail(f"{where}the records {ids} lack what the milestone reads ({error}): run their labs again.")
    if set(claims) != {*milestone.records, *right}:
        fail(f"{where}the claims are a dict with the keys {', '.join([*milestone.records, *right])}.")
    wrong = [key for key in right if not _is_same(tidy(claims[key]), right[key])]
    if wrong:
        _explain(milestone, claims, cited, right, wrong, where)
    return right


def _find_cited(milestone: Milestone, claim: str, identity: object, records: list, where: str):
    lab, name = milestone.records[claim]
    if not isinstance(identity, str):
        fail(f"{where}`{claim}` is {shorten(repr(identity), 40)}: cite a record by its id, `record.id`.")
    same = [record for record in records if record.id == identity]
    if not same and where.startswith("made-up"):
        fail(f"{where}`{claim}` is {shorten(repr(identity), 40)}, and the record that was passed has another id: use "
             "the arguments of your function, not records of the notebook.")  # fmt: skip
    if not same:
        fail(f"{where}`{claim}` is {shorten(repr(identity), 40)}, and no record on this machine has that id: cite the "
             f'id of your record "{name}" of lab {lab}.')  # fmt: skip
    record = same[-1]
    if (record.lab, record.name) != (lab, name):
        fail(f'{where}`{claim}` cites record "{record.name}" of lab {record.lab}, and "{name}" of lab {lab} is needed.')
    if isinstance(record, Record) and (said := verify_record(record)):
        fail(f"{where}record {record.id} is damaged: {shorten(said[0], 120)} Measure again: a record is never edited.")
    return record


def _format_machine(record: Record) -> str:
    return ", ".join([record.host["cpu"]["name"], *(gpu["name"] for gpu in record.host["gpus"])])


def _explain(milestone, claims, cited, right, wrong, where) -> NoReturn:
    for key in wrong:
        if isinstance(right[key], str) and not isinstance(claims[key], str):
            fail(f"{where}`{key}` is {shorten(repr(claims[key]), 40)}, and a name was asked for.")
        if not isinstance(right[key], str) and not _is_number(tidy(claims[key])):
            fail(f"{where}`{key}` is {shorten(repr(claims[key]), 40)}, and a number was asked for.")
    for sentence, mistake in milestone.mistakes:
        try:
            seen = mistake(cited)
        except (KeyError, ValueError):  # a record that lacks what the mistake would read
            continue
        if set(seen) & set(wrong) and all(_is_same(tidy(claims[key]), value) for key, value in seen.items()):
            fail(f"{where}`{wrong[0] if wrong[0] in seen else next(iter(seen))}`: {sentence}")
    key = wrong[0]
    shown = right[key] if isinstance(right[key], str) else f"{right[key]:.6g}"
    seen = claims[key] if isinstance(claims[key], str) else f"{tidy(claims[key]):.6g}"
    fail(f"{where}`{key}` is {shorten(str(seen), 40)}, and the samples of the cited record give {shown}.")


def _is_same(got: object, right: object) -> bool:
    if isinstance(right, str):
        return got == right
    return _is_number(got) and math.isclose(got, right, rel_tol=1e-6)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _find_phase(phase: str) -> Milestone:
    if phase not in PHASES:
        raise CheckError(f"phase {phase!r} has no milestone yet.", next_step=f"Use one of {', '.join(PHASES)}.")
    return PHASES[phase]
