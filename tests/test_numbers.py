"""A measured number in prose comes from a file under data/, and this test compares both.

Write the number with a marker in front, in the README or in a Markdown cell of a source:

    It decodes <!-- number: data/recorded/00/cpu.json#/decode/p50 .1f -->201.4 tok/s.

The marker is an HTML comment, so no reader sees it. It holds three things, or four:

    data/recorded/00/cpu.json      the file, under data/: .json, .jsonl (a record in each line) or .csv
    #/decode/p50                   the value's place in it. .json: keys and list positions; .jsonl: the record's id,
                                   then its keys; .csv: the text in the row's first column, then the column's name
    *1000                          a factor, if the text uses another unit (0.0123 s is written as 12.3 ms)
    .1f                            the format, as in format(value, ".1f"); `,.0f` and `.1%` work too

A number with a unit of speed or of a short time, such as `120 tok/s`, `12 ms` or `80 GB/s`, that has no marker fails.
One that was not measured (a worked example, a definition, a simulated delay) is listed with its reason in the lab's
numbers.txt.
"""

import csv
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MARKER = re.compile(
    r"<!--\s*number:\s*(?P<file>[^\s#]+)#(?P<pointer>\S+)(?:\s+\*(?P<factor>\S+))?\s+(?P<format>[^\s*]\S*)\s*-->"
    r"\s*(?P<text>[-+]?\d[\d.,]*(?:e[-+]?\d+)?%?)"
)
ANY_MARKER = re.compile(r"<!--\s*number:.*?-->", re.DOTALL)
UNIT = (
    r"[kMGT]?tok(?:ens?)?/s|tokens? (?:per|a) second|requests?/s|req/s"
    r"|[mµun]s\b|milliseconds|microseconds"
    r"|[kMGT]i?B/s|[MGTP]?FLOPS?/s|[MGTP]FLOPS\b"
    r"|J/tok(?:en)?|joules? per token"
    r"|(?:x|×|times)\s+(?:faster|slower|more|less|the\s+speed|speed-?up)|[x×]\s+speed-?up"
)
MEASURED = re.compile(rf"(?<![\w.])(?P<number>\d[\d.,]*\d|\d)(?:\s|&nbsp;|-)?(?P<unit>{UNIT})")


def load_not_measured():
    """Return {file: {"number unit" as written there: why it is not a measurement}} from each lab's numbers.txt."""
    found = {}
    for path in sorted((ROOT / "solutions" / "src").glob("*/numbers.txt")):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        source = path.with_name("lab.py").relative_to(ROOT).as_posix()
        found[source] = dict(line.split(": ", maxsplit=1) for line in lines if line.strip())
    return found


NOT_MEASURED = load_not_measured()


def load_prose():
    """Return {file: its text} for the README and the Markdown cells of every source."""
    # The table of the load tools is generated from its record, and test_agreement.py compares the two.
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = {"README.md": re.sub(r"<!-- agreement -->.*?<!-- /agreement -->", "", readme, flags=re.DOTALL)}
    for path in sorted((ROOT / "solutions" / "src").glob("[0-9][0-9]_*/lab.py")):
        lines, is_markdown = [], False
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("# %%"):
                is_markdown = line.startswith("# %% [markdown]")
            elif is_markdown:
                lines.append(line.removeprefix("#").strip())
        prose[path.relative_to(ROOT).as_posix()] = "\n".join(lines)
    return prose


def load_value(file, pointer, *, root=ROOT):
    """Return the value that a marker points to. Raises AssertionError with the place if it does not exist."""
    assert file.startswith("data/"), f"{file}: a number comes from a file under data/"
    assert not file.startswith("data/runs/"), f"{file}: data/runs is the learner's own and does not travel"
    path, keys = root / file, pointer.strip("/").split("/")
    assert path.is_file(), f"{file} is missing"
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        first = next(iter(rows[0]))
        value = {row[first]: row for row in rows}
    elif path.suffix == ".jsonl":
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        value = {record["id"]: record for record in records}
    else:
        value = json.loads(path.read_text(encoding="utf-8"))
    for key in keys:
        is_there = key.lstrip("-").isdigit() and int(key) < len(value) if isinstance(value, list) else key in value
        assert is_there, f"{file}#{pointer}: there is no {key!r}"
        value = value[int(key)] if isinstance(value, list) else value[key]
    return float(value)


