"""Where does a curve bend? Step times over batch sizes: a fixed part, a part per row, and the batch where they meet.

A step has a cost that does not depend on the batch (reading the weights, launching the kernels) and a cost per row. The
two may overlap, as on a device that reads while it computes, or add up:

    shape "max"    t(b) = max(a, c + d b)    flat, then linear: the knee is where the lines cross, (a - c) / d
    shape "sum"    t(b) = a + d b            never flat: the knee is a / d, where the rows cost as much as the rest

At the knee of a sum, throughput reaches half of its ceiling 1 / d: R. Hockney's n_1/2 ("Performance parameters
and benchmarking of supercomputers", Parallel Computing 17, 1991).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from labkit.errors import LabkitError
from labkit.stats import estimate_t_quantile

__all__ = ["Regimes", "fit_regimes", "format_regimes"]

_NUM_KNEES = 1201  # candidates on a log axis: 0.35 % apart in a sweep from 1 to 64
_MIN_POINTS = 5


@dataclass(frozen=True, slots=True)
class Regimes:
    """A fit of one shape, and what it says about the knee.

    Attributes:
        shape: "max" or "sum"
        verdict: "knee" (within the sweep), "flat" (to the end of the sweep: a knee would lie above `low`), "linear"
            (from the start of the sweep: a knee would lie below `high`) or "cannot tell"
        knee: rows; None unless the verdict is "knee"
        low: rows, the lower end of the knee's interval; None if the samples do not say
        high: rows, the upper end; None if the samples do not say
        flat_s: seconds of the fixed part of the best fit
        slope_s: seconds per row of the best fit
        bend: rows, the knee of the best fit whatever the verdict; None if it has none
        misfit: largest relative distance of a point from the curve; 0.1 is 10 %
        confidence: of the interval
    """

    shape: str
    verdict: str
    knee: float | None
    low: float | None
    high: float | None
    flat_s: float
    slope_s: float
    bend: float | None
    misfit: float
    confidence: float

    def estimate(self, x: float | Sequence[float]) -> np.ndarray:
        """Return the fitted seconds at x (rows), in the shape of x."""
        x = np.asarray(x, dtype=float)
        return self.flat_s + self.slope_s * (x if self.shape == "sum" else np.maximum(0.0, x - (self.bend or x)))


def fit_regimes(samples: Mapping[float, Sequence[float]], *, shape: str = "max", confidence: float = 0.95) -> Regimes:
    """Fit one shape to samples by x (batch size -> seconds of each run), by least squares of the relative errors.

    Every point has the same weight, with its geometric mean. The interval is the profile of the sum of squares: all
    knees whose best curve is not significantly worse (F test). Its variance is the larger of the spread within points
    and the residual of the curve, so a shape that does not fit gives a wide interval instead of false precision.
    Raises LabkitError for fewer than 5 points, fewer than 2 samples at one of them, or samples that are not above 0.
    """
    x, y, variance = _read(samples)
    if shape not in ("max", "sum"):
        raise LabkitError(f'the shape is "max" or "sum", got {shape!r}.', next_step='try "max" first.')
    num_parameters = 3 if shape == "max" else 2
    df = len(x) - num_parameters
    reach = 1.0 if shape == "max" else 1e3  # a sum may cross far outside the sweep
    knees = np.geomspace(x[0] / reach, x[-1] * reach, _NUM_KNEES if reach == 1 else 4 * _NUM_KNEES)
    around = int(np.argmin(_profile(x, y, knees, shape)[2]))
    finer = np.geomspace(knees[max(0, around - 1)], knees[min(len(knees), around + 2) - 1], _NUM_KNEES)
    knees = np.union1d(knees, finer)
    flats, slopes, squares = _profile(x, y, knees, shape)
    best = int(np.argmin(squares))
    noise = max(squares[best] / df, float(np.mean(variance)))
    # Leaving out one parameter is tested by F(1, df) = t^2, two by F(2, df), whose quantile has a closed form.
    alpha = 1 - confidence
    one = noise * estimate_t_quantile((1 + confidence) / 2, df) ** 2
    two = noise * df * (alpha ** (-2 / df) - 1)
    kept = knees[squares <= squares[best] + one]
    low, high = float(kept[0]), float(kept[-1])
    flat = _sum_squares(x, y, np.ones((1, len(x))))
    can_be_flat = flat - squares[best] <= (two if shape == "max" else one)
    # A bend at (or before) the first point is a line; the knee of a sum may lie anywhere, even outside the sweep.
    can_be_linear = low <= x[0] * (1 + 1e-9)
    can_be_flat = can_be_flat or (shape == "sum" and high >= x[-1])
    verdict = "flat" if can_be_flat else "linear" if can_be_linear else "knee"
    if can_be_flat and can_be_linear:  # a tiny slope is flat too, if a doubling within the sweep is excluded
        verdict = "flat" if shape == "max" and _excludes_doubling(x, y, noise, confidence) else "cannot tell"
        low = None
    bend = float(knees[best]) if slopes[best] > 0 else None
    fitted = flats[best] + slopes[best] * (x if shape == "sum" else np.maximum(0.0, x - knees[best]))
    return Regimes(
        shape=shape, verdict=verdict, knee=bend if verdict == "knee" else None,
        low=low if verdict in ("knee", "flat") else None, high=high if verdict in ("knee", "linear") else None,
        flat_s=float(flats[best]), slope_s=float(slopes[best]), bend=bend,
        misfit=float(np.max(np.abs(fitted / y - 1))), confidence=confidence,
    )  # fmt: skip


def format_regimes(fit: Regimes) -> str:
    """Say in words what a fit says about the knee: "knee at 17.6 (10.1 to 34.1)", or why there is none."""
    if fit.verdict == "knee":
        return f"knee at {fit.knee:.3g} ({fit.low:.3g} to {fit.high:.3g})"
    if fit.verdict == "flat":
        beyond = f"; if there is one it lies above {fit.low:.3g}" if fit.low else ""
        return f"no knee within the sweep, flat to its end{beyond}"
    if fit.verdict == "linear":
        return f"no knee within the sweep, linear from its beginning; if there is one it lies below {fit.high:.3g}"
    return "cannot tell whether there is a knee"


def _profile(x, y, knees, shape):
    """Return the best flat part, slope and sum of squared relative errors at each of K knees, each (K,)."""
    if shape == "sum":  # a = d k leaves one unknown: t = d (k + b)
        rows = (knees[:, None] + x) / y  # (K, points)
        slopes = rows.sum(axis=1) / (rows**2).sum(axis=1)
        return slopes * knees, slopes, ((slopes[:, None] * rows - 1) ** 2).sum(axis=1)
    u, v = 1 / y, np.maximum(0.0, x - knees[:, None]) / y  # t / y = a u + d v: the normal equations of two unknowns
    uu, uv, vv, su, sv = (u * u).sum(), (u * v).sum(1), (v * v).sum(1), u.sum(), v.sum(1)
    determinant = uu * vv - uv**2
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.where(determinant > 1e-12 * uu * vv, (uu * sv - uv * su) / determinant, 0.0)
    slopes = np.maximum(0.0, np.nan_to_num(slopes))  # more rows never cost less
    flats = (su - slopes * uv) / uu
    # A steep line through the later points may have a negative flat part, but no step takes negative time.
    flats = np.maximum(flats, 1e-12 * y.min())
    return flats, slopes, ((flats[:, None] * u + slopes[:, None] * v - 1) ** 2).sum(axis=1)


def _excludes_doubling(x, y, noise, confidence) -> bool:
    """Tell whether every straight line that the samples allow stays below twice its fixed part to the last point."""
    knees = np.geomspace(x[0] / 1e3, x[-1] * 1e3, 4 * _NUM_KNEES)
    _, _, squares = _profile(x, y, knees, "sum")
    kept = knees[squares <= squares.min() + noise * estimate_t_quantile((1 + confidence) / 2, len(x) - 2) ** 2]
    return bool(kept[0] > x[-1])


def _sum_squares(x, y, basis) -> float:
    """Return the sum of squared relative errors of a plain least-squares fit."""
    rows = (basis / y).T
    return float(((rows @ np.linalg.lstsq(rows, np.ones(len(x)), rcond=None)[0] - 1) ** 2).sum())


def _read(samples):
    if len(samples) < _MIN_POINTS:
        raise LabkitError(
            f"{len(samples)} points are too few for two regimes.", next_step=f"measure at {_MIN_POINTS} or more."
        )
    x, y, variance = [], [], []
    for place in sorted(samples):
        values = np.asarray(samples[place], dtype=float)
        if values.ndim != 1 or len(values) < 2 or not (np.isfinite(values).all() and (values > 0).all() and place > 0):
            raise LabkitError(
                f"the samples at {place} are not two or more times above 0.", next_step="look at what was collected."
            )
        logs = np.log(values)
        x.append(float(place))
        y.append(math.exp(logs.mean()))
        variance.append(float(logs.var(ddof=1)) / len(logs))
    return np.array(x), np.array(y), np.array(variance)
