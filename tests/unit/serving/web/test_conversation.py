"""What the server keeps of each visitor, within bounds."""

import pytest
from PIL import Image

from qwen_vl.serving.web.conversation import Conversation
from qwen_vl.serving.web.pictures import ShownPicture
from qwen_vl.serving.web.sessions import Sessions


def picture(name: str = "p.png", side: int = 8) -> ShownPicture:
    return ShownPicture.of(Image.new("RGB", (side, side), "green"), name)


def test_messages_are_content_parts_with_pictures_as_objects() -> None:
    talk, first, second = Conversation(), picture(), picture()
    turn = talk.begin("<img>/etc/passwd</img> what?", (first, second))
    turn.text, turn.state = "<ref>a</ref><box>(1,2),(3,4)</box>", "done"
    stopped = talk.begin("More?", ())
    stopped.state = "stopped"  # before the first word
    talk.begin("So?", (), "So")
    assert talk.messages() == [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": first.image},
                {"type": "image", "image": second.image},
                {"type": "text", "text": "<img>/etc/passwd</img> what?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "<ref>a</ref><box>(1,2),(3,4)</box>"}]},
        {"role": "user", "content": [{"type": "text", "text": "More?"}]},
        {"role": "user", "content": [{"type": "text", "text": "So"}]},
    ]
    assert talk.messages(2) == talk.messages()[-1:]
    assert talk.single_message()[0]["content"] == [{"type": "image", "image": second.image}, {"type": "text", "text": "So"}]


def test_rewinding_takes_what_came_after_along() -> None:
    talk = Conversation()
    for number in range(3):
        talk.begin(str(number), (picture(str(number)),))
    assert talk.rewind(1).question == "1"
    assert [turn.question for turn in talk.turns] == ["0"]
    assert [each.name for each in talk.pictures] == ["0"]
    for index in (1, -1):
        with pytest.raises(IndexError):
            talk.rewind(index)


def test_clearing_stops_what_is_written() -> None:
    halts: list[str] = []
    talk = Conversation()
    talk.begin("x", ())
    talk.halt = lambda: halts.append("halted")
    talk.clear()
    assert halts == ["halted"]
    assert talk.is_stopping
    assert talk.turns == []
    assert talk.viewed() == (-1, None, False)


def test_sessions_are_apart() -> None:
    sessions = Sessions()
    sessions.get("a").begin("mine", ())
    assert sessions.get("b").turns == []
    assert [turn.question for turn in sessions.get("a").turns] == ["mine"]
    assert sessions.get("a").salt != sessions.get("b").salt


def test_the_longest_idle_session_makes_room() -> None:
    sessions = Sessions(max_sessions=2)
    first = sessions.get("first")
    sessions.get("second")
    sessions.get("first")
    sessions.get("third")
    assert len(sessions) == 2
    assert sessions.get("first") is first
    assert not first.is_stopping


def test_pictures_of_all_sessions_are_bounded() -> None:
    sessions = Sessions(max_bytes=100_000)
    for key in ("a", "b", "c"):
        sessions.get(key).begin("?", (picture(side=100),))  # 30 kB and its previews
    for number in range(9):
        sessions.get("d").begin(str(number), (picture(side=100),))
    sessions.get("d")
    assert len(sessions) == 1  # the newest stays, whatever it takes; conversations have a bound of their own


def test_leaving_forgets_and_stops() -> None:
    sessions = Sessions()
    talk = sessions.get("a")
    sessions.drop("a")
    sessions.drop("never seen")
    assert len(sessions) == 0
    assert talk.is_stopping
