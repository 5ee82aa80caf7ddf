"""The quiz: shown without its answer, graded with an explanation for each wrong answer, saved as an event."""

import json
from pathlib import Path

import pytest
from tracked import glob_tracked

from labkit.errors import CheckError
from labkit.progress import append_event, load_course, load_events
from labkit.quiz import MIN_WORDS, draw_questions, format_question, load_questions, quiz, run_quiz
from labkit.views import CheckFailed

BANKS = sorted(
    path.parent.name[:2] for path in (Path(__file__).resolve().parents[1] / "solutions" / "src").glob("*/quiz.json")
)
OPEN = (
    "A summary cannot be checked or compared again, samples can: from them anyone recomputes the median and its "
    "interval, sees outliers and drift, and tests a new question without measuring once more."
)


def load(question_id):
    return next(item for item in load_questions(question_id[:2]) if item.id == question_id)


@pytest.mark.parametrize("lab", BANKS)
def test_a_bank_has_five_questions_of_the_three_levels_and_kinds(lab):
    questions = load_questions(lab)
    assert [item.id for item in questions] == [f"{lab}.q{k}" for k in range(1, 6)]
    assert sorted(item.level for item in questions) == [
        "advanced",
        "beginner",
        "beginner",
        "intermediate",
        "intermediate",
    ]
    kinds = [item.kind for item in questions]
    assert kinds.count("choice") >= 2
    assert kinds.count("numeric") >= 2
    assert kinds.count("open") == 1
    assert len({item.topic for item in questions}) == 5


def test_every_lab_of_the_course_has_its_questions_in_the_bank():
    for lab in load_course().labs:
        assert tuple(item.id for item in load_questions(lab.number)) == lab.quiz


@pytest.mark.parametrize("lab", BANKS)
def test_every_known_wrong_answer_has_its_own_sentence_and_does_not_reveal_the_right_one(lab):
    for question in load_questions(lab):
        sentences = [run_quiz(question, wrong) for wrong, _ in question.wrong]
        assert all(outcome.status == "failed" for outcome in sentences)
        assert len({outcome.sentence for outcome in sentences}) == len(question.wrong)
        for outcome in sentences:
            assert question.right not in outcome.sentence
            assert not question.hint or question.hint not in outcome.sentence


@pytest.mark.parametrize(("question_id", "answer"), [
    ("00.q1", "b"), ("00.q1", " B) "), ("00.q2", 16), ("00.q2", "16 GB"), ("00.q2", 16.1), ("00.q2", "1.6e1"),
    ("00.q3", "c"), ("00.q4", 40), ("00.q4", 39.9), ("00.q4", "40 tok/s"), ("00.q5", OPEN),
    ("00.q1", "(b)"), ("00.q1", "b:"), ("00.q2", "16 gb"), ("00.q4", "40 tokens/s"), ("00.q4", "40 tok/s."),
    ("10.q4", "60 percent"), ("11.q4", "1.25×"), ("11.q4", "1.25x"), ("33.q2", "30 Requests"), ("03.q3", "131,072"),
    ("03.q3", "131,072 B"), ("03.q3", "131072.0 bytes"),
])  # fmt: skip
def test_a_right_answer_passes(question_id, answer):
    assert run_quiz(load(question_id), answer).status == "passed"


