"""From a name to a model that is ready: which folder, which device, which precision, and is everything there.

Every way in which a folder can be wrong becomes a `CheckpointError` of one line; nothing of the folder is ever executed.
"""

import errno
import importlib.util
import logging
from pathlib import Path
from typing import cast

import torch

from qwen_vl.checkpoint_facts import CheckpointFacts, check_folder
from qwen_vl.errors import CapacityError, CheckpointError, ConfigError, QwenVLError, cannot_write, is_out_of_memory
from qwen_vl.modeling.configuration import QWenConfig
from qwen_vl.modeling.folder import looks_like_hub_name as looks_like_hub_name
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.processing.tokenization import QWenTokenizer
from qwen_vl.quantization.head import quantize_head

logger = logging.getLogger(__name__)

BUNDLED = Path(__file__).parents[1] / "assets" / "nano"
HUB_FILES = ["*.json", "*.safetensors", "*.bin", "qwen.tiktoken"]  # never code
DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def resolve_folder(name: str | Path | None) -> Path:
    """Return the local folder of a checkpoint; a name of the hub is fetched (or found in the hub's cache) first.

    Args: name: a folder, a hub name such as Qwen/Qwen-VL-Chat, or None for the bundled nano.
    Raises: CheckpointError if there is no such folder and no such name.
    """
    if name is None:
        if not (BUNDLED / "config.json").is_file():
            raise CheckpointError(
                "This installation lacks the bundled checkpoint (qwen_vl/assets/nano). Install the package again, or name another model."
            )
        return BUNDLED
    folder = Path(name).expanduser()
    if folder.exists() or not looks_like_hub_name(str(name)):
        return folder
    return fetch_from_hub(str(name))


def fetch_from_hub(name: str) -> Path:
    """Return the folder of the hub's cache that holds a model. Raises: CheckpointError if it can be neither found nor fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        logger.debug("fetching %s failed", name, exc_info=error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise cannot_write("the hub's cache", error, "Make room, or set HF_HOME to another disk.") from None
        raise CheckpointError(
            f"{name} is neither a local folder nor a model that the hub gave ({type(error).__name__}). "
            "Check the name and the network, or give a folder."
        ) from None


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the device: the one named, else a GPU if there is one, else the CPU.

    Raises: ConfigError for a name that torch does not know or a device that this machine does not have.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"unknown device {str(device)!r}. Use cpu, cuda, cuda:1, mps or auto.") from None
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (resolved.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(resolved.type, False):
        raise ConfigError(f"this machine has no device {str(device)!r} that this PyTorch can use. Use cpu, or leave the device out.")
    return resolved


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device, *, is_int4: bool = False) -> torch.dtype:
    """Return the precision: the one named, else float32 on the CPU (bfloat16 for Int4) and the best 16-bit one on a GPU (FACTS 3.8).

    Raises: ConfigError for an unknown name.
    """
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype is None or dtype == "auto":
        if device.type != "cuda":
            return torch.bfloat16 if is_int4 and device.type == "cpu" else torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}. Use {', '.join(DTYPES)} or auto.")
    if device.type == "cpu" and DTYPES[dtype] == torch.float16:
        logger.warning("float16 is very slow on a CPU; float32 is the default there")
    return DTYPES[dtype]


def load_checkpoint(folder: Path, device: torch.device, dtype: torch.dtype | None) -> tuple[QWenLMHeadModel, QWenTokenizer]:
    """Load model and tokenizer, in evaluation mode, on the device. Args: dtype: None for the device's and the checkpoint's default.

    Raises: CheckpointError naming what is missing, extra, damaged or of another family; CapacityError if memory does not suffice.
    """
    facts = check_folder(folder)
    tokenizer = load_tokenizer(folder)
    model = load_model(facts, device, dtype or resolve_dtype(None, device, is_int4=facts.is_quantized))
    if (facts.config.get("quantization_config") or {}).get("int8_head"):
        quantize_head(model)
    check_fit(folder, model, tokenizer)
    return model, tokenizer


def load_tokenizer(folder: Path) -> QWenTokenizer:
    """Load the tokenizer of a folder. Raises: CheckpointError if its files are damaged."""
    try:
        return cast(QWenTokenizer, QWenTokenizer.from_pretrained(folder))
    except (QwenVLError, OSError, ValueError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded ({type(error).__name__}). Fetch its tokenizer files again.") from error


def load_model(facts: CheckpointFacts, device: torch.device, dtype: torch.dtype) -> QWenLMHeadModel:
    """Load the weights, all of them and nothing else. Raises: CheckpointError, CapacityError."""
    folder = facts.folder
    # With accelerate the weights go to the GPU file by file; without it, through the memory of the CPU.
    placed = {"device_map": {"": device}} if device.type != "cpu" and importlib.util.find_spec("accelerate") else {}
    try:
        config = QWenConfig.from_pretrained(folder)
        model = QWenLMHeadModel.from_pretrained(folder, config=config, dtype=dtype, **placed).to(device).eval()
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error
    except (OSError, ValueError, RuntimeError, EOFError, MemoryError) as error:
        if is_out_of_memory(error):
            gib = facts.num_bytes / 2**30
            raise CapacityError(
                f"{folder} does not fit the memory of {device} ({gib:.1f} GiB of weights). See qwen-vl info for what each dtype needs."
            ) from None
        raise CheckpointError(f"{folder}: its weights cannot be read ({type(error).__name__}). A file is damaged; fetch the folder again.") from error
    return cast(QWenLMHeadModel, model)


def check_fit(folder: Path, model: QWenLMHeadModel, tokenizer: QWenTokenizer) -> None:
    """Raise CheckpointError if tokenizer and model belong to different checkpoints."""
    config = model.config
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens but its model only {config.vocab_size}. They do not belong together."
        )
    if config.visual is None:
        return
    if tokenizer.img_start_id != config.image_start_id:
        raise CheckpointError(
            f"{folder}: <img> is token {tokenizer.img_start_id} of its tokenizer but {config.image_start_id} in its config. "
            "They do not belong together."
        )
    if tokenizer.image_slots != config.image_slots:
        raise CheckpointError(
            f"{folder}: a picture takes {tokenizer.image_slots} slots in its tokenizer_config.json but {config.image_slots} in its config. "
            "Make them equal."
        )
