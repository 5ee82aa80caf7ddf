"""note("33", text): a finding of 80 to 300 words, in which every number is quoted from a record that it cites."""

import re
from collections.abc import Iterable, Iterator

from labkit.checks.cases import CheckEnded, fail, passed
from labkit.checks.learner import shorten
from labkit.checks.numbers import find_numbers, is_quoted
from labkit.errors import CheckError
from labkit.progress import append_event, load_course
from labkit.results import load_records
from labkit.stats import summarize
from labkit.views import Outcome, view_outcome

__all__ = ["MAX_WORDS", "MIN_WORDS", "find_values", "note", "run_note"]

MIN_WORDS, MAX_WORDS = 80, 300
_RECORD_ID = re.compile(r"\br-[0-9a-z]{10}\b")


def note(lab: str, text: str | None) -> Outcome:
    """Judge a finding and keep it in the progress; later it is a part of the learner's portfolio page.

    80 to 300 words; it cites records by their ids (r- and ten characters); every number in it is a value of a cited
    record (a summary, a setting) as far as its digits go, in s, ms, µs, bytes to TiB, or %. Outcomes as in `check`.
    """
    if lab not in [one.number for one in load_course().labs]:
        raise CheckError(f"the course has no lab {lab!r}.", next_step='name it by its number: note("33", text).')
    outcome = run_note(text, load_records())
    kept = text if isinstance(text, str) else ""
    append_event("note", lab=lab, outcome=outcome.status, sentence=outcome.sentence, text=kept)
    return view_outcome(f"note {lab}", outcome, is_accepted=outcome.status == "passed")


def run_note(text: str | None, records: Iterable) -> Outcome:
    """Judge a finding against records; the first thing that is wrong is named."""
    if text is None or text is Ellipsis or (isinstance(text, str) and not text.strip()):
        return Outcome("not attempted")
    try:
        return _judge(text, records)
    except CheckEnded as ended:
        return ended.outcome


def _judge(text: str, records: Iterable) -> Outcome:
    if not isinstance(text, str):
        fail(f"a finding is a text, and this is a {type(text).__name__}.")
    num_words = len([word for word in _RECORD_ID.sub("", text).split() if re.search(r"\w", word)])
    if num_words < MIN_WORDS:
        fail(f"{num_words} words are too few: write {MIN_WORDS} to {MAX_WORDS} (record ids are not counted).")
    if num_words > MAX_WORDS:
        fail(f"{num_words} words are too many: a finding has {MIN_WORDS} to {MAX_WORDS}.")
    cited = list(dict.fromkeys(_RECORD_ID.findall(text)))
    if not cited:
        fail("no record is cited: put the ids (r- and ten characters) of the records that the numbers come from.")
    known = {record.id: record for record in records}
    for name in cited:
        if name not in known:
            fail(f"there is no record {name} on this machine: see `labkit results` for the ids.")
    values = {key: value for name in cited for key, value in find_values(known[name])}
    numbers = list(find_numbers(text))
    if not numbers:
        fail("a finding needs at least one number from its records.")
    for number in dict.fromkeys(numbers):
        if not is_quoted(number, values):
            fail(
                f"the number {shorten(str(number), 40)} is in none of the cited records ({', '.join(cited)}): quote a "
                "value of a summary or a setting with its unit, rounded but not computed, or cite the record with it."
            )
    are = "number is" if len(numbers) == 1 else "numbers are"
    return passed(f"{num_words} words; {len(numbers)} {are} in the {len(cited)} cited record{'s' * (len(cited) > 1)}.")


def find_values(record) -> Iterator[tuple[str, float]]:
    """Yield (name, number) of everything that a note may quote: summaries of the samples, and settings."""
    for key, samples in record.samples.items():
        # From the samples, not from the stored summary: a note quotes what was measured.
        yield from _flatten(f"{record.id}.{key}", summarize(samples).to_dict())
    yield from _flatten(f"{record.id}.settings", record.settings)


def _flatten(name: str, value) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _flatten(f"{name}.{position}", item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
