"""Text that is safe to keep: bounded, encodable, without what looks like a secret. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

from thornback.faults.redaction import redact

WORD_CHARS = 200
"""No word is longer, when a text is cut."""
MARGIN_CHARS = 8_000
"""Of what is left out, this much is searched for secrets that lie across the cut."""
MARK_CHARS = 48
"""That stand for what was cut out of a text, at most."""


def safe(text: str, limit: int, hide: Callable[[str], str] = redact) -> str:
    """Return an encodable `text` without secrets, at most `limit` characters long.

    Of a text of any length, only as much is looked at as may be kept, and a margin: no secret is
    cut in two before it was seen. What it returns, it returns unchanged.

    Args:
        text: any text.
        limit: in characters.
        hide: removes the secrets; never makes a text longer.
    """
    head = tail = text
    left_out = 0
    if len(text) > 2 * (limit + MARGIN_CHARS):
        head, tail = text[: limit // 4 + MARGIN_CHARS], text[-limit - MARGIN_CHARS :]
        left_out = len(text) - len(head) - len(tail)
    if not left_out:
        text = hide(_encodable(text))
        return text if len(text) <= limit else hide(clip(text, limit))
    head, tail = hide(_encodable(head)), hide(_encodable(tail))
    return hide(_ends(head, tail, len(head) + left_out + len(tail), limit))


def clip(text: str, limit: int) -> str:
    """Return an encodable `text`; over `limit`, its first quarter and its end, with a mark.

    If there is no room for that, its beginning.

    No word is cut at the mark: half a secret could not be recognised any more.
    """
    length = len(text)
    if length <= 2 * limit:
        text = _encodable(text)
        return text if len(text) <= limit else _ends(text, text, len(text), limit)
    return _ends(_encodable(text[:limit]), _encodable(text[-limit:]), length, limit)


def _encodable(text: str) -> str:
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _ends(begin: str, end: str, length: int, limit: int) -> str:
    """Return the ends of a text of which only the begin and the end are at hand."""
    if limit < 4 * MARK_CHARS:
        return begin[:limit]
    head = begin[: limit // 4]
    space = re.search(r"\s\S*\Z", head[-WORD_CHARS:])
    head = head[: len(head) - (len(space[0]) if space else WORD_CHARS)]
    tail = end[max(len(end) - max(limit - len(head) - MARK_CHARS, 0), 0) :]
    space = re.search(r"\s", tail[:WORD_CHARS])
    tail = tail[space.end() if space else WORD_CHARS :]
    left_out = length - len(head) - len(tail)
    # Two spaces: else the mark would be taken for the value of a `password:` that ends the head.
    return f"{head}  [... {left_out} characters left out ...] {tail}"
