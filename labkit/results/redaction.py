"""What must never be in a record? Secrets, and paths that name a person.

Two signs give a secret away: the name of what holds it (`api_key`, `--hf-token`, `Cookie:`) and its own shape
(`hf_...`, `sk-...`, a bearer token, a password in a URL). A message names the place, never the secret. When in doubt
the rest of the text is hidden: a setting can be renamed, a shared secret cannot be called back.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["find_secrets", "format_command", "format_place"]

_HIDDEN = "[redacted]"
_SHAPES = [
    re.compile(pattern)
    for pattern in (
        r"(?<![A-Za-z0-9])(?:gh[opsur]_|github_pat_)(?P<tail>[A-Za-z0-9]{8,})",
        # As long as the real ones: "hf_Llama31Instruct" is the name of a model.
        r"(?<![A-Za-z0-9])(?:hf_)(?P<tail>[A-Za-z0-9]{30,})",
        r"(?<![A-Za-z0-9])(?:gsk_|r8_|npm_)(?P<tail>[A-Za-z0-9]{20,})",
        r"(?<![A-Za-z0-9])(?:AKIA|ASIA)(?P<tail>[A-Z0-9]{12,})",
        r"(?<![A-Za-z0-9])AIza(?P<tail>[A-Za-z0-9_-]{30,})",
        r"(?<![A-Za-z0-9])(?:sk-(?!learn)|glpat-|nvapi-|xox[a-z]-)(?P<tail>[A-Za-z0-9_-]{8,})",
        r"(?i:\bbearer\s+)(?P<tail>[A-Za-z0-9._~+/=-]{8,})",
        r"(?P<tail>\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)",
        # A user and a password before the last "@" of a URL; digits after the colon are a port, not a password.
        r"(?<=://)(?P<tail>(?!\[)[^/\s:@?#]*(?::(?!\d+(?:[/?#]|$))[^\s\"'<>]{0,4000})?)(?=@)",
        r"(?P<tail>-----BEGIN [A-Z ]*PRIVATE KEY)",
    )
]

# A name is split into its words: `apiKey`, `api_key` and `--api-key` are all "api key".
_SECRET_NAME = re.compile(
    r"\b(pass(word|wd|phrase)s?|pwd|secrets?|credentials?|authorization|auth|cookies?|bearer|(api|auth|access|hf)token"
    r"|(api|access|secret|private)keys?|(api|access|private|auth|secret|hf|hub|huggingface|github|gitlab|openai"
    r"|anthropic|wandb|bot|bearer|refresh) (key|token)s?)\b"
)
# What describes a secret is not one: how many there are, its length, the name of its file.
_COUNT = "num|max|min|has|is|use|total|no|enable|disable"
_DESCRIPTION = re.compile(
    rf"({_COUNT})\b.*|(.* )?(length|size|count|d?type|names?|file|path|folder|policy|prompt|method|mode|env|variable"
    r"|var|header|format|ids?)"
)
# "Token" and "key" are also words of the field: a special token, a key to sort by, a part of attention.
_FIELD_NAME = re.compile(
    rf".*\b({_COUNT}|eos|bos|pad|unk|stop|mask|sep|cls|per|first|last|next|image|audio|video|special|draft|begin|end"
    r"|start|think|prompt|output|input|query|value|sort|cache|primary|foreign|group|partition|hash|dict|block|prefix"
    r"|routing) .*"
)
_SPECIAL_TOKEN = re.compile(r"<[^<>]*>|\[[A-Z_]+\]|\s*")  # "<|im_end|>", "[PAD]", "\n"

# In running text: name=value, name: value, "name": value, --name value.
_NAMED = re.compile(r"(?<![\w.-])([\w.-]+)(=|[\"']?\s*:\s*|\s+(?!--))(?=\S)")
_OPTION = re.compile(r"--?[A-Za-z][\w-]*")
_HEADER_OPTION = re.compile(r"-H.*|--headers?")  # any header may be secret: their names are not all known
_HEADER_NAME = re.compile(r"([\"']?[\w-]+:\s*)?")
# A name before a colon is prose, unless it has the form of a header or is quoted.
_HEADER = re.compile(r"(?i).*(authorization|api-?key|cookie|token|pass(word|wd|phrase)|pwd)")
_JSON = re.compile(r"(--?[\w-]+=)?\s*(?=[\[{])")


def find_secrets(value: object, *, place: str) -> Iterator[str]:
    """Yield a sentence for each thing that looks like a secret, in nested dicts and lists; never the secret itself.

    `place` names the value in these sentences; keys and indices are added to it.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            shown = _hide(str(key))
            inside = f"{place}.{shown}" if place else shown
            if shown != str(key):
                yield f"a key{place and f' of {place}'} looks like a secret (by its value)"
            if _is_secret(str(key), item):
                yield f"{inside} looks like a secret (by its name)"
            else:
                yield from find_secrets(item, place=inside)
    elif isinstance(value, list | tuple):
        before = ""  # a list may be a command line: an option says what the next item is
        for index, item in enumerate(value):
            inside = f"{place}[{index}]"
            if not isinstance(item, str):
                yield from find_secrets(item, place=inside)
            elif _hide(item, before=before) != item:
                yield f"{inside} looks like a secret (by its value or what stands before it)"
            before = item if isinstance(item, str) else ""
    elif isinstance(value, str) and _hide(value) != value:
        yield f"{place} looks like a secret (by its value)"


