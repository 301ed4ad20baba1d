"""Selectors on the labels of nodes: their grammar, which is Ray's, and what they match. Pure.

A selector is `v` (the label has this value), `!v` (it has another one, or is missing), `in(a,b)` or
`!in(a,b)`. Selectors by label hold together. Source: ray 2.60 `_private/label_utils.py` and
`label_selector.cc`; only spaces after a comma differ: Ray accepts them, and then matches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Selectors = Mapping[str, str]
"""Selector by label."""

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"  # without dots: one way to match, in O(n)
_KEY = re.compile(rf"(?:(?=.{{1,253}}/){_PART}(?:\.{_PART})*/)?{_WORD}")
_SELECTOR = re.compile(rf"(!?)(?:({_WORD})|in\(({_WORD}(?:, *{_WORD})*)\))")
_NOBODY = "no-such-value"
_WORDS = (
    "letters and digits, with '-', '_' and '.' inside, at most 63 characters, like zone; a label "
    "may have a prefix, like example.com/zone"
)

Condition = tuple[str, bool, tuple[str, ...]]
"""(label, whether it must have one of the values, or none of them, values)."""


def conditions_of(selectors: Selectors) -> tuple[Condition, ...]:
    """Return the selectors in parts.

    Raises:
        ValueError: a label or a selector is not written as expected.
    """
    return tuple((label, *_parsed(label, selectors[label])) for label in selectors)


def _parsed(label: str, selector: str) -> tuple[bool, tuple[str, ...]]:
    if not isinstance(label, str) or not _KEY.fullmatch(label):
        raise ValueError(f"labels={{{label!r}: ...}}: expected the name of a label: {_WORDS}")
    found = _SELECTOR.fullmatch(selector) if isinstance(selector, str) else None
    if found is None:
        raise ValueError(
            f"labels={{{label!r}: {selector!r}}}: expected 'v', '!v', 'in(a,b)' or '!in(a,b)', "
            "where values are letters and digits, with '-', '_' and '.' inside, at most 63 "
            "characters"
        )
    negated, value, values = found.groups()
    return not negated, tuple(dict.fromkeys(re.split(", *", value or values)))


def _written(wanted: bool, values: Sequence[str]) -> str:
    text = values[0] if len(values) == 1 else f"in({','.join(values)})"
    return text if wanted else f"!{text}"


def normal(selectors: Selectors) -> dict[str, str]:
    """Return the selectors in the one way to write them: without spaces and repetitions.

    Raises:
        ValueError: as `conditions_of`.
    """
    return {label: _written(wanted, values) for label, wanted, values in conditions_of(selectors)}


def matches(selectors: Selectors, labels: Mapping[str, str]) -> bool:
    """Return whether a node with these labels may be used.

    A label that is missing satisfies `!v` and `!in(a,b)`, and nothing else, as in Ray.

    Raises:
        ValueError: a selector is not written as expected.
    """
    return holds(conditions_of(selectors), labels)


def holds(conditions: Sequence[Condition], labels: Mapping[str, str]) -> bool:
    """As `matches`, of selectors that were taken apart once for many nodes."""
    return all((labels.get(label) in values) is wanted for label, wanted, values in conditions)


def could_hold(conditions: Sequence[Condition], labels: Mapping[str, str]) -> bool:
    """As `holds`, where only some of the labels are known: one that is missing may be anything."""
    return holds([each for each in conditions if each[0] in labels], labels)


def leaving_out(selector: str | None, values: Sequence[str]) -> str:
    """Return a selector as narrow as this one (None: any value) that matches none of the values."""
    if selector is None:
        return _written(False, tuple(values))
    _, wanted, named = conditions_of({"label": selector})[0]
    if not wanted:
        return _written(False, tuple(dict.fromkeys((*named, *values))))
    left = tuple(value for value in named if value not in values)
    return _written(True, left or (_NOBODY,))


def show_selectors(selectors: Selectors) -> str:
    """Return selectors for people: `zone=a, market!=spot, disk in (ssd, nvme)`."""
    return ", ".join(_shown(*condition) for condition in conditions_of(selectors))


def _shown(label: str, wanted: bool, values: Sequence[str]) -> str:
    if len(values) == 1:
        return f"{label}{'=' if wanted else '!='}{values[0]}"
    return f"{label} {'in' if wanted else 'not in'} ({', '.join(values)})"
