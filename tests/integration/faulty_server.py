"""`qwen-vl` with faults to order: what the file $FAULT names goes wrong the next time. For tests only; the product has no such switches.

A line is `place count`: the first `count - 1` passes of the place go well, the next one fails, and the file is emptied. The place `slow` counts
nothing: each round takes a tenth of a second as long as the file says so.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen_vl import cli
from qwen_vl.engine.engine import Engine
from qwen_vl.engine.kv_cache import SlotCache
from qwen_vl.engine.sampling import Sampler
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.serving.openai import ChatForm
from qwen_vl.serving.settings import ServeSettings

FAULT = Path(os.environ["FAULT"])


def is_due(place: str) -> bool:
    """Tell whether this pass of a place is the one that fails."""
    try:
        wanted, count = FAULT.read_text().split()
    except (OSError, ValueError):
        return False
    if wanted != place:
        return False
    FAULT.write_text(f"{place} {int(count) - 1}" if int(count) > 1 else "")
    return int(count) <= 1


def is_ordered(place: str) -> bool:
    """Tell whether the file names a place, whatever the count."""
    return FAULT.exists() and FAULT.read_text().startswith(place)


def break_at(
    owner: type,
    name: str,
    place: str,
    fault: Callable[[], None],
    *,
    is_now: Callable[[str], bool] = is_due,
    concerns: Callable[..., bool] = lambda *_: True,
) -> None:
    """Let a method do something else first when its place is due. Args: concerns: whether a call with these arguments counts as a pass."""
    original = getattr(owner, name)

    def broken(*arguments: Any, **named: Any) -> Any:
        if concerns(*arguments) and is_now(place):
            fault()
        return original(*arguments, **named)

    setattr(owner, name, broken)


def out_of_memory() -> None:
    """Fail as an allocation does."""
    raise MemoryError


def bug() -> None:
    """Fail with words that nobody may see."""
    raise RuntimeError("secret words at /home/somebody 0xdeadbeef00")


def hang() -> None:
    """Do nothing for a minute."""
    time.sleep(60)


def wait() -> None:
    """Make this round a long one."""
    time.sleep(0.1)


class Fatal(BaseException):
    """What no handler expects."""


def die() -> None:
    """End the thread."""
    raise Fatal


if "GUARD" in os.environ:  # tests run without a guard: the importing path has been set for it
    from tests.integration.guard_mutations import take_away

    take_away()
break_at(SlotCache, "reserve", "memory-kv", out_of_memory)
break_at(QWenLMHeadModel, "get_image_features", "memory-vision", out_of_memory)
break_at(QWenLMHeadModel, "get_image_features", "hang-vision", hang)
break_at(Sampler, "scores", "memory-sampler", out_of_memory, concerns=lambda sampler, *_: sampler.params.temperature > 0)
break_at(Sampler, "scores", "bug-sampler", bug)
break_at(ChatForm, "choice", "bug-route", bug)
break_at(ChatForm, "delta", "bug-stream", bug)
break_at(Engine, "step", "slow", wait, is_now=is_ordered)
break_at(Engine, "step", "die", die)
break_at(Engine, "step", "hang", hang)

if "SEND_TIMEOUT" in os.environ:
    defaults = ServeSettings.__init__.__kwdefaults__
    assert defaults is not None
    defaults["send_timeout_s"] = float(os.environ["SEND_TIMEOUT"])
    defaults["body_timeout_s"] = defaults["idle_timeout_s"] = float(os.environ["SEND_TIMEOUT"])
sys.exit(cli.main())
