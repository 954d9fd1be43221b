"""The settings of a fine-tuning run: one frozen dataclass whose fields carry the released argument names, their defaults and their help.

    settings = resolve({"model": "Qwen/Qwen-VL-Chat", "data": "train.json", "out": "tuned", "preset": "lora", "learning_rate": 2e-5})

Later layers override earlier ones: defaults, preset, recipe file, flags. The names are those of the release's script, which are Hugging Face's
wherever that has one; a name of Hugging Face's that has no effect here is refused, as ignoring it would change what a launch line means. Nothing here
needs torch: the command line reads its flags and their help from the fields.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from qwen_vl.errors import ConfigError, nearest

PartMode = Literal["default", "frozen", "trained", "adapters"]


def setting(default: Any, help: str) -> Any:
    """Declare a field with what `--help` says about it."""
    return field(default=default, metadata={"help": help})


def choices_of(entry: Field[Any]) -> tuple[str, ...]:
    """Return the values that a field may have; () if they are not listed."""
    return get_args(entry.type) if get_origin(entry.type) is Literal else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneSettings:
    """Everything that a fine-tuning run depends on, besides the contents of its files and the number of its processes."""

    # Input and output
    model_name_or_path: str = setting(MISSING, "Folder or hub name of the checkpoint to tune; nano is the bundled one")
    data_path: str = setting(MISSING, "Training conversations: JSON or JSON lines")
    output_dir: str = setting(MISSING, "Folder for the tuned model or adapter, checkpoints and metrics")
    eval_data_path: str | None = setting(None, "Conversations whose loss is measured during training")
    cache_dir: str | None = setting(None, "Where the hub's files are kept")

    # What learns
    method: Literal["full", "lora", "qlora"] = setting("full", "full: the weights; lora: adapters; qlora: adapters on an Int4 checkpoint")
    fix_vit: bool = setting(True, "Freeze the vision tower, not the resampler; has no effect with adapters")
    vision: PartMode = setting("default", "What of the vision tower learns")
    resampler: PartMode = setting("default", "What of the resampler learns")
    language: PartMode = setting("default", "What of the language model's layers learns")
    embeddings: PartMode = setting("default", "Whether the token embeddings learn")
    head: PartMode = setting("default", "Whether the output head learns")
    chat: bool | None = setting(None, "Whether the checkpoint is a chat model; a base model's embeddings and head learn too [default: as it says]")
    lora_r: int = setting(64, "Rank of the adapters")
    lora_alpha: int = setting(16, "Adapters are scaled by alpha / rank")
    lora_dropout: float = setting(0.05, "Dropout before the adapters")
    lora_target_modules: tuple[str, ...] = setting(
        ("c_attn", "attn.c_proj", "w1", "w2"), "Names, or ends of names, of the language model's modules that get adapters"
    )
    lora_bias: Literal["none", "all", "lora_only"] = setting("none", "Which biases learn")
    lora_weight_path: str = setting("", "Accepted for the release's sake, which declares it and never reads it; must be empty")

    # Data
    model_max_length: int = setting(8192, "Tokens of the longest sample; no picture is ever cut")
    image_size: int | None = setting(None, "Pixels per side of the pictures, a multiple of the patch size [default: the checkpoint's own]")
    max_patches: int | None = setting(
        None, "Most patches of a picture, which then keeps its shape; not fewer than a square of image_size has [default: the checkpoint's own]"
    )
    allow_special_tokens: bool = setting(False, "Read ChatML tokens in texts as the real ones, as the release does; refused otherwise")
    long_samples: Literal["skip", "cut"] = setting("skip", "What becomes of samples that are too long: left out, or cut after a whole answer")
    bad_pictures: Literal["stop", "skip"] = setting("stop", "What a picture that cannot be read does: end the run, or leave its sample out")
    data_format: Literal["chatml", "plain"] = setting(
        "chatml", "chatml: conversations as the chat model reads them; plain: prompt and answer without tags, the loss on the answer alone"
    )
    lazy_preprocess: bool = setting(False, "Encode samples when they come up, not all at the start")
    dataloader_num_workers: int = setting(0, "Threads that load pictures")
    cache_features: bool = setting(False, "Encode each picture once, if vision tower and resampler are frozen")

    # Steps
    num_train_epochs: float = setting(3.0, "Passes over the data")
    max_steps: int = setting(-1, "Stop after so many steps instead; -1 for whole passes")
    per_device_train_batch_size: int = setting(8, "Samples that a process works on at a time")
    per_device_eval_batch_size: int = setting(8, "The same during evaluation")
    gradient_accumulation_steps: int = setting(1, "Batches of each process in one step")
    seed: int = setting(42, "Seed of the order of samples, of adapters and of dropout")

    # Optimizer and schedule
    learning_rate: float = setting(5e-5, "Highest learning rate")
    min_learning_rate: float = setting(0.0, "Where the schedule ends")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = setting(
        "linear", "Course of the learning rate after the warm-up"
    )
    warmup_ratio: float = setting(0.0, "Share of the steps in which the learning rate rises")
    warmup_steps: int = setting(0, "The same as a number, which goes first")
    weight_decay: float = setting(0.0, "Weight decay; norms and biases have none")
    adam_beta1: float = setting(0.9, "AdamW's first beta")
    adam_beta2: float = setting(0.999, "AdamW's second beta")
    adam_epsilon: float = setting(1e-8, "AdamW's epsilon")
    max_grad_norm: float = setting(1.0, "Gradients are scaled down to this norm")
    vision_layer_decay: float = setting(1.0, "Factor of the learning rate from each block of the vision tower to the one below")
    optim: Literal["adamw_torch"] = setting("adamw_torch", "Optimizer")

    # Precision, memory and processes
    bf16: bool = setting(False, "Compute in bfloat16; learnt weights stay float32")
    fp16: bool = setting(False, "Compute in float16 with a scaled loss; learnt weights stay float32")
    gradient_checkpointing: bool = setting(False, "Compute activations again in the backward pass instead of keeping them")
    selective_checkpointing: bool = setting(False, "The same, but keep what is dear to compute")
    torch_compile: bool = setting(False, "Compile the model's blocks; needs a C++ compiler")
    strategy: Literal["auto", "single", "ddp", "fsdp2"] = setting(
        "auto", "How processes share the work; auto: ddp for several, or what --deepspeed or --fsdp ask for"
    )
    deepspeed: str | None = setting(None, "DeepSpeed's configuration file, or zero2 or zero3 for the bundled ones")
    fsdp: Literal["", "full_shard", "full_shard auto_wrap"] = setting("", "full_shard shards weights, gradients and optimizer with FSDP2")
    device: str | None = setting(None, "cpu, cuda, cuda:1, mps [default: a GPU if there is one]")

    # Watching and saving
    logging_steps: int = setting(1, "Steps between two records of the metrics")
    report_to: Literal["none", "tensorboard"] = setting("none", "Where metrics go besides metrics.jsonl")
    eval_strategy: Literal["no", "steps", "epoch"] = setting("no", "When to evaluate")
    eval_steps: int | None = setting(None, "Steps between two evaluations [default: those between two records]")
    save_strategy: Literal["no", "steps", "epoch"] = setting("steps", "When to save checkpoints; the finished model is always saved")
    save_steps: int = setting(500, "Steps between two checkpoints")
    save_total_limit: int | None = setting(None, "Checkpoints that are kept [default: all]")

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ConfigError(f"{name}={value} must be positive")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        for name in _SHARES:
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0 and below 1")
        for entry in fields(self):
            choices, value = choices_of(entry), getattr(self, entry.name)
            if choices and value not in choices:
                raise ConfigError(f"{entry.name}={value!r} is none of {', '.join(map(repr, choices))}{nearest(value, choices)}")
        self._check_together()

    def _check_together(self) -> None:
        """Raise: ConfigError for settings that contradict each other."""
        if self.max_steps == 0 or self.max_steps < -1:
            raise ConfigError(f"max_steps={self.max_steps} must be positive, or -1 for whole passes over the data")
        if not 0 < self.vision_layer_decay <= 1:
            raise ConfigError(f"vision_layer_decay={self.vision_layer_decay} must be above 0 and at most 1")
        if self.min_learning_rate > self.learning_rate:
            raise ConfigError(f"min_learning_rate={self.min_learning_rate} is above learning_rate={self.learning_rate}")
        if self.bf16 and self.fp16:
            raise ConfigError("bf16 and fp16 are both set; choose one: bf16 where the GPU has it")
        if self.gradient_checkpointing and self.selective_checkpointing:
            raise ConfigError("gradient_checkpointing and selective_checkpointing are both set; choose one")
        if self.deepspeed and self.fsdp:
            raise ConfigError("deepspeed and fsdp are both set; choose one")
        if (self.deepspeed or self.fsdp) and self.strategy not in ("auto", "fsdp2" if self.fsdp else "auto"):
            raise ConfigError(f"strategy={self.strategy!r} contradicts {'deepspeed' if self.deepspeed else 'fsdp'}; leave it out")
        if self.method == "full" and "adapters" in self.parts.values():
            raise ConfigError("a part is to have adapters, but method='full' has none; use method='lora'")
        if self.lora_weight_path:
            raise ConfigError("lora_weight_path was never read by the release and is not read here; to go on with a run, use --resume")
        if self.eval_strategy != "no" and not self.eval_data_path:
            raise ConfigError(f"eval_strategy={self.eval_strategy!r} needs eval_data_path")

    @property
    def parts(self) -> dict[str, str]:
        """What the caller chose for single parts of the model, by name."""
        names = ("vision", "resampler", "language", "embeddings", "head")
        return {name: getattr(self, name) for name in names if getattr(self, name) != "default"}

    @property
    def precision(self) -> Literal["fp32", "bf16", "fp16"]:
        """What the forward pass computes in."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"

    @property
    def checkpointing(self) -> Literal["none", "full", "selective"]:
        """How much of the activations is computed again."""
        return "full" if self.gradient_checkpointing else "selective" if self.selective_checkpointing else "none"

    @property
    def schedule(self) -> Literal["cosine", "linear", "constant"]:
        """The course of the learning rate after the warm-up."""
        return "cosine" if self.lr_scheduler_type == "cosine" else "linear" if self.lr_scheduler_type == "linear" else "constant"

    def num_warmup_steps(self, steps: int) -> int:
        """Return the number of steps of the warm-up in a run of so many: `warmup_steps`, else the ratio rounded up, as in the release."""
        return self.warmup_steps or math.ceil(self.warmup_ratio * steps)


