"""Make an Int4 folder in the released layout of a dense one, block by block.

    quantize(Path("Qwen-VL-Chat"), Path("Qwen-VL-Chat-Int4"), samples)                   # GPTQ, calibrated on samples
    quantize(Path("Qwen-VL-Chat"), Path("Qwen-VL-Chat-Int4"), method="rtn")              # rounded to the nearest: no data, and worse

Never is more of the model in memory than one block: its weights are read when its turn comes, and of the samples only what enters the block is kept,
in float32 and outside of the device. Within a block each layer sees what the layers before it, already quantized, give it; the next block sees the
quantized block's outputs. Finished blocks are kept in `OUT.part`; a run that was cut goes on after them, and ends with the same bytes. What is not a
linear layer of a block is stored in float16, as in the release (FACTS 1.4).
"""

import copy
import json
import logging
import operator
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen_vl.errors import ConfigError
from qwen_vl.modeling.configuration import PRECISION_FLAGS, QWenConfig
from qwen_vl.modeling.folder import find_companions, read_folder
from qwen_vl.modeling.shapes import check_tensors, expected_shapes
from qwen_vl.modeling.stored import MAX_SHARD_BYTES, LazyTensor, open_tensors, write_shards
from qwen_vl.whole import flush, writing

from .blocks import OneBlockDecoder, calibrate_block, round_block
from .calibration import CalibrationSample, Embedder
from .dense import LAYERS, SUBLAYERS, DenseModel, block_prefix
from .gptq import GPTQSettings
from .loading import RELEASED_SETTINGS
from .progress import Progress, Report, Summary
from .work_folder import FOLDER, WorkFolder, check_free, part_folder

GPTQ, RTN = "gptq", "rtn"
METHODS = (GPTQ, RTN)

logger = logging.getLogger(__name__)


def quantize(
    model: Path,
    out: Path,
    samples: Iterable[CalibrationSample] | None = None,
    settings: GPTQSettings | None = None,
    *,
    method: str = GPTQ,
    fingerprint: Mapping[str, Any] | None = None,
    int8_head: bool = False,
    device: torch.device | str = "cpu",
    is_forced: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    report: Report | None = None,
) -> Summary:
    """Write the Int4 relative of a dense model folder, complete or absent.

    Args:
        samples: what "gptq" is calibrated on; gone through once, and not at all if nothing is left to do.
        method: "gptq" or "rtn".
        fingerprint: what the samples were made of: a run that goes on must have been started with the same.
        int8_head: say in the configuration that the output head, stored in float16, is to answer in 8 bits (`head`).
        device: where blocks are computed, in float32.
        is_forced: replace a folder `out` that exists, and begin anew instead of going on with a run of other settings.
    Raises: CheckpointError for a model that cannot be quantized; ConfigError for sizes or settings that cannot work, or an `out` that may not be
        written; DiskError.
    """
    begin, settings, device = time.monotonic(), settings or GPTQSettings(), torch.device(device)
    if method not in METHODS:
        raise ConfigError(f"method={method!r} is none of {', '.join(METHODS)}.")
    if method == GPTQ and samples is None:
        raise ConfigError("GPTQ needs samples to calibrate on.")
    check_free(out, model, is_forced=is_forced)
    source = DenseModel(model, settings.group_size, device)
    report = report or (lambda progress: None)
    own = {"method": method, **asdict(settings), "model": source.digest(report)}
    summary = Summary(out=str(out), method=method, group_size=settings.group_size, num_blocks=source.num_blocks)
    with writing(out, f"Mend that and run the same again: finished blocks are kept in {part_folder(out)}."):
        work = WorkFolder(part_folder(out), {**own, **(fingerprint or {})}, is_forced=is_forced)
        summary.num_resumed = len(work.finished)
        if len(work.finished) < source.num_blocks:
            if method == GPTQ:
                _calibrate(source, work, samples or (), settings, summary, report)
            else:
                _round(source, work, report)
        _write_folder(source, work, RELEASED_SETTINGS | asdict(settings) | ({"int8_head": True} if int8_head else {}), max_shard_bytes, report)
        _count(source, work, summary)
        work.publish(out)
    summary.seconds = time.monotonic() - begin
    return summary


