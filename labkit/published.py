"""What did others publish? Claims and recorded runs beside the learner's own numbers, and the peaks of devices.

Claims are in `data/reference/published.csv` and device peaks in `data/reference/devices.csv`, one source per row.
Recorded runs are record files under `data/recorded/NN/`. If nothing was recorded the table says so; a gap is never
filled with an invented number.
"""

import csv
from dataclasses import dataclass

from labkit.environment import find_course_root
from labkit.errors import HardwareError, LabkitError
from labkit.results import load_records
from labkit.stats import summarize
from labkit.units import format_interval, format_number

__all__ = [
    "Claim",
    "DevicePeaks",
    "find_device_peaks",
    "format_comparison",
    "load_claim",
    "load_device_peaks",
]

_FORMATS = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8")


@dataclass(frozen=True, slots=True)
class Claim:
    """One published number.

    Attributes:
        name: its key in the table.
        value: the number, as text, in `unit`.
        unit: its unit.
        setup: how it was measured.
        source: where it was published.
    """

    name: str
    value: str
    unit: str
    setup: str
    source: str


@dataclass(frozen=True, slots=True)
class DevicePeaks:
    """The published limits of one device. A value is None if the device does not have it or nobody publishes it.

    Attributes:
        name: as in the table, shorter than the driver's name.
        kind: "gpu" or "cpu".
        capability: CUDA compute capability (major, minor).
        memory_bytes: capacity of the device's memory.
        byte_per_s: memory bandwidth in bytes per second.
        flop_per_s: dense FLOP/s (never "with sparsity") by format: "fp32", "tf32", "fp16", "bf16", "fp8", "int8". On
            matrix units with 32-bit accumulation if there are any; int8 operations count as FLOPs.
        num_units: SMs of a GPU, cores of a CPU row.
        warps_per_unit: resident warps of one SM.
        registers_per_unit: 32-bit registers of one SM.
        shared_bytes_per_unit: shared memory of one SM in bytes.
        l2_bytes: capacity of the L2 cache.
        power_w: board power in watts.
        source: the URL of the numbers.
        note: how a number was computed, or how sources differ.
        checked: which numbers were compared with a second source, and which were not.
    """

    name: str
    kind: str
    capability: tuple[int, int] | None
    memory_bytes: float | None
    byte_per_s: float
    flop_per_s: dict[str, float]
    num_units: int
    warps_per_unit: int | None
    registers_per_unit: int | None
    shared_bytes_per_unit: int | None
    l2_bytes: float | None
    power_w: float | None
    source: str
    note: str
    checked: str


def load_claim(name: str) -> Claim:
    """Return the claim called `name`; an unknown name raises LabkitError with the known ones."""
    with (find_course_root() / "data" / "reference" / "published.csv").open(newline="", encoding="utf-8") as file:
        claims = {row["name"]: Claim(**row) for row in csv.DictReader(file)}
    if name not in claims:
        raise LabkitError(
            f"There is no published claim {name!r}.", next_step=f"Use one of: {', '.join(sorted(claims))}."
        )
    return claims[name]


def format_comparison(claim: Claim, *, lab: str, name: str, key: str, record=None) -> str:
    """Return the table *paper says / recorded on a GPU / you measured* as plain text.

    The middle row is the newest run `name` of `lab` that was recorded on a GPU and has samples `key`. The last row is
    the learner's `record`.
    """
    recorded = load_records(find_course_root() / "data" / "recorded" / lab, lab=lab, name=name).records
    recorded = [r for r in recorded if key in r.samples and r.host.get("gpus")]
    rows = [("paper says", f"{claim.value} {claim.unit}", f"{claim.setup}; {claim.source}")]
    rows.append(("recorded on a GPU", *_describe(recorded[-1], key, claim.unit)) if recorded
                else ("recorded on a GPU", "not recorded yet", ""))  # fmt: skip
    rows.append(("you measured", *_describe(record, key, claim.unit)) if record
                else ("you measured", "not measured yet", ""))  # fmt: skip
    width = max(len(row[1]) for row in rows)
    return "\n".join(f"{who:<18} {value:<{width}}  {how}".rstrip() for who, value, how in rows)


def load_device_peaks() -> tuple[DevicePeaks, ...]:
    """Return every row of data/reference/devices.csv, in the order of the file."""
    with (find_course_root() / "data" / "reference" / "devices.csv").open(newline="", encoding="utf-8") as file:
        return tuple(_read_device(row) for row in csv.DictReader(file))


def find_device_peaks(name: str) -> DevicePeaks | None:
    """Return the peaks of a device by the name that its driver reports ("NVIDIA H100 80GB HBM3", "Tesla T4"), or None.

    The row with the most words in common wins, if all its words are in the given name, so that "NVIDIA H100 PCIe" does
    not match the SXM board.
    """
    words = set(name.replace("-", " ").replace("/", " ").lower().split())
    fitting = [peak for peak in load_device_peaks() if set(peak.name.lower().split()) <= words | {"sxm", "one", "core"}]
    if words & {"pcie", "nvl"}:  # not the SXM board of the same name
        fitting = [peak for peak in fitting if "sxm" not in peak.name.lower().split()]
    return max(fitting, key=lambda peak: len(set(peak.name.lower().split()) & words), default=None)


def _describe(record, key: str, unit: str) -> tuple[str, str]:
    summary = summarize(record.samples[key])
    interval = summary.p50_interval
    value = format_number(summary.p50, spread=interval.high - interval.low if interval else None)
    gpus = record.host.get("gpus") or []
    device = gpus[0]["name"] if gpus else record.host["cpu"]["name"]
    model = record.model or {}
    what = f"{model.get('name')} ({model.get('source')})"
    return f"{value} ({format_interval(interval, write=format_number)}) {unit}", f"{what}, {device}, {record.time[:10]}"


def _read_device(row: dict[str, str]) -> DevicePeaks:
    def number(key: str, scale: float = 1.0) -> float | None:
        return float(row[key]) * scale if row[key] else None

    def whole(key: str, scale: int = 1) -> int | None:
        return int(row[key]) * scale if row[key] else None

    try:
        major, _, minor = row["capability"].partition(".")
        return DevicePeaks(
            name=row["name"],
            kind=row["kind"],
            capability=(int(major), int(minor)) if major else None,
            memory_bytes=number("memory_gb", 1e9),
            byte_per_s=float(row["bandwidth_gb_per_s"]) * 1e9,
            flop_per_s={key: value for key in _FORMATS if (value := number(f"{key}_tflop_per_s", 1e12))},
            num_units=int(row["num_units"]),
            warps_per_unit=whole("warps_per_unit"),
            registers_per_unit=whole("registers_per_unit"),
            shared_bytes_per_unit=whole("shared_kib_per_unit", 1024),
            l2_bytes=number("l2_mib", 2**20),
            power_w=number("power_w"),
            source=row["source"],
            note=row["note"],
            checked=row["checked"],
        )
    except (KeyError, ValueError, TypeError) as error:
        raise HardwareError(
            f"devices.csv: the row {row.get('name')!r} cannot be read ({error}).",
            next_step="restore data/reference/devices.csv with `git checkout`.",
        ) from None
