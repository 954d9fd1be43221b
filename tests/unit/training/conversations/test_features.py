"""Kept features: the same losses as without, never for a tower that learns, never more than there is room for."""

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from qwen_vl.errors import ConfigError
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.processing.resolution import Resolution
from qwen_vl.processing.tokenization import QWenTokenizer
from qwen_vl.training.conversations.features import FeatureCache, KeyedPicture
from qwen_vl.training.conversations.loader import ConversationDataset, ConversationStream
from tests.tiny import IMAGE_SIZE, IMAGE_SLOTS

from .conftest import MakeConversation

DIM = 128
PICTURE_BYTES = IMAGE_SLOTS * DIM * 4
PLENTY = 10**9


@pytest.fixture
def visual(tiny_model: QWenLMHeadModel) -> torch.nn.Module:
    return tiny_model.transformer.visual.requires_grad_(False)


def load(pictures: list[Path], cache: FeatureCache | None = None) -> list[KeyedPicture]:
    return [KeyedPicture.of(str(picture), Resolution(image_size=IMAGE_SIZE), cache.holds if cache else lambda key: False) for picture in pictures]


@pytest.mark.parametrize("in_folder", [False, True])
def test_what_is_kept_is_what_the_tower_makes(visual: torch.nn.Module, pictures: list[Path], tmp_path: Path, in_folder: bool) -> None:
    cache = FeatureCache(visual, max_bytes=PLENTY, folder=tmp_path / "features" if in_folder else None)
    first = cache.encode(load(pictures[:3]))
    again = cache.encode(load([pictures[2], pictures[0]], cache))
    assert first.shape == (3, IMAGE_SLOTS, DIM)
    assert torch.equal(again, first[[2, 0]])
    assert all(picture.pixel_values is None for picture in load(pictures[:3], cache))
    with torch.no_grad():
        for picture, kept in zip(load(pictures[:3]), first, strict=True):
            assert torch.equal(visual(picture.pixel_values)[0], kept)
    assert num_kept(cache) == 3 and cache.num_bytes >= 3 * PICTURE_BYTES


def num_kept(cache: FeatureCache) -> int:
    return len(cache.memory) if cache.folder is None else len(list(cache.folder.iterdir()))


