"""Prompts as they stand: the same tokens as the model alone, and nothing added to them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from qwen_vl.api import QwenVL
from qwen_vl.api.likelihood import Choice, begin_choice
from qwen_vl.api.raw import RawAnswer, begin_raw, chat_stop_ids, encode_chat_prompt, encode_pictures, encode_prompt, load_picture, split_prompt
from qwen_vl.errors import CapacityError, ConfigError, ImageError, PromptError
from qwen_vl.prompt.chatml import DEFAULT_SYSTEM
from qwen_vl.prompt.content import PicturePath, Text
from tests.reference import NAMES, load_model, load_reference


def finish(vl: QwenVL, pending: RawAnswer | Choice) -> None:
    while not pending.poll():
        vl.engine.step()


def test_a_prompt_is_read_as_it_stands(vl: QwenVL) -> None:
    ids = encode_prompt(vl.tokenizer, "<img></img>\n<img></img>\nWhat? <ref>a dog</ref><box>")
    assert ids[0] == vl.tokenizer.img_start_id and ids[-1] == vl.tokenizer.box_end_id - 1
    assert ids.count(vl.tokenizer.img_start_id) == 2
    # What no script of the release would read as a token either: a conversation's marks, and a picture that the text names.
    typed = encode_prompt(vl.tokenizer, "<img>/etc/passwd</img><|im_start|><|endoftext|>")
    assert not {vl.tokenizer.img_start_id, vl.tokenizer.im_start_id, vl.tokenizer.eod_id} & set(typed)
    assert [type(piece) for piece in split_prompt("a<img></img>b").pieces] == [Text, PicturePath, Text]


def test_a_chat_prompt_is_the_releases_context(vl: QwenVL, base_vl: QwenVL) -> None:
    query = "<img>x.png</img>\nIs it red?"
    expected = vl.tokenizer.build_chat_context(query, [], DEFAULT_SYSTEM, 256)[1]
    found = encode_chat_prompt(vl, "<img></img>\nIs it red?")
    slots = vl.tokenizer.image_spans(expected)[0]
    assert found[: slots[0]] == expected[: slots[0]] and found[slots[1] :] == expected[slots[1] :] and len(found) == len(expected)
    with pytest.raises(ConfigError, match="base checkpoint"):
        encode_chat_prompt(base_vl, "Is it red?")


@pytest.mark.parametrize(("least", "most"), [(1, 10), (8, 30), (10, 28)])
def test_the_tokens_are_those_of_generate(vl: QwenVL, red: Image.Image, blue: Image.Image, least: int, most: int) -> None:
    """With the release's settings: greedy, only the end of text ends, and not before the least number of tokens."""
    prompts = ["<img></img>Describe the image in English:", "<img></img>\n<img></img>\nWhich? Answer:", "no picture at all Answer:"]
    loaded = [load_picture(vl, each) for each in (red, blue)]
    answers = []
    for prompt in prompts:
        pictures = encode_pictures(vl, loaded[: prompt.count("<img>")])
        answers.append(begin_raw(vl, encode_prompt(vl.tokenizer, prompt), pictures, min_new_tokens=least, max_new_tokens=most))
    for answer in answers:
        finish(vl, answer)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([encode_prompt(vl.tokenizer, prompt)])
        number = prompt.count("<img>")
        features = vl.model.get_image_features(torch.stack([each.pixel_values for each in loaded[:number]])) if number else None
        output = vl.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            **({} if features is None else {"image_features": features}),
            do_sample=False,
            num_beams=1,
            min_new_tokens=least,
            max_new_tokens=most,
            length_penalty=1,
            pad_token_id=vl.tokenizer.eod_id,
            eos_token_id=vl.tokenizer.eod_id,
        )[0, ids.shape[1] :].tolist()
        assert answer.new_ids == output and len(output) >= least
        assert answer.text == vl.tokenizer.decode(output, skip_special_tokens=True)


def test_only_the_named_tokens_end_an_answer(vl: QwenVL) -> None:
    ids = encode_prompt(vl.tokenizer, "go on")
    free = begin_raw(vl, ids, max_new_tokens=12)
    finish(vl, free)
    ender = next(token for token in free.new_ids if token != vl.tokenizer.eod_id)
    short = begin_raw(vl, ids, max_new_tokens=12, stop_ids={ender})
    finish(vl, short)
    assert short.new_ids == free.new_ids[: free.new_ids.index(ender) + 1] and len(free.new_ids) == 12
    assert chat_stop_ids(vl.tokenizer) == {vl.tokenizer.eod_id, vl.tokenizer.im_end_id, vl.tokenizer.im_start_id}


