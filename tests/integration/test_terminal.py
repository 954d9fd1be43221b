"""The command line at a real terminal: streaming, line editing, interruption."""

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny import make_checkpoint

PROGRAM = [sys.executable, "-c", "import sys; from qwen_vl.cli import main; sys.exit(main())"]
WAIT_SECONDS = 90.0


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self.fd = pty.fork()
        if not self.pid:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests in the background of a shell ignore it, and programs inherit that
            os.execv(PROGRAM[0], [*PROGRAM, *arguments])
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def read_until(self, words: str) -> str:
        """Return what was shown up to and with the words, and forget it. Fails when they do not come."""
        end = time.monotonic() + WAIT_SECONDS
        while words not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    shown = os.read(self.fd, 4096)
                except OSError:
                    shown = b""
                assert shown, self.seen
                self.seen += shown.decode(errors="replace")
        shown_before, _, self.seen = self.seen.partition(words)
        return shown_before + words

    def wait(self) -> int:
        """Return the exit code. Fails when the program does not end."""
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.1)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"the program did not end; it showed {self.seen!r}")


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm")
    Image.new("RGB", (30, 20), (200, 30, 30)).save("red.png")
    folder = make_checkpoint(tmp_path / "tiny", config={"max_position_embeddings": 9000})
    terminal = Terminal("chat", "red.png", "--model", str(folder), "--max-new-tokens", "8000")
    yield terminal
    os.close(terminal.fd)


def test_an_answer_can_be_stopped_and_the_conversation_goes_on(chat: Terminal) -> None:
    assert "picture 1 goes with" in chat.read_until("> ")
    chat.type("what is it?\n")
    chat.read_until("what is it?\r\n")
    while not chat.seen.strip():  # the first piece of the answer, long before the last
        chat.seen += os.read(chat.fd, 4096).decode(errors="replace")
    chat.type("\x03")
    chat.read_until("stopped")
    chat.read_until("> ")
    chat.type("/draw\n")
    chat.read_until("holds no box")  # there is no answer: the stopped one is forgotten
    chat.read_until("> ")
    chat.type("/nonsense\n")
    chat.read_until("no command")
    chat.read_until("> ")
    chat.type("\x1b[A\x1b[A\n")  # up, up: the line before the last
    chat.read_until("holds no box")
    chat.read_until("> ")
    chat.type("\x04")
    assert chat.wait() == 0


def test_interrupting_at_the_prompt_ends_with_130(chat: Terminal) -> None:
    chat.read_until("> ")
    time.sleep(0.5)  # readline notices an interrupt only once it waits for keys, a moment after it has shown the prompt
    chat.type("\x03")
    assert chat.wait() == 130
