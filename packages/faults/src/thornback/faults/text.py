"""Text that is safe to keep: bounded, encodable, without what looks like a secret. Pure."""

from __future__ import annotations

import re

SECRET = r"pass(?:word|wd|phrase)|secret|api[_-]?key|private[_-]?key|access[_-]?key|credential"
SECRET_KEY = rf"(?i){SECRET}|token(?!s)|cookie|authorization|signature"
HIDDEN = "***"
WORD_CHARS = 200
"""No word is longer, when a text is cut."""

_WORDS = ("pass", "secret", "key", "credential")
# (words of which one must be there, pattern): the search for a word is fast, and mostly in vain.
# The patterns are only strings: `re` compiles and caches them when they are needed, not at import.
# Every repetition before the secret is bounded, so that no text makes them slow.
_REDACTIONS = (
    # password=x, --api-key=x, X-Amz-Signature=x
    (
        (*_WORDS, "token", "signature"),
        rf"(?i)((?:{SECRET}|token|signature)[\w-]{{0,40}}\s?=\s?)['\"]?[^\s'\",;&)]+",
    ),
    # password: x. Not "token: x": parsers say that of harmless things.
    (_WORDS, rf"(?i)((?:{SECRET})[\w-]{{0,40}}:\s?)[^\s'\",;&)]+"),
    # {"token": "x"}
    (
        (*_WORDS, "token"),
        rf"(?i)((?:{SECRET}|token)[\w-]{{0,40}}['\"]:\s?['\"])[^'\"]+",
    ),
    (
        ("authorization",),
        r"(?i)(authorization['\"]?\s?[:=]\s?['\"]?(?:bearer |basic |token )?)[^\s'\",;]+",
    ),
    (("bearer ",), r"(?i)(\bbearer )[\w.~+/-]{8,}"),
    # scheme://user:password@host
    (("://",), r"(://[^\s/:@]{0,100}:)[^\s/@]{1,200}(?=@)"),
    # Shapes of well-known keys: Hugging Face, AWS, GitHub, and those that begin with sk-.
    (
        ("hf_", "akia", "gh", "sk-"),
        r"()\b(?:hf_\w{20,}|AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|sk-[\w-]{20,})",
    ),
)


def safe(text: str, limit: int) -> str:
    """Return `text` without lone surrogates and secrets, at most about `limit` characters long."""
    text = clip(text, limit)
    small = text.lower()
    for words, pattern in _REDACTIONS:
        if any(word in small for word in words):
            text = re.sub(pattern, rf"\1{HIDDEN}", text)
    return text


def clip(text: str, limit: int) -> str:
    """Return an encodable `text`; over `limit`, its first quarter and its end, with a mark.

    The end begins with a whole word, and not with the first one: what is left of a cut
    `password=...` could not be recognised as a secret any more.
    """
    if len(text) > limit:
        head, tail = text[: limit // 4], text[limit // 4 - limit :]
        space = re.search(r"\s", tail[:WORD_CHARS])
        tail = tail[space.end() if space else WORD_CHARS :]
        left_out = len(text) - len(head) - len(tail)
        text = f"{head} [... {left_out} characters left out ...] {tail}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def looks_secret(key: str) -> bool:
    """Return whether a value by this name should not be written down."""
    return re.search(SECRET_KEY, key) is not None
