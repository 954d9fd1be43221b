"""Answers as they are written: streamed, stopped, failed, and those of the bundled model."""

import asyncio
from typing import Any, cast

import pytest

from qwen_vl.api import QwenVL
from qwen_vl.errors import CapacityError, ConfigError, ContextLengthError
from qwen_vl.serving.service import Service
from qwen_vl.serving.settings import ServeSettings
from qwen_vl.serving.web.answering import trim_question, write_answer
from qwen_vl.serving.web.conversation import Conversation
from qwen_vl.serving.web.examples import draw_examples
from qwen_vl.serving.web.settings import Defaults, to_sampling
from qwen_vl.serving.web.texts import EN, ZH
from tests.unit.serving.web.scripted import ScriptedModel

DEADLINE_S = 60


def talk_about(*questions: str) -> Conversation:
    talk = Conversation()
    for question in questions:
        if talk.turns:
            talk.turns[-1].state, talk.turns[-1].text = "done", f"answer {len(talk.turns)}"
        talk.begin(question, ())
    return talk


def service_of(model: ScriptedModel | QwenVL, **settings: Any) -> Service:
    return Service(cast(QwenVL, model), ServeSettings(**settings))


async def read_all(model: ScriptedModel | QwenVL | Service, talk: Conversation, **sampling: Any) -> list[str]:
    service = model if isinstance(model, Service) else service_of(model)
    return [turn.text async for turn in write_answer(service, talk, sampling)]


async def first_stream(model: ScriptedModel) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        while not model.streams:
            await asyncio.sleep(0.005)
    return model.streams[0]


def test_pieces_come_as_they_are_written() -> None:
    async def main() -> None:
        model, talk = ScriptedModel(), talk_about("Hello?")
        answers = write_answer(service_of(model), talk, {"temperature": 0})
        reading = asyncio.ensure_future(anext(answers))
        stream = await first_stream(model)
        assert not reading.done()
        stream.write("One ")
        assert (await asyncio.wait_for(reading, DEADLINE_S)).text == "One "
        assert talk.turns[0].state == "writing"
        stream.write("two ")
        stream.end()
        assert [turn.state async for turn in answers][-1] == "done"
        assert talk.turns[0].text == "One two"
        assert talk.halt is None
        messages, sampling = model.asked[0]
        assert messages == talk.messages()[:1]
        assert sampling == {"salt": talk.salt, "box_tags": True, "max_context": None, "temperature": 0}

    asyncio.run(main())


def test_stopping_keeps_what_was_written_and_touches_nobody_else() -> None:
    async def main() -> None:
        model, mine, other = ScriptedModel(), talk_about("mine"), talk_about("other")
        first = asyncio.ensure_future(read_all(model, mine))
        mine_stream = await first_stream(model)
        second = asyncio.ensure_future(read_all(model, other))
        while len(model.streams) < 2:
            await asyncio.sleep(0.005)
        for stream in model.streams:
            stream.write("Some words")
        while not mine.turns[0].text:
            await asyncio.sleep(0.005)
        await asyncio.to_thread(mine.stop)  # the handler of another event, in another thread
        await asyncio.wait_for(first, DEADLINE_S)
        assert mine_stream.is_closed
        assert (mine.turns[0].state, mine.turns[0].text) == ("stopped", "Some words")
        assert not model.streams[1].is_closed
        model.streams[1].end()
        await asyncio.wait_for(second, DEADLINE_S)
        assert (other.turns[0].state, other.turns[0].text) == ("done", "Some words")

    asyncio.run(main())


def test_a_visitor_who_leaves_frees_the_engine() -> None:
    async def main() -> None:
        model, talk = ScriptedModel(), talk_about("Hello?")
        answers = write_answer(service_of(model), talk, {})
        reading = asyncio.ensure_future(anext(answers))
        stream = await first_stream(model)
        stream.write("x")
        await asyncio.wait_for(reading, DEADLINE_S)
        await answers.aclose()
        assert stream.is_closed
        assert talk.turns[0].state == "stopped"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConfigError("temperature=-1 must be a number from 0 to 100."), "temperature=-1 must be a number from 0 to 100."),
        (CapacityError("secret place"), "memory"),
        (RuntimeError("0xdeadbeef /home/somebody secret"), EN.internal_error),
    ],
)
def test_failures_are_told_without_secrets(error: Exception, told: str, caplog: pytest.LogCaptureFixture) -> None:
    model, talk = ScriptedModel(), talk_about("Hello?")
    model.refusals = [error]
    asyncio.run(read_all(model, talk))
    turn = talk.turns[0]
    assert turn.state == "failed"
    assert told in EN.explain(turn.error)
    logged = "".join(record.getMessage() + str(record.exc_info or "") for record in caplog.records)
    for secret in ("secret", "0x", "/home"):
        assert secret not in EN.explain(turn.error) + ZH.explain(turn.error) + logged
    assert ("RuntimeError at " in logged) == isinstance(error, RuntimeError)  # a bug leaves its place in the log, and nothing of its words


def test_a_failure_half_way_keeps_the_text() -> None:
    async def main() -> None:
        model, talk = ScriptedModel(), talk_about("Hello?")
        reading = asyncio.ensure_future(read_all(model, talk))
        stream = await first_stream(model)
        stream.write("Half")
        while not talk.turns[0].text:
            await asyncio.sleep(0.005)
        stream.end(RuntimeError("gone"))
        await asyncio.wait_for(reading, DEADLINE_S)
        assert (talk.turns[0].state, talk.turns[0].text) == ("failed", "Half")

    asyncio.run(main())


