"""`qwen-vl` that notes in the file $AUDIT what it opens, connects to and starts. For tests only."""

import os
import sys
from typing import Any

from qwen_vl import cli

NOTES = os.open(os.environ["AUDIT"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
NOTED = {  # Python's names of the events, and which argument says what it is about
    "open": 0,
    "os.listdir": 0,
    "os.system": 0,
    "os.exec": 0,
    "subprocess.Popen": 0,
    "socket.connect": 1,
    "socket.getaddrinfo": 0,
}


def note(event: str, arguments: tuple[Any, ...]) -> None:
    """Note an event of Python's own list."""
    if event in NOTED:
        os.write(NOTES, f"{event} {arguments[NOTED[event]]!r}\n".encode("utf-8", "backslashreplace"))


if "GUARD" in os.environ:  # tests run without a guard: the importing path has been set for it
    from tests.integration.guard_mutations import take_away

    take_away()
sys.addaudithook(note)
sys.exit(cli.main())
