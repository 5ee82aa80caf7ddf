"""You can ...: the sentence that ends a phase, as claims over the learner's own records.

The last lab of a phase defines a `Milestone`: which records its claims stand on, and one function that computes the
right claims from them. A claim cites its record by id; everything else is recomputed from that record's samples.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

from labkit.checks.cases import expect_answer, fail
from labkit.checks.learner import shorten, tidy
from labkit.checks.mistakes import find_mistake
from labkit.progress import load_course
from labkit.results import Record, load_records, verify_record
from labkit.units import is_number

__all__ = ["Milestone", "expect_claims", "find_newest", "has_records"]


@dataclass(frozen=True, slots=True)
class Milestone:
    """What ends a phase.

    Attributes:
        exercise: the phase's last exercise, such as "13.5".
        sentence: what the learner can now do.
        records: {claim: (lab, name of the record)}: what the claims stand on.
        estimate: computes the right claims from {claim: record}.
    """

    exercise: str
    sentence: str
    records: dict[str, tuple[str, str]]
    estimate: Callable[[dict], dict]


def find_newest(milestone: Milestone, records: Iterable) -> dict:
    """Return {claim: its newest record}, without the claims whose record is not there."""
    found = {}
    for record in records:  # in the order of their times
        found |= {claim: record for claim, kind in milestone.records.items() if kind == (record.lab, record.name)}
    return found


def has_records(milestone: Milestone) -> bool:
    """Tell whether all records of a milestone are there; if not, say in one line which labs to run.

    The line begins like that of a check that is not attempted. Never raises in strict mode: a lab alone is complete
    without its phase.
    """
    found = find_newest(milestone, load_records())
    missing = [kind for claim, kind in milestone.records.items() if claim not in found]
    if missing:
        names = {lab.number: lab.name for lab in load_course().labs}
        steps = [f'record "{name}" of labs/{names.get(lab, lab)}' for lab, name in missing]
        print(f"○ {milestone.exercise} not attempted: the milestone waits for {', '.join(steps)}")
    return not missing


def expect_claims(milestone: Milestone, claims: object, records: Iterable, *, name: str, where: str = "") -> dict:
    """Fail with a sentence unless the claims follow from the records that they cite; return the right claims.

    `claims` is a dict: the id of each record, and what follows from it. Cited records must be there, of the right kind,
    undamaged, and all of one machine. `name` is what the course's solution calls the learner's function.
    """
    records = list(records)
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
        _explain(milestone, claims, cited, right, wrong, where, name)
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


def _explain(milestone, claims, cited, right, wrong, where, name) -> NoReturn:
    for key in wrong:
        if isinstance(right[key], str) and not isinstance(claims[key], str):
            fail(f"{where}`{key}` is {shorten(repr(claims[key]), 40)}, and a name was asked for.")
        if not isinstance(right[key], str) and not is_number(tidy(claims[key])):
            fail(f"{where}`{key}` is {shorten(repr(claims[key]), 40)}, and a number was asked for.")
    explained = []

    def explains(function: Callable) -> bool:
        made = function(*cited.values())
        changed = [key for key in right if not _is_same(tidy(made[key]), right[key])]
        explained[:] = changed
        return bool(set(changed) & set(wrong)) and all(_is_same(tidy(claims[key]), tidy(made[key])) for key in changed)

    if sentence := find_mistake(milestone.exercise, name, explains):
        fail(f"{where}`{wrong[0] if wrong[0] in explained else explained[0]}`: {sentence}")
    key = wrong[0]
    shown = right[key] if isinstance(right[key], str) else f"{right[key]:.6g}"
    seen = claims[key] if isinstance(claims[key], str) else f"{tidy(claims[key]):.6g}"
    fail(f"{where}`{key}` is {shorten(str(seen), 40)}, and the samples of the cited record give {shown}.")


def _is_same(got: object, right: object) -> bool:
    if isinstance(right, str):
        return got == right
    return is_number(got) and math.isclose(got, right, rel_tol=1e-6)
