"""Read boxes out of the model's text and write them back.

Reading is total: it never raises, whatever the text, and takes linear time. What cannot be read is counted, never guessed.

    refs = parse("<ref>the dog</ref><box>(219,424),(576,896)</box>")
    "".join(format_ref(ref) for ref in refs)
"""

import re
import unicodedata
from collections.abc import Iterator

from qwen_vl.errors import PromptError
from qwen_vl.grounding.box import BOX_MAX, Box, Quad, Ref, clip_to_grid
from qwen_vl.grounding.tags import BOX_END, BOX_START, ELEMENT_TAGS, IMG_PAD, QUAD_END, QUAD_START, REF_END, REF_START
from qwen_vl.prompt.normalize import MAX_MARKS_IN_A_ROW, count_marks_in_a_row

_START_TAGS = {start: (key, end) for key, (start, end) in ELEMENT_TAGS.items()}
_START = re.compile("|".join(map(re.escape, _START_TAGS)))
_WHOLE_NUMBER = re.compile(r"[+-]?\d+")
# A tag without its other half; after an open <box> or <quad> also the coordinates that were being written.
_STRAY_TAG = re.compile(r"<(?:box|quad)>[\d(),.+-]*|</(?:box|quad|ref|img)>|<(?:ref|img)>|" + re.escape(IMG_PAD))


def _scan(text: str) -> Iterator[tuple[str, str]]:
    """Cut text into (key, content) pieces in order, empty text left out; a start tag that is never closed is text."""
    unclosed: set[str] = set()  # end tags known to be absent from here on: each is searched in vain once, which keeps the time linear
    text_from = position = 0
    while match := _START.search(text, position):
        key, end_tag = _START_TAGS[match.group()]
        end = -1 if end_tag in unclosed else text.find(end_tag, match.end())
        if end < 0:
            unclosed.add(end_tag)
            position = match.end()
            continue
        if match.start() > text_from:
            yield "text", text[text_from : match.start()]
        yield key, text[match.end() : end]
        text_from = position = end + len(end_tag)
    if text_from < len(text):
        yield "text", text[text_from:]


def _to_nfc(text: str) -> str:
    """Apply NFC, but leave a text alone that has more combining marks in a row than any writing needs: sorting them takes quadratic time."""
    if text.isascii():
        return text
    return text if count_marks_in_a_row(text) > MAX_MARKS_IN_A_ROW else unicodedata.normalize("NFC", text)


def _normalize(text: str) -> str:
    """Apply NFC to everything but picture paths, which must stay what they are on disk."""
    if text.isascii():
        return text
    parts: list[str] = []
    run: list[str] = []  # pieces since the last picture
    for key, content in _scan(text):
        start, end = ELEMENT_TAGS.get(key, ("", ""))
        if key == "image":
            parts += [_to_nfc("".join(run)), start, content, end]
            run = []
        else:
            run += [start, content, end]
    return "".join([*parts, _to_nfc("".join(run))])


def split_elements(text: str) -> list[dict[str, str]]:
    """Split text into one-key dicts `image`, `ref`, `box`, `quad` and `text`, in order, as the release's `to_list_format`.

    The text is NFC-normalized, picture paths excepted. Nested tags, stray tags and tags that are never closed are plain text.
    """
    return [{key: content} for key, content in _scan(_normalize(text))]


def _parse_number(text: str) -> int | None:
    """Read one coordinate and clip it to the grid; None if it is not a whole number."""
    text = text.strip()
    if not _WHOLE_NUMBER.fullmatch(text):
        return None
    digits = text.lstrip("+-").lstrip("0")
    # Reading a million digits takes quadratic time, and Python refuses: past nine digits only the sign matters.
    value = BOX_MAX if len(digits) > 9 else int(digits or "0")
    return clip_to_grid(-value if text.startswith("-") else value)


def _parse_numbers(content: str, count: int) -> list[int] | None:
    pieces = content.replace("(", " ").replace(")", " ").split(",")
    if len(pieces) != count:
        return None
    numbers = [number for number in map(_parse_number, pieces) if number is not None]
    return numbers if len(numbers) == count else None


