"""What does progress look like on a console?"""

from __future__ import annotations

from labkit.progress.state import CourseState, LabState

__all__ = ["format_progress"]


def format_progress(state: CourseState) -> str:
    """Write a table with a row for each lab, the open exercises of labs under way, and what to do next."""
    if not state.labs:
        return "The course has no labs yet."
    width = max(len(lab.title) for lab in state.labs)
    lines = [f"lab  {'title':<{width}}  {'state':<11}  exercises  quiz  minutes  notes"]
    for lab in state.labs:
        lines.append(
            f"{lab.number:<3}  {lab.title:<{width}}  {lab.state:<11}  {_format_share(lab):>9}  "
            f"{f'{lab.num_quiz_passed}/{lab.num_quiz}':>4}  {lab.minutes:>7.0f}  {_format_notes(lab)}".rstrip()
        )
    lines += ["", _format_next(state)]
    if state.damaged:
        numbers = ", ".join(str(number) for number, _ in state.damaged)
        lines.append(f"Skipped in the progress file: damaged line {numbers}. Everything else was read.")
    return "\n".join(lines)


def _format_share(lab: LabState) -> str:
    return f"{lab.num_passed + lab.num_viewed + lab.num_blocked}/{lab.num_required}"


def _format_notes(lab: LabState) -> str:
    counts = ((lab.num_viewed, "viewed"), (lab.num_blocked, "blocked on this hardware"))
    notes = [f"{count} {word}" for count, word in counts if count]
    notes += [f"{exercise.id} failed" for exercise in lab.exercises if exercise.state == "failed"]
    return ", ".join(notes)


def _format_next(state: CourseState) -> str:
    # A lab under way comes before one that is not started.
    for wanted in ("in progress", "not started"):
        for lab in state.labs:
            if lab.state != wanted:
                continue
            for exercise in lab.exercises:
                if exercise.state in ("open", "failed") and not exercise.is_stretch:
                    return f"Next: exercise {exercise.id} ({exercise.title}) in labs/{lab.name}.ipynb."
            return f"Next: labs/{lab.name}.ipynb."
    return "All labs are complete."
