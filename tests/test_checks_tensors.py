"""Tensors as answers: what is close, where they differ, who computed, and what was changed."""

import sys

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow  # computes with torch

from labkit.checks.cases import Case, CheckEnded, is_same  # noqa: E402
from labkit.checks.learner import LearnerFunction  # noqa: E402
from labkit.checks.tensors import (  # noqa: E402
    describe_difference,
    expect_by_hand,
    expect_device,
    expect_tensors,
    is_close,
    probe_calls,
)
from labkit.environment import load_lab_module  # noqa: E402

NAN, INF = float("nan"), float("inf")
X = torch.arange(6.0).reshape(2, 3)


def double(x):
    return 2 * x


def expect_sentence(function, cases, phrase):
    # An exercise with known mistakes; none of them is the one here.
    with pytest.raises(CheckEnded) as caught:
        expect_tensors(LearnerFunction(function, "03.2", "attention"), cases)
    assert phrase in caught.value.outcome.sentence, caught.value.outcome.sentence


@pytest.mark.parametrize(
    ("got", "expected", "is_it"),
    [
        ([1.0, NAN], [1.0, NAN], True),
        ([1.0, NAN], [NAN, 1.0], False),
        ([INF, 1.0], [INF, 1.0], True),
        ([-INF, 1.0], [INF, 1.0], False),
        ([INF, 1.1], [INF, 1.0], False),
        ([1000.001, 0.0], [1000.0, 0.0], True),
        ([1000.1, 0.0], [1000.0, 0.0], False),
        ([[1.0]], [1.0], False),
        ([], [], True),
        ([True, False], [True, True], False),
        ([127, 3], [127, 4], False),
    ],
)
def test_close_is_within_a_share_of_the_largest_value_and_special_values_have_their_places(got, expected, is_it):
    assert is_close(torch.tensor(got), torch.tensor(expected)) is is_it


def test_rows_of_tensors_are_compared_one_by_one():
    assert is_close((X, [X]), [X, (X,)])
    assert not is_close((X,), (X, X))
    assert not is_close(X, (X, X))
    assert not is_close(None, X)


def test_the_sentence_says_how_many_elements_differ_and_where_the_first_one_is():
    got = X.clone()
    got[1, 1:] += 0.25
    assert describe_difference(got, X) == (
        "2 of 6 elements differ, by up to 0.25; the first is at [1, 1]: got 4.25, expected 4."
    )
    got[0, 2] = NAN
    assert "3 of 6 elements are wrong and some are NaN; the first is at [0, 2]" in describe_difference(got, X)
    assert "1 of 3 elements differ, by up to 1; the first is at [2]: got 4, expected 5." in describe_difference(
        torch.tensor([1, 2, 4]), torch.tensor([1, 2, 5])
    )


@pytest.mark.parametrize(
    ("function", "phrase"),
    [
        (lambda x: None, "is a `return` missing?"),
        (lambda x: x.tolist(), "returned a list, expected a tensor of shape (2, 3)"),
        (lambda x: 2 * x.T, "has the shape (3, 2), expected (2, 3): follow the axes."),
        (
            lambda x: 2 * x + (x == 4),
            "1 of 6 elements differ, by up to 1; the first is at [1, 1]: got 9, expected 8. four.",
        ),
        (lambda x: 2 * x.double(), "returns torch.float64, expected torch.float32"),
        (lambda x: x.mul_(2), "tensor of shape (2, 3)) changes its arguments"),
        (lambda x: x.unsqueeze_(0)[0] * 2, "changes its arguments"),
    ],
)
def test_a_wrong_tensor_is_told_where_it_is_wrong(function, phrase):
    expect_sentence(function, [Case(2 * X, (X,), why="four.")], phrase)


@pytest.mark.parametrize(
    ("function", "phrase"),
    [
        (lambda x: 2 * x, "returned an answer (Tensor), expected 2 tensors."),
        (lambda x: (2 * x,), "returned an answer of 1, expected 2 tensors."),
        (lambda x: (2 * x, x.sum(0)), "[1] has the shape (3,), expected (2,)"),
        (lambda x: (2 * x, x.sum(1) + 1), "[1]: 2 of 2 elements differ"),
        (lambda x: (2 * x, x.sum(1).double()), "returns torch.float64"),
    ],
)
def test_of_several_tensors_the_wrong_one_is_named(function, phrase):
    expect_sentence(function, [Case((2 * X, X.sum(1)), (X,))], phrase)


def test_right_tensors_pass_and_nan_in_an_argument_is_no_change():
    expect_tensors(LearnerFunction(double), [Case(2 * X, (X,)), Case(torch.tensor([NAN]), (torch.tensor([NAN]),))])


def test_the_probe_leaves_the_profiler_of_others_alone():
    seen = []

    def other(*step):
        seen.append(step)

    sys.setprofile(other)
    try:
        calls, frames = probe_calls(lambda: torch.relu(torch.zeros(2)) and None)
        assert sys.getprofile() is other
    finally:
        sys.setprofile(None)
    assert "relu" in calls
    assert any(name.endswith(".<lambda>") for name in frames)


def test_the_code_of_a_check_and_of_a_labs_folder_is_no_answer_by_hand():
    oracle = load_lab_module("03", "second_decoder").normalize
    for function in (lambda x: oracle(x, x[0], eps=1e-5), lambda x: x * is_same(1, 1)):
        with pytest.raises(CheckEnded) as caught:
            expect_by_hand(LearnerFunction(function), X)
        assert "the check's own code" in caught.value.outcome.sentence
    expect_by_hand(LearnerFunction(double), X)


def test_a_new_tensor_on_the_cpu_would_stop_on_a_gpu():
    with pytest.raises(CheckEnded) as caught:
        expect_device(LearnerFunction(lambda x: x + torch.ones(3)), X)
    assert "would stop on a GPU" in caught.value.outcome.sentence
    expect_device(LearnerFunction(double), X)
    expect_device(LearnerFunction(lambda x: x * float(x.max())), X)  # needs a value: not a mistake
