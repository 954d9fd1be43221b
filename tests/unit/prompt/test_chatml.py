"""The conversation format with an encoder that shows what it was given: one id per character."""

import pytest

from qwen_vl.errors import PromptError
from qwen_vl.prompt.chatml import ChatTokens, ChatWriter, build_chat
from qwen_vl.prompt.content import Content, PicturePath, Text, split_pictures

SPECIAL = ChatTokens(im_start=-1, im_end=-2)


def encode(text: object) -> list[int]:
    return [ord(char) for char in str(text)]


def test_text_and_ids_say_the_same() -> None:
    text, ids = build_chat(encode, "q3", [("q1", "a1"), ("q2", None)], "s", 100, special=SPECIAL)
    assert text == (
        "<|im_start|>system\ns<|im_end|>"
        "\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>"
        "\n<|im_start|>user\nq2<|im_end|>\n"
        "\n<|im_start|>user\nq3<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "".join({-1: "<|im_start|>", -2: "<|im_end|>"}.get(token) or chr(token) for token in ids) == text


def test_each_piece_is_encoded_on_its_own() -> None:
    given: list[str] = []

    def listen(text: object) -> list[int]:
        given.append(str(text))
        return [0]

    build_chat(listen, "\nq", [], "s", special=SPECIAL)
    assert "\nq" in given and "user" in given and "\n" in given
    assert not any("user" in text and text != "user" for text in given)


def test_replies_and_system_text_go_through_the_plain_encoder() -> None:
    text, ids = build_chat(encode, "q", [("q1", "a1")], "s", special=SPECIAL, encode_plain=lambda text: [7])
    assert ids.count(7) == 2
    assert ids.count(ord("q")) == 2


def test_a_turn_that_does_not_fit_ends_the_history() -> None:
    long = "x" * 200
    text, _ = build_chat(encode, "q", [("a", "b"), (long, long), ("c", "d")], "s", 150, special=SPECIAL)
    assert "c<" in text and long not in text and "\na<" not in text


def test_the_callers_history_is_not_changed() -> None:
    history = [("q1", "a1")]
    build_chat(encode, "q", history, special=SPECIAL)
    assert history == [("q1", "a1")]


@pytest.mark.parametrize("turn", ["ab", ("q",), ("q", "a", "b"), 5, {"q": "a"}, (1, "a"), ("q", 1), (None, "a")])
def test_turns_of_the_wrong_shape_are_refused(turn: object) -> None:
    with pytest.raises(PromptError, match="turn"):
        build_chat(encode, "q", [turn], special=SPECIAL)  # type: ignore[list-item]


@pytest.mark.parametrize("history", ["abc", 5, {"q": "a"}])
def test_a_history_that_is_no_list_is_refused(history: object) -> None:
    with pytest.raises(PromptError, match="history must be a list of pairs"):
        build_chat(encode, "q", history, special=SPECIAL)  # type: ignore[arg-type]


def test_texts_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(PromptError, match="query must be text, not NoneType"):
        build_chat(encode, None, special=SPECIAL)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="system text must be text, not int"):
        build_chat(encode, "q", system=3, special=SPECIAL)  # type: ignore[arg-type]


def test_contents_are_split_at_pictures() -> None:
    content = split_pictures("a<img>b</img><img></img>c")
    assert content == Content((Text("a"), PicturePath("b"), PicturePath(""), Text("c")))
    assert (str(content), content.num_pictures) == ("a<img>b</img><img></img>c", 2)
    with pytest.raises(PromptError, match="Unclosed image token: <img> at character 1 "):
        split_pictures("a<img>b")


def test_an_opening_follows_the_query() -> None:
    writer = ChatWriter(encode, SPECIAL)
    assert (writer.query("q") + writer.opening()).text == "\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
