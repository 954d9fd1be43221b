"""`qwen-vl` in a world of its own: names of hosts lead where the tests say, and the model writes what they say. For tests only.

$NAMES is a file with a JSON object: for each name of a host the addresses that its look-ups give, one after the other; 127.0.0.1 then passes for a
public address. $SCRIPT is a file with a JSON list of token ids: while there are any, every answer is these.
"""

import json
import os
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from qwen_vl import cli
from qwen_vl.engine.sampling import Sampler
from qwen_vl.processing import fetch

NAMES, SCRIPT = (Path(os.environ[name]) for name in ("NAMES", "SCRIPT"))
look_up, is_global, choose = socket.getaddrinfo, fetch._is_global, Sampler.choose
is_plain: property = vars(Sampler)["is_plain"]
asked: Counter[tuple[str, str]] = Counter()


def resolve(name: Any, *rest: Any, **more: Any) -> Any:
    """Resolve a name as told."""
    told = NAMES.read_text()
    known = json.loads(told)
    if name in known:
        asked[told, name] += 1
        name = known[name][min(asked[told, name], len(known[name])) - 1]
    return look_up(name, *rest, **more)


def script() -> list[int]:
    """Return what is to be written."""
    return list(json.loads(SCRIPT.read_text()))


def write(sampler: Sampler, logits: Tensor) -> int:
    """Choose the next token of the script."""
    token, ids = choose(sampler, logits), script()
    return ids[len(sampler.generated)] if len(sampler.generated) < len(ids) else token


altered = pytest.MonkeyPatch()  # never undone: the process is altered for as long as it lives
altered.setattr(socket, "getaddrinfo", resolve)
altered.setattr(fetch, "_is_global", lambda ip: ip == "127.0.0.1" or is_global(ip))
altered.setattr(Sampler, "choose", write)
altered.setattr(Sampler, "is_plain", property(lambda sampler: not script() and is_plain.__get__(sampler)))
sys.exit(cli.main())
