"""A file or a folder is there whole or not at all."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from safetensors import SafetensorError

from qwen_vl import whole
from qwen_vl.errors import ConfigError, DiskError
from qwen_vl.whole import sweep_parts, whole_file, whole_folder, writing


def fill(out: Path, content: str = "new") -> None:
    with whole_folder(out) as work:
        (work / "below").mkdir()
        (work / "below" / "file").write_text(content)


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with whole_folder(out) as work:
        (work / "file").write_text("x")
        assert not out.exists()
    assert (out / "file").read_text() == "x" and os.listdir(out.parent) == ["out"]


def test_an_earlier_folder_is_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "out", "old")
    fill(tmp_path / "out")
    assert (tmp_path / "out" / "below" / "file").read_text() == "new" and os.listdir(tmp_path) == ["out"]


def test_what_a_link_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to("place")
    fill(tmp_path / "link")
    assert (tmp_path / "place" / "below" / "file").exists() and sorted(os.listdir(tmp_path)) == ["link", "place"]


def test_the_empty_working_folder_can_be_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fill(Path("."))
    monkeypatch.chdir(tmp_path)
    assert (tmp_path / "here" / "below" / "file").exists()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskError),
        (SafetensorError("I/O error: No space left on device (os error 28)"), DiskError),
        (PermissionError(errno.EACCES, "Permission denied"), ConfigError),
        (SafetensorError("a bug of ours"), SafetensorError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: BaseException, kind: type[BaseException]) -> None:
    fill(tmp_path / "out", "old")
    with pytest.raises(kind), whole_folder(tmp_path / "out") as work:
        (work / "file").write_text("half")
        raise error
    assert (tmp_path / "out" / "below" / "file").read_text() == "old" and os.listdir(tmp_path) == ["out"]


def test_the_earlier_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "out", "old")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if ".part" in self.name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ConfigError, match="Permission denied"):
        fill(tmp_path / "out")
    assert (tmp_path / "out" / "below" / "file").read_text() == "old" and os.listdir(tmp_path) == ["out"]


def test_a_kill_between_the_renames_hides_no_folder_for_good(tmp_path: Path) -> None:
    killed = (
        "import os, sys; from pathlib import Path; from qwen_vl.whole import whole_folder\n"
        "rename = Path.rename\n"
        "Path.rename = lambda self, target: os._exit(9) if '.part' in self.name else rename(self, target)\n"
        "with whole_folder(Path(sys.argv[1])) as work: (work / 'half').touch()"
    )
    fill(tmp_path / "out", "old")
    assert subprocess.run([sys.executable, "-c", killed, str(tmp_path / "out")], check=False).returncode == 9
    assert not (tmp_path / "out").exists() and len(os.listdir(tmp_path)) == 2
    with pytest.raises(KeyError), whole_folder(tmp_path / "out"):
        raise KeyError
    assert (tmp_path / "out" / "below" / "file").read_text() == "old" and os.listdir(tmp_path) == ["out"]


def test_the_folder_that_another_process_is_writing_stays(tmp_path: Path) -> None:
    other = tmp_path / f".out.part{os.getppid()}"
    other.mkdir()
    fill(tmp_path / "out")
    assert other.exists()


def test_files_are_flushed_before_the_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[str, bool]] = []
    monkeypatch.setattr(whole, "flush", lambda path: flushed.append((path.name, (tmp_path / "out").exists())))
    fill(tmp_path / "out")
    assert [name for name, is_there in flushed if not is_there][:2] == ["below", "file"] and flushed[-1] == (tmp_path.name, True)


# -- files


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    path.write_text("old")
    with whole_file(path) as work:
        work.write_text("new")
        assert path.read_text() == "old" and work.suffix == ".png", "writers that go by the suffix find it"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["loss.png"]


def test_what_a_link_to_a_file_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "link").symlink_to("below/file")
    for content in ("old", "new"):  # the first time the link points to nothing yet
        with whole_file(tmp_path / "link") as work:
            work.write_text(content)
        assert (tmp_path / "below" / "file").read_text() == content and (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "below") == ["file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()), daemon=True)
    reader.start()
    with whole_file(pipe) as work:
        work.write_text("content")
    reader.join(60)
    assert found == ["content"] and pipe.is_fifo()


@pytest.mark.parametrize("is_flushed", [False, True])
def test_a_file_that_fails_leaves_the_earlier_one(tmp_path: Path, is_flushed: bool) -> None:
    path = tmp_path / "report.md"
    path.write_text("old")
    with pytest.raises(ValueError, match="own"), whole_file(path, is_flushed=is_flushed) as work:
        work.write_text("half")
        raise ValueError("own")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["report.md"]


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskError), (errno.EACCES, ConfigError)])
def test_what_cannot_be_written_says_what_to_do(tmp_path: Path, number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="report.md cannot be written: .*Make room"), whole_file(tmp_path / "report.md", remedy="Make room.") as work:
        work.write_text("half")
        raise OSError(number, os.strerror(number))
    with pytest.raises(OSError, match=os.strerror(number)), whole_file(tmp_path / "report.md"):
        raise OSError(number, os.strerror(number))
    assert os.listdir(tmp_path) == []


def test_a_flushed_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[str, bool]] = []
    monkeypatch.setattr(whole, "flush", lambda path: flushed.append((path.read_text(), (tmp_path / "a").exists())))
    for is_flushed in (True, False):
        with whole_file(tmp_path / "a", is_flushed=is_flushed) as work:
            work.write_text("content")
        (tmp_path / "a").unlink()
    assert flushed == [("content", False)]


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    kept = [".metrics.tmp", ".part", "a.part1.txt", ".a.party.txt", "report.md"]
    for name in (".metrics.part17.jsonl", ".a.b.part1.txt", ".lock.part3", *kept):
        (tmp_path / name).write_text("half")
    (tmp_path / ".folder.part1").mkdir()
    sweep_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, ".folder.part1"])


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskError, "No space left.* Make room"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), DiskError, "No space left.* Make room"),
        (PermissionError(errno.EACCES, "Permission denied"), ConfigError, "Permission denied"),
        (SafetensorError("something else"), SafetensorError, "something else"),
    ],
)
def test_failures_to_write_say_what_to_do(error: Exception, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message), writing(Path("out"), "Make room."):
        raise error