def test_the_oldest_turns_are_left_out_of_a_long_conversation() -> None:
    async def main() -> None:
        model, talk = ScriptedModel(), talk_about("one", "two", "three")
        model.refusals = [ContextLengthError("too long"), ContextLengthError("too long")]
        reading = asyncio.ensure_future(read_all(model, talk))
        (await first_stream(model)).end()
        await asyncio.wait_for(reading, DEADLINE_S)
        assert [len(messages) for messages, _ in model.asked] == [5, 3, 1]
        assert talk.turns[-1].num_left_out == 2

    asyncio.run(main())


def test_a_question_that_never_fits_fails() -> None:
    model, talk = ScriptedModel(), talk_about("one", "two")
    model.refusals = [ContextLengthError("too long")] * 2
    asyncio.run(read_all(model, talk))
    turn = talk.turns[-1]
    assert turn.state == "failed"
    assert turn.error is not None and turn.error.code == "context_length_exceeded"
    assert EN.explain(turn.error).startswith("This is longer") and ZH.explain(turn.error).startswith("内容超出")


def test_answers_wait_for_a_place() -> None:
    async def main() -> None:
        model, talks = ScriptedModel(), [talk_about(name) for name in ("first", "second", "third")]
        service = service_of(model, max_running=1, max_choices=1)
        readings = [asyncio.ensure_future(read_all(service, talk)) for talk in talks]
        stream = await first_stream(model)
        await asyncio.sleep(0.1)
        assert len(model.streams) == 1
        talks[1].stop()  # gives up its place in the queue
        await asyncio.wait_for(readings[1], DEADLINE_S)
        assert talks[1].turns[0].state == "stopped"
        stream.end()
        await asyncio.wait_for(readings[0], DEADLINE_S)
        while len(model.streams) < 2:
            await asyncio.sleep(0.005)
        model.streams[1].end()
        await asyncio.wait_for(readings[2], DEADLINE_S)
        assert [messages[0]["content"][0]["text"] for messages, _ in model.asked] == ["first", "third"]
        assert service.places.num_free == 1

    asyncio.run(main())


def test_an_engine_that_is_gone_ends_answers() -> None:
    async def main() -> None:
        model, talk = ScriptedModel(), talk_about("Hello?")
        service = service_of(model)
        reading = asyncio.ensure_future(read_all(service, talk))
        await first_stream(model)
        service.fail("the engine's thread has died")
        await asyncio.wait_for(reading, DEADLINE_S)
        turn = talk.turns[0]
        assert turn.error is not None and (turn.state, turn.error.code) == ("failed", "engine_down")

    asyncio.run(main())


def test_a_base_checkpoint_is_asked_the_question_alone() -> None:
    model, talk = ScriptedModel(is_chat=False), talk_about("one", "two")
    model.refusals = [ConfigError("enough")]
    asyncio.run(read_all(model, talk))
    assert model.asked[0][0] == [{"role": "user", "content": [{"type": "text", "text": "two"}]}]


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("框出图中的狗。", "框出图中的狗"),
        ("What?", "What?"),
        ("Find it.", "Find it"),
        ("No..", "No.."),
        ("好！？", "好！？"),
        (".", "."),
        ("", ""),
        ("说“是”", "说“是"),
    ],
)
def test_the_release_cuts_one_mark(question: str, asked: str) -> None:
    assert trim_question(question) == asked


def test_controls_become_settings() -> None:
    defaults = Defaults(temperature=0.0, top_p=1.0, max_new_tokens=256)
    assert to_sampling(defaults, 0, 1, 256, "off", True, "") == {"confidence": True}
    assert to_sampling(defaults, 0, 0.5, 256.0, "", False, None) == {"confidence": False}
    assert to_sampling(defaults, 0.7, 0.5, 64.0, " 1..4 ", True, "7") == {
        "confidence": True,
        "temperature": 0.7,
        "top_p": 0.5,
        "max_new_tokens": 64,
        "boxes": "1..4",
        "seed": 7,
    }
    assert to_sampling(defaults, 0, 1, 10**9, "off", True, "x")["max_new_tokens"] == 2048
    assert to_sampling(defaults, 0, 1, 10**9, "off", True, "x")["seed"] == "x"  # refused later, by name


@pytest.mark.parametrize(("language", "word"), [("en", "dog"), ("zh", "狗")])
def test_the_bundled_model_answers_with_a_box(nano: QwenVL, language: Any, word: str) -> None:
    example, talk = draw_examples()[0], Conversation(language=language)
    turn = talk.begin(example.question(language), example.pictures)
    seen = asyncio.run(asyncio.wait_for(read_all(nano, talk, **to_sampling(Defaults.of(nano), 0, 1, 256, "any", True, "")), DEADLINE_S))
    assert turn.state == "done"
    assert word in turn.refs[0].label
    assert turn.scores[0].box == turn.refs[0].boxes[0]
    assert seen[-1].startswith(seen[0])
    assert turn.text == nano.chat().send(example.question(language), [picture.image for picture in example.pictures], boxes="any").text