def run(model: QWenLMHeadModel, stream: ConversationStream, num_steps: int) -> list[float]:
    """Train the language model for some steps and return the losses."""
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.05)
    losses = []
    for _, (batch,) in stream.steps_from(0, num_steps):
        loss = model(**{name: value for name, value in batch.items() if name != "ids"}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.load_state_dict(kept)
    return losses


@pytest.mark.parametrize("kind", ["memory", "folder", "little room"])
def test_training_losses_are_the_same(
    tiny_model: QWenLMHeadModel,
    tiny_tokenizer: QWenTokenizer,
    visual: torch.nn.Module,
    make_conversation: MakeConversation,
    pictures: list[Path],
    tmp_path: Path,
    kind: str,
) -> None:
    conversations = [
        make_conversation(f"<img>{pictures[number]}</img><img>{pictures[(number + 1) % 4]}</img>What?", "It is " + "red " * number, number=number + 1)
        for number in range(4)
    ]

    def losses(features: FeatureCache | None, num_workers: int = 0) -> list[float]:
        dataset = ConversationDataset(conversations, tiny_tokenizer, max_length=300, resolution=Resolution(image_size=IMAGE_SIZE), features=features)
        stream = ConversationStream(dataset, seed=1, micro_batch_size=2, num_workers=num_workers)
        return run(tiny_model, stream, 2 * stream.steps_per_epoch)

    def make() -> FeatureCache:
        room = 3 * PICTURE_BYTES + 1000 if kind == "little room" else PLENTY
        return FeatureCache(visual, max_bytes=room, folder=tmp_path / "features" if kind == "folder" else None)

    plain, cache = losses(None), make()
    assert losses(cache) == pytest.approx(plain, abs=1e-6)  # pictures of one batch are encoded together without a cache
    assert num_kept(cache) == (3 if kind == "little room" else 4)
    assert losses(cache) == losses(make()) == losses(make(), num_workers=2)  # empty or full, here or there: bit-equal


def test_another_file_with_the_same_content_is_known(visual: torch.nn.Module, pictures: list[Path], tmp_path: Path) -> None:
    cache = FeatureCache(visual, max_bytes=PLENTY)
    cache.encode(load(pictures[:1]))
    shutil.copy(pictures[0], tmp_path / "copy.png")
    shutil.copy(pictures[1], pictures[0])
    assert [cache.holds(picture.key) for picture in load([tmp_path / "copy.png", pictures[0]])] == [True, False]


def test_other_weights_precisions_and_sizes_do_not_find_them(
    visual: torch.nn.Module, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FeatureCache(visual, max_bytes=PLENTY, folder=tmp_path).encode(load(pictures[:1]))
    key = load(pictures[:1])[0].key
    assert FeatureCache(visual, max_bytes=PLENTY, folder=tmp_path).holds(key)

    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16)

    assert not FeatureCache(visual, max_bytes=PLENTY, folder=tmp_path, autocast=autocast).holds(key)
    monkeypatch.setattr(visual, "max_patches", 30)
    assert not FeatureCache(visual, max_bytes=PLENTY, folder=tmp_path).holds(key), "the tower sees another picture"
    weight = next(visual.parameters())
    with torch.no_grad():
        weight.add_(1)
        assert not FeatureCache(visual, max_bytes=PLENTY, folder=tmp_path).holds(key)
        weight.sub_(1)


@pytest.mark.parametrize("in_folder", [False, True])
def test_it_stops_keeping_when_it_is_full(visual: torch.nn.Module, pictures: list[Path], tmp_path: Path, in_folder: bool) -> None:
    cache = FeatureCache(visual, max_bytes=2 * PICTURE_BYTES + 500, folder=tmp_path / "features" if in_folder else None)
    cache.encode(load(pictures))
    cache.encode(load(pictures, cache))
    assert num_kept(cache) == 2 and cache.num_bytes <= cache.max_bytes


def test_a_damaged_file_is_encoded_again(visual: torch.nn.Module, pictures: list[Path], tmp_path: Path) -> None:
    cache = FeatureCache(visual, max_bytes=PLENTY, folder=tmp_path / "features")
    features = cache.encode(load(pictures[:1]))
    (file,) = (tmp_path / "features").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(cache.encode(load(pictures[:1], cache)), features)
    with mock.patch.object(visual, "forward", side_effect=AssertionError("encoded again")):
        assert torch.equal(cache.encode(load(pictures[:1], cache)), features)


def test_what_a_killed_writer_left_takes_no_room(visual: torch.nn.Module, pictures: list[Path], tmp_path: Path) -> None:
    cache = FeatureCache(visual, max_bytes=PLENTY, folder=tmp_path)
    cache.encode(load(pictures[:1]))
    (file,) = tmp_path.rglob("*.safetensors")
    shutil.copy(file, file.with_name(f".{file.stem}.part1.safetensors"))
    assert FeatureCache(visual, max_bytes=PLENTY, folder=tmp_path).num_bytes == file.stat().st_size


def test_a_disk_that_is_full_ends_the_keeping_not_the_run(
    visual: torch.nn.Module, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FeatureCache(visual, max_bytes=PLENTY, folder=tmp_path / "features")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qwen_vl.training.conversations.features.save_file", full)
    assert cache.encode(load(pictures[:2])).shape[0] == 2
    assert len(caplog.records) == 1
    assert list((tmp_path / "features").rglob("*.part*")) == []


def test_a_tower_that_learns_is_refused(visual: torch.nn.Module) -> None:
    bias = next(parameter for name, parameter in visual.named_parameters() if name == "ln_post.bias")
    bias.requires_grad_(True)
    with pytest.raises(ConfigError, match="1 tensors of the vision tower are trained, such as ln_post.bias"):
        FeatureCache(visual, max_bytes=1)
    bias.requires_grad_(False)
    with pytest.raises(ConfigError, match="max_bytes=-1"):
        FeatureCache(visual, max_bytes=-1)


def test_a_folder_that_cannot_be_made_is_refused(visual: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot keep features"):
        FeatureCache(visual, max_bytes=1, folder=tmp_path / "file")
