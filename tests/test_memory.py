"""Memory: four numbers that are absent where there is nothing to read, and a peak seen from a second thread."""

import collections
import itertools
import json
import subprocess
import sys
import threading
import types
from types import SimpleNamespace

import numpy as np
import pytest

from labkit.errors import LabkitError
from labkit.memory import measure_peak_rss, measure_release, probe_memory

MIB = 2**20


class NVMLError(Exception):
    pass


def fake_nvml(*, has_driver=True, used_bytes=(7 * MIB, 9 * MIB)):
    """Return a stand-in for pynvml that counts open sessions."""
    nvml = types.SimpleNamespace(NVMLError=NVMLError, num_open=0)

    def init():
        if not has_driver:
            raise NVMLError("driver not loaded")
        nvml.num_open += 1

    def handle(index):
        if index >= len(used_bytes):
            raise NVMLError("invalid argument")
        return index

    nvml.nvmlInit = init
    nvml.nvmlShutdown = lambda: setattr(nvml, "num_open", nvml.num_open - 1)
    nvml.nvmlDeviceGetHandleByIndex = handle
    nvml.nvmlDeviceGetMemoryInfo = lambda index: types.SimpleNamespace(used=used_bytes[index])
    return nvml


def fake_torch(*, is_initialized=True):
    cuda = types.SimpleNamespace(
        is_initialized=lambda: is_initialized,
        device_count=lambda: 1,
        memory_allocated=lambda index: 3 * MIB,
        memory_reserved=lambda index: 5 * MIB,
    )
    return types.SimpleNamespace(cuda=cuda)


def test_on_a_machine_without_gpu_only_rss_is_a_number(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(has_driver=False))
    memory = probe_memory()
    assert memory.pop("rss_bytes") > MIB
    assert memory == {"torch_allocated_bytes": None, "torch_reserved_bytes": None, "nvml_used_bytes": None}
    assert "torch" not in sys.modules


def test_rss_is_what_the_kernel_says():
    psutil = pytest.importorskip("psutil")
    assert probe_memory()["rss_bytes"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)


def test_packages_that_are_not_installed_are_absent_numbers(monkeypatch):
    for name in ("torch", "pynvml", "psutil"):
        monkeypatch.setitem(sys.modules, name, None)  # makes `import name` fail
    assert set(probe_memory().values()) == {None}


def test_a_gpu_gives_three_different_numbers_side_by_side(monkeypatch):
    nvml = fake_nvml()
    monkeypatch.setitem(sys.modules, "torch", fake_torch())
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    memory = probe_memory()
    assert memory["torch_allocated_bytes"] == 3 * MIB
    assert memory["torch_reserved_bytes"] == 5 * MIB
    assert memory["nvml_used_bytes"] == 7 * MIB
    assert probe_memory(gpu_index=1)["nvml_used_bytes"] == 9 * MIB
    assert probe_memory(gpu_index=1)["torch_allocated_bytes"] is None  # torch sees one GPU
    assert probe_memory(gpu_index=2)["nvml_used_bytes"] is None
    assert nvml.num_open == 0  # every session was closed


def test_a_torch_that_does_not_use_cuda_is_left_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", fake_torch(is_initialized=False))
    assert probe_memory()["torch_allocated_bytes"] is None


def test_the_peak_is_seen_while_the_function_runs_and_not_only_around_it():
    is_high, was_seen = threading.Event(), threading.Event()

    def read_rss():
        if is_high.is_set():
            was_seen.set()
            return 90 * MIB
        return 10 * MIB

    def function():
        is_high.set()
        assert was_seen.wait(timeout=30)
        is_high.clear()

    peak = measure_peak_rss(function, interval_s=0.001, read_rss=read_rss)
    assert (peak.before_bytes, peak.peak_bytes, peak.after_bytes) == (10 * MIB, 90 * MIB, 10 * MIB)
    assert peak.growth_bytes == 80 * MIB
    assert peak.num_readings >= 3


def test_a_function_too_short_for_the_watcher_still_has_a_reading_on_both_sides():
    readings = itertools.chain([10, 30], itertools.repeat(5))
    peak = measure_peak_rss(lambda: None, interval_s=60, read_rss=lambda: next(readings))
    assert (peak.before_bytes, peak.peak_bytes, peak.after_bytes, peak.num_readings) == (10, 30, 30, 2)