@pytest.mark.parametrize(("question_id", "answer", "phrase"), [
    ("00.q1", "a", "a token is not a word"),
    ("00.q1", "c", "TTFT"),
    ("00.q1", "d", "requests per second"),
    ("00.q1", "e", "one letter of a, b, c, d"),
    ("00.q1", 2, "one letter of a, b, c, d"),
    ("00.q2", 14.9, "GiB"),
    ("00.q2", 128, "eight bits make a byte"),
    ("00.q2", 16.3, "multiply the parameters"),
    ("00.q2", 16e9, "those are bytes"),
    ("00.q2", "16 GiB", "expected the answer in GB"),
    ("00.q2", "sixteen", "a number in GB"),
    ("00.q2", "16 Gb", "not in 'Gb'"),
    ("11.q2", "3 Ms", "not in 'Ms'"),
    ("00.q4", "4,0", "use a decimal point"),
    ("01.q2", "0,5", "use a decimal point"),
    ("33.q3", "3,00", "use a decimal point"),
    ("33.q3", "0,300", "use a decimal point"),
    ("11.q4", "1,250", "got 1,250 x"),
    ("00.q4", "−40", "how many gaps"),
    ("00.q4", float("inf"), "a number in tok/s"),
    ("00.q2", True, "a number in GB"),
    ("00.q2", float("nan"), "a number in GB"),
    ("00.q2", "1e999", "a number in GB"),
    ("00.q3", "a", "fill the memory to the last byte"),
    ("00.q4", 40.4, "100 gaps"),
    ("00.q4", "33.7", "divides by the whole 3.0 s"),
    ("00.q4", 33.3, "begin at the first token"),
    ("00.q4", -40, "how many gaps"),
    ("00.q5", "because samples are good", "4 words are too few"),
    ("00.q5", " ".join(["samples"] * 40), "the same few words"),
    ("00.q5", " ".join("1234567890" * 5), "0 words are too few"),
])  # fmt: skip
def test_a_wrong_answer_fails_with_its_own_sentence(question_id, answer, phrase):
    outcome = run_quiz(load(question_id), answer)
    assert outcome.status == "failed"
    assert phrase in outcome.sentence, outcome.sentence


def test_an_infinite_answer_is_wrong_and_saved():
    quiz("00.q4", float("inf"))
    quiz("00.q4", float("nan"))
    assert [event["answer"] for event in load_events()] == ["inf", "nan"]


def test_the_tolerance_includes_its_ends():
    question = load("00.q2")
    assert run_quiz(question, question.answer + question.tolerance / 2).status == "passed"
    assert run_quiz(question, question.answer - question.tolerance * 1.01).status == "failed"
    assert run_quiz(question, question.answer + question.tolerance * 1.01).status == "failed"


def test_an_open_answer_is_labelled_answered_and_shows_the_model_answer(capsys):
    quiz("00.q5", OPEN)
    shown = capsys.readouterr().out
    assert "✓ 00.q5 answered: compare yours with the model answer: " in shown
    assert load("00.q5").model_answer in shown
    (event,) = load_events()
    assert (event["kind"], event["exercise"], event["outcome"], event["answer"]) == ("quiz", "00.q5", "passed", OPEN)


def test_a_short_open_answer_does_not_show_the_model_answer(capsys):
    assert quiz("00.q5", "too short").status == "failed"
    assert load("00.q5").model_answer[:30] not in capsys.readouterr().out
    enough = [f"word{'x' * k}" for k in range(MIN_WORDS)]
    assert quiz("00.q5", " ".join(enough[:-1])).status == "failed"
    assert quiz("00.q5", " ".join(enough)).status == "passed"


@pytest.mark.parametrize("lab", BANKS)
def test_a_question_is_shown_without_answer_or_explanation_and_without_an_event(lab, capsys):
    for question in load_questions(lab):
        assert quiz(question.id) is None
        shown = capsys.readouterr().out
        assert question.question.replace("`", "") in shown.replace("`", "")
        assert f'quiz("{question.id}", ' in shown
        hidden = [question.right, question.hint, question.model_answer, *(sentence for _, sentence in question.wrong)]
        assert not [text for text in hidden if text and text in shown + format_question(question)]
        if question.kind == "choice":
            assert f'"{question.answer}")' not in shown or question.answer == "a"
            assert all(text in shown for _, text in question.options)
        if question.kind == "numeric":
            assert question.unit in shown
            assert f"{question.answer} {question.unit}" not in shown
    assert len(load_events()) == 0


def test_an_answer_is_shown_with_its_question_and_kept(capsys):
    outcome = quiz("00.q4", 40.4)
    shown = capsys.readouterr().out
    assert "A request gets 101 tokens" in shown
    assert shown.rstrip().endswith(f"✗ 00.q4 failed: {outcome.sentence}")
    (event,) = load_events()
    assert (event["kind"], event["outcome"], event["answer"]) == ("quiz", "failed", 40.4)
    assert event["topic"] == "TTFT and decode speed"


