"""`QwenVL` and `ChatSession` on a tiny model: whole = streamed = the model's own chat; pictures, windows, errors."""

import contextlib
import logging
import threading
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image

from qwen_vl.api import QwenVL
from qwen_vl.api.pictures import list_sources
from qwen_vl.api.streaming import TextPieces
from qwen_vl.errors import CapacityError, ConfigError, ImageError, PromptError
from qwen_vl.processing.images import to_pixel_values
from tests.tiny import IMAGE_SIZE, IMAGE_SLOTS


def test_two_turns_equal_the_models_own_chat(vl: QwenVL, red: Image.Image) -> None:
    chat = vl.chat()
    answers = [chat.send("what is this?", red).text, chat.send("框出图中的狗").text]
    pixel_values = to_pixel_values([red], IMAGE_SIZE)
    query = "Picture 1: <img>anything.png</img>\nwhat is this?"
    first, history = vl.model.chat(vl.tokenizer, query, history=None, pixel_values=pixel_values)
    second, _ = vl.model.chat(vl.tokenizer, "框出图中的狗", history=history, pixel_values=pixel_values)
    assert answers == [first, second]
    assert chat.history == [("what is this?", first), ("框出图中的狗", second)]


def test_streamed_is_the_whole(vl: QwenVL, red: Image.Image) -> None:
    whole = vl.ask(red, "what is this?", max_new_tokens=30)
    stream = vl.stream(red, "what is this?", max_new_tokens=30)
    pieces = list(stream)
    assert "".join(pieces) == whole.text == stream.answer.text
    assert len(pieces) > 3
    assert stream.answer.usage == whole.usage and stream.answer.finish_reason == whole.finish_reason == "length"


