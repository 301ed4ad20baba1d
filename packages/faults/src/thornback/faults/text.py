"""Text that is safe to keep: bounded, encodable, without what looks like a secret. Pure."""

from __future__ import annotations

import re

SECRET = r"pass(?:word|wd|phrase)|secret|api[_-]?key|private[_-]?key|access[_-]?key|credential"
SECRET_KEY = rf"(?i){SECRET}|token(?!s)|cookie|authorization|signature"
HIDDEN = "***"
WORD_CHARS = 200
"""No word is longer, when a text is cut."""
MARK_CHARS = 48
"""That stand for what was cut out of a text, at most."""

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
    # scheme://token@host, as package indexes take it; a name such as git@ is shorter
    (("://",), r"(://)[^\s/:@]{16,200}(?=@)"),
    # Shapes of well-known keys: Hugging Face, AWS, GitHub, and those that begin with sk-.
    (
        ("hf_", "akia", "gh", "sk-"),
        r"()\b(?:hf_\w{20,}|AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|sk-[\w-]{20,})",
    ),
)


def safe(text: str, limit: int) -> str:
    """Return an encodable `text` without secrets, at most `limit` characters long.

    What it returns, it returns unchanged.
    """
    text = clip(text, limit)
    small = text.lower()
    for words, pattern in _REDACTIONS:
        if any(word in small for word in words):
            text = re.sub(pattern, _hide, text)
    return text


def _hide(match: re.Match[str]) -> str:
    """Return what stands for a secret: no longer than it was, so that no text grows."""
    return match[1] + HIDDEN[: match.end() - match.end(1)]


def clip(text: str, limit: int) -> str:
    """Return an encodable `text`; over `limit`, its first quarter and its end, with a mark.

    If there is no room for that, its beginning.

    No word is cut at the mark: half a secret could not be recognised any more.
    """
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) <= limit or limit < 4 * MARK_CHARS:
        return text[:limit]
    head = text[: limit // 4]
    space = re.search(r"\s\S*\Z", head[-WORD_CHARS:])
    head = head[: len(head) - (len(space[0]) if space else WORD_CHARS)]
    tail = text[len(text) - max(limit - len(head) - MARK_CHARS, 0) :]
    space = re.search(r"\s", tail[:WORD_CHARS])
    tail = tail[space.end() if space else WORD_CHARS :]
    left_out = len(text) - len(head) - len(tail)
    # Two spaces: else the mark would be taken for the value of a `password:` that ends the head.
    return f"{head}  [... {left_out} characters left out ...] {tail}"


def looks_secret(key: str) -> bool:
    """Return whether a value by this name should not be written down."""
    return re.search(SECRET_KEY, key) is not None