def test_strict_mode_raises_for_a_wrong_answer_only(monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_STRICT", "1")
    quiz("00.q1")
    assert quiz("00.q1", "b").status == "passed"
    with pytest.raises(CheckFailed, match="00.q1 failed: a token is not a word"):
        quiz("00.q1", "a")
    with pytest.raises(CheckFailed, match="words are too few"):
        quiz("00.q5", "short")
    assert len(load_events()) == 3


@pytest.mark.parametrize("question_id", ["00.q9", "77.q1", "", None])
def test_an_unknown_question_is_an_error(question_id):
    with pytest.raises(CheckError):
        quiz(question_id)


CHOICE = {"id": "50.q1", "level": "beginner", "kind": "choice", "topic": "t", "question": "?", "answer": "a"}
NUMERIC = CHOICE | {"kind": "numeric", "answer": 5, "tolerance": 0.1, "unit": "s", "hint": "h"}


@pytest.mark.parametrize(("entry", "phrase"), [
    (CHOICE | {"options": {"b": "x"}, "wrong": {"b": "no"}}, "not one of the options"),
    (CHOICE | {"options": {"a": "x", "b": "y"}, "wrong": {}}, "each wrong option needs its own sentence"),
    (CHOICE | {"options": {"a": "x"}, "level": "expert"}, "level 'expert'"),
    (NUMERIC | {"tolerance": 0}, "tolerance"),
    (NUMERIC | {"unit": ""}, "unit"),
    (NUMERIC | {"wrong": [{"value": 5.05, "sentence": "no"}]}, "the mistake 5.05 counts as right"),
    (CHOICE | {"kind": "open"}, "the model answer is missing"),
    (CHOICE | {"kind": "essay"}, "kind 'essay'"),
    (CHOICE | {"colour": "red"}, "colour"),
    ({"id": "50.q1"}, "kind"),
])  # fmt: skip
def test_a_damaged_bank_is_an_error_that_names_the_fault(tmp_path, monkeypatch, entry, phrase):
    for folder in ("labs", "labkit", "solutions/src/50_made"):
        (tmp_path / "course" / folder).mkdir(parents=True)
    bank = tmp_path / "course/solutions/src/50_made/quiz.json"
    bank.write_text(json.dumps({"questions": [entry]}), encoding="utf-8")
    monkeypatch.setenv("LABKIT_COURSE", str(tmp_path / "course"))
    with pytest.raises(CheckError, match="50_made/quiz.json is damaged") as caught:
        load_questions("50")
    assert phrase in str(caught.value)


def test_questions_are_drawn_from_finished_labs_only_and_the_weakest_first():
    quiz("00.q1", "b")
    assert draw_questions() == ()
    for exercise in load_course().labs[0].exercises:
        append_event("attempt", exercise=exercise.id, version=exercise.version, outcome="passed")
    quiz("00.q4", 40.4)
    quiz("00.q2", 128)
    quiz("00.q2", 32)
    quiz("00.q3", "a")
    quiz("00.q3", "c")
    assert [item.id for item in draw_questions()] == ["00.q2", "00.q4", "00.q5", "00.q3", "00.q1"]
    assert [item.id for item in draw_questions(2)] == ["00.q2", "00.q4"]


def test_quiz_events_of_another_kind_do_not_stop_the_draw():
    append_event("quiz", exercise="00.q1", outcome="blocked")
    append_event("quiz", exercise="00.q2", outcome="not attempted")
    append_event("quiz", outcome="failed")
    append_event("quiz", exercise="00.q3")
    assert len(draw_questions(lab="00")) == 5


def test_a_named_lab_is_asked_about_before_it_is_finished():
    quiz("00.q2", 128)
    assert [item.id for item in draw_questions(3, lab="00")] == ["00.q2", "00.q1", "00.q3"]
    with pytest.raises(CheckError, match="lab 77 has no quiz"):
        draw_questions(lab="77")


def test_no_quiz_answer_appears_in_a_lab():
    for lab in BANKS:
        (path,) = glob_tracked(f"labs/{lab}_*.ipynb")
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
        for question in load_questions(lab):
            assert f'quiz("{question.id}")' in code
            assert not [cell for cell in code if f'quiz("{question.id}",' in cell]
            hidden = [question.right, question.model_answer, *(sentence for _, sentence in question.wrong)]
            assert not [sentence for sentence in hidden if sentence and sentence in text]
