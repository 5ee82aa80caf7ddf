"""`python -m labkit.cli` is the `labkit` command, with two maintenance jobs that learners do not need."""

import sys

from labkit.cli import main, update_readme

__all__: list[str] = []

if sys.argv[1:] == ["--update-readme"]:
    sys.exit(update_readme())
if sys.argv[1:] == ["--update-schema"]:
    from labkit.results.schema import save_schema

    sys.exit(save_schema())
sys.exit(main())
