"""The folder of finished blocks: what it remembers of a run, and what a kill may leave in it."""

import json
from pathlib import Path

import pytest

from qwen_vl.errors import ConfigError
from qwen_vl.quantization.work_folder import MANIFEST, WorkFolder, put_back


def test_begun_anew_it_forgets_what_the_earlier_run_was_made_with(tmp_path: Path) -> None:
    folder = tmp_path / "int4.part"
    WorkFolder(folder, {"method": "gptq", "seed": 0}, is_forced=False).settle({"samples": "abc"})
    work = WorkFolder(folder, {"method": "rtn"}, is_forced=True)
    assert work.fingerprint == json.loads((folder / MANIFEST).read_text())["fingerprint"] == {"method": "rtn"}


def test_begun_anew_late_it_remembers_all_of_this_run(tmp_path: Path) -> None:
    folder = tmp_path / "int4.part"
    WorkFolder(folder, {"method": "gptq", "seed": 0}, is_forced=False).settle({"samples": "abc"})
    work = WorkFolder(folder, {"method": "gptq"}, is_forced=True)
    work.settle({"samples": "def"})
    assert work.fingerprint == {"method": "gptq", "samples": "def"}
    with pytest.raises(ConfigError, match="another samples"):
        WorkFolder(folder, {"method": "gptq"}, is_forced=False).settle({"samples": "abc"})


def test_what_a_kill_left_of_a_file_is_no_hindrance(tmp_path: Path) -> None:
    folder, out = tmp_path / "int4.part", tmp_path / "int4"
    work = WorkFolder(folder, {"method": "rtn"}, is_forced=False)
    (folder / ".manifest.part123.json").write_text("{")
    (folder / "folder").mkdir()
    work.publish(out)
    put_back(out)
    assert [path.name for path in tmp_path.iterdir()] == ["int4"]
