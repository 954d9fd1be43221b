"""Function calling as the release did it: functions are described in words (ReAct), and a call is read out of the answer's text.

The words are part of what the chat checkpoints were trained on, so they stand here as the release had them (FACTS 11.2).
"""

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen_vl.prompt.chatml import DEFAULT_SYSTEM
from qwen_vl.serving.errors import ServeError
from qwen_vl.serving.schemas import AssistantMessage, ChatCompletionRequest, Function, Message, SystemMessage, ToolMessage, UserMessage

STOP = "Observation:"  # what follows is for the function to say
_ACTION, _INPUT, _OBSERVATION, _FINAL = "\nAction:", "\nAction Input:", "\nObservation:", "\nFinal Answer: "
_CJK = re.compile(r"[\u4e00-\u9fff]")
_TEMPLATE = """Answer the following questions as best you can. You have access to the following APIs:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!"""
Parts = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Reply:
    """What an answer says: words, and perhaps a call."""

    content: str
    name: str | None = None
    arguments: str = ""


def describe_functions(functions: Sequence[Function]) -> str:
    """Return the words that tell the model of its functions."""
    names = [each.name_for_model or each.name for each in functions]
    lines = [_describe(each, name) for each, name in zip(functions, names, strict=True)]
    return _TEMPLATE.format(tools="\n\n".join(lines), names=", ".join(names))


def _describe(function: Function, name: str) -> str:
    human = function.name_for_human or function.name
    text = function.description_for_model or function.description or ""
    parameters = json.dumps(function.parameters or {}, ensure_ascii=False)
    return f"{name}: Call this tool to interact with the {human} API. What is the {human} API useful for? {text} Parameters: {parameters}"


def read_reply(text: str) -> Reply:
    """Read a call, or the final answer, out of what the model wrote."""
    text = f"\n{text}"  # the first line may be the action
    action, inputs, observation = (text.rfind(mark) for mark in (_ACTION, _INPUT, _OBSERVATION))
    if 0 <= action < inputs:
        end = observation if observation > inputs else len(text)
        return Reply(text[:action].strip(), text[action + len(_ACTION) : inputs].strip(), text[inputs + len(_INPUT) : end].strip())
    final = text.rfind(_FINAL)
    return Reply(text[final + len(_FINAL) :] if final >= 0 else text[1:])


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of an answer: its words, the field of the message that holds its call, and why a call has ended it."""

    content: str
    call: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None  # None: the answer's own


def tell(text: str, asked: ChatCompletionRequest) -> Told:
    """Return what is told of an answer's text, in the form of call that the client asked in."""
    if not asked.callable:
        return Told(text)
    reply = read_reply(text)
    if reply.name is None:
        return Told(reply.content)
    function = {"name": reply.name, "arguments": reply.arguments}
    if asked.functions:
        return Told(reply.content, {"function_call": function}, "function_call")
    return Told(reply.content, {"tool_calls": [{"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}]}, "tool_calls")


def numbered(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with its calls as streams tell them, with their numbers."""
    calls = message.get("tool_calls")
    return message | {"tool_calls": [{"index": number, **call} for number, call in enumerate(calls)]} if calls else message


def as_conversation(messages: Sequence[Message], contents: Sequence[str | Parts], functions: Sequence[Function]) -> list[dict[str, Any]]:
    """Write calls and what they gave back as the turns of a conversation that the model knows.

    Args:
        messages: as the client sent them; `contents` are theirs, pictures loaded.
        functions: those that the model may call now; none: earlier ones are still told.
    Returns: messages for `QwenVL.begin`. If the last word is a function's, the last message is the assistant's, to be continued.
    Raises: ServeError 400 for an order that makes no dialogue.
    """
    turns: list[dict[str, Any]] = []
    system = DEFAULT_SYSTEM
    has_calls = bool(functions) or any(isinstance(each, ToolMessage) or isinstance(each, AssistantMessage) and each.call for each in messages)
    for number, (message, content) in enumerate(zip(messages, contents, strict=True)):
        if isinstance(message, SystemMessage):
            if number:
                raise ServeError(400, "invalid_messages", "Only the first message may have the role system.", f"messages[{number}].role")
            system = text_of(content)
        elif isinstance(message, UserMessage):
            turns.append({"role": "user", "content": content})
        elif isinstance(message, AssistantMessage):
            if not turns:
                raise ServeError(400, "invalid_messages", "The assistant's first message must follow one of the user.", f"messages[{number}].role")
            before = text_of(turns[-1]["content"])
            _append(turns, _said(message, text_of(content), before, has_calls), number, "assistant")
        else:
            is_last = number == len(messages) - 1
            if not turns or turns[-1]["role"] != "assistant":
                raise ServeError(400, "invalid_messages", "What a tool gives back must follow a call of the assistant.", f"messages[{number}].role")
            _append(turns, f"\nObservation: {text_of(content).strip()}" + ("\nThought:" if is_last else ""), number, "assistant")
    if not functions:
        return [{"role": "system", "content": system}, *turns]
    words = describe_functions(functions)
    opening = words if system.strip() == DEFAULT_SYSTEM else f"{system.strip()}\n\n{words}"
    return [{"role": "system", "content": DEFAULT_SYSTEM}, *_opened(turns, opening)]


def _said(message: AssistantMessage, text: str, before: str, has_calls: bool) -> str:
    """Return an assistant's message as the model would have written it."""
    is_cjk = bool(_CJK.search(before))
    if (call := message.call) is not None:
        thought = text.strip() or (f"Thought: 我可以使用 {call.name} API。" if is_cjk else f"Thought: I can use {call.name}.")
        return f"\n{thought}\nAction: {call.name}\nAction Input: {call.arguments}"
    if not has_calls:
        return text
    return f"\n{'Thought: 我会作答了。' if is_cjk else 'Thought: I now know the final answer.'}\nFinal answer: {text.strip()}"


def _append(turns: list[dict[str, Any]], text: str, number: int, role: str) -> None:
    """Add to the assistant's turn: its calls, what they gave back, and its answer are one."""
    if turns and turns[-1]["role"] == role:
        turns[-1] = {"role": role, "content": text_of(turns[-1]["content"]) + text}
    else:
        turns.append({"role": role, "content": text.lstrip("\n")})


def _opened(turns: list[dict[str, Any]], opening: str) -> list[dict[str, Any]]:
    """Put words in front of the question before the last of the user's, or of the only one, as the release does."""
    asked = [index for index, turn in enumerate(turns) if turn["role"] == "user"]
    if not asked:
        return turns
    index = asked[-2] if len(asked) > 1 and turns[-1]["role"] == "user" else asked[-1]
    turn = turns[index]
    parts: Parts = [{"type": "text", "text": turn["content"]}] if isinstance(turn["content"], str) else list(turn["content"])
    return [*turns[:index], {**turn, "content": [{"type": "text", "text": f"{opening}\n\nQuestion: "}, *parts]}, *turns[index + 1 :]]


def text_of(content: str | Parts) -> str:
    """Return the text of a content."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
