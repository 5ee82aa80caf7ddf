"""`python -m labkit.cli` is the `labkit` command, and has two maintenance jobs that are no command of learners."""

import sys

from labkit.cli.front import main, update_readme

__all__: list[str] = []

if sys.argv[1:] == ["--update-readme"]:
    sys.exit(update_readme())
if sys.argv[1:] == ["--update-schema"]:
    from labkit.results.schema import save_schema

    sys.exit(save_schema())
sys.exit(main())
