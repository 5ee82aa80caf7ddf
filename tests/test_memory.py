"""Memory: four numbers that are absent where there is nothing to read, and clean-ups that say what came back."""

import collections
import ctypes
import json
import mmap
import platform
import subprocess
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest

from labkit.memory import Release, map_large_blocks, measure_release, measure_tensor_bytes, probe_memory

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


# The clean-up of a lab.


class Model:
    """Something that holds an array and can be referred to weakly."""

    def __init__(self, num_bytes=1000):
        self.weight = Weight(num_bytes)


class Weight:
    """An array of a library that labkit does not know."""

    def __init__(self, num_bytes):
        self.data = bytearray(b"x") * num_bytes

    @property
    def nbytes(self):
        return len(self.data)


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
    namespace = {"engine": build(np.ones(1000))}  # not held by anything else, all of it is gone
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
    array = np.ones(1000)
    release = measure_release({"a": array, "b": [array]}, "a", "b")
    assert release.tensor_bytes == 8000 and not release.is_complete  # this test still holds it
    assert "(tensors: 7.81 KiB" in str(release)


# Nominal and resident bytes.

needs_pagemap = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says which pages are there")


@pytest.mark.parametrize(
    ("tensor_bytes", "resident_bytes", "words"),
    [
        (42 * MIB, 42 * MIB, " (tensors: 42.0 MiB, all resident); "),
        (42 * MIB, 42 * MIB - 1000, " (tensors: 42.0 MiB, all resident); "),
        (21 * MIB, 6 * MIB, " (tensors: 21.0 MiB, 6.00 MiB of it resident); "),
        (21 * MIB, 0, " (tensors: 21.0 MiB, 0 B of it resident); "),
        (21 * MIB, None, " (tensors: 21.0 MiB); "),
        (0, 0, " given back; "),
    ],
)
def test_the_sentence_compares_what_came_back_with_what_was_resident(tensor_bytes, resident_bytes, words):
    memory = {"rss_bytes": 100 * MIB, "torch_reserved_bytes": None}
    assert words in str(Release(memory, memory, ("model",), (), (), tensor_bytes, resident_bytes))


@needs_pagemap
@pytest.mark.parametrize("num_touched", [0, 1, 3, 64])
def test_only_pages_that_were_touched_are_resident(num_touched):
    block = mmap.mmap(-1, 64 * mmap.PAGESIZE)
    block.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(num_touched):
        block[page * mmap.PAGESIZE] = 1
    array = np.frombuffer(block, dtype=np.uint8)
    assert measure_tensor_bytes([array]) == (array.nbytes, num_touched * mmap.PAGESIZE)


@needs_pagemap
def test_parts_of_pages_are_counted_as_parts():
    block = mmap.mmap(-1, 4 * mmap.PAGESIZE)
    block.madvise(mmap.MADV_NOHUGEPAGE)
    block[0] = block[3 * mmap.PAGESIZE] = 1
    array = np.frombuffer(block, dtype=np.uint8)
    assert measure_tensor_bytes([array[100:-300]])[1] == 2 * mmap.PAGESIZE - 400
    assert measure_tensor_bytes([array[100:150]]) == (50, 50)
    assert measure_tensor_bytes([array[mmap.PAGESIZE + 100 :][:50]]) == (50, 0)


@needs_pagemap
def test_a_file_that_is_mapped_becomes_resident_as_it_is_read(tmp_path):
    np.ones(MIB, dtype=np.uint8).tofile(tmp_path / "weights")
    array = np.memmap(tmp_path / "weights", dtype=np.uint8, mode="r")
    nominal_bytes, resident_bytes = measure_tensor_bytes([array])
    assert nominal_bytes == MIB and 0 <= resident_bytes <= MIB
    assert array.sum() == MIB
    assert measure_tensor_bytes([array]) == (MIB, MIB)


def test_tensors_that_share_a_storage_count_it_once_and_a_tensor_without_one_counts_nothing():
    torch = pytest.importorskip("torch")
    whole = torch.ones(1000)
    resident_bytes = 4000 if sys.platform.startswith("linux") else None
    assert measure_tensor_bytes([whole, whole[:10], whole.view(10, 100).T]) == (4000, resident_bytes)
    assert measure_tensor_bytes([torch.ones(1000, device="meta")])[0] == 0


def test_what_is_on_a_gpu_is_resident_there():
    storage = SimpleNamespace(data_ptr=lambda: 4096, nbytes=lambda: 7000)
    tensor = SimpleNamespace(untyped_storage=lambda: storage, device=SimpleNamespace(type="cuda"))
    assert measure_tensor_bytes([tensor]) == (7000, 7000 if sys.platform.startswith("linux") else None)


def test_a_system_that_does_not_say_which_pages_are_there_gives_none(monkeypatch):
    def refuse(*_):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", refuse)
    assert measure_tensor_bytes([np.ones(1000)]) == (8000, None)


