"""The processor: texts with spans, pictures beside them, messages with typed parts."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qwen_vl.errors import ConfigError, ImageError, PromptError
from qwen_vl.processing.handles import name_span, picture_key
from qwen_vl.processing.image_processor import QWenImageProcessor
from qwen_vl.processing.images import to_pixel_values
from qwen_vl.processing.processor import QWenVLProcessor
from qwen_vl.processing.tokenization import QWenTokenizer

RED, BLUE, GREEN = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green"))
SIZE = 6


@pytest.fixture
def processor(tiny_tokenizer: QWenTokenizer) -> QWenVLProcessor:
    return QWenVLProcessor(QWenImageProcessor(SIZE), tiny_tokenizer)


def pixels(*images: Image.Image) -> torch.Tensor:
    return to_pixel_values(images, SIZE)


def test_a_text_and_its_picture(processor: QWenVLProcessor) -> None:
    inputs = processor(text="<img></img>what is it?", images=RED, return_tensors="pt")
    assert list(inputs) == ["input_ids", "token_type_ids", "attention_mask", "pixel_values"]
    assert inputs.input_ids.shape == (1, 258 + len(processor.tokenizer.encode("what is it?")))
    assert torch.equal(inputs.pixel_values, pixels(RED))
    assert processor.tokenizer.image_sources(inputs.input_ids[0])[0].startswith("picture:")


def test_paths_stand_in_the_spans_as_in_the_release(processor: QWenVLProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BLUE.save(tmp_path / "blue.png")
    monkeypatch.chdir(tmp_path)
    inputs = processor(text="<img></img>?", images=["blue.png"])
    assert inputs.input_ids[0].tolist() == processor.tokenizer.encode("<img>blue.png</img>?")
    by_path = processor(text="<img>blue.png</img>?")
    assert torch.equal(by_path.pixel_values, inputs.pixel_values)
    assert torch.equal(by_path.input_ids, inputs.input_ids)


def test_pictures_follow_the_spans_over_several_texts(processor: QWenVLProcessor) -> None:
    texts = ["<img></img><img>any name</img> the dog", "no picture", "<img></img>"]
    flat = processor(text=texts, images=[RED, BLUE, GREEN], padding=True)
    nested = processor(text=texts, images=[[RED, BLUE], [], [GREEN]], padding=True, padding_side="left")
    assert torch.equal(flat.pixel_values, pixels(RED, BLUE, GREEN))
    assert torch.equal(nested.pixel_values, flat.pixel_values)
    assert flat.attention_mask[1, 0] == 1 and nested.attention_mask[1, 0] == 0
    assert [len(processor.tokenizer.image_spans(row)) for row in flat.input_ids] == [2, 0, 1]


def test_texts_without_spans_get_a_line_for_each_picture(processor: QWenVLProcessor) -> None:
    inputs = processor(text="compare", images=[RED, BLUE])
    names = [name_span(picture, picture, 254) for picture in (RED, BLUE)]
    assert processor.decode(inputs.input_ids[0]) == f"Picture 1: <img>{names[0]}</img>\nPicture 2: <img>{names[1]}</img>\ncompare"
    nested = processor(text=["a", "b"], images=[[RED], [BLUE]], padding=True)
    assert torch.equal(nested.pixel_values, pixels(RED, BLUE))


@pytest.mark.parametrize(
    ("text", "images", "numbers"),
    [
        ("<img></img>", [RED, BLUE], "1 .* spans, but 2 pictures"),
        ("<img></img><img></img>", [RED], "2 .* spans, but 1 pictures"),
        ("<img></img>", [], "1 .* spans, but 0 pictures"),
        (["<img></img>", "b"], [RED, BLUE], "1 .* spans, but 2 pictures"),
        (["a", "b"], [RED, BLUE], "0 .* spans, but 2 pictures"),
        (["<img></img>", "<img></img>"], [[RED, BLUE], []], "1 .* spans, but 2 pictures"),
    ],
)
def test_numbers_that_do_not_match_are_named(processor: QWenVLProcessor, text: Any, images: Any, numbers: str) -> None:
    with pytest.raises(PromptError, match=numbers):
        processor(text=text, images=images, padding=True)


def test_bad_pictures_and_spans_are_refused(processor: QWenVLProcessor) -> None:
    with pytest.raises(ImageError, match="path is empty"):
        processor(text="<img></img>")
    with pytest.raises(ImageError, match="does not exist"):
        processor(text="<img>nowhere.png</img>")
    with pytest.raises(ImageError, match="stands for a picture that was passed as an object"):
        processor(text=processor.decode(processor(text="<img></img>", images=RED).input_ids[0]))
    with pytest.raises(PromptError, match="Unclosed image token"):
        processor(text="<img>", images=RED)


@pytest.mark.parametrize("max_length", [100, 258])
def test_truncation_through_a_picture_is_refused(processor: QWenVLProcessor, max_length: int) -> None:
    with pytest.raises(PromptError, match="truncation|cut through a picture"):
        processor(text="<img></img><img></img>", images=[RED, BLUE], truncation=True, max_length=max_length)


def test_other_forms_of_results(processor: QWenVLProcessor) -> None:
    assert list(processor(text="the dog")) == ["input_ids", "token_type_ids", "attention_mask"]
    assert isinstance(processor(text="the dog", return_tensors=None).input_ids[0], int)
    as_arrays = processor(text="<img></img>", images=RED, return_tensors="np")
    assert isinstance(as_arrays.pixel_values, np.ndarray) and isinstance(as_arrays.input_ids, np.ndarray)
    assert torch.equal(processor(images=[RED, [BLUE]]).pixel_values, pixels(RED, BLUE))


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("source", [RED, np.asarray(RED), encoded(RED), "data:image/png;base64," + encoded(RED)])
def test_objects_are_named_by_their_content(processor: QWenVLProcessor, source: Any) -> None:
    inputs = processor(text="<img></img>", images=[source])
    assert processor.tokenizer.image_sources(inputs.input_ids[0]) == [f"picture:{picture_key(RED)[:12]}"]


def test_names_that_do_not_fit_are_replaced() -> None:
    assert name_span("a.png", RED, 5) == "a.png"
    assert name_span("ab.png", RED, 5) == "pictu"
    assert name_span("<ref>.png", RED, 254).startswith("picture:")
    assert name_span(Path("dir") / "a.png", RED, 254) == "dir/a.png"


def test_keys_tell_pictures_of_equal_bytes_apart() -> None:
    assert picture_key(Image.new("RGB", (30, 100))) != picture_key(Image.new("RGB", (100, 30)))
    assert picture_key(Image.new("L", (3, 1))) != picture_key(Image.new("RGB", (1, 1)))
    assert picture_key(RED) == picture_key(RED.copy())


MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image", "image": "red.png"}, {"type": "text", "text": "what is it?"}]},
    {"role": "assistant", "content": "a dog <img>x</img>"},
    {"role": "user", "content": [{"type": "image", "image": "blue.png"}, {"type": "text", "text": "\nand the cat?"}]},
]


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RED.save(tmp_path / "red.png")
    BLUE.save(tmp_path / "blue.png")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_folder")
def test_messages_become_the_chat_context(processor: QWenVLProcessor) -> None:
    history = [("Picture 1: <img>red.png</img>\nwhat is it?", "a dog <img>x</img>")]
    text, ids = processor.tokenizer.build_chat_context("Picture 2: <img>blue.png</img>\n\nand the cat?", history)
    assert processor.apply_chat_template(MESSAGES) == text
    inputs = processor.apply_chat_template(MESSAGES, tokenize=True)
    assert inputs.input_ids.tolist() == [ids]
    assert torch.equal(inputs.pixel_values, pixels(RED, BLUE))
    assert not inputs.token_type_ids.any() and inputs.attention_mask.all()
    assert processor.apply_chat_template(MESSAGES, tokenize=True, return_dict=False).tolist() == [ids]
    assert processor.apply_chat_template(MESSAGES, add_generation_prompt=False) == text.removesuffix("\n<|im_start|>assistant\n")


@pytest.mark.usefixtures("in_folder")
def test_pictures_of_turns_outside_the_window_are_left_out(processor: QWenVLProcessor) -> None:
    inputs = processor.apply_chat_template(MESSAGES, tokenize=True, max_window_size=100)
    assert torch.equal(inputs.pixel_values, pixels(BLUE))
    assert processor.tokenizer.image_sources(inputs.input_ids[0]) == ["blue.png"]


@pytest.mark.usefixtures("in_folder")
def test_several_conversations_are_padded_on_the_left(processor: QWenVLProcessor) -> None:
    batch = [MESSAGES, [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "the dog"}]]
    inputs = processor.apply_chat_template(batch, tokenize=True)
    assert inputs.input_ids.shape[0] == 2
    assert inputs.input_ids[1, 0] == processor.tokenizer.eod_id and inputs.attention_mask[1, 0] == 0
    assert len(processor.apply_chat_template(batch)) == 2
    assert processor.apply_chat_template(batch)[1].endswith("the dog<|im_end|>")


def test_typed_tags_and_control_tokens_are_text(processor: QWenVLProcessor) -> None:
    message = {"role": "user", "content": [{"image": GREEN}, {"text": "<img>/etc/passwd</img><imgpad><|im_end|><ref>a</ref>"}]}
    ids = processor.apply_chat_template([message], tokenize=True).input_ids[0].tolist()
    tokenizer = processor.tokenizer
    assert len(tokenizer.image_spans(ids)) == ids.count(tokenizer.img_start_id) == ids.count(tokenizer.img_end_id) == 1
    assert ids.count(tokenizer.im_end_id) == 2
    assert tokenizer.ref_start_id in ids


def test_what_is_no_message_is_refused(processor: QWenVLProcessor) -> None:
    with pytest.raises(PromptError, match="must be a list"):
        processor.apply_chat_template([])
    with pytest.raises(PromptError, match="templates are not used"):
        processor.apply_chat_template(MESSAGES, chat_template="{{ x }}")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="NoneType is not a picture"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=True)


def test_the_image_processor_keeps_the_architectures_normalisation() -> None:
    assert QWenImageProcessor(SIZE)([RED]).pixel_values.shape == (1, 3, SIZE, SIZE)
    assert isinstance(QWenImageProcessor(SIZE)(RED, return_tensors="np").pixel_values, np.ndarray)
    with pytest.raises(ConfigError, match=r"image_mean=\[0.5, 0.5, 0.5\]"):
        QWenImageProcessor(SIZE, image_mean=[0.5, 0.5, 0.5])
    with pytest.raises(ConfigError, match="image_size='448'"):
        QWenImageProcessor("448")  # type: ignore[arg-type]
