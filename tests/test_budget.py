import pytest

from labkit.budget import choose_by_budget, read_budget
from labkit.errors import LabkitError


def test_the_learner_budget_is_the_default(monkeypatch):
    monkeypatch.delenv("LABKIT_BUDGET", raising=False)
    assert read_budget() == "learner"
    assert choose_by_budget(learner=12, ci=6) == 12


def test_the_ci_budget_gives_the_smaller_value(monkeypatch):
    monkeypatch.setenv("LABKIT_BUDGET", "ci")
    assert choose_by_budget(learner=12, ci=6) == 6


def test_an_unknown_budget_is_refused_and_the_two_valid_ones_are_named(monkeypatch):
    monkeypatch.setenv("LABKIT_BUDGET", "quick")
    with pytest.raises(LabkitError, match=r"'quick'.*'learner' or 'ci'"):
        read_budget()