@torch.no_grad()
def _calibrate(
    source: DenseModel, work: WorkFolder, samples: Iterable[CalibrationSample], settings: GPTQSettings, summary: Summary, report: Report
) -> None:
    """Quantize all blocks that are not finished by GPTQ."""
    states = _embed(source, work, samples, summary, report)
    decoder = OneBlockDecoder(source)
    num_finished = summary.num_resumed = len(work.finished)
    total = source.num_blocks * (len(SUBLAYERS) + 1) * len(states)
    done = 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        report(Progress(what=what, done=done, total=total))

    for index in range(source.num_blocks):
        label = f"block {index + 1} of {source.num_blocks}"
        if index < num_finished:
            done += len(SUBLAYERS) * len(states)
            decoder.fill_quantized(work.read(index))
        else:
            decoder.fill(index)
            tensors, errors = calibrate_block(decoder, index, states, settings, lambda name, label=label: step(f"{label}: {name}"))  # type: ignore[misc]
            work.add(index, tensors, errors)
        if index + 1 == source.num_blocks:
            break
        for number, each in enumerate(states):
            states[number] = decoder.run(each)
            step(f"{label}: outputs")


def _embed(source: DenseModel, work: WorkFolder, samples: Iterable[CalibrationSample], summary: Summary, report: Report) -> list[Tensor]:
    """Return what enters the first block, of each sample. Raises: ConfigError if there are no samples, or others than the run began with."""
    total, states = operator.length_hint(samples), []
    embedder = Embedder(source)

    def counted() -> Iterator[CalibrationSample]:
        for sample in samples:
            summary.num_samples += 1
            summary.num_pictures += sample.num_pictures
            summary.num_tokens += len(sample.input_ids)
            yield sample

    for each in embedder.embed(counted()):
        states.append(each)
        report(Progress(what="reading samples", done=len(states), total=total))
    if not states:
        raise ConfigError("There is no sample to calibrate on.")
    work.settle({"samples": embedder.digest.hexdigest()})
    summary.num_tokens_wanted = max(source.tensors[f"{block_prefix(0)}{name}.weight"].shape[1] for name in LAYERS)
    if summary.num_tokens < summary.num_tokens_wanted:
        logger.info("%d calibration tokens are fewer than the %d inputs of a layer", summary.num_tokens, summary.num_tokens_wanted)
    return states


@torch.no_grad()
def _round(source: DenseModel, work: WorkFolder, report: Report) -> None:
    """Quantize all blocks that are not finished by rounding."""
    decoder = OneBlockDecoder(source)
    for index in range(len(work.finished), source.num_blocks):
        report(Progress(what=f"block {index + 1} of {source.num_blocks}", done=index, total=source.num_blocks))
        decoder.fill(index)
        work.add(index, round_block(decoder, index), {})


def _write_folder(source: DenseModel, work: WorkFolder, stated: Mapping[str, Any], max_shard_bytes: int, report: Report) -> None:
    """Write the whole folder beside the blocks, and look at it as loading does. Args: stated: content of `quantize_config.json`."""
    report(Progress(what="writing", done=0, total=1))
    folder = work.folder / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = _make_config(source, stated)
    shapes = expected_shapes(config.to_dict())
    blocks = open_tensors([work.path(index) for index in range(source.num_blocks)])
    tensors = [(name, blocks.get(name) or LazyTensor(shape, "F16", lambda name=name: source.read_half(name))) for name, shape in shapes.items()]  # type: ignore[misc]
    write_shards(folder, tensors, None, max_shard_bytes)
    config.save_pretrained(folder)
    (folder / "quantize_config.json").write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
    for file in find_companions(source.folder):
        shutil.copyfile(file, folder / file.name)
    contents = read_folder(folder)
    check_tensors(folder, contents.config, contents.tensors)
    for path in (*folder.iterdir(), folder):
        flush(path)
    report(Progress(what="writing", done=1, total=1))


def _make_config(source: DenseModel, stated: Mapping[str, Any]) -> QWenConfig:
    """Return the configuration."""
    config = copy.deepcopy(source.config)
    for name in PRECISION_FLAGS:  # of other files than these; all false leave the choice to the device
        setattr(config, name, False)
    config.dtype = torch.float16
    config.architectures = ["QWenLMHeadModel"]
    config.quantization_config = {**stated, "quant_method": "gptq"}
    return config


def _count(source: DenseModel, work: WorkFolder, summary: Summary) -> None:
    """Fill in what the files say."""
    for index in range(source.num_blocks):
        for name, tensor in open_tensors([work.path(index)]).items():
            if name.removeprefix(block_prefix(index)).rpartition(".")[0] in LAYERS:
                summary.layer_bytes += tensor.facts.num_elements * (2 if tensor.dtype == "F16" else 4)
        for name in LAYERS:
            parts = [source.tensors.get(f"{block_prefix(index)}{name}.{suffix}") for suffix in ("weight", "bias")]
            summary.dense_layer_bytes += sum(2 * part.facts.num_elements for part in parts if part is not None)
    summary.total_bytes = sum(file.stat().st_size for file in (work.folder / FOLDER).glob("*.safetensors"))
    summary.errors = {name: error for block in work.finished for name, error in block["errors"].items()}
