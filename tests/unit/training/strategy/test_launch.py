import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_vl.errors import ConfigError
from qwen_vl.surroundings import Place
from qwen_vl.training.settings import FinetuneSettings
from qwen_vl.training.strategy import deepspeed, launch
from qwen_vl.training.strategy.launch import choose, choose_device
from qwen_vl.training.strategy.single import SingleStrategy

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
TWO = Place(rank=1, local_rank=1, world_size=2, is_launched=True)
RELEASED = Path(__file__).parents[4] / "finetune"


def settings(**values: Any) -> FinetuneSettings:
    return FinetuneSettings(model_name_or_path="m", data_path="d", output_dir="o", **values)


class TestChoice:
    @pytest.mark.parametrize(
        ("values", "place", "environment", "expected"),
        [
            ({}, Place(), {}, ("single", None)),
            ({}, TWO, {}, ("ddp", None)),
            ({"strategy": "fsdp2"}, TWO, {}, ("fsdp2", None)),
            ({"fsdp": "full_shard auto_wrap"}, TWO, {}, ("fsdp2", None)),
            ({"deepspeed": "zero2"}, Place(), {}, ("deepspeed", "zero2")),
            ({"deepspeed": "my.json"}, TWO, {}, ("deepspeed", "my.json")),
            ({}, TWO, {"ACCELERATE_USE_FSDP": "true"}, ("fsdp2", None)),
            ({}, TWO, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, ("deepspeed", "zero3")),
            ({}, TWO, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "a.json"}, ("deepspeed", "a.json")),
            ({"strategy": "ddp"}, TWO, {"ACCELERATE_USE_FSDP": "true"}, ("ddp", None)),
        ],
    )
    def test_follows_settings_then_environment(
        self, values: dict[str, Any], place: Place, environment: dict[str, str], expected: tuple[str, str | None]
    ) -> None:
        assert choose(settings(**values), place, environment) == expected

    @pytest.mark.parametrize(
        ("values", "place", "message"),
        [
            ({"strategy": "ddp"}, Place(), "torchrun"),
            ({"strategy": "fsdp2"}, Place(), "torchrun"),
            ({"fsdp": "full_shard"}, Place(), "torchrun"),
            ({"strategy": "single"}, TWO, "2 were started"),
        ],
    )
    def test_refuses_what_cannot_run(self, values: dict[str, Any], place: Place, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            choose(settings(**values), place, {})

    def test_one_process_needs_no_group(self) -> None:
        with launch.launch(settings(device="cpu"), {}) as strategy:
            assert isinstance(strategy, SingleStrategy)
            assert not torch.distributed.is_initialized()


class TestDevice:
    def test_names(self) -> None:
        assert choose_device("cpu", TWO) == torch.device("cpu")

    @pytest.mark.parametrize("name", ["gpu", "cuda:99", "cuda:1"])
    def test_refuses_what_is_not_there(self, name: str) -> None:
        with pytest.raises(ConfigError):
            choose_device(name, TWO)

    def test_gives_each_process_its_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert choose_device(None, TWO) == torch.device("cuda:1")
        with pytest.raises(ConfigError, match="torch sees 2"):
            choose_device(None, Place(rank=2, local_rank=2, world_size=3, is_launched=True))


class TestDeepSpeedFile:
    @pytest.mark.parametrize("name", ["zero2", "zero3"])
    def test_bundled_are_the_released(self, name: str) -> None:
        released = RELEASED / f"ds_config_{name}.json"
        assert deepspeed.read_config(name) == deepspeed.read_config(released)

    @pytest.mark.parametrize("name", ["zero2", "zero3"])
    def test_fills_all_that_is_auto(self, name: str) -> None:
        values = settings(bf16=True, per_device_train_batch_size=2, gradient_accumulation_steps=8, learning_rate=1e-5)
        filled = deepspeed.fill_config(deepspeed.read_config(name), values, world_size=8, hidden_size=4096)
        assert "auto" not in json.dumps(filled)
        assert (filled["train_batch_size"], filled["train_micro_batch_size_per_gpu"], filled["gradient_accumulation_steps"]) == (128, 2, 8)
        assert (filled["bf16"]["enabled"], filled["fp16"]["enabled"]) == (True, False)
        assert "optimizer" not in filled and "scheduler" not in filled
        if name == "zero3":
            zero = filled["zero_optimization"]
            assert zero["reduce_bucket_size"] == 4096**2
            assert (zero["stage3_prefetch_bucket_size"], zero["stage3_param_persistence_threshold"]) == (15099494, 40960)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}}, "fp16.enabled is True, the settings say False"),
            ({"zero_optimization": {"stage": 2}, "train_batch_size": 7}, "train_batch_size is 7, the settings say 8"),
            ({"zero_optimization": {"stage": 2}, "optimizer": {"type": "Lamb"}}, "optimizer.type is 'Lamb'"),
            ({"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, "optimizer.params.lr is 0.001"),
            ({"zero_optimization": {"stage": 0}}, "stage is 0"),
            ({}, "stage is 0"),
            ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "nvme"),
            ({"zero_optimization": {"stage": 2}, "bf16": {"check_grad_overflow": False}}, "check_grad_overflow"),
            ({"zero_optimization": {"stage": 2, "sub_group_size": "auto"}}, "no meaning for zero_optimization.sub_group_size"),
        ],
    )
    def test_refuses_contradictions(self, config: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            deepspeed.fill_config(config, settings(), world_size=1, hidden_size=8)

    @pytest.mark.parametrize("text", ["{", "[]", "\xff"])
    def test_refuses_a_file_that_is_none(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "a.json").write_text(text, encoding="latin-1")
        with pytest.raises(ConfigError, match="DeepSpeed file"):
            deepspeed.read_config(tmp_path / "a.json")
        with pytest.raises(ConfigError, match="There is no DeepSpeed file"):
            deepspeed.read_config(tmp_path / "b.json")

    def test_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(name: str) -> None:
            raise ModuleNotFoundError(f"No module named {name!r}")

        monkeypatch.setattr(deepspeed, "import_module", refuse)
        with pytest.raises(ConfigError, match=r"qwen-vl\[deepspeed\]"):
            deepspeed.import_deepspeed()
