"""What do the vendors publish? One row per device in data/reference/devices.csv, each with its source."""

import csv
from dataclasses import dataclass

from labkit.environment import find_course_root
from labkit.errors import HardwareError

__all__ = ["Peak", "find_peak", "load_peaks"]

_FORMATS = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8")


@dataclass(frozen=True, slots=True)
class Peak:
    """The published limits of one device: bytes, bytes per second, dense FLOPs per second (never "with sparsity").

    `flop_per_s` holds the formats that the device has ("fp32", "tf32", "fp16", "bf16", "fp8", "int8"): on matrix units
    with accumulation in 32 bits where it has them; operations of int8 count as FLOPs. `num_units`: SMs of a GPU, cores
    of a processor row. What a device has not, or nobody publishes, is None. `note` says how a number was computed, or
    what differs between sources; `checked` which figures were compared with a second source, and which were not.
    """

    name: str
    kind: str  # "gpu" or "cpu"
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


def load_peaks() -> tuple[Peak, ...]:
    """Return every row of data/reference/devices.csv, in its order."""
    with (find_course_root() / "data" / "reference" / "devices.csv").open(newline="", encoding="utf-8") as file:
        return tuple(_read_row(row) for row in csv.DictReader(file))


def find_peak(name: str) -> Peak | None:
    """Return the row of a device as its driver names it ("NVIDIA H100 80GB HBM3", "Tesla T4"), or None.

    The longest row name whose words all stand in the given name wins, so that "NVIDIA H100 PCIe" is not the SXM board.
    """
    words = set(name.replace("-", " ").replace("/", " ").lower().split())
    fitting = [peak for peak in load_peaks() if set(peak.name.lower().split()) <= words | {"sxm", "one", "core"}]
    if words & {"pcie", "nvl"}:  # other boards than the SXM one of the same name
        fitting = [peak for peak in fitting if "sxm" not in peak.name.lower().split()]
    return max(fitting, key=lambda peak: len(set(peak.name.lower().split()) & words), default=None)


def _read_row(row: dict[str, str]) -> Peak:
    def number(key: str, scale: float = 1.0) -> float | None:
        return float(row[key]) * scale if row[key] else None

    def whole(key: str, scale: int = 1) -> int | None:
        return int(row[key]) * scale if row[key] else None

    try:
        major, _, minor = row["capability"].partition(".")
        return Peak(
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
            f"devices.csv: the row {row.get('name')!r} does not read ({error}).",
            next_step="fetch data/reference/devices.csv again with git.",
        ) from None
