"""`from_pretrained` with the released precision arguments, strict about what the folder holds."""

import pickle
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from qwen_vl.errors import CheckpointError, ConfigError

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def choose_dtype(config: Any, device_map: Any) -> torch.dtype:
    """Return the dtype that the release would load: the flag in the config, else bf16 or fp16 where the GPU has it, else float32.

    Raises: ConfigError when several flags are true.
    """
    flags = [name for name in PRECISIONS if getattr(config, name)]
    if len(flags) > 1:
        raise ConfigError(f'Only one of "bf16", "fp16", "fp32" can be true; found {", ".join(flags)}')
    if flags:
        return PRECISIONS[flags[0]]
    if not torch.cuda.is_available() or device_map in (None, "cpu"):
        return torch.float32
    if torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float16 if torch.cuda.get_device_capability()[0] >= 7 else torch.float32


class LoadingMixin:
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """Load a checkpoint as transformers does, plus `bf16=`, `fp16=`, `fp32=` of the release.

        Raises: CheckpointError when tensors are missing, extra or of the wrong shape, or a file is damaged; ConfigError for bad arguments.
        """
        flags = {name: kwargs.pop(name) for name in PRECISIONS if name in kwargs}
        if config is None:
            hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            dtype = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}  # a config would keep it for itself
            config, kwargs = cls.config_class.from_pretrained(  # type: ignore[attr-defined]
                pretrained_model_name_or_path, return_unused_kwargs=True, **kwargs
            )
            kwargs |= hub | dtype
        if any(flags.values()):
            for name in PRECISIONS:
                setattr(config, name, bool(flags.get(name)))
        if getattr(config, "quantization_config", None) and kwargs.get("quantization_config") is None:
            raise CheckpointError(
                f"{pretrained_model_name_or_path} is an Int4 (GPTQ) checkpoint, which this version does not load yet; use the bf16 checkpoint"
            )
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs["dtype"] = choose_dtype(config, kwargs.get("device_map"))
        wants_info = kwargs.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(  # type: ignore[misc]
                pretrained_model_name_or_path, *args, config=config, output_loading_info=True, **kwargs
            )
        except (pickle.UnpicklingError, SafetensorError) as error:
            raise CheckpointError(
                f"{pretrained_model_name_or_path}: a weight file is damaged or holds more than tensors; nothing of it was executed. "
                "Fetch the file again, in safetensors if you can"
            ) from error
        _refuse_differences(str(pretrained_model_name_or_path), info)
        _fix_tables(model)
        return (model, info) if wants_info else model


def _fix_tables(model: nn.Module) -> None:
    """Take the resampler's sine table out of training again: transformers makes every tensor that it loads trainable."""
    for name, parameter in model.named_parameters():
        if name.endswith("attn_pool.pos_embed"):
            parameter.requires_grad_(False)


def _refuse_differences(name: str, info: Any) -> None:
    """Raise: CheckpointError when the folder's tensors are not exactly the model's."""
    problems = []
    for label, keys in (("lacks", info["missing_keys"]), ("has unknown", info["unexpected_keys"]), ("has wrongly shaped", info["mismatched_keys"])):
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
        if names:
            problems.append(f"{label} {len(names)} tensors: {', '.join(names[:10])}{', ..' if len(names) > 10 else ''}")
    if problems:
        raise CheckpointError(f"{name} {'; '.join(problems)}. Check that all shards are there and that config.json belongs to them")