def parse_box(content: str) -> Box | None:
    """Read what stands between `<box>` and `</box>`: four whole numbers, clipped to the grid, corners ordered; None if it is anything else."""
    numbers = _parse_numbers(content, 4)
    return Box(*numbers).sort() if numbers else None


def parse_quad(content: str) -> Quad | None:
    """Read what stands between `<quad>` and `</quad>`: eight whole numbers, clipped to the grid; None if it is anything else."""
    numbers = _parse_numbers(content, 8)
    if not numbers:
        return None
    first, second, third, fourth = zip(numbers[::2], numbers[1::2], strict=True)
    return Quad((first, second, third, fourth))


def _group(text: str) -> Iterator[tuple[str, list[Box], list[Quad]]]:
    """Give each phrase with the boxes and quads that directly follow it; boxes that follow none have the phrase ""."""
    phrase, boxes, quads = "", list[Box](), list[Quad]()
    for key, content in _scan(text):
        if key in ("box", "quad"):
            box = parse_box(content) if key == "box" else None
            quad = parse_quad(content) if key == "quad" else None
            boxes += [box] if box else []
            quads += [quad] if quad else []
        else:
            yield phrase, boxes, quads
            phrase, boxes, quads = content if key == "ref" else "", [], []
    yield phrase, boxes, quads


def parse(text: str) -> list[Ref]:
    """Read all boxes and quads, in order, each with the phrase directly before it.

    A box belongs to the `<ref>` immediately before it, and so do further boxes and quads that directly follow; text between breaks the
    link, and the phrase is then "". Neighbouring boxes without a phrase form one `Ref`. Unreadable boxes are skipped (see
    `count_unparsed`), phrases left without a box too, so every `Ref` has at least one box or quad. Values are clipped to 0 .. 999 and
    the corners of boxes ordered.
    """
    return [Ref(phrase, tuple(boxes), tuple(quads)) for phrase, boxes, quads in _group(text) if boxes or quads]


def count_unparsed(text: str) -> int:
    """Count the boxes and quads that `parse` had to skip: unreadable coordinates, or a tag that is never closed."""
    count = 0
    for key, content in _scan(text):
        count += key == "box" and parse_box(content) is None
        count += key == "quad" and parse_quad(content) is None
        if key == "text":
            count += content.count(BOX_START) + content.count(QUAD_START)
    return count


def format_box(box: Box) -> str:
    """Write a box as the model does: `<box>(x1,y1),(x2,y2)</box>`."""
    return f"{BOX_START}({box.x1},{box.y1}),({box.x2},{box.y2}){BOX_END}"


def format_quad(quad: Quad) -> str:
    """Write a quad as the model does: `<quad>(x1,y1),(x2,y2),(x3,y3),(x4,y4)</quad>`."""
    return QUAD_START + ",".join(f"({x},{y})" for x, y in quad.points) + QUAD_END


def format_ref(ref: Ref) -> str:
    """Write a phrase, its boxes, then its quads; no `<ref>` tag when the phrase is empty. `parse` reads the same `Ref` back.

    Raises: PromptError if the phrase holds `</ref>`, which would end it early.
    """
    if REF_END in ref.text:
        raise PromptError(f"the phrase {ref.text!r} holds {REF_END}, so it could not be read back; remove the tag")
    phrase = REF_START + ref.text + REF_END if ref.text else ""
    return phrase + "".join(map(format_box, ref.boxes)) + "".join(map(format_quad, ref.quads))


def strip_boxes(text: str) -> str:
    """Make an answer readable: keep text and phrases, drop boxes, quads, pictures and stray tags, strip the ends.

    A tag that a cut-off or still growing answer has not closed goes too, with the coordinates written so far.
    """
    kept = (content for key, content in _scan(text) if key in ("text", "ref"))
    return "".join(_STRAY_TAG.sub("", content) for content in kept).strip()
