"""NVIDIA's profilers: the commands that record decode steps, and readers for what they export.

    nsys stats --report NAME --format csv      one table, read by load_nsys_csv
    nsys export --type sqlite                  every kernel with its times, read by load_nsys_sqlite

Columns and tables as in the Nsight Systems guides, https://docs.nvidia.com/nsight-systems/AnalysisGuide/index.html
(reports) and https://docs.nvidia.com/nsight-systems/UserGuide/index.html (command line, SQLite schema).
"""

import csv
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from labkit.environment import find_course_root
from labkit.errors import LabkitError
from labkit.profiling.events import ProfilerEvent

__all__ = ["NsysRow", "REPORTS", "format_commands", "load_nsys_csv", "load_nsys_sqlite", "load_recorded_tables"]

# Report -> (column of counts, column of names).
REPORTS = {
    "cuda_gpu_kern_sum": ("Instances", "Name"),
    "cuda_api_sum": ("Num Calls", "Name"),
    "cuda_gpu_mem_time_sum": ("Count", "Operation"),
    "nvtx_sum": ("Instances", "Range"),
    "osrt_sum": ("Num Calls", "Name"),
}
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True)
class NsysRow:
    """One row of a summary report.

    Attributes:
        name: the kernel, API function, copy or range.
        num_calls: number of calls.
        total_s: seconds of all calls.
        mean_s: seconds of one call.
        fraction: share of the seconds of the whole report.
    """

    name: str
    num_calls: int
    total_s: float
    mean_s: float
    fraction: float


