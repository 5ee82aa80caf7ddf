"""What must never be in a record? Secrets, and the places that name a person.

Two signs give a secret away: the name of what holds it (`api_key`, `--hf-token`, `PASSWORD`) and its own shape
(`hf_...`, `sk-...`, a bearer token, a password in an address). A message names the place, never the secret.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["find_secrets", "format_command", "format_place"]

_HIDDEN = "[redacted]"
_ALWAYS = {"password", "passwords", "passwd", "passphrase", "secret", "secrets", "credential", "credentials", "apikey"}
_ALWAYS |= {"authorization"}
_PAIRS = re.compile(r"\b(api|access|private|auth|secret) (key|token)s?\b")
# "token" and "key" are also words of the field: a number under them is a setting, and these words before them are too.
_FIELD = {"eos", "bos", "pad", "unk", "stop", "mask", "sep", "cls", "per", "first", "last", "next"}
_SHAPES = (
    re.compile(r"(?<![A-Za-z0-9])(?:hf_|gh[opsur]_|github_pat_|AKIA)(?P<tail>[A-Za-z0-9]{8,})"),
    re.compile(r"(?<![A-Za-z0-9])(?:sk-|glpat-|nvapi-|xox[a-z]-)(?P<tail>[A-Za-z0-9_-]{8,})"),
    re.compile(r"(?i)\bbearer\s+(?P<tail>[a-z0-9._~+/=-]{8,})"),
    re.compile(r"(?P<tail>\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"),
    re.compile(r"(?<=://)(?P<tail>[^/\s:@]+:[^/\s@]+)(?=@)"),
    re.compile(r"(?P<tail>-----BEGIN [A-Z ]*PRIVATE KEY)"),
)
_HEADER = re.compile(r"(?i)^([\w-]*(?:authorization|api-key|token))\s*:\s*\S.*$", re.DOTALL)


def find_secrets(value: object, *, place: str) -> Iterator[str]:
    """Yield a sentence for each thing that looks like a secret, in nested dicts and lists; never the secret itself."""
    if isinstance(value, dict):
        for key, item in value.items():
            inside = f"{place}.{key}" if place else str(key)
            if _is_secret_name(str(key), item):
                yield f"{inside} looks like a secret (by its name)"
            else:
                yield from find_secrets(item, place=inside)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from find_secrets(item, place=f"{place}[{index}]")
    elif isinstance(value, str) and _hide_shapes(value) != value:
        yield f"{place} looks like a secret (by its value)"


def format_command(argv: Iterable[str]) -> list[str]:
    """Write a command line without secrets: what stands behind `--api-key` or `HF_TOKEN=`, and what looks like one."""
    command: list[str] = []
    is_secret_next = False
    for argument in map(str, argv):
        name, sign, value = argument.partition("=")
        is_option = argument.startswith("--")
        if is_secret_next and not is_option:
            command.append(_HIDDEN)
        elif sign and _is_secret_name(name, value):
            command.append(f"{name}={_HIDDEN}")
        elif header := _HEADER.match(argument):
            command.append(f"{header[1]}: {_HIDDEN}")
        elif sign and is_option:
            command.append(f"{name}={format_place(_hide_shapes(value))}")
        else:
            command.append(format_place(_hide_shapes(argument)))
        is_secret_next = argument.startswith("-") and not sign and _is_secret_name(name, "value")
    return command


def format_place(text: str) -> str:
    """Write a path of the course relative to it, and one of the user's home with "~": neither names a person then."""
    if not text.startswith("/"):
        return text
    from labkit.environment import find_course_root
    from labkit.errors import InstallError

    places: list[tuple[str, str]] = []
    with contextlib.suppress(InstallError):
        places.append((str(find_course_root()), "."))
    with contextlib.suppress(RuntimeError):
        places.append((str(Path.home()), "~"))
    for folder, short in places:
        if folder != "/" and (text == folder or text.startswith(folder + "/")):
            return short + text[len(folder) :]
    return text


def _is_secret_name(name: str, value: object) -> bool:
    """Tell whether a value under this name is a secret; nothing, True and False never are."""
    if value is None or value == "" or isinstance(value, bool):
        return False
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    if _ALWAYS & set(words) or _PAIRS.search(" ".join(words)):
        return True
    is_ours = not words or words[-1] not in ("token", "key") or bool(_FIELD & set(words[:-1]))
    return isinstance(value, str | bytes) and not is_ours


def _hide_shapes(text: str) -> str:
    for shape in _SHAPES:
        text = shape.sub(lambda match: _HIDDEN if _is_random(match) else match[0], text)
    return text


def _is_random(match: re.Match) -> bool:
    # "hf_transformers" and "sk-learn" are words; keys have digits, capitals or great length.
    tail = match["tail"]
    return bool(re.search(r"[0-9A-Z:]", tail)) or len(tail) >= 20