RELEASE_PROGRAM = """
import dataclasses, json, sys
import torch
from labkit.memory import measure_release, measure_tensor_bytes, probe_memory
from labkit.models import find_model, load_model

dtype, folder = sys.argv[1:]
model = dataclasses.replace(find_model("target"), path_or_id=folder, dtype=dtype)
for is_used in (True, False, True):
    before = probe_memory()["rss_bytes"]
    names = dict(zip(("model", "tokenizer"), load_model(model), strict=True))
    addresses = [one.data_ptr() for one in names["model"].parameters()]
    maps = [line.split()[0].split("-") for line in open("/proc/self/maps") if line.rstrip().endswith(".safetensors")]
    num_mapped = sum(int(low, 16) <= address < int(high, 16) for address in addresses for low, high in maps)
    if is_used:
        with torch.inference_mode():
            names["model"](torch.tensor([[1, 2, 3]]))
    weight_bytes, weights_resident_bytes = measure_tensor_bytes(names["model"].parameters())
    grown_bytes = probe_memory()["rss_bytes"] - before
    release = measure_release(names, "model", "tokenizer")
    print(json.dumps({
        "is_used": is_used, "is_complete": release.is_complete, "sentence": str(release),
        "num_mapped": num_mapped, "num_parameters": len(addresses),
        "weight_bytes": weight_bytes, "tensor_bytes": release.tensor_bytes,
        "weights_resident_bytes": weights_resident_bytes, "resident_bytes": release.resident_bytes,
        "grown_bytes": grown_bytes, "released_bytes": release.released_bytes,
        "rss_after_bytes": release.after["rss_bytes"],
    }))
"""


@pytest.fixture(scope="module")
def folders(root, tmp_path_factory):
    """{dtype of the files: a folder with the target's weights in it}."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shipped, wide = root / "data" / "models" / "python-11m", tmp_path_factory.mktemp("float32")
    AutoModelForCausalLM.from_pretrained(shipped, dtype=torch.float32).save_pretrained(wide)
    AutoTokenizer.from_pretrained(shipped).save_pretrained(wide)
    return {"bfloat16": shipped, "float32": wide}


@pytest.mark.slow
@needs_pagemap
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored_dtype", ["float32", "bfloat16"])
def test_a_model_gives_back_what_loading_made_resident_and_loading_it_again_does_not_grow(folders, dtype, stored_dtype):
    """In a process of its own, as a kernel is: a thousand other tests leave holes in the heap.

    Weights that have the dtype of their file stay mapped from it, others are converted: copied.
    """
    program = [sys.executable, "-c", RELEASE_PROGRAM, dtype, str(folders[stored_dtype])]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    is_mapped = dtype == stored_dtype
    weight_bytes = 11_015_040 * {"float32": 4, "bfloat16": 2}[dtype]
    for one in rounds:
        assert one["is_complete"] and one["weight_bytes"] == weight_bytes, one
        assert one["num_mapped"] == (one["num_parameters"] if is_mapped else 0), one
        # The weights, and the few frequencies of the rotary positions, which are tensors but no parameters.
        assert 0 <= one["tensor_bytes"] - weight_bytes < 1024, one
        assert 0 <= one["resident_bytes"] - one["weights_resident_bytes"] < 1024, one
        if one["is_used"] or not is_mapped:  # a forward pass reads every weight
            assert one["weights_resident_bytes"] == weight_bytes and ", all resident)" in one["sentence"], one
        else:
            # How many pages a load touches, and how many the kernel brings along, is the kernel's business.
            assert one["weights_resident_bytes"] < weight_bytes and " of it resident)" in one["sentence"], one
        assert one["released_bytes"] > 0.9 * one["resident_bytes"], one
    # The first time also pays for what libraries keep. From then on all comes back: a model that stayed would be seen.
    for one in rounds[1:]:
        assert one["released_bytes"] > 0.9 * one["grown_bytes"], one
        assert one["rss_after_bytes"] - rounds[0]["rss_after_bytes"] < 0.5 * weight_bytes, rounds


# glibc's heaps.

HEAP_PROGRAM = """
import ctypes
from labkit.memory import map_large_blocks

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def is_in_heap(*, is_kept=True):
    block = libc.malloc(2**20)
    ranges = [line.split()[0].split("-") for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]")]
    found = any(int(low, 16) <= block < int(high, 16) for low, high in ranges)
    if not is_kept:  # kept ones leave no hole that the next would fill
        libc.free(block)
    return found

before = is_in_heap(is_kept=False)  # freed: from now on glibc would take such blocks from the heap
moved = is_in_heap()
with map_large_blocks():
    inside = is_in_heap()
try:
    with map_large_blocks():
        raise KeyError
except KeyError:
    pass
print(before, moved, inside, is_in_heap())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these options")
def test_inside_a_large_block_is_mapped_and_afterwards_it_comes_from_the_heap_again():
    done = subprocess.run([sys.executable, "-c", HEAP_PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "True", "False", "True"], done.stderr


@pytest.mark.parametrize("change", ["another system", "another C library"])
def test_elsewhere_nothing_is_set_and_nothing_fails(monkeypatch, change):
    if change == "another system":
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("asked a library"))
    else:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with map_large_blocks():
        assert measure_release({"model": Model()}, "model").is_complete