def test_memory_that_is_kept_shows_in_the_real_reading():
    pytest.importorskip("psutil")
    kept = []
    peak = measure_peak_rss(lambda: kept.append(bytearray(b"x") * (64 * MIB)))
    assert peak.growth_bytes > 48 * MIB


def test_the_watcher_ends_when_the_function_fails():
    num_threads = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        measure_peak_rss(lambda: 1 / 0, read_rss=lambda: 1)
    assert threading.active_count() == num_threads


def test_an_interval_of_zero_is_refused():
    with pytest.raises(LabkitError, match="interval_s"):
        measure_peak_rss(lambda: None, interval_s=0)


# The clean-up of a lab.


class Model:
    """Something that holds memory, can be referred to weakly, and has parameters as torch's modules do."""

    def __init__(self, num_bytes=1000):
        self.weight = Weight(num_bytes)

    def parameters(self):
        return iter([self.weight])


class Weight:
    def __init__(self, num_bytes):
        self.data = bytearray(b"x") * num_bytes


@pytest.mark.slow
def test_what_a_lab_loaded_comes_back_and_the_bytes_are_measured():
    pytest.importorskip("psutil")
    names = {"model": Model(96 * MIB), "tokenizer": Model(), "other": 1}
    release = measure_release(names, "model", "tokenizer")
    assert names == {"other": 1}
    assert release.is_complete and release.names == ("model", "tokenizer")
    assert release.released_bytes > 80 * MIB  # more can come back: what the rest of the process had left lying about
    assert str(release).startswith("Memory: ") and str(release).endswith("Nothing of model, tokenizer is left.")


@pytest.mark.slow
def test_many_small_pieces_of_the_heap_come_back_too():
    """Without the trim, glibc keeps them: each is far below the size from which it maps memory on its own."""
    pytest.importorskip("psutil")
    if not sys.platform.startswith("linux"):
        pytest.skip("only glibc can be asked")
    # The pin at the end lies on top of the heap, so that the heap cannot shrink by itself.
    names = {"pieces": [bytearray(b"x") * 2000 for _ in range(40_000)]}
    pin = bytearray(b"x") * 2000
    release = measure_release(names, "pieces")
    assert release.released_bytes > 50 * MIB and len(pin) == 2000


def test_a_cycle_is_collected():
    model = Model()
    model.itself = model
    names = {"model": model}
    del model
    assert measure_release(names, "model").is_complete


def test_an_untouched_lab_has_nothing_to_give_back():
    release = measure_release({}, "model")
    assert release.names == () and release.is_complete
    assert str(release) == "Memory: nothing was loaded, nothing to give back."


def test_another_variable_that_holds_the_same_is_named():
    names = {"model": Model(), "same": None}
    names["same"] = names["model"]
    release = measure_release(names, "model")
    assert release.kept == ("model",) and release.aliases == ("same",)
    assert "Not all: model is still held in same: delete that too." in str(release)
    assert "same" in names, "only what was asked for is dropped"


def test_a_weight_that_outlives_its_model_is_noticed():
    names = {"model": Model(), "models": [Model()], "by_name": {"a": Model()}}
    held = (names["model"].weight, names["models"][0], names["by_name"]["a"])
    release = measure_release(names, "model", "models", "by_name")
    assert release.kept == ("model", "models", "by_name") and len(held) == 3
    assert "is still held by another object" in str(release)


class Engine:
    """An object with slots and attributes, as caches and engines are."""

    __slots__ = ("__weakref__", "layers")

    def __init__(self, layers):
        self.layers = layers


@pytest.mark.parametrize(
    ("build", "pick"),
    [
        (lambda array: [[array]], lambda value: value[0][0]),
        (lambda array: {"keys": ((array, 1), 2)}, lambda value: value["keys"][0][0]),
        (lambda array: SimpleNamespace(w=array), lambda value: value.w),
        (lambda array: Engine([SimpleNamespace(keys=array)]), lambda value: value.layers[0].keys),
        (lambda array: SimpleNamespace(a=collections.deque([array])), lambda value: value.a[0]),
    ],
)
def test_an_array_deep_in_a_value_that_outlives_it_is_noticed(build, pick):
    namespace = {"engine": build(np.ones(1000))}
    held = pick(namespace["engine"])
    release = measure_release(namespace, "engine")
    assert (release.kept, release.tensor_bytes) == (("engine",), held.nbytes)
    assert "engine is still held by another object" in str(release)
    namespace = {"engine": build(np.ones(1000))}  # and where nobody holds it, all of it is gone
    release = measure_release(namespace, "engine")
    assert (release.is_complete, release.tensor_bytes) == (True, 8000)