def test_sampling_repeats_with_a_seed_and_leaves_the_callers_randomness_alone(vl: QwenVL, red: Image.Image) -> None:
    settings = {"temperature": 2.0, "max_new_tokens": 12}
    before = torch.get_rng_state()
    texts = [vl.ask(red, "what?", seed=seed, **settings).text for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
    assert "".join(vl.stream(red, "what?", seed=3, **settings)) == texts[0]
    assert torch.equal(before, torch.get_rng_state())


def test_what_a_caller_draws_between_two_pieces_is_its_own(vl: QwenVL) -> None:
    """Where `generate` does the work, all threads share one generator."""
    settings = {"temperature": 2.0, "max_new_tokens": 12, "seed": 3}
    with mock.patch("qwen_vl.api.generation.to_engine", return_value=None):
        whole = vl.ask(None, "what?", **settings).text
        torch.manual_seed(7)
        expected = torch.rand(3).tolist()
        torch.manual_seed(7)
        drawn, pieces = [], []
        for piece in vl.stream(None, "what?", **settings):
            pieces.append(piece)
            drawn += torch.rand(1).tolist()
    assert "".join(pieces) == whole and drawn[:3] == expected[: len(drawn)]


def test_the_picture_matters_and_is_read_as_any_source(vl: QwenVL, red: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    red.save(path)
    by_object = vl.ask(red, "what?")
    assert vl.ask(str(path), "what?").text == vl.ask(path.read_bytes(), "what?").text == vl.ask([path], "what?").text == by_object.text
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    assert not torch.equal(features(vl, noise), features(vl, red))


def features(vl: QwenVL, image: Image.Image) -> torch.Tensor:
    return vl.model.get_image_features(to_pixel_values([image], IMAGE_SIZE)).detach()


def test_usage_counts_a_picture_as_its_slots_and_two_tags(vl: QwenVL, red: Image.Image) -> None:
    announcement = len(vl.tokenizer.encode("Picture 1: ")) + len(vl.tokenizer.encode("\n"))
    without, with_one = vl.ask(None, "what?"), vl.ask(red, "what?")
    assert with_one.usage.prompt_tokens - without.usage.prompt_tokens == IMAGE_SLOTS + 2 + announcement
    assert with_one.usage.completion_tokens == 12  # the checkpoint's max_new_tokens
    assert (with_one.pictures, without.pictures) == ((red,), ())


def test_pictures_are_numbered_through_the_dialogue_and_encoded_once(vl: QwenVL, red: Image.Image, blue: Image.Image) -> None:
    """Once by their content: whatever picture object it comes in, and in whatever conversation."""
    chat = vl.chat()
    vl.engine.forget()
    with mock.patch.object(vl.model, "get_image_features", wraps=vl.model.get_image_features) as encode:
        chat.send("what?", red)
        chat.send("and now?")
        chat.send("compare", [blue, red.copy()])
        vl.ask([red, blue], "compare")
    assert [len(call.args[0]) for call in encode.call_args_list] == [1, 1]
    assert [turn.question.picture_numbers for turn in chat.turns] == [(1,), (), (2, 3)]
    assert chat.last_answer is not None and len(chat.last_answer.pictures) == 3


def test_a_failed_turn_leaves_no_trace(vl: QwenVL, red: Image.Image) -> None:
    chat = vl.chat()
    chat.send("what?", red)
    with pytest.raises(ImageError):
        chat.send("and?", ["missing.png"])
    with pytest.raises(ConfigError):
        chat.send("and?", red, temperature=-1)
    with chat.stream("and?", red) as pieces:
        next(pieces)
    assert len(chat.turns) == len(chat.pictures) == 1
    with pytest.raises(RuntimeError, match="closed"):
        _ = pieces.answer


def test_leaving_a_stream_stops_the_generation(vl: QwenVL, red: Image.Image) -> None:
    num_threads = threading.active_count()
    with vl.stream(red, "what?", max_new_tokens=500) as pieces:
        next(pieces)
    assert threading.active_count() == num_threads


def test_old_turns_fall_out_of_the_window_with_their_pictures(
    vl: QwenVL, red: Image.Image, blue: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    chat = vl.chat()
    with caplog.at_level(logging.WARNING, logger="qwen_vl"):
        chat.send("what?", red)
        for _ in range(5):
            chat.send("what about this one then?", blue)
    assert chat.num_dropped_turns > 0
    assert "no longer read" in caplog.text
    pixel_values = to_pixel_values([blue] * (5 - (chat.num_dropped_turns - 1)), IMAGE_SIZE)
    kept = chat.turns[chat.num_dropped_turns : -1]
    history = [(str(turn.question.content), turn.answer.text) for turn in kept]
    expected, _ = vl.model.chat(vl.tokenizer, str(chat.turns[-1].question.content), history=history, pixel_values=pixel_values)
    assert chat.turns[-1].answer.text == expected


def test_a_second_turn_reads_only_what_is_new(vl: QwenVL, red: Image.Image) -> None:
    vl.engine.forget()
    chat, before = vl.chat(), vl.engine.statistics().prefixes.num_hits
    first = chat.send("what is to be seen in this picture?", red)
    assert vl.engine.statistics().prefixes.num_hits == before
    chat.send("and now?")
    num_known = first.usage.prompt_tokens + first.usage.completion_tokens - 1  # the last token was written but not read
    block_tokens = vl.engine.settings.block_tokens
    assert num_known - 2 * block_tokens < vl.engine.statistics().prefixes.num_hits - before <= num_known


def test_settings_that_the_engine_does_not_know_are_generates(vl: QwenVL, red: Image.Image) -> None:
    with mock.patch.object(vl.engine, "submit", wraps=vl.engine.submit) as submit:
        plain = vl.ask(red, "what?", max_new_tokens=12).text
    with contextlib.closing(vl.engine.submit(submit.call_args.args[0])) as tokens:
        unwanted = [next(tokens)]
    with mock.patch.object(vl.model.generation_config, "suppress_tokens", unwanted):
        told = vl.ask(red, "what?", max_new_tokens=12).text
        assert "".join(vl.stream(red, "what?", max_new_tokens=12)) == told
    pixel_values = to_pixel_values([red], IMAGE_SIZE)
    query = "Picture 1: <img>anything.png</img>\nwhat?"
    expected, _ = vl.model.chat(vl.tokenizer, query, history=None, pixel_values=pixel_values, max_new_tokens=12, suppress_tokens=unwanted)
    assert told == expected != plain


def test_a_stream_that_is_dropped_unread_is_cancelled(vl: QwenVL, red: Image.Image) -> None:
    streams = [vl.stream(red, "what?"), vl.stream(red, "what?")]
    assert vl.engine.statistics().num_waiting == 2
    streams[0].close()
    del streams[1]
    assert (vl.engine.statistics().num_waiting, vl.engine.statistics().num_writing) == (0, 0)


def test_an_interrupted_question_is_not_written_on(vl: QwenVL, red: Image.Image) -> None:
    with mock.patch.object(vl.model.lm_head, "forward", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        vl.ask(red, "what?")
    statistics = vl.engine.statistics()
    assert (statistics.num_waiting, statistics.num_reading, statistics.num_writing) == (0, 0, 0)


def test_sampling_equals_generates(vl: QwenVL, red: Image.Image) -> None:
    """The engine draws with the request's own generator what `generate` draws with torch's."""
    settings: dict[str, Any] = {"temperature": 1.7, "max_new_tokens": 20, "seed": 9, "repetition_penalty": 1.2}
    by_engine = vl.ask(red, "what?", **settings).text
    with mock.patch("qwen_vl.api.generation.to_engine", return_value=None):
        assert vl.ask(red, "what?", **settings).text == by_engine


def test_clear_forgets(vl: QwenVL, red: Image.Image) -> None:
    chat = vl.chat()
    first = chat.send("what?", red)
    chat.clear()
    assert (chat.turns, chat.pictures, chat.last_answer) == ([], [], None)
    assert chat.send("what?", red).text == first.text


def test_streams_side_by_side_keep_each_turn_with_its_picture(vl: QwenVL, red: Image.Image, blue: Image.Image) -> None:
    chat = vl.chat()
    first, second = chat.stream("what?", red), chat.stream("and this?", blue)
    assert first.answer and second.answer
    assert [turn.question.picture_numbers for turn in chat.turns] == [(1,), (2,)]
    assert [picture.image.size for picture in chat.pictures] == [red.size, blue.size]
    assert chat.send("compare").usage.prompt_tokens > 2 * IMAGE_SLOTS


def test_context_overflow_says_how_much_fits(vl: QwenVL, red: Image.Image) -> None:
    with pytest.raises(CapacityError, match="1024"):
        vl.ask(red, "dog " * 2000)
    with pytest.raises(CapacityError, match="At most"):
        vl.ask(red, "what?", max_new_tokens=1000)
    room = 1024 - vl.ask(red, "what?").usage.prompt_tokens
    with pytest.raises(CapacityError, match=str(room)):
        vl.ask(red, "what?", max_new_tokens=room + 1)


def test_the_default_length_shrinks_to_what_fits(vl: QwenVL) -> None:
    question = "x" * 50
    per_letter = (
        vl.ask(None, question * 2, max_new_tokens=1).usage.prompt_tokens - vl.ask(None, question, max_new_tokens=1).usage.prompt_tokens
    ) / 50
    base = vl.ask(None, question, max_new_tokens=1).usage.prompt_tokens - 50 * per_letter
    answer = vl.ask(None, "x" * int((1020 - base) / per_letter))
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens <= 1024
    assert answer.finish_reason == "length"


def test_the_least_length_counts_more_than_the_default(vl: QwenVL) -> None:
    assert vl.ask(None, "what?", min_new_tokens=20).usage.completion_tokens >= 20  # the checkpoint's own choice is 12
    with pytest.raises(CapacityError, match="min_new_tokens=1020"):
        vl.ask(None, "what?", min_new_tokens=1020)


def test_without_a_picture_nothing_is_captioned_or_found(vl: QwenVL, base_vl: QwenVL) -> None:
    for model in (vl, base_vl):
        for nothing in list[Any]([None, []]):
            with pytest.raises(ImageError, match="no picture"):
                model.caption(nothing)
            with pytest.raises(ImageError, match="no picture"):
                model.ground(nothing, "the dog")


def test_beams_answer_but_do_not_stream(vl: QwenVL, red: Image.Image) -> None:
    assert vl.ask(red, "what?", num_beams=2, max_new_tokens=4).usage.completion_tokens == 4
    with pytest.raises(ConfigError, match="num_beams"):
        vl.stream(red, "what?", num_beams=2)


def test_base_checkpoints_are_asked_in_their_own_words(base_vl: QwenVL, red: Image.Image) -> None:
    tokenizer = base_vl.tokenizer
    with mock.patch.object(base_vl.engine, "submit", wraps=base_vl.engine.submit) as submit:
        base_vl.ask(red, "what is it?")
        base_vl.caption(red, grounded=True)
        grounded = base_vl.ground(red, " the dog ")
    prompts = [tokenizer.decode(call.args[0].input_ids) for call in submit.call_args_list]
    assert prompts == [
        "<img>picture-1</img>what is it? Answer:",
        "<img>picture-1</img>Generate the caption in English with grounding:",
        "<img>picture-1</img><ref>the dog</ref>",
    ]
    assert grounded.text.startswith("<ref>the dog</ref>")
    assert "".join(base_vl.stream(red, "what is it?")) == base_vl.ask(red, "what is it?").text
    with pytest.raises(ConfigError, match="base checkpoint"):
        base_vl.chat()


@pytest.mark.parametrize("phrase", ["", "  ", "<ref>dog</ref>", "<box>", "<img>dog.png</img>", "<|im_end|>", None])
def test_a_phrase_must_be_words(vl: QwenVL, red: Image.Image, phrase: str) -> None:
    with pytest.raises(PromptError, match="phrase"):
        vl.ground(red, phrase)


def test_only_lists_and_tuples_are_several_pictures(red: Image.Image) -> None:
    assert list_sources(None) == []
    assert list_sources(b"bytes") == [b"bytes"]
    assert list_sources("a.png") == ["a.png"]
    assert list_sources((red, "b.png")) == [red, "b.png"]


def test_pieces_are_whole_characters_and_whole_tags(vl: QwenVL) -> None:
    tokenizer = vl.tokenizer
    text = "  框出🤖<ref> 狗</ref><box>(1,22),(333,4)</box>é end  \n"
    pieces = TextPieces(tokenizer)
    streamed = [*map(pieces.feed, tokenizer.encode(text)), pieces.finish()]
    assert "".join(streamed) == text.strip()
    assert not any("\ufffd" in piece for piece in streamed)
    assert all(piece.count("<") == piece.count(">") for piece in streamed)


def test_pieces_of_any_ids_are_the_decoded_whole(vl: QwenVL) -> None:
    tokenizer = vl.tokenizer
    generator = torch.Generator().manual_seed(5)
    for length in range(1, 60):
        ids = torch.randint(0, vl.model.config.vocab_size, (length,), generator=generator).tolist()
        ids += [tokenizer.img_start_id] if length % 7 == 0 else []
        pieces = TextPieces(tokenizer)
        assert "".join([*map(pieces.feed, ids), pieces.finish()]) == str(tokenizer.decode(ids)).strip()


def test_a_picture_span_that_is_never_closed_holds_nothing_back(vl: QwenVL) -> None:
    tokenizer = vl.tokenizer
    words = tokenizer.encode("a dog ") * 30
    pieces = TextPieces(tokenizer)
    shown = "".join(pieces.feed(token) for token in [tokenizer.img_start_id, *words])
    assert len(words) > tokenizer.image_slots and shown.count("dog") > 3