_POSITIVE = (
    *(
        "lora_r",
        "lora_alpha",
        "model_max_length",
        "image_size",
        "max_patches",
        "num_train_epochs",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
    ),
    *("gradient_accumulation_steps", "learning_rate", "adam_epsilon", "max_grad_norm", "logging_steps", "eval_steps", "save_steps"),
    "save_total_limit",
)
_NOT_NEGATIVE = ("dataloader_num_workers", "seed", "min_learning_rate", "warmup_steps", "weight_decay")
_SHARES = ("lora_dropout", "warmup_ratio", "adam_beta1", "adam_beta2")

FIELDS: dict[str, Field[Any]] = {entry.name: entry for entry in fields(FinetuneSettings)}
REQUIRED = tuple(name for name, entry in FIELDS.items() if entry.default is MISSING)

# other spelling -> field
ALIASES = {
    "model": "model_name_or_path",
    "data": "data_path",
    "eval_data": "eval_data_path",
    "out": "output_dir",
    "evaluation_strategy": "eval_strategy",
    "target_modules": "lora_target_modules",
}

_RELEASED_SCRIPTS: dict[str, Any] = {
    "fix_vit": True,
    "num_train_epochs": 5.0,
    "per_device_eval_batch_size": 1,
    "save_steps": 1000,
    "save_total_limit": 10,
    "learning_rate": 1e-5,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "warmup_ratio": 0.01,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "model_max_length": 2048,
    "gradient_checkpointing": True,
    "lazy_preprocess": True,
}
# The hyper-parameters of the released scripts (FACTS 7.5). With its eight GPUs each has 128 samples in a step.
PRESETS: dict[str, dict[str, Any]] = {
    "full": {**_RELEASED_SCRIPTS, "method": "full", "bf16": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 16},
    "lora": {**_RELEASED_SCRIPTS, "method": "lora", "bf16": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8},
    "qlora": {**_RELEASED_SCRIPTS, "method": "qlora", "fp16": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8},
}

