"""What a learner may type into predict, reveal and use_reference, and what is kept of it."""

import numpy as np
import pytest

from labkit.checks import predict, reveal, use_reference
from labkit.errors import CheckError
from labkit.progress import load_events


def kept():
    return [(event["kind"], event["value"], event["unit"]) for event in load_events()]


@pytest.mark.parametrize("value", [10**400, np.True_, np.float64("nan"), np.array([1.0, 2.0]), "7", {}])
def test_what_is_no_number_gets_a_short_sentence_and_is_not_stored(value):
    with pytest.raises(CheckError, match="which is not a number") as raised:
        predict("00.p1", value, unit="tok/s")
    assert len(str(raised.value)) < 200
    with pytest.raises(CheckError, match="which is not a number"):
        reveal("00.p1", value, unit="tok/s")
    assert kept() == []


def test_a_truth_value_of_torch_is_no_number():
    torch = pytest.importorskip("torch")
    with pytest.raises(CheckError, match="not a number"):
        predict("00.p1", torch.tensor(True))
    predict("00.p1", torch.tensor(3.0))
    assert kept() == [("prediction", 3.0, "")]


def test_a_changed_unit_is_stored_and_said(capsys):
    predict("00.p1", 100, unit="tok/s")
    predict("00.p1", 100, unit="tok/s")
    capsys.readouterr()
    predict("00.p1", 100, unit="ms")
    shown = capsys.readouterr().out
    assert "100 ms, stored before the measurement (it was 100 tok/s before: the unit differs)" in shown
    assert kept() == [("prediction", 100, "tok/s"), ("prediction", 100, "ms")]


def test_no_factor_is_made_of_two_units(capsys):
    predict("00.p1", 100, unit="ms")
    assert reveal("00.p1", 80.0, unit="tok/s") == 100
    assert "measured 80.0 tok/s; predicted 100 ms, which is in a different unit." in capsys.readouterr().out


def test_the_prediction_on_record_keeps_its_unit(capsys):
    predict("00.p1", 100, unit="tok/s")
    reveal("00.p1", 80.0, unit="tok/s")
    capsys.readouterr()
    predict("00.p1", 5, unit="ms")
    assert "100 tok/s is on record; 5 ms came after the measurement" in capsys.readouterr().out


def test_a_late_value_is_kept_once_however_often_the_cell_runs(capsys):
    predict("00.p1", 100, unit="tok/s")
    reveal("00.p1", 80.0, unit="tok/s")
    for _ in range(3):
        predict("00.p1", 80, unit="tok/s")
        assert "100 tok/s is on record; 80 tok/s came after the measurement" in capsys.readouterr().out.splitlines()[-1]
    predict("00.p1", 81, unit="tok/s")
    values = [event["value"] for event in load_events() if event.get("is_late")]
    assert values == [80, 81]


def test_a_unit_cannot_write_into_the_page(monkeypatch):
    shown = []
    monkeypatch.setattr("labkit.checks.predictions.view_html", lambda html, text: shown.append((html, text)))
    predict("00.p1", 1, unit="<b>")
    assert "&lt;b&gt;" in shown[0][0] and "<b>" in shown[0][1]


def test_a_reference_that_stops_is_not_shown_and_the_exercise_stays_open(capsys):
    names = {"use_reference": use_reference}
    with pytest.raises(CheckError, match=r"00.4 failed with NameError.*run the cells above it first"):
        exec('use_reference("00.4")', names)
    assert capsys.readouterr().out == ""
    assert list(load_events()) == []
    exec('use_reference("00.1")', names)
    assert [(event["kind"], event["exercise"]) for event in load_events()] == [("viewed", "00.1")]
    assert "def weight_bytes" in capsys.readouterr().out
    assert names["weight_bytes"](1_000, bits=4) == 500
