"""`labkit quiz`: five questions of what is finished, the weakest first. Nothing is answered before you answer."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from labkit.cli.parser import Parser, print_json

if TYPE_CHECKING:
    from labkit.quiz import Question

__all__ = ["add_command"]

_NOT_SHOWN = ("answer", "tolerance", "right", "hint", "wrong", "model_answer")


def add_command(top: Parser) -> None:
    """Declare `labkit quiz`."""
    quiz = top.add_command("quiz", "questions of the finished labs, the weakest first; without a terminal a list", _run)
    quiz.add_argument("--num", metavar="N", type=_read_count, default=5, help="how many questions (default: 5)")
    quiz.add_argument("--lab", metavar="NN", help="questions of this lab, finished or not")
    quiz.add_argument("--list", action="store_true", help="only list them, without answers")
    quiz.add_argument("--json", action="store_true", help="only list them, as JSON, without answers")


def _read_count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of questions")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    from labkit.quiz import draw_questions, format_question
    from labkit.views import format_plain

    questions = draw_questions(arguments.num, lab=arguments.lab)
    if arguments.json:
        print_json([_to_dict(question) for question in questions])
    elif not questions:
        print("No lab is finished yet, so there is nothing to ask. `labkit quiz --lab 00` asks about one lab.")
    elif arguments.list or sys.stdin is None or not sys.stdin.isatty():
        for question in questions:
            print(format_plain(format_question(question)), end="\n\n")
        print('Answer on a terminal (`labkit quiz`), or in a notebook: quiz("00.q1", answer).')
    else:
        _ask(questions)
    return 0


def _to_dict(question: Question) -> dict:
    from dataclasses import asdict

    return {key: value for key, value in asdict(question).items() if key not in _NOT_SHOWN}


def _ask(questions: tuple[Question, ...]) -> None:
    """Ask one question after another; Ctrl-C and Ctrl-D end it, and what was answered is kept."""
    from labkit.quiz import format_question, save_answer
    from labkit.views import format_plain

    right, wrong = [], []
    print(f"{len(questions)} questions. Enter alone skips one, Ctrl-D ends.\n")
    try:
        for place, question in enumerate(questions, start=1):
            print(f"{place} of {len(questions)}  {format_plain(format_question(question))}")
            answer = _read_answer(question)
            if not answer:
                print("skipped\n")
                continue
            outcome = save_answer(question, answer)
            (right if outcome.status == "passed" else wrong).append(question)
            word = {"failed": "✗ wrong", "passed": "✓ answered" if question.kind == "open" else "✓ right"}
            print(f"{word[outcome.status]}: {' '.join(outcome.sentence.split())}\n")
    except (EOFError, KeyboardInterrupt):
        print("\nended; what you answered is kept.\n")
    num_answered = len(right) + len(wrong)
    print(f"{len(right)} of {num_answered} answered right, {len(questions) - num_answered} not answered.")
    if wrong:
        topics = ", ".join(dict.fromkeys(question.topic for question in wrong))
        print(f"Look again at: {topics} (lab {', '.join(dict.fromkeys(item.id[:2] for item in wrong))}).")


def _read_answer(question: Question) -> str:
    """Read an answer; empty is skipped. What cannot be one (a letter that is no option) is asked again, not graded."""
    keys = [key for key, _ in question.options]
    if question.kind == "open":
        print("Your words; an empty line ends them.")
        lines = []
        while line := input("> ").strip():
            lines.append(line)
        return " ".join(lines)
    while True:
        answer = input(f"{', '.join(keys)}> " if keys else f"{question.unit}> ").strip()
        if not answer or (answer.strip(".)").lower() in keys if keys else any(map(str.isdigit, answer))):
            return answer
        print(f"One letter of {', '.join(keys)}, please." if keys else f"A number in {question.unit}, please.")
