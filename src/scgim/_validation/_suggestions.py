"""Names that were probably meant: another spelling, or a slip of one or two letters, but not another drug of the same class."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

# Conventions, tried on the names of some thousand drugs
_LENGTH = {1: 5, 2: 7}  # letters that a name has at least, for one or two slips in it (for one, digits count)
_NUMBER = 4  # digits of a number in which one may be wrong; of shorter ones, such as that of "STAT3", another is another thing
_SUFFIX, _STEM = 4, 5  # letters at the end that names of a class share, and those before them where two slips may be


def close_names(name: Any, known: Iterable[Any], n: int = 1) -> list[str]:
    """The `n` likeliest of the known names that may have been meant by a name that is none of them; empty where none is close."""
    wanted = str(name)
    ranked = [(distance, str(other)) for other in known if (distance := _distance(wanted, str(other))) is not None]
    return [other for _, other in sorted(ranked)[:n]]


def _distance(name: str, other: str) -> int | None:
    """How far a name is from another one; None where it is too far."""
    slips = _slips(_plain(name), _plain(other))
    return max(_LENGTH) + 1 if slips is None and _begins(name, other) else slips


def _plain(name: str) -> str:
    """Letters and digits of a name, in lower case."""
    return "".join(c for c in name.lower() if c.isalnum())


def _begins(name: str, other: str) -> bool:
    """Whether a name is the first words of a known one, or that with something in brackets, as "Trametinib (GSK1120212)" is."""
    short, long = name.lower().strip(), other.lower().strip()
    if len(short) >= _SUFFIX and long.startswith(short):
        return not long[len(short)].isalnum()
    return short.startswith(long) and short[len(long) :].strip().startswith("(")


def _slips(a: str, b: str) -> int | None:
    """Letters to change in one of two names, 0 to 2; None where they are names of two things."""
    length = max(len(a), len(b))
    if a == b:
        return 0
    if not a or not b or abs(len(a) - len(b)) > max(_LENGTH):
        return None
    (words_a, numbers_a), (words_b, numbers_b) = _parts(a), _parts(b)
    if numbers_a != numbers_b:
        is_slip = (
            words_a == words_b and min(len(numbers_a), len(numbers_b)) >= _NUMBER and _edits(numbers_a, numbers_b) == 1
        )
        return 1 if is_slip else None
    edits = _edits(words_a, words_b)
    if edits < 2:
        return edits if edits == 0 or length >= _LENGTH[1] else None
    letters = max(len(words_a), len(words_b))
    is_slip = edits == 2 and letters >= _LENGTH[2] and letters - _common_end(words_a, words_b) >= _STEM
    return 2 if is_slip else None


def _parts(name: str) -> tuple[str, str]:
    """Letters of a name, and its numbers without zeros before them."""
    numbers = re.findall(r"\d+", name)
    return re.sub(r"\d+", "", name), " ".join(number.lstrip("0") for number in numbers)


def _common_end(a: str, b: str) -> int:
    """Letters at the end that two names share, 0 where too few to be those of a class."""
    n = 0
    while n < min(len(a), len(b)) and a[-1 - n] == b[-1 - n]:
        n += 1
    return n if n >= _SUFFIX else 0


def _edits(a: str, b: str) -> int:
    """Letters to insert, leave out, exchange or swap with their neighbour to make one word of another (Damerau and Levenshtein)."""
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            best = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, before[j - 2] + 1)
            row.append(best)
        before, last = last, row
    return last[-1]
