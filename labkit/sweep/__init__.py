"""How does it change from point to point? A grid is measured in rounds, and what is finished survives a crash.

    sweep = run_sweep("decode", measure, [{"batch": 1}, {"batch": 2}], settings={"steps": 12}, num_rounds=5)
    sweep.samples("step_s", batch=2)

A *visit* is one point in one round. Each round visits every point once, in an order of its own (seeded), so that a
machine that becomes slower does not look like a curve. A finished visit is one line of a journal, on the disk before
the next begins: whatever ends the run, the next call goes on where it stopped and measures no visit twice. Samples
belong to an identity (settings, model, machine, versions): with another one a sweep begins anew, in another file.
`close_sweep` marks a sweep whose samples are in a record; the call after that measures afresh.

`runner.py` is the loop, `visits.py` the journal, `line.py` the progress line.
"""

from labkit.sweep.runner import Sweep, close_sweep, run_sweep
from labkit.sweep.visits import Visit

__all__ = ["Sweep", "Visit", "close_sweep", "run_sweep"]
