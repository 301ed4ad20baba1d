"""Removes secrets from texts: by their shape, and by their value where it is known. Pure.

Four kinds of shapes are known:

- *Names*: `password=x`, `--token x`, `"api_key": "x"`, `AccountKey=x;`, a cookie, `Authorization:`.
  `looks_secret` decides which names count; values may be quoted, escaped, or on the next YAML line.
- *URLs*: `scheme://user:password@host`, and `https://token@host`.
- *Well-known keys* of GitHub, GitLab, AWS, Google, Slack, Stripe, OpenAI, npm and others; JWTs.
- *PEM blocks* of private keys.

Out of reach: a secret without a name or a shape of its own (a bare AWS secret access key, a
password in a sentence), words after the first one of an unquoted value, and encoded texts (base64,
gzip). Values that are known to be secret go into a `Redactor`, which finds them anywhere.

The cost is linear in the length of the text, whatever it holds: no repetition is tried at every
length, and a text without any telltale word is only searched for those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

HIDDEN = "***"
MAX_PEM_CHARS = 20_000
MAX_PASSES = 10

# --- names ------------------------------------------------------------------------------------

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_ANYWHERE = re.compile(
    r"passw(?:or)?d|passphrase|secret(?!ar)|credential|authorization"
    r"|(?:api|access|private|account|shared|auth|encryption|signing|master)[_ .-]?key"
    r"|connection[_ .-]?string"
)
_WORDS = frozenset(("pwd", "cookie", "cookies", "passcode"))
_ALONE = (["sig"], ["sas"], ["pw"])
"""Secret only as the whole name: `sig` of a SAS, but not a `sig` among others."""
_WIDE = frozenset(("key", "keys", "auth", "pass", "sas", "sig", "token", "tokens"))
_NO_TOKEN = re.compile(
    "bos|cls|current|end|eos|first|last|mask|max|min|next|pad|prev|sep|special|start|stop|text"
    "|unexpected|unk"
)
"""Words before `token` in names of what models and parsers call so."""
_ABOUT = re.compile(
    "count|dir|error|exception|exists|expired|file|folder|invalid|len|length|manager|missing|name"
    "|path|required|type|warning"
)
"""Last words of names of what is about a secret, and may be shown: `password_file`."""


@lru_cache(maxsize=4096)
def looks_secret(name: str, *, wide: bool = False) -> bool:
    """Return whether a value by this name should not be written down.

    Args:
        name: of a field, variable, option, header; in any style (`apiKey`, `API_KEY`, `api-key`).
        wide: for options of file systems and variables of processes: any `key`, `auth`, or `token`.
    """
    words: list[str] = [word.lower() for word in _WORD.findall(name[:200])]
    if not words or _ABOUT.fullmatch(words[-1]):
        return False
    if _ANYWHERE.search(name[:200].lower()) or not _WORDS.isdisjoint(words):
        return True
    if words in _ALONE or (wide and not _WIDE.isdisjoint(words)):
        return True
    if words[-1].endswith("token"):
        return len(words) == 1 or _NO_TOKEN.fullmatch(words[-2]) is None
    return words[-1] == "signature"


# --- named values -----------------------------------------------------------------------------

_TELLTALES = ("pass", "pwd", "secret", "key", "token", "credent", "auth", "cookie", "sig", "sas")
_KEY_WORDS = ("api ", "access ", "private ", "account ", "shared ", "secret ", "master ")
_AFTER_NAME = re.compile(
    r"""
    [\w-]{0,60}+
    (?: \\{0,7}['"]?[ ]{0,4}(?P<assigned>=>|:=|=|:(?!//))
        [ \t]{0,4}(?P<block>[|>]?[+-]?[ \t]{0,4}\r?\n[ \t]+)?
      | [ ](?P<said>is|was)[ :][ ]?
      | (?P<gap>['"]?,?[ ]{1,4})(?=[bru]?['"]?[^\s-])   # --password x, '--password', 'x'
      | (?P<call>\((?:value=)?(?=b?['"]))               # Secret('x'), as it is printed
      | (?P<xml>>)                                      # <password>x</password>
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)
_OPENING = re.compile(r"[bru]{0,2}\\{0,7}['\"]", re.IGNORECASE)
# A quoted value ends at the same quote, with as many backslashes before it.
_QUOTED = re.compile(
    r"[bru]{0,2}(?P<quote>\\{0,7}['\"])(?P<value>(?:(?!(?P=quote))(?:\\.|[^\\\n]))++)(?P=quote)",
    re.IGNORECASE,
)
_UNCLOSED = re.compile(r"(?P<value>[^\n]++)")
_BARE = re.compile(r"(?P<value>[^\s'\",;&)<>\\]++)")
_COOKIES = re.compile(r"(?P<value>\{[^}\n]*+|[^\n'\"]++)")
_SCHEME = re.compile(
    r"(?:bearer|basic|token|digest|negotiate|ntlm|api-?key|key)\s{1,3}", re.IGNORECASE
)
_CREDENTIALS = re.compile(r"(?P<value>[^\s'\",;]++(?:[ ][^\s'\",;]++)?)")
# What follows is looked at before a value is matched: of a value that is not taken, the cost must
# not depend on its length, since names of others may be in it.
_HARMLESS = re.compile(
    r"(?:none|null|nil|true|false|str|bytes|int|bool|any|object|optional|secretstr|is|not|in)\b"
    r"|\*\*\*|\.\.\."
    r"|[\w-]{1,60}+[:=](?=\s|\Z)",  # another name
    re.IGNORECASE,
)
# Parsers have tokens as well: what looks like a secret one, where the name alone says little.
_TOKEN = re.compile(r"(?!\d++\b)[\w.~+/=%:|@-]{6}")
_RANDOM = re.compile(r"(?=[^\d\s'\",;&)<>\\]{0,99}\d|\S{20})(?!\d++\b)[\w.~+/=%:|@-]{8}")


def _hide_named(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the values of secret names lie."""
    at = 0
    for place in _telltales(text):
        if place < at or (found := _AFTER_NAME.match(text, place)) is None:
            continue
        begin = place
        while begin > max(at, place - 60) and (
            text[begin - 1].isalnum() or text[begin - 1] in "_-"
        ):
            begin -= 1
        if text[max(begin - 8, 0) : begin].lower().endswith(_KEY_WORDS):  # API key: x
            begin = text.rfind(" ", 0, begin - 1) + 1
        # A value may begin with what is another name: go on behind the separator of this one.
        at = found.end()
        span = _value_of(text, begin, found)
        if span is not None:
            yield span
            at = max(at, span[1])


def _telltales(text: str) -> list[int]:
    """Return where names of secrets may be, ascending."""
    small = text.lower()
    if len(small) != len(text):  # a few capital letters are two small ones
        return [found.start() for found in re.finditer("|".join(_TELLTALES), text, re.IGNORECASE)]
    places = []
    for word in _TELLTALES:
        place = small.find(word)
        while place >= 0:
            places.append(place)
            place = small.find(word, place + len(word))
    places.sort()
    return places


def _value_of(text: str, begin: int, found: re.Match[str]) -> tuple[int, int] | None:
    """Return where the value is of the name that begins there; None: it is harmless."""
    assert found.lastgroup is not None
    end = found.start("assigned" if found["assigned"] else found.lastgroup)
    name, at = text[begin:end].rstrip("\\'\" ").lower(), found.end()
    if not looks_secret(text[begin:end].strip("-\\'\" ")):
        return None
    if not (found["assigned"] or found["said"] or _is_followed(text, begin, found)):
        return None
    opening = _OPENING.match(text, at)
    start = opening.end() if opening else at
    if _HARMLESS.match(text, start):
        return None
    if "authorization" in name and found["assigned"]:
        scheme = _SCHEME.match(text, start)
        return _span((_BARE if scheme else _CREDENTIALS), text, scheme.end() if scheme else start)
    is_header = found["assigned"] == ":" and not opening
    if "cookie" in name and (is_header or text.startswith("{", at)):
        return _span(_COOKIES, text, at)
    if found["block"] and not _is_yaml(text, begin, start):
        return None
    if not opening and (
        text[at : at + len(name)].lower() == name.lstrip("-")  # TOKEN, in a usage text
        or (name.endswith("pwd") and text.startswith(("/", "~", "."), at))  # the current folder
    ):
        return None
    if found["said"] or found["call"]:
        looks_random = _RANDOM.match(text, start)
    elif not name.endswith(("token", "signature")) or (opening and found["assigned"] == ":"):
        return _value_at(text, at, opening)
    else:
        looks_random = (_RANDOM if found["assigned"] == ":" else _TOKEN).match(text, start)
    return _value_at(text, at, opening) if looks_random else None


def _value_at(text: str, at: int, opening: re.Match[str] | None) -> tuple[int, int] | None:
    if opening is None:
        return _span(_BARE, text, at)
    return _span(_QUOTED, text, at) or _span(_UNCLOSED, text, opening.end())


def _is_followed(text: str, begin: int, found: re.Match[str]) -> bool:
    """Return whether a value follows a name without `=` or `:`: in options, pairs, calls, XML."""
    before = text[max(begin - 1, 0) : begin]
    if found["call"]:
        return text[begin].isupper()
    if found["xml"]:
        return before == "<"
    return text.startswith("--", begin) or ("," in found["gap"] and before in ("'", '"'))


def _is_yaml(text: str, begin: int, start: int) -> bool:
    """Return whether the only word of the next line is the value of a name that begins its line."""
    line = text[max(text.rfind("\n", 0, begin) + 1, begin - 200) : begin]
    value = text[start : start + 1000].partition("\n")[0]
    return not line.strip(" \t-'\"") and len(value.split()) == 1


def _span(pattern: re.Pattern[str], text: str, at: int) -> tuple[int, int] | None:
    found = pattern.match(text, at)
    return None if found is None else found.span("value")


# --- URLs ---------------------------------------------------------------------------------------

_URL_END = re.compile(r"[\s'\"<>`]")
_USER = re.compile(r"[^\s/:@\[\]'\"<>?#]{0,2000}+")
_PORT = re.compile(r"\d{1,5}(?=[/?#\s'\"),;\]]|\Z)")
_CONTAINERS = ("abfs", "abfss", "wasb", "wasbs")
"""Schemes of the form `container@account`."""


def _hide_in_urls(text: str) -> Iterator[tuple[int, int]]:
    """Yield where passwords of URLs lie: to the last @, as they may hold @ and / themselves."""
    at = end = last = 0
    while (start := text.find("://", at)) >= 0:
        at = start + 3
        if at > end:  # of each run without spaces, its end and last @ are looked for once
            stop = _URL_END.search(text, at)
            end = stop.start() if stop else len(text)
            last = text.rfind("@", at, end)
        if last < at:
            at = max(at, end)
            continue
        user = _USER.match(text, at)
        assert user is not None  # it may be empty
        if text[user.end() : user.end() + 1] == ":":
            if _PORT.match(text, user.end() + 1):
                continue
            secret = (user.end() + 1, last)
            if text[secret[0] : last] in ("", "x-oauth-basic", "x"):
                secret = user.span()
        elif text[user.end() : user.end() + 1] == "@":
            scheme = text[max(start - 10, 0) : start].lower()
            is_web = scheme.endswith(("http", "https"))
            if not is_web and (len(user[0]) < 16 or scheme.endswith(_CONTAINERS)):
                continue
            secret = user.span()
        else:
            continue
        if secret[0] < secret[1] and not text.startswith(HIDDEN, secret[0]):
            yield secret
        at = max(at, secret[1])


# --- keys with a shape of their own ---------------------------------------------------------------

_SHAPES = (
    # (texts of which one must be there, pattern): finding out that there is none is fast.
    (("hf_", "npm_"), r"\b(?:hf|npm)_\w{20,}"),
    (("AKIA", "ASIA"), r"\b(?:AKIA|ASIA)[0-9A-Z]{16}"),
    (("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"), r"\bg(?:h[pousr]|ithub_pat)_\w{20,}"),
    (
        ("gl",),
        r"(?<![\w-])gl(?:pat|dt|rt|rtr|cbt|ptt|ft|imt|agent|soat|oas|ffct)-[\w-]{20,}[\w.-]*",
    ),
    (("xox", "xapp-"), r"(?<![\w-])(?:xox[a-z]|xapp)-[\w-]{10,}"),
    (("hooks.slack.com",), r"(?<=hooks\.slack\.com/services/)[\w/]{20,}"),
    (("AIza", "ya29.", "GOCSPX-"), r"(?<![\w.-])(?:AIza|ya29\.|GOCSPX-)[\w.-]{20,}"),
    (("sk-", "nvapi-", "pypi-"), r"(?<![\w-])(?:sk|nvapi|pypi)-[\w-]{20,}"),
    (("_live_", "_test_", "whsec_"), r"\b(?:[srp]k_(?:live|test)|whsec)_\w{16,}"),
    (("SG.",), r"(?<![\w.-])SG\.[\w-]{16,}\.[\w-]{16,}"),
    (
        ("gsk_", "r8_", "dop_v1_", "shpat_", "lin_api_"),
        r"\b(?:gsk|r8|dop_v1|shpat|lin_api)_\w{20,}",
    ),
    (("dapi",), r"\bdapi[0-9a-f]{32}"),
    (("eyJ",), r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{2,}(?:\.[\w-]*)*"),
    (("earer ", "EARER "), r"(?i)(?<=\bbearer )(?=[^\s\d]{0,100}\d)[\w.~+/=-]{8,}"),
    (("Cookie ",), r"(?<=<Cookie )[^=\s>]{1,100}=[^\s>]+"),
    (("auth=(", "auth': ("), r"(?<=auth=\()[^)\n]+|(?<=auth': \()[^)\n]+"),
)


def _hide_shapes(text: str) -> Iterator[tuple[int, int]]:
    """Yield where keys lie that are known by their shape."""
    for marks, pattern in _SHAPES:
        if any(mark in text for mark in marks):
            for found in re.finditer(pattern, text):
                if not found[0].startswith(HIDDEN):
                    yield found.span()


_PEM = re.compile(r"-----(BEGIN|END) [A-Z0-9 ]{0,30}PRIVATE KEY[A-Z ]{0,10}-----")
_PEM_BODY = re.compile(
    r"(?:\s|\\[nr])*+(?:[A-Za-z-]{1,20}: [^\n]{0,100}\n)*+(?:\s|\\[nr])*+"
    r"(?:[A-Za-z0-9+/=]{16,}+(?:\s|\\[nr])*+)++(?:[A-Za-z0-9+/]{1,15}=)?"
)
_PEM_LINE = re.compile(r"[A-Za-z0-9+/=]{40,100}")
_PEM_LAST_LINE = re.compile(r"[A-Za-z0-9+/=]{1,100}")


def _hide_pem(text: str) -> Iterator[tuple[int, int]]:
    """Yield what lies in blocks of private keys, also where their begin or end was cut off."""
    begun = -1
    for mark in _PEM.finditer(text):
        if mark[1] == "BEGIN":
            if begun >= 0:
                yield from _pem_body(text, begun)
            begun = mark.end()
        elif begun < 0:
            yield from _pem_above(text, mark.start())
        elif mark.start() - begun > MAX_PEM_CHARS:
            yield from _pem_body(text, begun)
            begun = -1
        else:
            yield from _unless_hidden(text, begun, mark.start())
            begun = -1
    if begun >= 0:
        yield from _pem_body(text, begun)


def _pem_body(text: str, begun: int) -> Iterator[tuple[int, int]]:
    body = _PEM_BODY.match(text, begun)
    if body is not None:
        yield from _unless_hidden(text, begun, body.end())


def _pem_above(text: str, end: int) -> Iterator[tuple[int, int]]:
    """Yield the lines of a key above the mark that ends it."""
    begin = end
    floor = max(end - MAX_PEM_CHARS, 0)
    line = _PEM_LAST_LINE
    while begin > floor:
        line_from = max(text.rfind("\n", floor, begin - 1) + 1, floor)
        if not line.fullmatch(text[line_from:begin].strip()):
            break
        begin, line = line_from, _PEM_LINE
    yield from _unless_hidden(text, begin, end)


def _unless_hidden(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield a span without the white space around it, unless nothing is left to hide."""
    inner = text[begin:end]
    begin += len(inner) - len(inner.lstrip())
    end -= len(inner) - len(inner.rstrip())
    if begin < end and text[begin:end] != HIDDEN:
        yield begin, end


# --- the filter -----------------------------------------------------------------------------------


def redact(text: str) -> str:
    """Return the text with `***` for each secret in it, no longer than it was.

    What it returns, it returns unchanged. See the module for what is known, and what is not.
    """
    text = str.__str__(text)
    # What one pass hides may show the next what is a value: most often nothing.
    for _ in range(MAX_PASSES):
        shorter = _redact_once(text)
        if shorter == text:
            break
        text = shorter
    return text


def _redact_once(text: str) -> str:
    if "-----" in text:
        text = _without(text, _hide_pem(text))
    if "://" in text:
        text = _without(text, _hide_in_urls(text))
    text = _without(text, sorted(_hide_shapes(text)))
    return _without(text, _hide_named(text))


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Return the text with each span hidden; spans come in order."""
    parts: list[str] = []
    done = 0
    for begin, end in spans:
        if begin >= done:
            parts += text[done:begin], HIDDEN[: end - begin]
            done = end
    return "".join((*parts, text[done:])) if parts else text


# --- known values ---------------------------------------------------------------------------------

MIN_KNOWN_CHARS = 4
"""Shorter values are not removed by value: they are parts of too many words."""
_ALONE_BELOW = 8
"""Shorter values than this are removed only where they stand alone."""
_LINE_CHARS = 16
_MAX_DEPTH = 8
_COMMON = frozenset(("auto", "basic", "bearer", "default", "false", "none", "null", "true"))


class Redactor:
    """Removes secrets from texts as `redact` does, and known values wherever they are.

    Immutable. Its `repr` tells only how many values it knows.
    """

    __slots__ = ("_known",)

    def __init__(self, values: Iterable[str] = ()) -> None:
        """Take what must not appear in any text; also as written in URLs, JSON and `repr`."""
        forms = {form: None for value in values for form in _forms(value)}
        self._known = tuple(sorted(forms, key=len, reverse=True))

    @classmethod
    def of(cls, *sources: object) -> Redactor:
        """Return one for the secrets in URLs, environments, options: see `known_secrets`."""
        return cls(known_secrets(*sources))

    def redact(self, text: str) -> str:
        """Return the text with `***` for each secret in it, no longer than it was."""
        text = str.__str__(text)
        for value in self._known:
            if value not in text:
                continue
            if len(value) >= _ALONE_BELOW:
                text = text.replace(value, HIDDEN)
            else:
                text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", HIDDEN, text)
        return redact(text)

    def plain(self, value: object) -> Any:
        """Return a copy of JSON-like data, with its texts redacted, and named secrets hidden."""
        return _plain(value, self.redact, _MAX_DEPTH)

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._known)} known values>"


def known_secrets(*sources: object) -> tuple[str, ...]:
    """Return the values in these sources that are known to be secret.

    Args:
        sources: URLs, of which the passwords are taken; mappings (variables of processes, options
            of file systems), of which the values whose names say so are taken; lists of these; at
            any depth.
    """
    found: dict[str, None] = {}
    for source in sources:
        _collect(source, "", found, _MAX_DEPTH)
    return tuple(found)


def _collect(source: object, name: str, found: dict[str, None], depth: int) -> None:
    if isinstance(source, bytes):
        source = source.decode("utf-8", "replace")
    if isinstance(source, str):
        found.update((source[begin:end], None) for begin, end in _hide_in_urls(source))
        if _is_known_secret(name, source):
            found[source] = None
    elif isinstance(source, Mapping) and depth:
        for key, value in source.items():
            inner = str(key)
            # {"password": {"value": "x"}}
            _collect(value, inner if looks_secret(inner, wide=True) else name, found, depth - 1)
    elif isinstance(source, list | tuple) and depth:
        for value in source:
            _collect(value, name, found, depth - 1)


def _is_known_secret(name: str, value: str) -> bool:
    if value.startswith(("/", "~", "./")) and "/" in value:
        return False  # the path of a file
    if looks_secret(name):
        return True
    # `SORT_KEY=timestamp`: what only may be a secret is one if it looks random.
    return looks_secret(name, wide=True) and _RANDOM.match(value) is not None


def _forms(value: str) -> Iterator[str]:
    """Yield a value as it may be written; of several lines, each long one."""
    if len(value) < MIN_KNOWN_CHARS or value.lower() in _COMMON or not value.strip("* "):
        return
    from json import dumps
    from urllib.parse import quote, unquote  # only where there are secrets

    forms = (
        value,
        quote(value, safe=""),
        unquote(value),
        repr(value)[1:-1],
        dumps(value)[1:-1],
    )
    yield from (form for form in dict.fromkeys(forms) if len(form) >= MIN_KNOWN_CHARS)
    lines = value.splitlines()
    if len(lines) > 1:
        yield from (line.strip() for line in lines if len(line.strip()) >= _LINE_CHARS)


def _plain(value: object, hide: Callable[[str], str], depth: int) -> object:
    if isinstance(value, str):
        return hide(value)
    if not depth:
        return value if value is None or isinstance(value, bool | int | float) else HIDDEN
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if isinstance(key, str) and isinstance(item, str) and item and looks_secret(key)
            else _plain(item, hide, depth - 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, hide, depth - 1) for item in value]
    return value
