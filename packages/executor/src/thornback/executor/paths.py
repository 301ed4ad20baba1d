"""Decides whether a text names a local path or a URL: the only place that does. Pure.

A URL is `scheme://...`. Everything else is a local path, whatever characters it has: fsspec would
take `a::b` for a chain of file systems, `~` for a home and `file:x` for a URL. `file://` and
`local://` are local paths in the clothes of a URL and become plain ones. A text with an unknown
scheme is refused, because it is more likely a typing error than a folder called `s4:`.

Rank processes import this module, so it imports neither fsspec nor anything of the driver.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Collection
from urllib.parse import unquote

CONTROL = "control"
STAGING = "staging"
STAGED_DEPTH = 4
"""Folders of a state in which a staged file lies: `staging/<stage>/<assignment id>/<rank>`."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://")  # one letter is a drive, for fsspec too
_CHAIN = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.\-]*::)+[A-Za-z][A-Za-z0-9+.\-]+://")
_LOCAL = ("file", "local")
_WRAPPERS = {
    *("async_wrapper", "asyncwrapper", "blockcache", "cached", "dir", "filecache", "generic"),
    *("libarchive", "reference", "simplecache", "tar", "zip"),
}
"""Protocols of fsspec that only give another view of a second file system."""
_SUFFIX = re.compile(r"(?:\.[A-Za-z0-9_-]{1,16}){1,2}\Z")
_ALIASES = {"s3a": "s3", "gcs": "gs", "az": "abfs", "abfss": "abfs"}
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4095
"""Linux's PATH_MAX is 4096, with the zero byte at the end."""


def is_url(place: str) -> bool:
    """Return whether what `located` returned, or something below it, is a URL."""
    return _SCHEME.match(place) is not None


def located(text: str, folder: str, protocols: Collection[str] | None = None) -> str:
    """Return an absolute local path, or a URL as it is.

    Args:
        text: a path, also a relative one, or a URL.
        folder: absolute local path that relative ones count from.
        protocols: those that fsspec knows; None: any.

    Raises:
        ValueError: it can be neither; the message says why, and does not repeat the text.
    """
    if not text:
        raise ValueError("it is empty: expected a path or a URL")
    if _CHAIN.match(text):
        raise ValueError(
            "chained URLs (a::b://c) are not supported: name the file system itself, without a "
            "cache or archive in front of it"
        )
    if (match := _SCHEME.match(text)) is not None:
        scheme = match[1]
        if scheme not in _LOCAL:
            _check_scheme(scheme, protocols)
            _refuse_zero_bytes(text)
            return text
        rest = text[match.end() :]
        if rest.startswith("localhost/"):
            rest = rest.removeprefix("localhost")
        text = unquote(rest, errors="surrogateescape")
        if not text:
            raise ValueError(f"there is no path behind {scheme}://")
    _refuse_zero_bytes(text)
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ValueError(f"it cannot be the name of a file: {error}") from None
    return os.path.join(folder, text)


def located_state(text: str, folder: str, protocols: Collection[str] | None = None) -> str:
    """Return the absolute path or URL of a state, without a slash at its end; as `located`.

    Raises:
        ValueError: it can be neither, or fsspec would take characters of the URL for a pattern.
    """
    place = without_slash(located(text, folder, protocols))
    if is_url(place) and (found := set("?#*[") & set(_key_of(place).partition("/")[2])):
        raise ValueError(
            f"its URL contains {''.join(sorted(found))!r}, which fsspec takes for a pattern or a "
            "query: choose another name; options go into storage_options="
        )
    return place


def check_file_name(place: str) -> None:
    """Return if a located place can be the name of a file, as far as that can be known by looking
    at it.

    Raises:
        ValueError: it cannot.
    """
    name = posixpath.basename(place)
    if name in ("", ".", "..") or (is_url(place) and not _key_of(place)):
        raise ValueError("that is a folder; name a file")
    if is_url(place):
        return
    longest = max(len(os.fsencode(part)) for part in place.split("/"))
    if longest > MAX_NAME_BYTES:
        raise ValueError(f"a name in it has {longest} bytes, at most {MAX_NAME_BYTES} are possible")
    if len(os.fsencode(place)) > MAX_PATH_BYTES:
        size = len(os.fsencode(place))
        raise ValueError(f"the path has {size} bytes, at most {MAX_PATH_BYTES} are possible")


def staged_name(number: int, node: int, final: str) -> str:
    """Return how a file is called while it is staged: short, whatever its final name is.

    Only the suffix is kept, since writers choose a format by it. Nodes of one gang share a folder.
    """
    match = _SUFFIX.search(posixpath.basename(final))
    return f"{f'{node}-' if node else ''}{number}{match[0] if match else ''}"


def staging_of(staging: str, stage: str, epoch: str, rank: int) -> str:
    """Return the folder for what one rank stages in one assignment; `staging` is that of a state.

    Nothing of that name may be taken for another folder: names of stages are checked.
    """
    return f"{staging.rstrip('/')}/{stage}/{epoch}/{rank}"


def staged_parts(staged: str) -> tuple[str, str, str, int, str] | None:
    """Take the place of a staged file apart: state, stage, assignment id, rank and name.

    None: no rank of ours has made it.
    """
    pieces = staged.rsplit("/", STAGED_DEPTH + 1)
    if len(pieces) != STAGED_DEPTH + 2 or pieces[1] != STAGING or "\0" in staged:
        return None
    state, _, stage, epoch, rank, name = pieces
    if any(piece in ("", ".", "..") for piece in (stage, epoch, name)):
        return None
    if not (rank.isascii() and rank.isdecimal()):
        return None
    return state, stage, epoch, int(rank), name


def is_below(place: str, folder: str) -> bool:
    """Return whether a place is in a folder, or is that folder; both are normalised."""
    return place == folder or place.startswith(f"{folder.rstrip('/')}/")


def normalised(place: str) -> str:
    """Return one spelling for a located place; without looking at the disk.

    Object stores take `a//b` and `a/b` for two keys, so of a URL only the scheme is changed.
    """
    if not is_url(place):
        path = os.path.normpath(place)
        return path[1:] if path.startswith("//") else path
    scheme, _, rest = place.partition("://")
    return f"{_ALIASES.get(scheme, scheme)}://{rest}"


def without_slash(place: str) -> str:
    """Return it without slashes at its end, unless nothing else would be left."""
    scheme, mark, rest = place.partition("://") if is_url(place) else ("", "", place)
    return f"{scheme}{mark}{rest.rstrip('/')}" or "/"


def _key_of(url: str) -> str:
    return url.partition("://")[2].strip("/")


def _check_scheme(scheme: str, protocols: Collection[str] | None) -> None:
    if scheme in _WRAPPERS:
        raise ValueError(
            f"{scheme}:// is a view of another file system: name that file system itself"
        )
    if protocols is not None and scheme not in protocols:
        raise ValueError(
            f"fsspec knows no protocol {scheme!r}. Install the package that brings it, or write "
            f"./{scheme}://... for a local folder of that name"
        )


def _refuse_zero_bytes(text: str) -> None:
    if "\0" in text:
        raise ValueError("it has a zero byte in it")