def format_command(argv: Iterable[str]) -> list[str]:
    """Return a command line without secrets and without paths that name a person."""
    arguments = [str(argument) for argument in argv]
    pairs = zip(["", *arguments], arguments, strict=False)
    return [format_place(_hide(argument, before=before)) for before, argument in pairs]


def format_place(text: str) -> str:
    """Write the paths in a text relative to the course, or to the user's home as "~", so that they name no person."""
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


def _hide(text: str, *, before: str = "") -> str:
    """Hide what is secret in a text; `before` is the item before it in a list, which may be an option."""
    if (start := _JSON.match(text)) and _holds_secret_json(text[start.end() :]):
        return text[: start.end()] + _HIDDEN
    for shape in _SHAPES:
        text = shape.sub(lambda match: _HIDDEN if _is_random(match["tail"]) else match[0], text)
    is_value = bool(_OPTION.fullmatch(before)) and not text.startswith("--")
    offset = len(before) + 1 if is_value else 0
    line = f"{before} {text}" if is_value else text
    for match in _NAMED.finditer(line):
        name, value = match[1], line[match.end() :].strip("\"'}, ")
        if match.start() == 0 and _HEADER_OPTION.fullmatch(name):
            return line[offset : _HEADER_NAME.match(line, match.end()).end()] + _HIDDEN
        if not value.startswith(_HIDDEN) and _is_secret(name, value) and _is_assignment(match):
            return line[offset : match.end()] + _HIDDEN  # to the end: a password may contain any character
    return text


def _is_assignment(match: re.Match) -> bool:
    """Tell whether a secret's name and what follows it in a text are more than prose or code."""
    name, sign = match[1], match[2]
    is_certain = bool(_SECRET_NAME.search(_split(name)))
    if name.startswith("-"):
        return True
    if sign == "=":  # in running text `key=len` is code; in a query, or alone, it is not
        return is_certain or match.start() == 0 or match.string[match.start() - 1] in "?&"
    if sign[0] in "\"'":
        return is_certain or "-" in name or "_" in name
    return ":" in sign and bool(_HEADER.fullmatch(name)) and (is_certain or "-" in name or "_" in name)


def _holds_secret_json(text: str) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        return any(find_secrets(json.loads(text), place=""))
    return False


def _is_secret(name: str, value: object) -> bool:
    """Tell whether a value under this name is a secret; nothing, True and False never are."""
    words = _split(name)
    if not value or isinstance(value, bool) or _DESCRIPTION.fullmatch(words):
        return False
    if _SECRET_NAME.search(words):
        return True
    # "Token" or "key" alone: a number under it is a setting.
    is_possible = words.split()[-1:] in (["token"], ["key"]) and not _FIELD_NAME.fullmatch(words)
    return is_possible and _holds_text(value)


def _split(name: str) -> str:
    return " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)).lower()


def _holds_text(value: object) -> bool:
    if isinstance(value, dict | list | tuple):
        return any(map(_holds_text, value.values() if isinstance(value, dict) else value))
    return isinstance(value, bytes) or (isinstance(value, str) and not _SPECIAL_TOKEN.fullmatch(value))


def _is_random(tail: str) -> bool:
    # "hf_transformers" and "sk-learn" are words; keys have digits, capitals or great length.
    return bool(re.search(r"[0-9A-Z:]", tail)) or len(tail) >= 20