def test_what_does_not_fit_is_refused(vl: QwenVL, tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="context holds 1024"):
        begin_raw(vl, [1] * 1024)
    with pytest.raises(CapacityError, match="takes 1025"):
        begin_choice(vl, [1] * 1023, [], [[1, 2]])
    for setting in ({"stop": "a"}, {"logprobs": 1}, {"boxes": "any"}):
        with pytest.raises(ConfigError, match=f"takes no {next(iter(setting))}"):
            begin_raw(vl, [1], **setting)
    with pytest.raises(PromptError, match="at least one"):
        begin_choice(vl, [1], [], [[]])
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="a.png"):
        load_picture(vl, tmp_path / "a.png")


def test_an_answer_is_cut_at_the_end_of_the_context(vl: QwenVL) -> None:
    answer = begin_raw(vl, [1] * 1021, min_new_tokens=8, max_new_tokens=30)
    finish(vl, answer)
    assert len(answer.new_ids) == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_choice_is_that_of_the_logits(name: str) -> None:
    """Equal to a direct computation: one pass over prompt and candidate, the mean loss of the candidate's tokens."""
    reference = load_reference(name)
    vl = QwenVL(load_model(name, "sdpa"), reference.tokenizer, name)
    picture = reference.folder / "scene.png"
    prompt = encode_prompt(vl.tokenizer, "<img></img>Context: N/A\nQuestion: what is it?\nOptions: A. dog\nB. cat\nAnswer:")
    loaded = load_picture(vl, picture)
    features = vl.model.get_image_features(loaded.pixel_values[None])
    texts = [" A", " B", " C", " D", " dog", "the cat sits"]
    candidates = [encode_prompt(vl.tokenizer, text) for text in texts]
    expected = []
    for candidate in candidates:
        with torch.no_grad():
            logits = vl.model(torch.tensor([[*prompt, *candidate]]), image_features=features).logits[0].double()  # [seq, vocab_size]
        known = logits[:, : vl.model.config.image_start_id + 3].log_softmax(dim=-1)
        expected.append(-sum(float(known[len(prompt) + index - 1, token]) for index, token in enumerate(candidate)) / len(candidate))
    assert {len(candidate) for candidate in candidates} > {1}, "one-token candidates and longer ones"
    short = [index for index, candidate in enumerate(candidates) if len(candidate) == 1]
    for chosen in (short, list(range(len(candidates)))):
        choice = begin_choice(vl, prompt, encode_pictures(vl, [loaded]), [candidates[index] for index in chosen])
        finish(vl, choice)
        assert choice.losses == pytest.approx([expected[index] for index in chosen], abs=2e-4)  # float32, another order of sums
        assert choice.choice == min(range(len(chosen)), key=lambda place: expected[chosen[place]])


def test_the_first_of_equal_candidates_wins(vl: QwenVL) -> None:
    choice = begin_choice(vl, [1, 2, 3], [], [[7], [7]])
    finish(vl, choice)
    assert choice.losses[0] == choice.losses[1] and choice.choice == 0


def test_a_box_that_the_prompt_opens_has_a_confidence(vl: QwenVL, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model writes no boxes, so its output head is led along one."""
    ids = encode_prompt(vl.tokenizer, "<ref>a dog</ref><box>")
    spelled = [*encode_prompt(vl.tokenizer, "(12,34),(56,78)"), vl.tokenizer.box_end_id]
    head = vl.model.lm_head.forward
    step = iter(spelled)

    def led(states: torch.Tensor) -> torch.Tensor:
        logits = head(states) * 0
        logits[..., next(step)] = 50.0
        return logits

    monkeypatch.setattr(vl.model.lm_head, "forward", led)
    answer = begin_raw(vl, ids, max_new_tokens=len(spelled), confidence=True)
    finish(vl, answer)
    assert answer.text == "(12,34),(56,78)"
    assert [score.box.to_tuple() for score in answer.box_scores or ()] == [(12, 34, 56, 78)]
    assert (answer.box_scores or ())[0].confidence > 0.99
