"""The command line of the builder: `python -m labkit.authoring [--check | execute NN | new NN topic]`."""

import argparse
import sys

from labkit.authoring.build import build_labs, check_labs
from labkit.authoring.execute import Report, execute_solution
from labkit.authoring.skeleton import make_skeleton
from labkit.environment import find_course_root
from labkit.errors import LabkitError

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status (1 if something is out of date or wrong)."""
    parser = argparse.ArgumentParser(prog="python -m labkit.authoring", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something is out of date")
    commands = parser.add_subparsers(dest="command")
    execute = commands.add_parser("execute", help="run one solution and store its outputs")
    execute.add_argument("number", help="two digits: 00")
    new = commands.add_parser("new", help="write the skeleton of a lab and build it")
    new.add_argument("number", help="two digits: 99")
    new.add_argument("topic", help="lower case, words joined by underscores, such as flash_attention")
    options = parser.parse_args(arguments)
    try:
        root = find_course_root()
        if options.command == "new":
            folder = make_skeleton(root, options.number, options.topic)
            print(f"{folder.relative_to(root)}: a skeleton that builds and runs. To list what is still missing:")
            print("    python -m labkit.authoring --check")
            return _tell(build_labs(root))
        if options.command == "execute":
            path = execute_solution(root, options.number)
            print(f"{path.relative_to(root)}: executed and stored, {path.stat().st_size / 1000:.0f} KB.")
            return 0
        return _tell(check_labs(root) if options.check else build_labs(root))
    except LabkitError as error:
        print(error, file=sys.stderr)
        return 1


def _tell(report: Report) -> int:
    for note in report.notes:
        print(note)
    for problem in report.problems:
        print(problem, file=sys.stderr)
    if not report.problems and not report.notes:
        print("Everything matches its source.")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
