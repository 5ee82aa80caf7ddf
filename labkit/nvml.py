"""NVIDIA's management library (NVML): opened, asked and closed in one place.

A missing binding, a missing driver and a question that a GPU does not support are ordinary answers: None.
"""

from typing import Any

__all__ = ["Nvml"]


class Nvml:
    """NVML, open until `close()` or the end of a `with` block.

    Attributes:
        error: why the first question that got no answer got none; None if there was no such question.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._binding = None
        try:
            import pynvml  # the distribution nvidia-ml-py

            pynvml.nvmlInit()
            self._binding = pynvml
        except Exception as error:  # not installed, or no driver; NVML raises a class of its own for each reason
            self.error = error

    def ask(self, name: str, *arguments) -> Any | None:
        """Call NVML's function `name` and return its answer (bytes as text), or None; None too if an argument is."""
        if self._binding is None or None in arguments:
            return None
        try:
            value = getattr(self._binding, name)(*arguments)
        except Exception as error:
            self.error = self.error or error
            return None
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def close(self) -> None:
        """Close the session; afterwards every answer is None."""
        self.ask("nvmlShutdown")
        self._binding = None

    def __enter__(self) -> "Nvml":
        return self

    def __exit__(self, *_) -> None:
        self.close()
