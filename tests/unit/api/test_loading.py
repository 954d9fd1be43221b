"""Names, devices, precisions; a text-only checkpoint; what the hub is asked for."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from qwen_vl.api import QwenVL, loading
from qwen_vl.api.loading import looks_like_hub_name, resolve_device, resolve_dtype, resolve_folder
from qwen_vl.errors import CheckpointError, ConfigError
from tests.tiny import make_checkpoint

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen-VL-Chat", True),
        ("./weights", False),
        ("../weights/7b", False),
        ("~/weights", False),
        ("/abs/x", False),
        ("weights", False),
        ("a/b/c", False),
    ],
)
def test_hub_names_are_told_from_paths(name: str, expected: bool) -> None:
    assert looks_like_hub_name(name) is expected


def test_a_local_folder_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "fetch_from_hub", lambda name: Path("fetched") / name)
    assert resolve_folder("Qwen/Qwen-VL") == Path("fetched/Qwen/Qwen-VL")
    (tmp_path / "Qwen" / "Qwen-VL").mkdir(parents=True)
    assert resolve_folder("Qwen/Qwen-VL") == Path("Qwen/Qwen-VL")


def test_the_hub_is_never_asked_for_code(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, object] = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **more: asked.update(more) or "somewhere")
    loading.fetch_from_hub("Qwen/Qwen-VL")
    patterns = asked["allow_patterns"]
    assert isinstance(patterns, list) and "qwen.tiktoken" in patterns
    assert not any(pattern.endswith(".py") or pattern == "*" for pattern in patterns)


def test_what_the_hub_does_not_give_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        raise OSError("offline, with a long\nexplanation")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"^Qwen/Qwen-VL is neither a local folder nor") as caught:
        loading.fetch_from_hub("Qwen/Qwen-VL")
    assert "\n" not in str(caught.value)


def test_no_name_is_the_bundled_checkpoint(chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BUNDLED", chat_folder)
    assert QwenVL.load(device="cpu").name == "nano"
    monkeypatch.setattr(loading, "BUNDLED", tmp_path)
    with pytest.raises(CheckpointError, match="bundled"):
        QwenVL.load()


def test_precision_follows_the_device_unless_named() -> None:
    assert resolve_dtype(None, CPU) == resolve_dtype("auto", CPU) == torch.float32
    assert resolve_dtype("bf16", CPU) == resolve_dtype(torch.bfloat16, CPU) == torch.bfloat16
    for wrong in ("int3", "", torch.int8):
        with pytest.raises(ConfigError, match="dtype"):
            resolve_dtype(wrong, CPU)


@pytest.mark.parametrize("name", ["gpu", "", "cpu:x", "cuda:99", "meta", "xla"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        resolve_device(name)
    assert resolve_device("cpu") == CPU


def test_the_precision_reaches_every_weight(chat_folder: Path) -> None:
    vl = QwenVL.load(chat_folder, device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in vl.model.parameters()} == {torch.bfloat16}
    assert not vl.model.training
    assert vl.ask(Image.new("RGB", (8, 8)), "what?", max_new_tokens=2).usage.completion_tokens == 2


def test_a_text_only_checkpoint_answers_and_refuses_pictures(tmp_path: Path) -> None:
    vl = QwenVL.load(make_checkpoint(tmp_path / "text", config={"visual": None}), device="cpu")
    assert vl.ask(None, "hello", max_new_tokens=2).usage.completion_tokens == 2
    with pytest.raises(ConfigError, match="text-only"):
        vl.ask(Image.new("RGB", (8, 8)), "what?")
