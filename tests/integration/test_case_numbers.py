"""No case of the reliability plan that concerns a server is forgotten: each is named by the tests that show it."""

import re
from pathlib import Path

from tests.integration.bad_requests import CATALOGUE

TESTS = Path(__file__).parents[1]
BAD_INPUTS = [*range(1, 67), 80, 81, 84]
FAULTS = [*range(1, 13), 23, 24]


def named(text: str, letter: str) -> set[int]:
    """Return the numbers that a text names: B07, or B48 to B52, or the name of a test as test_b07_.."""
    found = {int(number) for number in re.findall(rf"\b{letter}(\d\d)\b", text)}
    found |= {int(number) for number in re.findall(rf"\bdef test_{letter.lower()}(\d\d)_", text)}
    for first, last in re.findall(rf"\b{letter}(\d\d) to {letter}(\d\d)\b", text):
        found |= set(range(int(first), int(last) + 1))
    return found


def test_every_case_is_named_by_a_test() -> None:
    texts = [path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py") if path != Path(__file__)]
    bad = {int(name[1:].rstrip("b")) for name in CATALOGUE}.union(*(named(text, "B") for text in texts))
    faults = set[int]().union(*(named(text, "F") for text in texts))
    assert [number for number in BAD_INPUTS if number not in bad] == []
    assert [number for number in FAULTS if number not in faults] == []
