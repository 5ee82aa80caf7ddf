"""NVML: absent things are None, text is text, and the first reason is kept."""

import sys
from types import SimpleNamespace

import pytest

from labkit.nvml import Nvml


class FakeError(Exception):
    pass


def make_binding(num_gpus=1):
    """Return a stand-in for pynvml that counts open sessions."""
    binding = SimpleNamespace(num_open=0)

    def find(index):
        if index >= num_gpus:
            raise FakeError("Invalid Argument")
        return index

    binding.nvmlInit = lambda: setattr(binding, "num_open", binding.num_open + 1)
    binding.nvmlShutdown = lambda: setattr(binding, "num_open", binding.num_open - 1)
    binding.nvmlDeviceGetHandleByIndex = find
    binding.nvmlDeviceGetName = lambda handle: b"Tesla T4"
    return binding


@pytest.fixture
def binding(monkeypatch):
    binding = make_binding()
    monkeypatch.setitem(sys.modules, "pynvml", binding)
    return binding


def test_a_session_is_closed_and_answers_nothing_afterwards(binding):
    with Nvml() as nvml:
        assert binding.num_open == 1
        assert nvml.ask("nvmlDeviceGetName", 0) == "Tesla T4"
    assert binding.num_open == 0 and nvml.ask("nvmlDeviceGetName", 0) is None


def test_a_session_is_closed_after_an_error_too(binding):
    with pytest.raises(KeyError), Nvml():
        raise KeyError
    assert binding.num_open == 0


def test_a_question_without_an_answer_is_none_and_the_first_reason_is_kept(binding):
    with Nvml() as nvml:
        assert nvml.error is None
        assert nvml.ask("nvmlDeviceGetHandleByIndex", 3) is None
        assert nvml.ask("nvmlDeviceGetName", None) is None, "nothing is asked about a GPU that was not found"
        assert nvml.ask("nvmlNoSuchFunction") is None
        assert str(nvml.error) == "Invalid Argument"


def test_without_a_binding_or_a_driver_every_answer_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Nvml() as nvml:
        assert nvml.ask("nvmlDeviceGetCount") is None and isinstance(nvml.error, ImportError)

    def refuse():
        raise FakeError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=refuse, nvmlDeviceGetCount=lambda: 1))
    with Nvml() as nvml:
        assert nvml.ask("nvmlDeviceGetCount") is None and "Driver Not Loaded" in str(nvml.error)
