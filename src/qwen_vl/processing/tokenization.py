"""The tokenizer of the family, with all calls of the release, as a transformers tokenizer.

Text is normalised and split into byte-pair tokens; `<img>path</img>` becomes a span of raw path bytes (module spans).
Pictures are not opened here. Vocabularies of any size work: special tokens follow the last rank.

    tokenizer = QWenTokenizer("checkpoint/qwen.tiktoken")
    tokenizer("Picture 1: <img>dog.jpg</img>\\nWhat is it?", return_tensors="pt")
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import AddedToken, PreTrainedTokenizer

from qwen_vl.errors import CheckpointError, PromptError
from qwen_vl.grounding.tags import IMG_END, IMG_START
from qwen_vl.processing.annotate import AnnotatedPicture, draw_on_latest_picture, find_boxes_with_refs, find_latest_picture
from qwen_vl.processing.spans import SpanLayout
from qwen_vl.processing.vocabulary import MAX_TEXT_CHARS, BytePairEncoder, read_ranks, write_ranks
from qwen_vl.prompt import special_tokens as names
from qwen_vl.prompt.chatml import DEFAULT_MAX_WINDOW_SIZE, DEFAULT_SYSTEM, ChatTokens, ChatWriter, Turn, build_chat
from qwen_vl.prompt.content import Content, PicturePath, Text, split_pictures
from qwen_vl.prompt.list_format import from_list_format, to_list_format
from qwen_vl.prompt.normalize import normalize

DEFAULT_IMAGE_SLOTS = 256
Token = bytes | str
Special = Collection[str] | Literal["all"]


class QWenTokenizer(PreTrainedTokenizer):
    """Byte-pair tokenizer with picture spans.

    Args:
        vocab_file: the `qwen.tiktoken` file.
        errors: what `decode` does with bytes that are not UTF-8 (as `bytes.decode`).
        image_slots: positions that a picture takes between its two tags; the model's number of queries.
    Raises: CheckpointError for a damaged vocabulary.
    """

    vocab_files_names = {"vocab_file": "qwen.tiktoken"}
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]

    def __init__(self, vocab_file: str | Path, errors: str = "replace", image_slots: int = DEFAULT_IMAGE_SLOTS, **kwargs: Any) -> None:
        if vocab_file is None:
            raise CheckpointError("The folder has no qwen.tiktoken, the vocabulary of this tokenizer. Large files may not have been fetched.")
        if isinstance(image_slots, bool) or not isinstance(image_slots, int) or image_slots < 3:
            raise CheckpointError(f"image_slots={image_slots!r} must be a whole number of at least 3. Correct tokenizer_config.json.")
        self.vocab_file = str(vocab_file)
        self.errors = errors
        self.image_slots = image_slots
        self.byte_pairs = BytePairEncoder(read_ranks(vocab_file))
        self._name_special_tokens(self.byte_pairs.special)
        for key in ("auto_map", "is_local", "local_files_only"):  # of the folder that it was loaded from; not to be saved with it
            kwargs.pop(key, None)
        kwargs["token_type_ids_pattern"] = "all_zeros"
        super().__init__(errors=errors, image_slots=image_slots, **kwargs)

    def _name_special_tokens(self, ids: Mapping[str, int]) -> None:
        """Set the attributes that scripts read: ids and tag texts."""
        self.special_tokens = dict(ids)
        self.eod_id = ids[names.END_OF_TEXT]
        self.im_start_id, self.im_end_id = ids[names.IM_START], ids[names.IM_END]
        self.image_start_tag, self.image_end_tag, self.image_pad_tag = names.PICTURE_TOKENS
        self.img_start_id, self.img_end_id, self.img_pad_id = (ids[token] for token in names.PICTURE_TOKENS)
        for kind in ("ref", "box", "quad"):
            for edge, tag in (("start", f"<{kind}>"), ("end", f"</{kind}>")):
                setattr(self, f"{kind}_{edge}_tag", tag)
                setattr(self, f"{kind}_{edge}_id", ids[tag])
        self.IMAGE_ST = names.IMAGE_FAMILY

    @property
    def span_layout(self) -> SpanLayout:
        """How pictures lie in the ids."""
        return SpanLayout(self.img_start_id, self.img_end_id, self.img_pad_id, self.image_slots)

    # Vocabulary

    @property
    def mergeable_ranks(self) -> dict[bytes, int]:
        """Rank of each byte-pair token."""
        return self.byte_pairs.ranks

    @property
    def decoder(self) -> dict[int, Token]:
        """Token of each id."""
        return self.byte_pairs.tokens

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included; the model may have more output rows."""
        return len(self.byte_pairs.ranks) + len(self.byte_pairs.special)

    def __len__(self) -> int:
        return self.vocab_size

    def get_vocab(self) -> dict[bytes, int]:
        """Return the byte-pair tokens only, as the release does (FACTS quirk 34)."""
        return self.byte_pairs.ranks

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write `qwen.tiktoken` into the folder and return its path."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = Path(save_directory) / f"{prefix}{self.vocab_files_names['vocab_file']}"
        write_ranks(path, self.byte_pairs.ranks)
        return (str(path),)

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        """Accept what is a special token already; the vocabulary is fixed."""
        for token in map(str, new_tokens):
            if not special_tokens:
                raise PromptError(f"Cannot add {token!r}: adding regular tokens is not supported, the vocabulary is fixed.")
            if token not in self.special_tokens:
                raise PromptError(f"Cannot add {token!r}: only the special tokens of the vocabulary (such as <|extra_0|>) can be named.")
        return 0

    def convert_tokens_to_ids(self, tokens: Token | Iterable[Token]) -> int | list[int | None] | None:
        """Return the id of a token, or the ids of several; None for a token that does not exist."""
        if isinstance(tokens, str):
            return self.special_tokens.get(tokens)
        if isinstance(tokens, bytes):
            return self.byte_pairs.ranks.get(tokens)
        return [self.convert_tokens_to_ids(token) for token in tokens]  # type: ignore[misc]

    def convert_ids_to_tokens(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> Token | list[Token]:
        """Return the token of an id, or the tokens of several. Raises: PromptError for an id without a token."""
        if not isinstance(ids, Iterable):
            return self._token(int(ids))
        return [self._token(int(index)) for index in ids if not (skip_special_tokens and int(index) >= self.eod_id)]

    def _token(self, index: int) -> Token:
        """Return the token of an id."""
        token = self.decoder.get(index)
        if token is None:
            raise PromptError(f"The id {index} has no token; ids go from 0 to {self.vocab_size - 1}.")
        return token

    def convert_tokens_to_string(self, tokens: Iterable[Token]) -> str:
        """Join tokens and decode their bytes."""
        return b"".join(token.encode() if isinstance(token, str) else token for token in tokens).decode("utf-8", self.errors)

    # Encoding

    def tokenize(self, text: str, allowed_special: Special = "all", disallowed_special: Special = (), **kwargs: Any) -> list[Token]:
        """Split text into byte-pair tokens (bytes) and special tokens (str).

        Args:
            text: any text; normalised to NFC but for picture paths.
            allowed_special: special tokens that become their ids; others are ordinary text.
            disallowed_special: special tokens that must not occur.
        Raises: PromptError (a ValueError) for a disallowed token, an unclosed `<img>`, a path with tokens in it or too long.
        """
        return [self.decoder[index] for index in self._encode(text, allowed_special, disallowed_special)]

    def _encode(self, text: str, allowed_special: Special = "all", disallowed_special: Special = ()) -> list[int]:
        """Return the ids of a text."""
        if not isinstance(text, str):
            raise PromptError(f"The prompt must be text, not {type(text).__name__}.")
        allowed = set(self.special_tokens) if allowed_special == "all" else set(allowed_special)
        self._refuse(text, set(self.special_tokens) - allowed if disallowed_special == "all" else set(disallowed_special))
        content = split_pictures(text) if {IMG_START, IMG_END} <= allowed else Content((Text(text),))
        return self._encode_content(content, allowed)

    def _encode_content(self, content: Content, allowed: set[str]) -> list[int]:
        """Return the ids of texts and pictures."""
        num_chars = sum(len(piece.value) for piece in content.pieces)
        if num_chars > MAX_TEXT_CHARS:
            raise PromptError(f"The text has {num_chars} characters; at most {MAX_TEXT_CHARS} are read. Shorten it.")
        ids: list[int] = []
        for piece in content.pieces:
            if isinstance(piece, PicturePath):
                ids += self._encode_picture(piece.value, allowed)
            else:
                ids += self.byte_pairs.encode(normalize(piece.value), allowed)
        return ids

    def _refuse(self, text: str, disallowed: set[str]) -> None:
        """Raise PromptError if the text holds one of the tokens."""
        if disallowed and (token := self.byte_pairs.find_special(text, disallowed)):
            raise PromptError(f"The text holds the special token {token}, which is disallowed here. Remove it, or list it in allowed_special.")

    def _encode_picture(self, path: str, allowed: set[str]) -> list[int]:
        """Return the span of a path. Raises: PromptError for tags inside the path."""
        if token := self.byte_pairs.find_special(path, allowed):
            raise PromptError(f"The picture path {path[:60]!r} holds the special token {token}. Is an </img> missing before it?")
        return self.span_layout.write(path)

    # Decoding

    def _decode(
        self,
        token_ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        errors: str | None = None,
        keep_image_special: bool = False,
        **kwargs: Any,
    ) -> str:
        """Return the text of any ids, picture spans as `<img>path</img>`.

        Args:
            token_ids: anything; an id without a token counts as a byte that is not UTF-8.
            skip_special_tokens: drop special tokens; what stands between tags remains.
            errors: what to do with bytes that are not UTF-8; the constructor's choice if None.
            keep_image_special: with `skip_special_tokens`, keep the image-family tokens (tags of boxes, references, pictures).
        """
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        kept = set(names.IMAGE_FAMILY) if keep_image_special else set()
        pieces = [
            token if isinstance(token, bytes) else token.encode() if not skip_special_tokens or token in kept else b""
            for token in self._readable_tokens(ids)
        ]
        return b"".join(pieces).decode("utf-8", errors or self.errors)

    def _readable_tokens(self, ids: list[int]) -> Iterable[Token]:
        """Yield the tokens of the ids, with each picture span as tag, path, tag."""
        position = 0
        layout = self.span_layout
        next_end = -1
        while position < len(ids):
            if ids[position] == layout.start and next_end < position:
                next_end = _find(ids, layout.end, position)
            path = layout.path_bytes(ids, position, next_end) if ids[position] == layout.start and next_end < len(ids) else None
            if path is None:
                yield self.decoder.get(ids[position], b"\xff")
                position += 1
            else:
                yield from (self.image_start_tag, path, self.image_end_tag)
                position = next_end + 1

    # Pictures and conversations

    def image_spans(self, ids: Any) -> list[tuple[int, int]]:
        """Return (index of `<img>`, index of `</img>`) of each picture. Raises: PromptError for a broken span."""
        return self.span_layout.find(_as_list(ids))

    def image_sources(self, ids: Any) -> list[str]:
        """Return the path in each picture span. Raises: PromptError for a broken span."""
        listed = _as_list(ids)
        return [self.span_layout.read(listed, start, end) for start, end in self.span_layout.find(listed)]

    def build_chat_context(
        self,
        query: str | Content,
        history: Iterable[Turn] | None = None,
        system: str = DEFAULT_SYSTEM,
        max_window_size: int = DEFAULT_MAX_WINDOW_SIZE,
    ) -> tuple[str, list[int]]:
        """Return the ChatML text and ids up to the reply (FACTS 6.1, 6.2).

        Queries may name pictures; system text and replies may not, so that nothing that a model wrote is ever opened.
        Raises: PromptError for unclosed `<img>` in a query and for turns of the wrong shape.
        """
        writer = self.chat_writer()
        return build_chat(writer.encode, query, history, system, max_window_size, special=writer.special, encode_plain=writer.encode_plain)

    def chat_writer(self) -> ChatWriter:
        """Return a writer of conversations in this vocabulary."""
        tokens = ChatTokens(self.im_start_id, self.im_end_id)
        return ChatWriter(self._encode_query, tokens, lambda text: self._encode(str(text), names.GROUNDING_TOKENS))

    def _encode_query(self, query: str | Content) -> list[int]:
        """Encode what the user said; in a `Content`, pictures are named by its pieces only."""
        if isinstance(query, str):
            return self._encode(query, names.IMAGE_FAMILY)
        return self._encode_content(query, set(names.GROUNDING_TOKENS))

    def from_list_format(self, elements: Sequence[Mapping[str, Any]], space_after_picture: bool = False) -> str:
        """Write a prompt from its elements (see prompt.list_format)."""
        return from_list_format(elements, space_after_picture)

    def to_list_format(self, text: str) -> list[dict[str, str]]:
        """Split a text into its elements (see prompt.list_format)."""
        return to_list_format(text)

    def draw_bbox_on_latest_picture(self, response: str, history: Sequence[Turn] | None = None) -> AnnotatedPicture | None:
        """Draw the response's boxes on the latest picture of the conversation; None if there is none of either."""
        return draw_on_latest_picture(response, history)

    def _fetch_latest_picture(self, response: str, history: Sequence[Turn] | None = None) -> str | None:
        """Return the path of the latest picture; scripts call this."""
        return find_latest_picture(response, history)

    def _fetch_all_box_with_ref(self, text: str) -> list[dict[str, Any]]:
        """Return the boxes of a text with their references; scripts call this."""
        return find_boxes_with_refs(text)


def _find(ids: Sequence[int], token: int, position: int) -> int:
    """Return the first index of the token from `position` on, or the length."""
    return next((index for index in range(position, len(ids)) if ids[index] == token), len(ids))


def _as_list(ids: Any) -> list[int]:
    """Return ids of a list, array or tensor as plain whole numbers."""
    return [int(index) for index in (ids.tolist() if hasattr(ids, "tolist") else ids)]
