"""predict and reveal: a guess is stored before the measurement, kept, and never graded."""

import math
from html import escape

from labkit.checks.learner import shorten
from labkit.errors import CheckError
from labkit.progress import append_event, estimate_state, load_course, load_events
from labkit.progress.events import Events
from labkit.units import format_number, format_ratio
from labkit.views import view_html

__all__ = ["predict", "reveal"]


def predict(prediction: str, value: float | None, *, unit: str = "") -> None:
    """Store a prediction ("00.p1", 100, unit="tok/s"); None is stored as skipped.

    Until the measurement a new value replaces the old one. After it a value is kept and marked late, and the one that
    was given before stays the prediction. It is never graded.
    """
    if value is not None and not _is_number(value):
        raise CheckError(
            f"prediction {prediction} is {shorten(repr(value), 40)}, which is not a number.",
            next_step=f"write one number{f' in {unit}' if unit else ''} without its unit, or None to skip.",
        )
    events = load_events()
    is_measured, early, early_unit = _find_early(prediction, events)
    given = None if value is None else (_plain(value), unit)
    on_record = "none was given in time" if early is None else f"{_write(early, early_unit)} is on record"
    if given is None:
        if early is None and not is_measured:
            append_event("prediction", exercise=prediction, value=None, unit=unit, is_late=False, sentence="skipped")
        shown = "skipped" if early is None else on_record
    elif is_measured:
        if given not in ((early, early_unit), *_list_given(prediction, events, is_late=True)[-1:]):
            append_event("prediction", exercise=prediction, value=given[0], unit=unit, is_late=True)
        shown = on_record
        if given != (early, early_unit):
            shown += f"; {_write(value, unit)} came after the measurement and is kept as late"
    else:
        if given != (early, early_unit):
            append_event("prediction", exercise=prediction, value=given[0], unit=unit, is_late=False)
        shown = f"{_write(value, unit)}, stored before the measurement"
        if early is not None and unit != early_unit:
            shown += f" (before, it was {_write(early, early_unit)}: another unit)"
    _view(f"prediction {prediction}: {shown}.")


def reveal(prediction: str, measured: float, *, unit: str = "") -> float | None:
    """Store the measured value, show it beside the prediction with the factor between them, return the prediction.

    The prediction is the one given before the first measurement; None when there was none.
    """
    if not _is_number(measured):
        raise CheckError(
            f"the measurement for {prediction} is {shorten(repr(measured), 40)}, which is not a number.",
            next_step="run the measuring cell, then this one again.",
        )
    _, early, early_unit = _find_early(prediction, load_events())
    append_event("measured", exercise=prediction, value=_plain(measured), unit=unit)
    text = f"prediction {prediction}: measured {_write(measured, unit)}"
    if early is None:
        _view(f"{text}; you gave no prediction before it.")
    elif early_unit and unit and early_unit != unit:
        _view(f"{text}; predicted {_write(early, early_unit)}, which is another unit.")
    elif early <= 0 or measured <= 0:
        _view(f"{text}; predicted {_write(early, unit)}.")
    else:
        factor = max(early, measured) / min(early, measured)
        side = "high" if early > measured else "low"
        far = f", a factor of {format_ratio(factor)} too {side}" if round(factor, 2) > 1 else ": the same"
        _view(f"{text}; predicted {_write(early, unit)}{far}.")
    return early


def _find_early(prediction: str, events: Events) -> tuple[bool, float | None, str]:
    """Return whether there is a measurement, and value and unit of what was predicted before it (None: nothing).

    Raises CheckError for a prediction that the course does not have.
    """
    predictions = [item for lab in estimate_state(load_course(), events).labs for item in lab.predictions]
    for item in predictions:
        if item.id == prediction:
            if item.is_late or item.predicted is None:
                return item.measured is not None, None, ""
            units = [unit for value, unit in _list_given(prediction, events, is_late=False) if value == item.predicted]
            return item.measured is not None, item.predicted, units[-1] if units else item.unit
    raise CheckError(
        f"the course has no prediction {prediction!r}.",
        next_step=f"use one of {', '.join(item.id for item in predictions)}.",
    )


def _list_given(prediction: str, events: Events, *, is_late: bool) -> list[tuple[float | None, str]]:
    """List value and unit of all that was predicted in time, or of all that was marked late."""
    mine = [one for one in events if one["kind"] == "prediction" and one.get("exercise") == prediction]
    return [(one.get("value"), one.get("unit") or "") for one in mine if bool(one.get("is_late")) is is_late]


def _is_number(value) -> bool:
    # The truth values of numpy and torch have a dtype of that name.
    is_truth = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    try:
        return not is_truth and not isinstance(value, str | bytes) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _plain(value) -> float | int:
    return value if type(value) in (int, float) else float(value)


def _write(value, unit: str) -> str:
    return f"{format_number(_plain(value))} {unit}".strip()


def _view(text: str) -> None:
    view_html(f'<p role="status">{escape(text)}</p>', text)