def load_nsys_csv(path: str | Path, *, report: str) -> tuple[NsysRow, ...]:
    """Read one summary report of `nsys stats --format csv`, a file or its text, largest total first.

    Lines before the header (progress, titles) are skipped, numbers may have thousands separators, and the unit of time
    is that of the header (`--timeunit`). Raises LabkitError for an unknown report or for a file of another report.
    """
    is_text = isinstance(path, str) and "\n" in path
    path, text = (Path("text"), path) if is_text else (Path(path), None)
    if report not in REPORTS:
        raise LabkitError(f"the report {report!r} cannot be read.", next_step=f"use one of {', '.join(REPORTS)}.")
    count, name = REPORTS[report]
    try:
        lines = list(csv.reader((text or path.read_text(encoding="utf-8-sig")).splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabkitError(
            f"{path.name} is not a readable CSV file ({error}).", next_step="export it with --format csv."
        ) from None
    headers = [k for k, cells in enumerate(lines) if any(cell.startswith("Total Time (") for cell in cells)]
    if not headers:
        raise LabkitError(
            f"{path.name} has no summary table: no line has the column `Total Time (ns)`.",
            next_step=f"make it with `nsys stats --report {report} --format csv --output . FILE.nsys-rep`.",
        )
    found = [k for k in headers if {count, name} <= set(lines[k])]
    if not found:
        seen = next((other for other, pair in REPORTS.items() if set(pair) <= set(lines[headers[0]])), "another report")
        raise LabkitError(
            f"{path.name} is not a {report} report: it lacks the column {count} or {name} and looks like {seen}.",
            next_step="pass the name of the report that the file was made with.",
        )
    return _read_rows(lines[found[0]], lines[found[0] + 1 :], count=count, name=name, place=path.name)


def _read_rows(header, lines, *, count: str, name: str, place: str) -> tuple[NsysRow, ...]:
    (total,) = [cell for cell in header if cell.startswith("Total Time (")]
    scale = _UNITS.get(total.removeprefix("Total Time (").rstrip(")"))
    if scale is None:
        raise LabkitError(f"{place}: the unit of {total!r} is unknown.", next_step="use --timeunit nsec.")
    rows = []
    for cells in lines:
        if len(cells) != len(header):  # an empty line, or the title of the next table
            break
        row = dict(zip(header, cells, strict=True))
        try:
            num, total_s = round(_read_number(row[count])), _read_number(row[total]) * scale
        except ValueError:
            raise LabkitError(
                f"{place}: {cells} is not a row of numbers.", next_step="export the table again."
            ) from None
        rows.append((row[name].strip(), num, total_s))
    whole_s = sum(total_s for _, _, total_s in rows)
    made = [NsysRow(n, num, t, t / num if num else 0.0, t / whole_s if whole_s else 0.0) for n, num, t in rows]
    return tuple(sorted(made, key=lambda row: -row.total_s))


def _read_number(text: str) -> float:
    return float(text.replace(",", "").strip())


def load_recorded_tables(*, lab: str, report: str = "cuda_gpu_kern_sum") -> dict[str, tuple[NsysRow, ...]]:
    """Return the tables of this report that were recorded on named GPUs for a lab, as {file name: rows}; may be empty.

    They are in data/recorded/NN/ under the names that `nsys stats --output NAME` gives them: NAME_REPORT.csv.
    """
    folder = find_course_root() / "data" / "recorded" / lab
    ending = f"_{report}.csv"
    paths = sorted(folder.glob(f"*{ending}"))
    return {path.name.removesuffix(ending): load_nsys_csv(path, report=report) for path in paths}


def load_nsys_sqlite(path: str | Path) -> tuple[ProfilerEvent, ...]:
    """Read kernels, copies and CUDA API calls of an `nsys export --type sqlite` file, in seconds since the first one.

    Kernels and copies become events of kind "kernel" on "stream N", API calls events of kind "runtime", for
    `measure_idle` and `measure_table`. Raises LabkitError for any other file.
    """
    path = Path(path)
    if not path.is_file():
        raise LabkitError(f"there is no file {path.name}.", next_step="make it with `nsys export --type sqlite`.")
    connection = sqlite3.connect(f"file:{path.resolve().as_posix()}?mode=ro", uri=True)
    try:
        tables = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
        if "StringIds" not in tables:
            raise LabkitError(f"{path.name} is not an export of nsys: it has no table StringIds.",
                              next_step="make it with `nsys export --type sqlite FILE.nsys-rep`.")  # fmt: skip
        if "CUPTI_ACTIVITY_KIND_KERNEL" not in tables:
            raise LabkitError(f"{path.name} has no kernels (no table CUPTI_ACTIVITY_KIND_KERNEL).",
                              next_step="record a program that uses the GPU, with `--trace=cuda`.")  # fmt: skip
        names = dict(connection.execute("select id, value from StringIds"))
        query = 'select shortName, start, "end", streamId from CUPTI_ACTIVITY_KIND_KERNEL'
        rows = [(names.get(name, "?"), start, end, "kernel", f"stream {stream}")
                for name, start, end, stream in connection.execute(query)]  # fmt: skip
        for table, label in (("MEMCPY", "memcpy"), ("MEMSET", "memset")):
            if f"CUPTI_ACTIVITY_KIND_{table}" in tables:
                query = f'select start, "end", streamId from CUPTI_ACTIVITY_KIND_{table}'
                rows += [(label, start, end, "kernel", f"stream {s}") for start, end, s in connection.execute(query)]
        if "CUPTI_ACTIVITY_KIND_RUNTIME" in tables:
            query = 'select nameId, start, "end", globalTid from CUPTI_ACTIVITY_KIND_RUNTIME'
            rows += [(names.get(name, "?"), start, end, "runtime", tid)
                     for name, start, end, tid in connection.execute(query)]  # fmt: skip
    except sqlite3.DatabaseError as error:
        raise LabkitError(f"{path.name} is not an SQLite export of nsys ({error}).",
                          next_step="make it with `nsys export --type sqlite FILE.nsys-rep`.") from None  # fmt: skip
    finally:
        connection.close()
    origin = min((row[1] for row in rows), default=0)
    events = [ProfilerEvent(name, (start - origin) / 1e9, (end - origin) / 1e9, kind, thread)
              for name, start, end, kind, thread in rows]  # fmt: skip
    return tuple(sorted(events, key=lambda event: (event.start_s, -event.end_s)))


def format_commands(*, context_tokens: int = 256, num_steps: int = 20, python: str = "python") -> str:
    """Return the commands that profile decode steps on a machine with an NVIDIA GPU and the Nsight tools, as text."""
    program = f"{python} -m labkit.profiling --context {context_tokens} --steps {num_steps}"
    return f"""# A timeline of {num_steps} decode steps (only they are recorded), two tables of it, and a database for
# labkit.profiling.nsight.load_nsys_sqlite:
nsys profile --trace=cuda,nvtx --capture-range=cudaProfilerApi --capture-range-end=stop \\
    --force-overwrite=true --output=decode {program}
nsys stats --report cuda_gpu_kern_sum,cuda_api_sum --format csv --output decode decode.nsys-rep
nsys export --type sqlite --force-overwrite=true --output decode.sqlite decode.nsys-rep
# Inside the kernels of one step: how near each is to the ceilings of the GPU (slow: every kernel runs many times):
ncu --set basic --profile-from-start off --launch-count 50 --force-overwrite --export decode \\
    {program.replace(f"--steps {num_steps}", "--steps 1")}
ncu --import decode.ncu-rep --page details --csv"""
