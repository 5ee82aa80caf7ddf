"""Which names hold secrets? `HF_TOKEN`, `api_key` and `password` do; `eos_token`, `sort_key` and `num_tokens` do not.

"Token" and "key" are words of the field as well, so they need the words around them.
"""

import re

__all__ = ["is_secret_name", "is_strong_name"]


def _words(text: str) -> set[str]:
    return set(text.split())


_STRONG = _words(
    "password passwords passwd passphrase pwd secret secrets credential credentials authorization auth cookie cookies"
    " bearer apikey apikeys apitoken authtoken accesstoken accesskey secretkey privatekey hftoken"
)
_PAIRS = re.compile(
    r"\b(api|access|private|auth|secret|hf|hub|huggingface|github|gitlab|openai|anthropic|wandb|bot|bearer|refresh)"
    r" (key|token)s?\b"
)
# What is said about a secret is none: its length, the name of its file.
_ABOUT = _words(
    "length size count type dtype name names file path folder policy prompt method mode env variable var header format"
    " id ids"
)
_COUNTS = {"num", "max", "min", "has", "is", "use", "total", "no", "enable", "disable"}
# Before "token" or "key": words of the field, which make it a special token, a key to sort by, a part of attention.
_FIELD = _words(
    "eos bos pad unk stop mask sep cls per first last next image audio video special draft begin end start think prompt"
    " output input query value sort cache primary foreign group partition hash dict block prefix routing"
)
_SPECIAL = re.compile(r"<[^<>]*>|\[[A-Z_]+\]|\s*")  # "<|im_end|>", "[PAD]", "\n"


def is_secret_name(name: str, value: object) -> bool:
    """Tell whether a value under this name is a secret; nothing, True and False never are."""
    if is_strong_name(name, value):
        return True
    words = _split(name)
    if not value or not words or words[-1] not in ("token", "key") or (_FIELD | _COUNTS) & set(words[:-1]):
        return False
    return _holds_text(value)  # a number under "token" or "key" is a setting


def is_strong_name(name: str, value: object) -> bool:
    """Tell whether the name alone says so, whatever the value is: `password`, `api_key`, but not `password_length`."""
    words = _split(name)
    if not value or isinstance(value, bool) or not words or words[-1] in _ABOUT or words[0] in _COUNTS:
        return False
    return bool(_STRONG & set(words) or _PAIRS.search(" ".join(words)))


def _split(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def _holds_text(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_text, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_text, value))
    return isinstance(value, str | bytes) and not (isinstance(value, str) and _SPECIAL.fullmatch(value))
