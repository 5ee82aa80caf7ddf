"""What must never be in a record? Secrets, and the places that name a person.

Two signs give a secret away: the name of what holds it (`api_key`, `--hf-token`, `Cookie:`; see `secret_names.py`) and
its own shape (`hf_...`, `sk-...`, a bearer token, a password in an address). A message names the place, never the
secret. What is in doubt is hidden: a setting can be renamed, a secret that was shared cannot be called back.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from labkit.results.secret_names import is_secret_name, is_strong_name

__all__ = ["find_secrets", "format_command", "format_place"]

_HIDDEN = "[redacted]"
_SHAPES = (
    re.compile(r"(?<![A-Za-z0-9])(?:gh[opsur]_|github_pat_)(?P<tail>[A-Za-z0-9]{8,})"),
    # As long as the real ones: "hf_Llama31Instruct" is the name of a model.
    re.compile(r"(?<![A-Za-z0-9])(?:hf_)(?P<tail>[A-Za-z0-9]{30,})"),
    re.compile(r"(?<![A-Za-z0-9])(?:gsk_|r8_|npm_)(?P<tail>[A-Za-z0-9]{20,})"),
    re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)(?P<tail>[A-Z0-9]{12,})"),
    re.compile(r"(?<![A-Za-z0-9])AIza(?P<tail>[A-Za-z0-9_-]{30,})"),
    re.compile(r"(?<![A-Za-z0-9])(?:sk-(?!learn)|glpat-|nvapi-|xox[a-z]-)(?P<tail>[A-Za-z0-9_-]{8,})"),
    re.compile(r"(?i)\bbearer\s+(?P<tail>[a-z0-9._~+/=-]{8,})"),
    re.compile(r"(?P<tail>\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"),
    # A user and a password before the last "@" of an address; digits after the colon are a port, not a password.
    re.compile(r"(?<=://)(?P<tail>(?!\[)[^/\s:@?#]*(?::(?!\d+(?:[/?#]|$))[^\s\"'<>]{0,4000})?)(?=@)"),
    re.compile(r"(?P<tail>-----BEGIN [A-Z ]*PRIVATE KEY)"),
)
# In running text: name=value, "name": "value", Name: value, --name value. A value may stand in quotes.
_NAME = re.compile(r"(?<![\w.-])([\w.-]+)=")
_VALUE = re.compile(r"\"[^\"]*\"|'[^']*'|[^\s&]+")
_QUOTED = re.compile(r"""(["'])([\w.-]+)\1(\s*:\s*)(["'])((?:(?!\4).)+)\4""")
_HEADER = re.compile(
    r"(?i)(?:^|(?<=[\s\"'{,]))([\w-]*(?:authorization|api-?key|cookie|token|pass(?:word|wd|phrase)|pwd))(\s*:\s*)(\S.*)"
)
_OPTION = re.compile(r"(?<!\S)(--?[A-Za-z][\w-]*)(\s+)(?!--)(\"[^\"]*\"|'[^']*'|\S+)")
_HEADER_OPTIONS = ("--header", "--headers", "-H")


def find_secrets(value: object, *, place: str) -> Iterator[str]:
    """Yield a sentence for each thing that looks like a secret, in nested dicts and lists; never the secret itself."""
    found: list[str] = []
    _clean(value, place, found)
    yield from found


def format_command(argv: Iterable[str]) -> list[str]:
    """Write a command line without secrets: what stands behind `--api-key` or `HF_TOKEN=`, and what looks like one.

    What stands behind `--header` and `-H` is hidden always: nobody can know the names of all headers.
    """
    command, before = [], ""
    for argument in map(str, argv):
        command.append(format_place(_hide_argument(argument, before)))
        before = argument
    return command


def format_place(text: str) -> str:
    """Write the paths in a text relative to the course, or to the user's home as "~": they name no person then."""
    if "/" not in text:
        return text
    from labkit.environment import find_course_root
    from labkit.errors import InstallError

    places: list[tuple[str, str]] = []
    with contextlib.suppress(InstallError):
        places.append((str(find_course_root()), "."))
    with contextlib.suppress(RuntimeError):
        places.append((str(Path.home()), "~"))
    for folder, short in places:
        if folder.strip("/"):
            # A whole path, not the middle or the beginning of another; `-I/home/me` is one too.
            path = rf"(?:(?<![\w.~-])|(?<=-[A-Za-z])){re.escape(folder)}(?![\w-]|\.\w)"
            text = re.sub(path, lambda match, short=short: short, text)
    return text


def _clean(value: object, place: str, found: list[str]) -> object:
    """Return the value with its secrets hidden, and add a sentence about each to `found`."""
    if isinstance(value, dict):
        return {_hide_text(str(key)): _clean_item(key, item, place, found) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return _clean_list(value, place, found)
    if isinstance(value, str) and (hidden := _hide_text(value)) != value:
        found.append(f"{place} looks like a secret (by its value)")
        return hidden
    return value


def _clean_item(key: object, item: object, place: str, found: list[str]) -> object:
    shown = _hide_text(str(key))
    inside = f"{place}.{shown}" if place else shown
    if shown != str(key):
        found.append(f"a key{place and f' of {place}'} looks like a secret (by its value)")
    if is_secret_name(str(key), item):
        found.append(f"{inside} looks like a secret (by its name)")
        return _HIDDEN
    return _clean(item, inside, found)


def _clean_list(values: Iterable[object], place: str, found: list[str]) -> list:
    """A list may be a command line: an option then says what the next item is."""
    cleaned, before = [], ""
    for index, item in enumerate(values):
        inside = f"{place}[{index}]"
        if isinstance(item, str) and (hidden := _hide_argument(item, before)) != item:
            found.append(f"{inside} looks like a secret (by its value or what stands before it)")
            cleaned.append(hidden)
        else:
            cleaned.append(_clean(item, inside, found))
        before = item if isinstance(item, str) else ""
    return cleaned


def _hide_argument(argument: str, before: str) -> str:
    """Hide what is secret in one argument of a command, knowing the one before it."""
    is_value = "=" not in before and not argument.startswith("--")
    if before in _HEADER_OPTIONS and is_value:
        return _hide_header(argument)
    if before.startswith("-") and is_value and is_secret_name(before, argument):
        return _HIDDEN
    name, sign, value = argument.partition("=")
    if name in _HEADER_OPTIONS and sign:
        return f"{name}={_hide_header(value)}"
    if argument.startswith("-H") and len(argument) > 2 and ":" in argument:
        return f"-H{_hide_header(argument[2:])}"
    if name.startswith("-") and sign:
        return f"{name}={_HIDDEN if is_secret_name(name, value) else _hide_text(value)}"
    return _hide_text(argument)


def _hide_header(text: str) -> str:
    name, sign, _ = text.partition(":")
    return f"{name}: {_HIDDEN}" if sign else _HIDDEN


def _hide_text(text: str) -> str:
    """Hide what is secret in a text: JSON, `NAME=value`, `Name: value`, `--name value`, addresses, known shapes."""
    if text.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError, RecursionError):  # no JSON: a text like any other
            found: list[str] = []
            cleaned = _clean(json.loads(text), "", found)
            if found:
                return json.dumps(cleaned)
    name, sign, value = text.partition("=")
    if sign and re.fullmatch(r"[\w.-]+", name) and is_secret_name(name, value):
        return f"{name}={_HIDDEN}"  # all of it: a password may hold any character
    for shape in _SHAPES:
        text = shape.sub(lambda match: _HIDDEN if _is_random(match) else match[0], text)
    text = _QUOTED.sub(_hide_quoted, text)
    text = _HEADER.sub(_hide_header_line, text)
    text = _OPTION.sub(_hide_option, text)
    return _hide_pairs(text)


def _hide_quoted(match: re.Match) -> str:
    quote, name, colon, mark, value = match.groups()
    return f"{quote}{name}{quote}{colon}{mark}{_HIDDEN}{mark}" if _is_clear_name(name, value) else match[0]


def _hide_header_line(match: re.Match) -> str:
    name, colon, value = match.groups()
    return f"{name}{colon}{_HIDDEN}" if _is_clear_name(name, value) else match[0]


def _hide_option(match: re.Match) -> str:
    name, space, value = match.groups()
    return f"{name}{space}{_HIDDEN}" if is_secret_name(name, value) else match[0]


def _hide_pairs(text: str) -> str:
    place = 0
    while match := _NAME.search(text, place):
        place, name = match.end(), match[1]
        is_query = text[max(0, match.start() - 1)] in "?&"  # in running text `key=len` is code
        is_secret = is_secret_name(name, "text") if is_query else is_strong_name(name, "text")
        if is_secret and (value := _VALUE.match(text, place)):
            text = text[:place] + _HIDDEN + text[value.end() :]
            place += len(_HIDDEN)
    return text


def _is_clear_name(name: str, value: str) -> bool:
    # In running text "token: a word" and {"key": "value"} are prose and code; "X-Vault-Token: ..." is neither.
    return is_secret_name(name, value) and (is_strong_name(name, value) or "-" in name or "_" in name)


def _is_random(match: re.Match) -> bool:
    # "hf_transformers" and "sk-learn" are words; keys have digits, capitals or great length.
    tail = match["tail"]
    return bool(re.search(r"[0-9A-Z:]", tail)) or len(tail) >= 20
