"""Do I know it? Five interview questions for each lab: choice, numeric and open, graded like a check.

The bank is quiz.json in the folder of the lab; a question is shown without its answer, and a wrong answer gets its own
explanation.
"""

import json
import math
import re
from dataclasses import dataclass
from html import escape

from labkit.environment import find_lab_folder
from labkit.errors import CheckError, InstallError
from labkit.progress import append_event, estimate_state, load_course, load_events
from labkit.views import Outcome, format_code, format_plain, view_html, view_outcome

__all__ = ["Question", "draw_questions", "format_question", "load_questions", "quiz", "run_quiz", "save_answer"]

MIN_WORDS = 20  # of an open answer
LEVELS = ("beginner", "intermediate", "advanced")
# A comma stands between thousands (1,250) and nowhere else: in 0,5 it would be a decimal point.
_NUMBER = re.compile(r"\s*([-+−]?(?:[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(.*?)\s*")
_SAME_UNITS = {
    "tokens/s": "tok/s", "token/s": "tok/s", "tok/sec": "tok/s", "tokens per second": "tok/s", "percent": "%",
    "per cent": "%", "×": "x", "times": "x", "milliseconds": "ms", "msec": "ms", "gigabytes": "GB", "b": "bytes",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """One question of the bank; which fields are filled depends on `kind`.

    Attributes:
        id: such as "00.q1".
        level: beginner, intermediate or advanced.
        kind: choice, numeric or open.
        topic: what it is about, in a few words.
        question: its text.
        answer: the letter of a choice, or a number in `unit`; None for an open question.
        options: pairs (letter, text) of a choice.
        tolerance: how far a number may be off, in `unit`.
        unit: of a numeric answer.
        right: why the right answer is right.
        hint: for a wrong number that is not a known mistake.
        wrong: pairs (letter or number, sentence): what is wrong with it.
        model_answer: shown after an open answer.
    """

    id: str
    level: str
    kind: str
    topic: str
    question: str
    answer: str | float | None = None
    options: tuple[tuple[str, str], ...] = ()
    tolerance: float = 0.0
    unit: str = ""
    right: str = ""
    hint: str = ""
    wrong: tuple[tuple[str | float, str], ...] = ()
    model_answer: str = ""


def quiz(question_id: str, answer: str | float | None = None) -> Outcome | None:
    """Show a question ("00.q1"), or grade an answer to it and keep it in the progress.

    Choice: the letter. Numeric: the number, in the unit that the question names. Open: 20 words or more, then the model
    answer is shown. Strict mode (LABKIT_STRICT=1) raises CheckFailed for a wrong answer. Raises CheckError for an
    unknown question.
    """
    question = _find_question(question_id)
    html = format_question(question)
    if answer is None or answer is Ellipsis:
        html += f"<p><small>{escape(_format_how(question))}</small></p>"
        view_html(html, format_plain(html))
        return None
    outcome = save_answer(question, answer)
    is_passed = outcome.status == "passed"
    view_outcome(
        question_id, outcome, is_accepted=is_passed, before=html,
        word="answered" if is_passed and question.kind == "open" else "",
    )  # fmt: skip
    return outcome


def load_questions(lab: str) -> tuple[Question, ...]:
    """Load the questions of a lab ("00") from its folder. Raises CheckError when the bank is missing or damaged."""
    try:
        path = find_lab_folder(lab) / "quiz.json"
        entries = json.loads(path.read_text(encoding="utf-8"))["questions"]
        return tuple(_read_question(entry) for entry in entries)
    except (InstallError, OSError):
        raise CheckError(f"lab {lab} has no quiz.", next_step="check the number.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckError(
            f"{path.parent.name}/quiz.json is damaged ({type(error).__name__}: {error}).",
            next_step="get the file from the course again.",
        ) from error


def draw_questions(num_questions: int = 5, *, lab: str | None = None) -> tuple[Question, ...]:
    """Choose questions of the finished labs, weakest first: last answered wrong, then never, then longest ago.

    Of two such questions the one that failed more often comes first. Without a finished lab there are none. `lab`
    ("00") names one lab instead, finished or not.
    """
    # A later version, or a foreign file that was imported, may know more outcomes: they say nothing here.
    known = ("failed", "", "passed")
    events = [event for event in load_events() if event["kind"] == "quiz" and event.get("outcome") in known]
    state = estimate_state(load_course(), load_events())
    labs = [lab] if lab is not None else [one.number for one in state.labs if one.state == "complete"]

    def weakness(question: Question) -> tuple[int, int, int]:
        mine = [(place, event) for place, event in enumerate(events) if event.get("exercise") == question.id]
        outcomes = [(place, event["outcome"]) for place, event in mine]
        place, last = outcomes[-1] if outcomes else (-1, "")
        return known.index(last), -[outcome for _, outcome in outcomes].count("failed"), place

    questions = [question for number in labs for question in load_questions(number)]
    return tuple(sorted(questions, key=weakness)[:num_questions])


def save_answer(question: Question, answer: str | float) -> Outcome:
    """Grade one answer and keep it in the progress; nothing is shown."""
    outcome = run_quiz(question, answer)
    fields = {"exercise": question.id, "outcome": outcome.status, "sentence": outcome.sentence, "topic": question.topic}
    if isinstance(answer, str | int | float):
        is_plain = not isinstance(answer, float) or math.isfinite(answer)
        fields["answer"] = answer if is_plain else str(answer)  # JSON has no infinity
    append_event("quiz", **fields)
    return outcome


def run_quiz(question: Question, answer: str | float) -> Outcome:
    """Grade one answer; nothing is shown and nothing is kept."""
    return {"choice": _grade_choice, "numeric": _grade_numeric, "open": _grade_open}[question.kind](question, answer)


def format_question(question: Question) -> str:
    """Write a question as HTML with its options, and without any answer or explanation."""
    unit = f" Answer in {question.unit}." if question.kind == "numeric" else ""
    html = f"<p><strong>{escape(question.id)}</strong> ({question.level}) {format_code(question.question + unit)}</p>"
    if question.options:
        items = (f"<li><strong>{escape(key)}</strong>: {format_code(text)}</li>" for key, text in question.options)
        html += f"<ul>{''.join(items)}</ul>"
    return html


def _find_question(question_id: str) -> Question:
    questions = load_questions(str(question_id).partition(".")[0])
    for question in questions:
        if question.id == question_id:
            return question
    raise CheckError(
        f"there is no question {question_id!r}.", next_step=f"use one of {', '.join(item.id for item in questions)}."
    )


def _format_how(question: Question) -> str:
    shown = {"choice": '"a"', "numeric": "number", "open": '"your words"'}[question.kind]
    return f'Answer with quiz("{question.id}", {shown}).'


def _grade_choice(question: Question, answer: object) -> Outcome:
    letter = str(answer).strip().strip("().: ").lower()
    keys = [key for key, _ in question.options]
    if letter not in keys:
        return Outcome("failed", f"the answer is one letter of {', '.join(keys)}, and this is {str(answer)[:40]!r}.")
    if letter == question.answer:
        return Outcome("passed", question.right)
    return Outcome("failed", dict(question.wrong)[letter])


def _grade_numeric(question: Question, answer: object) -> Outcome:
    text = answer if isinstance(answer, str) else "" if isinstance(answer, bool) else str(answer)
    match = _NUMBER.fullmatch(text)
    value = float(match[1].replace(",", "").replace("−", "-")) if match else math.nan
    if not math.isfinite(value):
        return Outcome("failed", f"the answer is a number in {question.unit}, and this is {str(answer)[:40]!r}.")
    if re.match(r",\d", match[2]):
        return Outcome("failed", f"{str(answer)[:40]!r}: write a decimal point, 0.5; a comma parts thousands, 1,250.")
    if match[2] and not _is_unit(match[2].rstrip("."), question.unit):
        return Outcome("failed", f"the answer is asked for in {question.unit}, not in {match[2][:20]!r}.")
    if abs(value - question.answer) <= question.tolerance:
        return Outcome("passed", question.right)
    # The nearest known mistake, if it is as near as a rounded answer would be.
    wrong, sentence = min(question.wrong, key=lambda pair: abs(value - pair[0]), default=(math.inf, ""))
    is_near = abs(value - wrong) <= 5e-3 * abs(wrong)
    return Outcome("failed", f"got {match[1]} {question.unit}: {sentence if is_near else question.hint}")


def _is_unit(written: str, unit: str) -> bool:
    """Tell whether a written unit is the asked one; Gb is not GB, and Ms is not ms, but gb and Requests are clear."""
    if written in (unit, unit.lower(), unit.removesuffix("s")) or _SAME_UNITS.get(written.lower()) == unit:
        return True
    return len(unit) > 2 and written.lower() in (unit.lower(), unit.lower().removesuffix("s"))


def _grade_open(question: Question, answer: object) -> Outcome:
    words = re.findall(r"[^\W\d_][\w'’-]*", str(answer))
    if len(words) < MIN_WORDS:
        return Outcome("failed", f"{len(words)} words are too few: write {MIN_WORDS} or more to see a model answer.")
    if len({word.lower() for word in words}) < MIN_WORDS // 2:
        return Outcome("failed", "these are the same words again and again: write the answer as you would say it.")
    return Outcome("passed", f"compare yours with the model answer: {question.model_answer}")


def _read_question(entry: dict) -> Question:
    fields = dict(entry)
    kind, wrong = fields["kind"], fields.get("wrong") or {}
    pairs = wrong.items() if kind == "choice" else ((item["value"], item["sentence"]) for item in wrong)
    fields["wrong"] = tuple(pairs)
    fields["options"] = tuple(fields.get("options", {}).items())
    question = Question(**fields)
    if fault := _find_fault(question):
        raise ValueError(f"{question.id}: {fault}")
    return question


def _find_fault(question: Question) -> str:
    """Say what keeps a question from being asked; a wrong option without its explanation is such a fault."""
    if question.level not in LEVELS:
        return f"level {question.level!r} is none of {', '.join(LEVELS)}"
    if question.kind == "choice":
        keys = {key for key, _ in question.options}
        if question.answer not in keys:
            return "the answer is none of the options"
        explained = {key for key, _ in question.wrong}
        return "" if explained == keys - {question.answer} else "each wrong option needs its sentence"
    if question.kind == "numeric":
        if not (
            isinstance(question.answer, int | float) and question.tolerance > 0 and question.unit and question.hint
        ):
            return "answer, tolerance, unit and hint are needed"
        near = [wrong for wrong, _ in question.wrong if abs(wrong - question.answer) <= question.tolerance]
        return f"the mistake {near[0]} counts as right" if near else ""
    if question.kind == "open":
        return "" if question.model_answer else "the model answer is missing"
    return f"kind {question.kind!r} is unknown"