def find_wrong_numbers(text, *, root=ROOT):
    """Yield a sentence for each marked number that differs from its file, and for each marker that cannot be read."""
    whole = {match.start() for match in MARKER.finditer(text)}
    for match in ANY_MARKER.finditer(text):
        if match.start() not in whole:
            yield f"{match[0]}: not of the form <!-- number: FILE#/POINTER [*FACTOR] FORMAT -->NUMBER"
    for match in MARKER.finditer(text):
        value = load_value(match["file"], match["pointer"], root=root) * float(match["factor"] or 1)
        expected, shown = format(value, match["format"]), match["text"].rstrip(".,")
        if shown != expected:
            yield f"{match['file']}#{match['pointer']} says {expected}, the text says {shown}"


def find_unmarked_numbers(text):
    """Return every "number unit" of speed or time without a marker in front."""
    for match in MEASURED.finditer(MARKER.sub("marked", text)):
        yield f"{match['number']} {' '.join(match['unit'].split())}"


PROSE = load_prose()


@pytest.mark.parametrize("file", PROSE)
def test_every_marked_number_is_what_its_file_says(file):
    assert list(find_wrong_numbers(PROSE[file])) == []


@pytest.mark.parametrize("file", PROSE)
def test_every_measured_number_has_a_marker(file):
    assert set(find_unmarked_numbers(PROSE[file])) - set(NOT_MEASURED.get(file, {})) == set()


def test_every_entry_of_the_list_has_a_reason_and_is_still_needed():
    for file, entries in NOT_MEASURED.items():
        found = set(find_unmarked_numbers(PROSE[file]))
        for text, reason in entries.items():
            assert len(reason.split()) >= 4, f"{file}: {text}: say why"
            assert text in found, f"{file}: {text} is not there any more"


# The guard itself


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.json").write_text('{"decode": {"p50_s": 0.0123, "all": [200.04, 300]}}')
    (tmp_path / "data" / "b.jsonl").write_text('{"id": "r1", "x": 1}\n{"id": "r2", "x": 2.5}\n')
    (tmp_path / "data" / "c.csv").write_text("model,tok_per_s\npython-11m,190.26\npython-2m,783\n")
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "<!-- number: data/a.json#/decode/p50_s *1000 .1f -->12.3 ms",
        "**<!-- number: data/a.json#/decode/all/0 .1f -->200.0** tok/s.",
        "<!-- number: data/b.jsonl#/r2/x .1f -->2.5 tok/s",
        "<!-- number: data/c.csv#/python-11m/tok_per_s .0f --> 190 tok/s",
        "<!-- number: data/a.json#/decode/p50_s .1% -->1.2%",
    ],
)
def test_a_marked_number_that_is_right_passes(data, text):
    assert list(find_wrong_numbers(text, root=data)) == []
    assert list(find_unmarked_numbers(text)) == []


def test_a_marked_number_that_is_wrong_fails_with_both_values(data):
    (problem,) = find_wrong_numbers("<!-- number: data/c.csv#/python-2m/tok_per_s .0f -->873 tok/s", root=data)
    assert problem == "data/c.csv#/python-2m/tok_per_s says 783, the text says 873"


@pytest.mark.parametrize(
    ("marker", "sentence"),
    [
        ("data/a.json#/decode/p99 .1f", "there is no 'p99'"),
        ("data/a.json#/decode/all/7 .1f", "there is no '7'"),
        ("data/none.json#/x .1f", "is missing"),
        ("labkit/a.json#/x .1f", "under data/"),
        ("data/runs/a.json#/x .1f", "does not travel"),
    ],
)
def test_a_marker_that_points_nowhere_fails(data, marker, sentence):
    with pytest.raises(AssertionError, match=sentence):
        list(find_wrong_numbers(f"<!-- number: {marker} -->1", root=data))


def test_a_marker_that_cannot_be_read_fails(data):
    assert len(list(find_wrong_numbers("<!-- number: data/a.json /decode -->12 ms", root=data))) == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("it runs at 1,234.5 tok/s here", ["1,234.5 tok/s"]),
        ("about 120 tokens per second", ["120 tokens per second"]),
        ("TPOT 12ms, TTFT 0.3 ms", ["12 ms", "0.3 ms"]),
        ("80 GB/s and 1.2 TFLOP/s", ["80 GB/s", "1.2 TFLOP/s"]),
        ("2.5x faster, 3 times slower", ["2.5 x faster", "3 times slower"]),
        ("5 J/token", ["5 J/token"]),
        ("24 GB, 45 minutes, 95 %, 11 million parameters, 90 s, 16 bits", []),
        ("v2 msgs, 3 msgs", []),
    ],
)
def test_the_guard_sees_speeds_and_times_and_nothing_else(text, found):
    assert list(find_unmarked_numbers(text)) == found
