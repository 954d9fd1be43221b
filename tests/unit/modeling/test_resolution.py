"""A tower that takes pictures of any shape: as released where they are squares, and each picture the same in any company."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from qwen_vl.errors import ConfigError, ShapeError
from qwen_vl.modeling.attention import attend
from qwen_vl.modeling.configuration import QWenConfig
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.modeling.positions import cut_patches, mask_padding, resize_for_grids, resize_position_table
from tests.invariants import Prompt, assert_close, pad
from tests.reference import greedy
from tests.tiny import CONFIG, IMAGE_SIZE, IMAGE_SLOTS

from .conftest import MakePrompt

MAX_PATCHES = 30
SIZES = ((28, 84), (84, 28), (42, 42), (70, 84), (14, 14), (14, 420))  # height and width in pixels of patches of 14


@pytest.fixture(scope="module")
def shapes_model(tiny_folder: Path) -> QWenLMHeadModel:
    """The tiny model, for pictures of up to 30 patches."""
    model: QWenLMHeadModel = QWenLMHeadModel.from_pretrained(tiny_folder)
    model.set_resolution(max_patches=MAX_PATCHES)
    return model.eval()


@pytest.fixture(scope="module")
def pictures() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(3, height, width, generator=generator) for height, width in SIZES]


class TestPositions:
    def test_squares_are_the_releases(self) -> None:
        table = torch.randn(25, 6)
        assert resize_position_table(table, (5, 5)) is table
        for side in (3, 7, 10):
            assert torch.equal(resize_position_table(table, (side, side)), resize_position_table(table, side * side))

    def test_a_table_is_stretched_over_the_picture(self) -> None:
        """Twice as many columns as stored, half as many rows: values rise with the share of the side, as on the square."""
        ramp = torch.arange(16.0)[None, :, None].expand(16, 16, 1)
        columns = resize_position_table(ramp.reshape(256, 1), (8, 32)).reshape(8, 32)
        rows = resize_position_table(ramp.transpose(0, 1).reshape(256, 1), (32, 8)).reshape(32, 8)
        assert torch.equal(columns, rows.T)
        torch.testing.assert_close(columns[0], resize_position_table(ramp.reshape(256, 1), 1024).reshape(32, 32)[0])
        assert resize_position_table(ramp.reshape(256, 1), (1, 300)).shape == (300, 1)

    def test_tables_of_a_batch(self) -> None:
        table = torch.randn(16, 3)
        assert resize_for_grids(table, [(2, 3)] * 4).shape == (6, 3)
        mixed = resize_for_grids(table, [(2, 3), (1, 2), (2, 3)])
        assert torch.equal(mixed[0], mixed[2]) and torch.equal(mixed[1, :2], resize_position_table(table, (1, 2))) and not mixed[1, 2:].any()

    def test_padding(self) -> None:
        mask = mask_padding([(1, 2), (2, 2)], torch.device("cpu"))
        assert mask is not None and mask.tolist() == [[[[True, True, False, False]]], [[[True, True, True, True]]]]
        assert mask_padding([(1, 6), (2, 3)], torch.device("cpu")) is None

    def test_patches_are_those_of_the_convolution(self) -> None:
        conv, picture = torch.nn.Conv2d(3, 5, 4, 4, bias=False), torch.randn(3, 8, 20)
        expected = conv(picture[None])[0].flatten(1).T
        torch.testing.assert_close(conv(cut_patches(picture, 4)).flatten(1), expected)


class TestOff:
    def test_squares_are_encoded_as_before(self, tiny_model: QWenLMHeadModel, shapes_model: QWenLMHeadModel) -> None:
        squares = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
        with torch.no_grad():
            expected = tiny_model.get_image_features(squares)
            assert torch.equal(shapes_model.get_image_features(squares), expected)
            assert torch.equal(tiny_model.get_image_features(list(squares)), expected)

    @pytest.mark.parametrize("shape", [(3, 28, 84), (3, 42, 28), (1, 42, 42), (42, 42)])
    def test_other_shapes_are_refused(self, tiny_model: QWenLMHeadModel, shape: tuple[int, ...]) -> None:
        for pixels in (torch.zeros(1, *shape), [torch.zeros(shape)]):
            with pytest.raises(ShapeError, match=r"expected \[(num_images, )?3, 42, 42\]"):
                tiny_model.get_image_features(pixels)

    def test_the_config_is_saved_as_before(self, tiny_model: QWenLMHeadModel) -> None:
        assert "max_patches" not in (tiny_model.config.visual or {})


class TestConfiguration:
    @pytest.mark.parametrize("max_patches", [0, -5, 8, 16_385, 10**9, 30.0, "30", True, None])
    def test_numbers_that_cannot_be(self, max_patches: Any) -> None:
        with pytest.raises(ConfigError, match=r"visual\.max_patches="):
            QWenConfig(**{**CONFIG, "visual": {**CONFIG["visual"], "max_patches": max_patches}})

    def test_it_is_saved_and_loaded(self, shapes_model: QWenLMHeadModel, pictures: list[Tensor], tmp_path: Path) -> None:
        shapes_model.save_pretrained(tmp_path)
        loaded = QWenLMHeadModel.from_pretrained(tmp_path)
        assert loaded.config.visual == shapes_model.config.visual and loaded.transformer.visual.max_patches == MAX_PATCHES
        with torch.no_grad():
            assert torch.equal(loaded.get_image_features(pictures), shapes_model.get_image_features(pictures))

    def test_a_refused_resolution_changes_nothing(self, tiny_folder: Path) -> None:
        model = QWenLMHeadModel.from_pretrained(tiny_folder)
        with pytest.raises(ConfigError, match="not a multiple"):
            model.set_resolution(image_size=43, max_patches=100)
        assert model.config.visual == QWenLMHeadModel.from_pretrained(tiny_folder).config.visual
        assert model.transformer.visual.max_patches is None

    def test_a_text_model_has_none(self) -> None:
        with pytest.raises(ConfigError, match="text-only"):
            QWenLMHeadModel(QWenConfig(**{**CONFIG, "visual": None})).set_resolution(max_patches=100)


class TestOn:
    @torch.no_grad()
    def test_a_picture_is_the_same_in_any_company(self, shapes_model: QWenLMHeadModel, pictures: list[Tensor]) -> None:
        together = shapes_model.get_image_features(pictures)
        assert together.shape == (len(SIZES), IMAGE_SLOTS, 128)
        for picture, found in zip(pictures, together, strict=True):
            assert_close(found, shapes_model.get_image_features(picture[None])[0])
        backwards = shapes_model.get_image_features(pictures[::-1])
        assert_close(backwards.flip(0), together)

    @torch.no_grad()
    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_nothing_looks_at_padding(self, tiny_folder: Path, pictures: list[Tensor], implementation: str) -> None:
        model = QWenLMHeadModel.from_pretrained(tiny_folder, attn_implementation=implementation)
        model.set_resolution(max_patches=MAX_PATCHES)
        long = pictures[-1].clone()
        first = model.get_image_features([pictures[4], long])[0]
        assert torch.equal(model.get_image_features([pictures[4], torch.full_like(long, 1e4)])[0], first)

    def test_flash_kernels_are_never_given_the_mask(self) -> None:
        """They read no mask of this form; without one installed, asking for them by name would fail."""
        query, mask = torch.randn(1, 2, 3, 8), torch.tensor([True, True, False])[None, None, None]
        found, _ = attend(torch.nn.Module(), "flash_attention_2", query, query, query, mask, 8**-0.5, is_causal=False)
        expected, _ = attend(torch.nn.Module(), "sdpa", query[:, :, :], query[:, :, :2], query[:, :, :2], None, 8**-0.5, is_causal=False)
        torch.testing.assert_close(found, expected)

    @torch.no_grad()
    def test_the_shape_of_a_grid_counts(self, shapes_model: QWenLMHeadModel) -> None:
        """2 x 6 and 6 x 2 patches are as many, and not the same; nor is 8 x 2 the square of 4 x 4 whose table fits."""
        patches = torch.randn(12, 3, 14, 14)
        wide = patches.view(2, 6, 3, 14, 14).permute(2, 0, 3, 1, 4).reshape(3, 28, 84)
        tall = patches.view(6, 2, 3, 14, 14).permute(2, 0, 3, 1, 4).reshape(3, 84, 28)
        found = shapes_model.get_image_features([wide, tall])
        assert (found[0] - found[1]).abs().max() > 1e-3

    @pytest.mark.parametrize("shape", [(3, 84, 84), (3, 15, 28), (3, 0, 14), (4, 28, 28), (28, 28)])
    def test_shapes_that_do_not_fit(self, shapes_model: QWenLMHeadModel, shape: tuple[int, ...]) -> None:
        with pytest.raises(ShapeError, match="whole patches of 14 pixels, at most 30 of them"):
            shapes_model.get_image_features([torch.zeros(shape)])

    def test_no_pictures(self, shapes_model: QWenLMHeadModel) -> None:
        nothing: list[Tensor] = []
        assert shapes_model.get_image_features(nothing).shape == (0, IMAGE_SLOTS, 128)
        assert shapes_model.get_image_features(torch.empty(0, 3, IMAGE_SIZE, IMAGE_SIZE)).shape == (0, IMAGE_SLOTS, 128)

    def test_gradients_are_those_of_each_alone(self, tiny_folder: Path, pictures: list[Tensor]) -> None:
        model = QWenLMHeadModel.from_pretrained(tiny_folder)
        model.set_resolution(max_patches=MAX_PATCHES)
        names = ("conv1.weight", "positional_embedding", "attn_pool.query", "transformer.resblocks.0.attn.in_proj.weight")
        weights = torch.randn(len(SIZES), IMAGE_SLOTS, 128)

        def gradients(batches: Sequence[Sequence[int]]) -> dict[str, Tensor]:
            model.zero_grad()
            for batch in batches:
                (model.get_image_features([pictures[index] for index in batch]) * weights[list(batch)]).sum().backward()
            parameters = dict(model.transformer.visual.named_parameters())
            return {name: parameters[name].grad.clone() for name in names}

        together, alone = gradients([range(len(SIZES))]), gradients([[index] for index in range(len(SIZES))])
        for name in names:
            assert_close(together[name], alone[name], 1e-4)


class TestWholeModel:
    @pytest.fixture
    def prompts(self, make_prompt: MakePrompt, pictures: list[Tensor]) -> list[tuple[Prompt, list[Tensor]]]:
        """Prompts and their pictures, none of which are of one size."""
        shown = {"a * wide one": [0], "now * and * two of them": [2, 3], "* tall": [1], "no picture": []}
        return [(Prompt(make_prompt(text).input_ids), [pictures[index] for index in indices]) for text, indices in shown.items()]

    @torch.no_grad()
    def test_batched_is_alone(self, shapes_model: QWenLMHeadModel, prompts: list[tuple[Prompt, list[Tensor]]]) -> None:
        ids, mask = pad([prompt for prompt, _ in prompts], "left")
        pixels = [picture for _, shown in prompts for picture in shown]
        new = greedy(shapes_model, ids, 6, attention_mask=mask, pixel_values=pixels)[:, ids.shape[1] :]
        for (prompt, shown), found in zip(prompts, new, strict=True):
            alone = greedy(shapes_model, prompt.input_ids[None], 6, pixel_values=shown or None)
            assert torch.equal(found, alone[0, len(prompt) :])

    @torch.no_grad()
    def test_cached_is_full(self, shapes_model: QWenLMHeadModel, prompts: list[tuple[Prompt, list[Tensor]]]) -> None:
        prompt, shown = prompts[1]
        ids, features = prompt.input_ids[None], shapes_model.get_image_features(shown)
        full = shapes_model(ids, pixel_values=shown, use_cache=False).logits
        cache, end = DynamicCache(), len(prompt) - 2
        first = shapes_model(ids[:, :end], image_features=features, past_key_values=cache).logits
        rest = shapes_model(ids[:, end:], image_features=features[:0], past_key_values=cache).logits
        assert_close(torch.cat((first, rest), dim=1), full)
