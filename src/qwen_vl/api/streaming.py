"""An answer as a stream: token ids become whole characters and whole tags as they come, up to a stop string.

`TextPieces` turns ids into text piece by piece so that the pieces joined are the whole answer. `AnswerStream` is what callers iterate over.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from qwen_vl.api.answer import Answer, TokenLogprob
from qwen_vl.processing.tokenization import QWenTokenizer

REPLACEMENT = "\ufffd"  # what bytes decode to that are no character (yet)


class StopFilter:
    """Lets text through up to the first stop string, and holds back what may be the beginning of one.

    Each character is looked at once for each string, whatever the strings (Knuth, Morris and Pratt 1977).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.is_found = False
        self._stops = [(stop, _borders(stop)) for stop in stops]
        self._matched = [0] * len(self._stops)  # characters of each string that the text so far ends with
        self._held = ""

    def feed(self, text: str) -> str:
        """Take more text and return what is certain not to belong to a stop string; after one was found, nothing."""
        if self.is_found or not self._stops:
            return "" if self.is_found else text
        start, text = len(self._held), self._held + text
        for position in range(start, len(text)):
            longest = self._longest_match(text[position])
            if longest:
                self.is_found, self._held = True, ""
                return text[: position + 1 - longest]
        kept = len(text) - max(self._matched)
        self._held = text[kept:]
        return text[:kept]

    def _longest_match(self, char: str) -> int:
        """Take one character and return the length of the longest stop string that ends with it, or 0."""
        longest = 0
        for index, (stop, borders) in enumerate(self._stops):
            count = self._matched[index]
            while count and stop[count] != char:
                count = borders[count - 1]
            count += stop[count] == char
            if count == len(stop):
                longest, count = max(longest, count), 0
            self._matched[index] = count
        return longest

    def finish(self) -> str:
        """Return what was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held


def _borders(text: str) -> list[int]:
    """Return for each prefix of a text the length of its longest proper prefix that it also ends with."""
    borders = [0] * len(text)
    for index in range(1, len(text)):
        count = borders[index - 1]
        while count and text[count] != text[index]:
            count = borders[count - 1]
        borders[index] = count + (text[count] == text[index])
    return borders


class TextPieces:
    """Decodes ids piece by piece.

    Args:
        stops: strings that end the text; it is cut before the first of them.
        strips: drop blanks at both ends of the whole, so that a space is held back until something follows it.
    """

    def __init__(self, tokenizer: QWenTokenizer, stops: Sequence[str] = (), *, strips: bool = True) -> None:
        self._tokenizer = tokenizer
        self._span_tokens = tokenizer.image_slots + 2  # a span's slots and its two tags
        self._pending: list[int] = []  # ids whose text is not certain yet
        self._stop = StopFilter(stops)
        self._strips = strips
        self._spaces = ""  # decoded, but dropped if nothing follows
        self._has_begun = False
        self.num_decoded = 0  # characters, with blanks at the ends
        self.num_certain = 0  # of them, those before any stop string

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found: nothing more comes."""
        return self._stop.is_found

    def feed(self, token_id: int) -> str:
        """Take one id and return the text that has become certain, often "" or one word."""
        self._pending.append(token_id)
        # A picture span that the model writes is readable only as a whole; one that is not closed in time is no span.
        start = self._tokenizer.img_start_id
        if start in self._pending and token_id != self._tokenizer.img_end_id and len(self._pending) - self._pending.index(start) < self._span_tokens:
            return ""
        text = str(self._tokenizer.decode(self._pending))
        if text.endswith(REPLACEMENT):
            return ""  # perhaps the first bytes of a character
        return self._decoded(text)

    def finish(self) -> str:
        """Return what is still held back, but for blanks at the end if they are stripped."""
        text = self._decoded(str(self._tokenizer.decode(self._pending)))
        rest = self._stop.finish()
        self.num_certain += len(rest)
        return text + self._emit(rest)

    def _decoded(self, text: str) -> str:
        """Take text that was decoded and return what of the answer has become certain."""
        self._pending.clear()
        self.num_decoded += len(text)
        certain = self._stop.feed(text)
        self.num_certain += len(certain)
        return self._emit(certain)

    def _emit(self, text: str) -> str:
        if not self._strips:
            return text
        text = self._spaces + text
        if not self._has_begun:
            text = text.lstrip()
        kept = text.rstrip()
        self._spaces = text[len(kept) :]
        self._has_begun = self._has_begun or bool(kept)
        return kept


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()  # of the tokens whose text has become certain, if probabilities were asked for


class AnswerStream(Iterator[str]):
    """The pieces of an answer as they are written; `answer` is the whole, once they are used up.

        with vl.stream("beach.png", "What is this?") as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
        pieces.answer.boxes

    Leaving the `with` block early, `close()` or losing the last reference stops the generation.
    """

    def __init__(self, pieces: Generator[str, None, Answer]) -> None:
        """Args: pieces: yields the pieces and returns the whole answer."""
        self._pieces = pieces
        self._answer: Answer | None = None

    @property
    def answer(self) -> Answer:
        """The whole answer; reads the rest of the stream if some is left. Raises: RuntimeError if the stream was closed before its end."""
        for _ in self:
            pass
        if self._answer is None:
            raise RuntimeError("The stream was closed before its end, so there is no whole answer.")
        return self._answer

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            self._answer = end.value or self._answer
            raise StopIteration from None

    def close(self) -> None:
        """Stop the generation and wait until it has stopped."""
        self._pieces.close()

    def __enter__(self) -> "AnswerStream":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
