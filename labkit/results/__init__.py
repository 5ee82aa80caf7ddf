"""What was measured, where, when? Append-only records, each with every sample, its provenance and its summary.

`record.py` says what a record is, `schema.py` what it may contain, `provenance.py` where it was made, `redaction.py`
and `secret_names.py` what must never be in it, `store.py` saves and loads, `verify.py` recomputes.
"""

from labkit.results.record import Record
from labkit.results.store import Records, find_record, find_runs_folder, load_records, save_record
from labkit.results.verify import verify_record

__all__ = ["Record", "Records", "find_record", "find_runs_folder", "load_records", "save_record", "verify_record"]
