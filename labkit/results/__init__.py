"""What was measured, where, when? Append-only records, each with every sample, its provenance and its summary.

`record.py` says what a record is, and saves, loads and verifies it; `schema.py` says what it may contain,
`provenance.py` where it was made, `redaction.py` what must never be in it.
"""

from labkit.results.record import (
    Record,
    Records,
    find_record,
    find_runs_folder,
    load_records,
    save_record,
    verify_record,
)

__all__ = ["Record", "Records", "find_record", "find_runs_folder", "load_records", "save_record", "verify_record"]