# Arguments of Hugging Face's Trainer (4.32 to today) that would have no effect, with what to do where there is something to do.
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        """accelerator_config activation_checkpointing activation_checkpointing_kwargs adafactor auto_find_batch_size
        average_tokens_across_devices batch_eval_metrics bf16_full_eval data_seed dataloader_drop_last dataloader_in_order
        dataloader_multiprocessing_context dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor
        ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug
        dispatch_batches do_eval do_predict do_train enable_jit_checkpoint eval_accumulation_steps eval_delay
        eval_do_concat_batches eval_on_start eval_use_gather_object fp16_backend fp16_full_eval fp16_opt_level fsdp_config
        fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap full_determinism gradient_checkpointing_kwargs greater_is_better
        half_precision_backend hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token
        ignore_data_skip include_for_metrics include_inputs_for_metrics include_num_input_tokens_seen include_tokens_per_second
        jit_mode_eval label_names label_smoothing_factor length_column_name liger_kernel_config load_best_model_at_end log_level
        log_level_replica log_on_each_node logging_first_step logging_nan_inf_filter logging_strategy lr_scheduler_kwargs
        metric_for_best_model mp_parameters neftune_noise_alpha optim_args optim_target_modules parallelism_config past_index
        per_gpu_eval_batch_size per_gpu_train_batch_size prediction_loss_only project push_to_hub push_to_hub_model_id
        push_to_hub_organization push_to_hub_token ray_scope remove_unused_columns restore_callback_states_from_checkpoint
        run_name save_on_each_node save_only_model sharded_ddp skip_memory_metrics split_batches tf32 torch_compile_backend
        torch_compile_mode torch_empty_cache_steps torchdynamo tpu_metrics_debug tpu_num_cores trackio_bucket_id
        trackio_space_id trackio_static_space_id train_sampling_strategy use_cache use_ipex use_legacy_prediction_loop
        use_liger_kernel use_mps_device xpu_backend""".split(),
        "leave it out",
    ),
    "group_by_length": "leave it out: batches always hold samples of like length",
    "local_rank": "start several processes with torchrun",
    "overwrite_output_dir": "go on with a run with --resume, or name another output_dir",
    "resume_from_checkpoint": "use --resume",
    "save_safetensors": "leave it out: weights are always saved as safetensors",
    "use_cpu": "use --device cpu",
    "no_cuda": "use --device cpu",
    "logging_dir": "leave it out: metrics are written below output_dir",
    "disable_tqdm": "leave it out: there is a progress bar on a terminal only",
}


