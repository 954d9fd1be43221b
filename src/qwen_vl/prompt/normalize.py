"""Unicode normalisation of prompts.

The release normalises file names too, so that a file with a decomposed name is not found (FACTS quirk 3). Here only the
text outside `<img>..</img>` is normalised (see content.py), so a path is left as it was written.

    normalize("cafe\\u0301")  # "café"
"""

import unicodedata

from qwen_vl.errors import PromptError

MAX_MARKS_IN_A_ROW = 1024  # reordering combining marks takes quadratic time in the length of such a run


def count_marks_in_a_row(text: str) -> int:
    """Return the length of the longest run of combining marks."""
    classes = bytes(map(unicodedata.combining, text))  # one byte per character; 0 is a base character
    return max(map(len, classes.split(b"\0")))


def normalize(text: str) -> str:
    """Return the NFC form.

    Raises: PromptError if more combining marks follow each other than any writing needs, because that takes minutes.
    """
    if text.isascii():
        return text
    longest = count_marks_in_a_row(text)
    if longest > MAX_MARKS_IN_A_ROW:
        raise PromptError(f"The text has {longest} combining marks in a row; at most {MAX_MARKS_IN_A_ROW} are read. Remove them.")
    return unicodedata.normalize("NFC", text)
