"""predict and reveal: a guess is stored before the measurement, kept, and never graded."""

import math

from labkit.errors import CheckError
from labkit.progress import append_event, estimate_state, load_course, load_events
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
            f"prediction {prediction} is {value!r}, which is not a number.",
            next_step=f"write one number{f' in {unit}' if unit else ''} without its unit, or None to skip.",
        )
    early, is_measured = _find_prediction(prediction)
    if value is None:
        if early is None and not is_measured:
            append_event("prediction", exercise=prediction, value=None, unit=unit, is_late=False, sentence="skipped")
        shown = "skipped" if early is None else f"{_write(early, unit)} is on record"
    elif is_measured:
        if value != early:
            append_event("prediction", exercise=prediction, value=_plain(value), unit=unit, is_late=True)
        shown = f"{_write(early, unit)} is on record" if early is not None else "none was given in time"
        if value != early:
            shown += f"; {_write(value, unit)} came after the measurement and is kept as late"
    else:
        if value != early:
            append_event("prediction", exercise=prediction, value=_plain(value), unit=unit, is_late=False)
        shown = f"{_write(value, unit)}, stored before the measurement"
    _view(f"prediction {prediction}: {shown}.")


def reveal(prediction: str, measured: float, *, unit: str = "") -> float | None:
    """Store the measured value, show it beside the prediction with the factor between them, return the prediction.

    The prediction is the one given before the first measurement; None when there was none.
    """
    if not _is_number(measured):
        raise CheckError(
            f"the measurement for {prediction} is {measured!r}, which is not a number.",
            next_step="run the measuring cell, then this one again.",
        )
    early, _ = _find_prediction(prediction)
    append_event("measured", exercise=prediction, value=_plain(measured), unit=unit)
    text = f"prediction {prediction}: measured {_write(measured, unit)}"
    if early is None:
        _view(f"{text}; you gave no prediction before it.")
    elif early <= 0 or measured <= 0:
        _view(f"{text}; predicted {_write(early, unit)}.")
    else:
        factor = max(early, measured) / min(early, measured)
        side = "high" if early > measured else "low"
        far = f", a factor of {format_ratio(factor)} too {side}" if round(factor, 2) > 1 else ": the same"
        _view(f"{text}; predicted {_write(early, unit)}{far}.")
    return early


def _find_prediction(prediction: str) -> tuple[float | None, bool]:
    """Return the prediction that was given before the measurement, and whether there is a measurement."""
    predictions = [item for lab in estimate_state(load_course(), load_events()).labs for item in lab.predictions]
    for item in predictions:
        if item.id == prediction:
            return (None if item.is_late else item.predicted), item.measured is not None
    raise CheckError(
        f"the course has no prediction {prediction!r}.",
        next_step=f"use one of {', '.join(item.id for item in predictions)}.",
    )


def _is_number(value) -> bool:
    try:
        return not isinstance(value, bool | str | bytes) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _plain(value) -> float | int:
    return value if type(value) in (int, float) else float(value)


def _write(value, unit: str) -> str:
    return f"{format_number(_plain(value))} {unit}".strip()


def _view(text: str) -> None:
    view_html(f'<p role="status">{text}</p>', text)
