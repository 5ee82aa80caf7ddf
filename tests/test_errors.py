"""Errors give the fact and the next step, in one line."""

import pickle

import pytest

from labkit import errors
from labkit.errors import LabkitError

ALL = [getattr(errors, name) for name in errors.__all__]


def test_the_message_is_the_fact_and_then_the_next_step():
    assert str(LabkitError("8.0 GB needed, 6.1 GB free.", next_step="pick 4-bit.")) == (
        "8.0 GB needed, 6.1 GB free. Next: pick 4-bit."
    )


def test_without_a_next_step_the_message_is_the_fact_alone():
    assert str(LabkitError("no such model.")) == "no such model."


def test_the_next_step_is_given_by_name_only():
    with pytest.raises(TypeError):
        LabkitError("fact", "next")


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_a_labkit_error_and_shows_one_line_in_a_notebook(kind):
    error = kind("a fact.", next_step="a step.")
    assert isinstance(error, LabkitError)
    assert error._render_traceback_() == [f"{kind.__name__}: a fact. Next: a step."]


@pytest.mark.parametrize("kind", ALL)
def test_an_error_can_be_pickled_by_a_worker_process(kind):
    copy = pickle.loads(pickle.dumps(kind("a fact.", next_step="a step.")))
    assert type(copy) is kind
    assert str(copy) == "a fact. Next: a step."


def test_the_tree_in_the_docstring_names_every_error():
    assert all(name in errors.__doc__ for name in errors.__all__)
