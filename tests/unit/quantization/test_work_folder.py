"""The folder of finished blocks: what it remembers of a run, and what a kill may leave in it."""

import json
from pathlib import Path

import pytest

from qwen_vl.errors import ConfigError
from qwen_vl.quantization.work_folder import MANIFEST, WorkFolder, check_free


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
    assert [path.name for path in tmp_path.iterdir()] == ["int4"]


def test_what_a_kill_hid_is_not_replaced_without_force(tmp_path: Path) -> None:
    hidden, out = tmp_path / "int4.part" / "old", tmp_path / "int4"
    hidden.mkdir(parents=True)
    (hidden / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="--force"):
        check_free(out, tmp_path / "dense", is_forced=False)
    assert (out / "config.json").exists()
