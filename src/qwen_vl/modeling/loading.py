"""`from_pretrained` with the released precision arguments, strict about what the folder holds.

A local folder is checked before transformers sees it: `folder` and `header` for its files, `pickles` for code in `.bin` files, `shapes` for
the tensors. What comes from the hub by name is resolved by transformers; missing, extra and wrongly shaped tensors stop it as well.
"""

import copy
import pickle
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from qwen_vl.errors import CheckpointError, ConfigError

from .folder import FolderContents, looks_like_hub_name, read_folder
from .header import TensorFacts
from .packed import Int4Layout
from .pickles import check_pickle
from .shapes import check_tensors

INT4_METHOD = "qwen_vl_int4"  # under which `qwen_vl.quantization` registers with transformers; "gptq" there would ask for other packages
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def choose_dtype(config: Any, device_map: Any, *, is_flag_given: bool = False) -> torch.dtype:
    """Return the dtype that the release would load: the flag in the config, else bf16 or fp16 where the GPU has it, else float32.

    An Int4 checkpoint on a CPU is loaded in bf16, which the int4 kernel there takes and which needs half of float32's memory, unless the caller gives
    a flag: the released file's own, fp16, is about GPUs.
    Raises: ConfigError when several flags are true.
    """
    flags = [name for name in PRECISIONS if getattr(config, name)]
    if len(flags) > 1:
        raise ConfigError(f'Only one of "bf16", "fp16", "fp32" can be true; found {", ".join(flags)}')
    has_gpu = torch.cuda.is_available() and device_map != "cpu"
    is_int4 = bool(getattr(config, "quantization_config", None))
    if flags and not (is_int4 and flags == ["fp16"] and not has_gpu and not is_flag_given):
        return PRECISIONS[flags[0]]
    if not has_gpu or device_map is None:
        return torch.bfloat16 if is_int4 else torch.float32
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16 if torch.cuda.get_device_capability()[0] >= 7 else torch.float32


class LoadingMixin:
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """Load a checkpoint as transformers does, plus `bf16=`, `fp16=`, `fp32=` of the release.

        Raises: CheckpointError when tensors are missing, extra or of the wrong shape, or a file is damaged; ConfigError for bad arguments.
        """
        flags = {name: kwargs.pop(name) for name in PRECISIONS if name in kwargs}
        kwargs.pop("resume_download", None)  # people's scripts pass it; downloads are always resumed
        contents = _checked_contents(pretrained_model_name_or_path, kwargs)
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
        if contents is not None and contents.tensors:
            _check_stored_tensors(contents, config)
        if kwargs.get("quantization_config") is None:  # else the caller wants what transformers makes of it
            config = _with_own_method(config)
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs["dtype"] = choose_dtype(config, kwargs.get("device_map"), is_flag_given=any(flags.values()))
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # so that they are listed below, all of them, and refused
        try:
            model, info = super().from_pretrained(  # type: ignore[misc]
                pretrained_model_name_or_path, *args, config=config, output_loading_info=True, **kwargs
            )
        except (pickle.UnpicklingError, SafetensorError) as error:
            raise CheckpointError(
                f"{pretrained_model_name_or_path}: a weight file is damaged or holds more than tensors; nothing of it was executed. "
                "Fetch the file again, in safetensors if you can"
            ) from error
        if not hasattr(model, "lm_head"):  # the decoder alone, from the folder of a whole model
            info["unexpected_keys"] = set(info["unexpected_keys"]) - {"lm_head.weight"}
        _refuse_differences(str(pretrained_model_name_or_path), info)
        _fix_tables(model)
        return (model, info) if wants_info else model

    @staticmethod
    def _load_pretrained_model(model: Any, state_dict: Any, checkpoint_files: Any, *args: Any, **kwargs: Any) -> Any:
        """Do as transformers does, but read the files of an Int4 model instead of mapping them.

        Most of it is held in another form than it is stored: with the mapped files in memory there would be two of everything.
        """
        with ExitStack() as stack:
            is_safetensors = bool(checkpoint_files) and all(str(file).endswith(".safetensors") for file in checkpoint_files)
            if state_dict is None and is_safetensors and hasattr(model.config, "quantization_config"):
                with suppress(TypeError):  # of a safetensors that can only map
                    handles = [stack.enter_context(safe_open(file, framework="pt", backend="pread")) for file in checkpoint_files]
                    state_dict = {name: handle.get_slice(name) for handle in handles for name in handle.keys()}  # a handle is no dict
            return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)


def _with_own_method(config: Any) -> Any:
    """Return the config such that Int4 layers of this package load its packed tensors. Raises: ConfigError for a layout that they do not read."""
    settings = getattr(config, "quantization_config", None)
    if not settings:
        return config
    if not isinstance(settings, Mapping):  # of a loaded model
        settings = settings.to_dict()
    Int4Layout.of(settings)
    config = copy.deepcopy(config)
    config.quantization_config = {**settings, "quant_method": INT4_METHOD}
    return config


def _fix_tables(model: nn.Module) -> None:
    """Take the resampler's sine table out of training again: transformers makes every tensor that it loads trainable."""
    for name, parameter in model.named_parameters():
        if name.endswith("attn_pool.pos_embed"):
            parameter.requires_grad_(False)


def _checked_contents(name: Any, kwargs: dict[str, Any]) -> FolderContents | None:
    """Return the contents of a local folder; None for a name of the hub, or None as name.

    Raises: CheckpointError for a folder that cannot be loaded safely and whole; ConfigError for arguments that would go around the checks.
    """
    if kwargs.get("weights_only", True) is not True or kwargs.get("gguf_file"):
        raise ConfigError("weights_only=False and gguf_file= are not accepted: weights are read from safetensors, or from .bin files without code")
    if name is None or (looks_like_hub_name(str(name)) and not Path(name).exists()):
        return None
    folder = Path(name, kwargs.get("subfolder") or "")
    contents = read_folder(folder, variant=kwargs.get("variant"), use_safetensors=kwargs.get("use_safetensors"))
    for file in contents.weight_files:
        if file.suffix == ".bin":
            check_pickle(file)
    return contents


def _check_stored_tensors(contents: FolderContents, config: Any) -> None:
    """Raise: CheckpointError when the headers do not hold exactly the tensors of the config, before memory is used.

    A folder of another architecture than the two of this package (a subclass with a head of its own) is compared after loading only.
    """
    architecture = (contents.config.get("architectures") or ["QWenLMHeadModel"])[0]
    tensors = contents.tensors
    if architecture == "QWenModel":  # saved without its head and without the prefix of its tensors
        head = config.vocab_size, config.hidden_size
        tensors = {f"transformer.{name}": facts for name, facts in tensors.items()} | {"lm_head.weight": TensorFacts("F32", head)}
    elif architecture != "QWenLMHeadModel":
        return
    check_tensors(contents.folder, config.to_dict(), tensors)


def _refuse_differences(name: str, info: Any) -> None:
    """Raise: CheckpointError when the folder's tensors are not exactly the model's."""
    problems = []
    for label, keys in (("lacks", info["missing_keys"]), ("has unknown", info["unexpected_keys"]), ("has wrongly shaped", info["mismatched_keys"])):
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
        if names:
            problems.append(f"{label} {len(names)} tensors: {', '.join(names[:10])}{', ..' if len(names) > 10 else ''}")
    if problems:
        raise CheckpointError(f"{name} {'; '.join(problems)}. Check that all shards are there and that config.json belongs to them")