def test_what_answers_to_every_name_or_fails_does_not_stop_a_clean_up():
    class Odd:
        def __getattr__(self, name):
            raise RuntimeError

        @property
        def nbytes(self):
            raise RuntimeError

        def parameters(self):
            raise RuntimeError

    assert measure_release({"odd": Odd(), "kind": Odd}, "odd", "kind").names == ("odd", "kind")


def test_a_value_that_holds_itself_comes_to_an_end():
    ring = [np.ones(10)]
    ring.append(ring)
    assert measure_release({"ring": ring}, "ring").tensor_bytes == 80


def test_what_ipython_remembers_is_forgotten_and_other_results_stay():
    names = {"model": Model(), "Out": {3: "kept"}}
    names["_4"] = names["_"] = names["Out"][4] = names["model"]
    release = measure_release(names, "model")
    assert release.is_complete and names == {"Out": {3: "kept", 4: None}}


def test_the_frames_of_the_last_error_do_not_keep_a_model_alive(monkeypatch):
    names = {"model": Model()}
    try:
        (lambda model: 1 / 0)(names["model"])
    except ZeroDivisionError as error:
        monkeypatch.setattr(sys, "last_traceback", error.__traceback__, raising=False)
    assert measure_release(names, "model").is_complete


def test_a_gpus_cache_is_emptied_and_counted(monkeypatch):
    reserved = [5 * MIB]
    torch = fake_torch()
    torch.cuda.memory_reserved = lambda index: reserved[0]
    torch.cuda.empty_cache = lambda: reserved.__setitem__(0, MIB)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    release = measure_release({"model": Model()}, "model")
    assert release.gpu_released_bytes == 4 * MIB
    assert "4.00 MiB on the GPU" in str(release) or "4.0 MiB on the GPU" in str(release)


def test_where_psutil_is_missing_the_objects_are_still_dropped(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    release = measure_release({"model": Model()}, "model")
    assert release.is_complete and release.released_bytes == 0


@pytest.mark.slow
def test_in_a_real_notebook_a_shown_model_is_released(run_notebook):
    from nbformat import v4

    cells = (
        "from labkit.memory import measure_release\n"
        "class Model:\n    def __init__(self): self.data = bytearray(b'x') * (64 * 2**20)\nmodel = Model()\nmodel",
        "release = measure_release(globals(), 'model')",
        "print(release.is_complete, release.released_bytes > 60 * 2**20)",
    )
    done = run_notebook(v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells]))
    assert done.cells[2].outputs[0]["text"] == "True True\n"


def test_the_bytes_of_arrays_are_counted_once():
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(1000)
    release = measure_release({"a": array, "b": [array]}, "a", "b")
    assert release.tensor_bytes == 8000 and not release.is_complete  # this test still holds it
    assert "(7.81 KiB were tensors)" in str(release)


RELEASE_PROGRAM = """
import json
from labkit.memory import measure_release
from labkit.models import find_model, load_model
for _ in range(4):
    names = dict(zip(("model", "tokenizer"), load_model(find_model("target")), strict=True))
    weight_bytes = sum(value.numel() * value.element_size() for value in names["model"].parameters())
    release = measure_release(names, "model", "tokenizer")
    print(json.dumps({
        "is_complete": release.is_complete,
        "tensor_bytes": release.tensor_bytes,
        "released_bytes": release.released_bytes,
        "rss_after_bytes": release.after["rss_bytes"],
        "weight_bytes": weight_bytes,
    }))
"""


@pytest.mark.slow
def test_a_shipped_model_gives_back_its_weights_and_loading_it_again_and_again_does_not_grow():
    """In a process of its own, as a kernel is: a thousand other tests leave holes in the heap."""
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", RELEASE_PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(one["is_complete"] for one in rounds), rounds
    # The weights, and the few frequencies of the rotary positions, which are tensors but no parameters.
    assert all(0 <= one["tensor_bytes"] - one["weight_bytes"] < 1024 for one in rounds), rounds
    # The first time also pays for what libraries keep. From then on a model that stayed would be seen: it is one each.
    weight_bytes = rounds[0]["weight_bytes"]
    assert rounds[-1]["released_bytes"] > 0.7 * weight_bytes, rounds
    assert rounds[-1]["rss_after_bytes"] - rounds[0]["rss_after_bytes"] < 0.7 * weight_bytes, rounds
