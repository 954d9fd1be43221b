"""Start what a run is spread over: find out who this process is, choose the strategy, set up the process group, and end it cleanly.

    with launch(settings) as strategy:
        Trainer(learner, strategy, ...).run(...)

Several processes are started by `torchrun --nproc_per_node N` or `accelerate launch`, which say in the environment who each of them is.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist

from qwen_vl.errors import CapacityError, ConfigError
from qwen_vl.surroundings import Place, is_lost_peer, read_place

from ..settings import FinetuneSettings
from .base import Strategy
from .ddp import DDPStrategy
from .deepspeed import DeepSpeedStrategy, read_config
from .fsdp2 import FSDP2Strategy
from .group import GroupStrategy
from .single import SingleStrategy

TIMEOUT = timedelta(minutes=60)  # of one exchange: while one process writes a large model, the others wait
LAUNCHER = "torchrun --nproc_per_node 2 -m qwen_vl finetune .."


def choose(settings: FinetuneSettings, place: Place, environment: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the name of the strategy, one of "single", "ddp", "fsdp2" and "deepspeed", and DeepSpeed's file or the name of a bundled one.

    "auto" follows `fsdp` and `deepspeed`, then what `accelerate launch` was configured for, then the number of processes.
    Raises: ConfigError if this process, or these processes, cannot run it.
    """
    name, file = settings.strategy, settings.deepspeed
    if file is None and not settings.fsdp and name == "auto":
        if environment.get("ACCELERATE_USE_FSDP") == "true":
            name = "fsdp2"
        elif environment.get("ACCELERATE_USE_DEEPSPEED") == "true":
            file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE") or f"zero{environment.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    if file is not None:
        return "deepspeed", file
    if settings.fsdp:
        name = "fsdp2"
    if name == "auto":
        name = "single" if place.world_size == 1 else "ddp"
    if name == "single" and place.world_size > 1:
        raise ConfigError(f"strategy='single' is for one process, but {place.world_size} were started; use auto, ddp or fsdp2")
    if name != "single" and not place.is_launched:
        raise ConfigError(
            f"strategy={name!r} is for processes that torchrun starts, and this one was started alone: {LAUNCHER}, or strategy='single'"
        )
    return name, None


def choose_device(name: str | None, place: Place) -> torch.device:
    """Return where this process computes: the named device, else its own GPU, else the CPU. Raises: ConfigError if there is no such device."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if place.world_size == 1 and torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name!r} is no device; use cpu, cuda, cuda:1 or mps") from None
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device='mps' needs a Mac with a GPU that torch can use")
    if device.type == "mps" and place.world_size > 1:
        raise ConfigError("device='mps' is for one process; use cpu for several")
    if device.type != "cuda":
        return device
    if device.index is not None and place.world_size > 1:
        raise ConfigError(f"device={name!r} would put all processes on one GPU; say cuda, and choose GPUs with CUDA_VISIBLE_DEVICES")
    index = place.local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ConfigError(f"Process {place.rank} is to have GPU {index}, but torch sees {torch.cuda.device_count()}; start as many processes as GPUs")
    return torch.device("cuda", index)


@contextmanager
def launch(settings: FinetuneSettings, environment: Mapping[str, str] | None = None) -> Iterator[Strategy]:
    """Give the strategy that settings and environment ask for, and end its process group afterwards, whatever happens.

    Raises: ConfigError if they do not fit each other; CapacityError in a process whose run ended because another process is gone.
    """
    environment = os.environ if environment is None else environment
    place = read_place(environment, LAUNCHER)
    name, file = choose(settings, place, environment)
    device = choose_device(settings.device, place)
    if name == "single":
        yield SingleStrategy(device, settings.precision)
        return
    config = None if file is None else read_config(file)
    _start_group(place, device)
    strategy: GroupStrategy | None = None
    try:
        if config is not None:
            strategy = DeepSpeedStrategy(config, settings, device=device)
        else:
            strategy = FSDP2Strategy(device, settings.precision) if name == "fsdp2" else DDPStrategy(device, settings.precision)
        yield strategy
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise CapacityError(f"Process {place.rank} lost another process of this run; what that one wrote before says why") from error
    finally:
        # Also after an error: the others then fail at once, and do not wait for this process until the time is up.
        if strategy is not None:
            strategy.close()
        dist.destroy_process_group()


def _start_group(place: Place, device: torch.device) -> None:
    """Join the processes of the run; a process that was started alone is a group of one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if place.is_launched:
        dist.init_process_group(backend, timeout=TIMEOUT)
    else:
        os.environ["LOCAL_RANK"] = str(device.index or 0)  # DeepSpeed looks for its GPU there, and nowhere else
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)  # type: ignore[attr-defined]
