"""Conversations for GPTQ to look at: any file that can be trained on can be calibrated on.

samples = CalibrationConversations(folder, tokenizer, Path("train.json"), num_samples=128, max_length=2048, seed=0)
quantize(folder, out, samples, settings, fingerprint=samples.fingerprint)
"""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from qwen_vl.errors import DataError, ImageError
from qwen_vl.modeling.configuration import QWenConfig
from qwen_vl.modeling.folder import read_json
from qwen_vl.processing.images import load_pixel_values
from qwen_vl.processing.resolution import Resolution
from qwen_vl.processing.tokenization import QWenTokenizer
from qwen_vl.quantization.calibration import CalibrationSample

from .encoding import Counts, Form, Sample, encode_conversation
from .formats import read_conversations


class CalibrationConversations:
    """Some conversations of a file as samples, their pictures loaded when their turn comes.

    Args:
        folder: of the checkpoint, whose configuration says how conversations are written and pictures are seen.
        num_samples: so many are taken, by chance.
        max_length: in tokens; longer ones are cut.
    Raises: DataError naming the file, and the record, that cannot be used.
    """

    def __init__(self, folder: Path, tokenizer: QWenTokenizer, data: Path, *, num_samples: int, max_length: int, seed: int) -> None:
        visual = QWenConfig.from_pretrained(folder).visual
        self.resolution = Resolution.of(visual) if visual else None
        generation = folder / "generation_config.json"
        is_chat = generation.is_file() and read_json(generation).get("chat_format") == "chatml"
        form: Form = "chatml" if is_chat else "plain"
        conversations = read_conversations(data)
        counts = Counts(records=len(conversations))
        random.Random(seed).shuffle(conversations)
        self.samples: list[Sample] = []
        for conversation in conversations:
            if len(self.samples) < num_samples:
                sample = encode_conversation(tokenizer, conversation, max_length, form=form, long="cut", counts=counts)
                self.samples += [sample] if sample else []
        if not self.samples:
            raise DataError(f"{data}: no conversation is left to calibrate on: {counts}. Raise --max-length, or correct the data.")
        self.samples.sort(key=lambda sample: sample.number)
        with data.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.fingerprint: dict[str, Any] = {"data": digest, "num_samples": num_samples, "max_length": max_length, "seed": seed}

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[CalibrationSample]:
        for sample in self.samples:
            if sample.pictures and self.resolution is None:
                raise DataError(f"Record {sample.number} shows a picture, but this is a text-only model. Leave such records out.")
            try:
                pixels = load_pixel_values(list(sample.pictures), self.resolution) if sample.pictures and self.resolution else None
            except ImageError as error:
                raise DataError(f"Record {sample.number}: {error}") from None
            yield CalibrationSample(input_ids=torch.tensor(sample.input_ids), pixel_values=pixels)
