"""Text of others that is safe to show: on a terminal, within bounds. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str) -> str:
    """Return one line of text in which characters that could drive a terminal are escaped: escape
    sequences, carriage returns, marks that reverse the direction of writing."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def shortened(line: str, chars: int) -> str:
    """Return the beginning of a line, at most so many characters."""
    return line if len(line) <= chars else f"{line[: chars - 3]}..."


def first_line(text: str, chars: int) -> str:
    """Return the first line of a text that is not blank, safe to show and shortened."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    return shortened(printable(line.strip()), chars)


def counted(number: int, noun: str) -> str:
    """Return `1 rank` or `2,000 ranks`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def spans(ranks: Sequence[range], shown: int = 5) -> str:
    """Return `0-4, 7 and 3 more` for ascending ranges of which the first few are shown."""
    texts = [
        f"{piece.start}" if len(piece) == 1 else f"{piece.start}-{piece.stop - 1}"
        for piece in ranks[:shown]
    ]
    more = sum(map(len, ranks[shown:]))
    return ", ".join(texts) + (f" and {more:,} more" if more else "")


def ranges(numbers: Sequence[int]) -> tuple[range, ...]:
    """Return ascending numbers as ranges."""
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return tuple(found)