def resolve(flags: Mapping[str, Any], recipe: Path | None = None) -> FinetuneSettings:
    """Put the layers together: defaults, preset, recipe, flags.

    Args:
        flags: by name, spelled with `_`; `preset`, `use_lora` and `q_lora` of the release and the aliases are understood.
        recipe: a TOML file with the same names.
    Raises: ConfigError naming an unknown, refused, missing or impossible setting and where it stands.
    """
    from_file = _translate(read_recipe(recipe), str(recipe)) if recipe is not None else {}
    from_flags = _translate(flags, "the command line")
    preset = from_flags.pop("preset", from_file.pop("preset", None))
    from_file.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"preset={preset!r} is none of {', '.join(PRESETS)}{nearest(preset, PRESETS)}")
    chosen = {**PRESETS.get(preset or "", {}), **from_file, **from_flags}
    missing = [f"{name} (--{short})" for short, name in ALIASES.items() if name in REQUIRED and name not in chosen]
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be given")
    return FinetuneSettings(**_without_earlier_choice(chosen, from_file, from_flags))


def _without_earlier_choice(chosen: dict[str, Any], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Where a layer chooses one of two settings that exclude each other, drop what an earlier layer chose of the other."""
    chosen = dict(chosen)
    for layer in layers:
        for one, other in _EXCLUDING:
            if layer.get(one) and not layer.get(other):
                chosen.pop(other, None)
    return chosen


_EXCLUDING = (
    *(("bf16", "fp16"), ("fp16", "bf16")),
    *(("gradient_checkpointing", "selective_checkpointing"), ("selective_checkpointing", "gradient_checkpointing")),
    *(("deepspeed", "fsdp"), ("fsdp", "deepspeed")),
)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file. Raises: ConfigError if it is not a readable TOML file of plain values."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no recipe {path}. Give a TOML file of settings.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not a readable TOML recipe ({error})") from None


def _translate(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the values by field name, with the right types. Raises: ConfigError for one that is unknown, refused or of another type."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if value is None:
            continue
        name = ALIASES.get(key, key)
        check_name(name, place)
        if name in result:
            raise ConfigError(f"{place} gives {name} twice, once as {key}")
        kind = bool if name in _RELEASED_SWITCHES else str if name == "preset" else FIELDS[name].type
        result[name] = _typed(place, key, value, kind)
    return _with_method(result, place)


_RELEASED_SWITCHES = ("use_lora", "q_lora")


def check_name(name: str, place: str) -> None:
    """Raise: ConfigError for a name that is no setting, with the nearest one, or for one of Hugging Face's that would have no effect."""
    if name in REFUSED:
        raise ConfigError(f"{place}: {name} of Hugging Face's Trainer has no effect here; {REFUSED[name]}")
    known = [*FIELDS, *ALIASES, *_RELEASED_SWITCHES, "preset"]
    if name not in known:
        raise ConfigError(f"{place}: there is no setting {name!r}{nearest(name, known)}")


def _with_method(values: dict[str, Any], place: str) -> dict[str, Any]:
    """Replace the release's `use_lora` and `q_lora` by the method that they mean."""
    use_lora, q_lora = values.pop("use_lora", None), values.pop("q_lora", None)
    if use_lora is None and q_lora is None:
        return values
    if q_lora and not use_lora:
        raise ConfigError(f"{place}: q_lora needs use_lora as well, as in the release; or say method = qlora")
    method = "qlora" if q_lora else "lora" if use_lora else "full"
    if values.get("method", method) != method:
        raise ConfigError(f"{place}: use_lora and q_lora mean method={method!r}, but method={values['method']!r} is given; leave one out")
    return {**values, "method": method}


def _typed(place: str, key: str, value: Any, kind: Any) -> Any:
    """Return a value as the field's type. Raises: ConfigError if it is of another type."""
    kind = str if get_origin(kind) is Literal else kind
    kinds = [each for each in get_args(kind) if each is not type(None)] if isinstance(kind, UnionType) else [kind]
    if str in kinds and isinstance(value, str):
        return value
    if bool in kinds and isinstance(value, bool):
        return value
    if not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value):
        if float in kinds:
            return float(value)
        if int in kinds and isinstance(value, int):
            return value
    if tuple[str, ...] in kinds and isinstance(value, (list, tuple)) and value and all(isinstance(each, str) for each in value):
        return tuple(value)
    names = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", tuple[str, ...]: "a list of texts"}
    raise ConfigError(f"{place}: {key}={value!r} must be {names[kinds[0]]}")
