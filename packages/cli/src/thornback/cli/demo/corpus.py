"""The demo's text: the interpreter's own standard library and its documentation topics.

A source is named by text, the same on every node that has the same Python: the path of a file
relative to the standard library, or `topic:` and the name of a documentation topic. Nothing here
depends on the current folder or on the order in which a file system lists names.
"""

from __future__ import annotations

import io
import os
import sysconfig
import tokenize
from collections.abc import Sequence
from pathlib import Path

import attrs

TOPIC = "topic:"
_PACKAGES = frozenset({"__pycache__", "dist-packages", "site-packages"})
_TESTS = frozenset({"idle_test", "test", "tests"})
"""Half of the library, and not every Python is installed with them."""
_TOPICS_FILE = "pydoc_data/topics.py"


class NoCorpusError(RuntimeError):
    """This interpreter has no standard library in `.py` files (a zipped or frozen one)."""


@attrs.frozen(kw_only=True, slots=True)
class Corpus:
    """What there is to index."""

    root: Path
    """Folder of the standard library."""
    topics: dict[str, str]
    """Text by name of documentation topic."""

    def sources(self) -> list[str]:
        """Return the names of all sources, sorted.

        Installed packages and the library's own tests are left out, and so is the file that holds
        the topics: its texts are sources of their own.

        Raises:
            NoCorpusError: there is no `.py` file.
        """
        files = []
        for folder, subfolders, names in os.walk(self.root):
            subfolders[:] = [name for name in subfolders if name not in _PACKAGES | _TESTS]
            base = Path(folder).relative_to(self.root)
            files += [(base / name).as_posix() for name in names if name.endswith(".py")]
        if not files:
            raise NoCorpusError(
                f"no .py file below {self.root}: the demo indexes the standard library of the "
                "interpreter that runs it, so use a Python that is installed with its sources"
            )
        kept = sorted(name for name in files if name != _TOPICS_FILE)
        return kept + [TOPIC + name for name in sorted(self.topics)]

    def read(self, source: str) -> bytes:
        """Return the bytes of a source. Raises `OSError` or `KeyError` when it is not there."""
        if source.startswith(TOPIC):
            return self.topics[source.removeprefix(TOPIC)].encode()
        return (self.root / source).read_bytes()


def installed() -> Corpus:
    """Return the corpus of this interpreter (of the base one, in a virtual environment)."""
    from pydoc_data.topics import topics  # 0.7 MB of text: only where it is read

    return Corpus(root=Path(sysconfig.get_path("stdlib")), topics=topics)


def decode(data: bytes) -> str | None:
    """Return the text of Python source, by its declared encoding; None when it does not decode."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding)
    except (LookupError, SyntaxError, UnicodeDecodeError):
        return None


def shares(sources: Sequence[str], count: int) -> list[list[str]]:
    """Return `count` shares of the sources: each source is in one of them, every `count`-th."""
    return [list(sources[first::count]) for first in range(count)]
