"""An engine that reads exact 16-bit copies of weights writes the tokens of `generate`."""

import itertools
import logging

import pytest
import torch

from qwen_vl.engine import Engine, EngineSettings
from qwen_vl.modeling.linear import Linear
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.training.adapters import add_adapters
from qwen_vl.training.parts import choose_parts
from tests.reference import FIXTURES
from tests.schedules import assert_all_accounted_for, make_case
from tests.unit.engine.conftest import random_ids

MIB = 2**20

pytestmark = pytest.mark.skipif(torch.backends.quantized.engine not in ("x86", "fbgemm"), reason="PyTorch without FBGEMM has no such products")


def load_stored() -> QWenLMHeadModel:
    """Return a model whose weights are those of a bfloat16 checkpoint, in float32."""
    model = QWenLMHeadModel.from_pretrained(FIXTURES / "tiny-448").to(torch.bfloat16).to(torch.float32)
    return model.eval()


def make_engine(model: QWenLMHeadModel, half_bytes: int | None = 64 * MIB) -> Engine:
    return Engine(model, EngineSettings(kv_bytes=16 * MIB, prefix_bytes=MIB, feature_bytes=0, half_bytes=half_bytes))


def layer_bytes(model: QWenLMHeadModel) -> int:
    """Return two bytes for each number of the decoder's matrices."""
    matrices = [each for part in (model.transformer.h, model.lm_head) for each in part.parameters() if each.ndim == 2]
    return sum(2 * each.numel() for each in matrices)


def test_tokens_and_bytes() -> None:
    model = load_stored()
    cases = [make_case(model, random_ids(length, length), 10) for length in (1, 30, 140)]
    engine = make_engine(model)
    assert engine.statistics().half_bytes == layer_bytes(model)
    handles = [engine.submit(case.request(10)) for case in cases]
    assert [list(handle) for handle in handles] == [case.expected for case in cases]
    assert_all_accounted_for(engine)
    assert engine.statistics().half_bytes == 0 and all(getattr(layer, "_half", None) is None for layer in model.modules())


def test_a_bound_holds(caplog: pytest.LogCaptureFixture) -> None:
    model = load_stored()
    bound = layer_bytes(model) // 2
    with caplog.at_level(logging.WARNING):
        engine = make_engine(model, bound)
    assert 0 < engine.statistics().half_bytes <= bound and "have a 16-bit copy" in caplog.text
    case = make_case(model, random_ids(30, 1), 8)
    assert list(engine.submit(case.request(8))) == case.expected


def test_weights_without_exact_copies(caplog: pytest.LogCaptureFixture) -> None:
    model = load_stored()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.0001)
    with caplog.at_level(logging.WARNING):
        engine = make_engine(model)
    assert engine.statistics().half_bytes == 0 and "0 of" in caplog.text


def test_adapters_and_their_merging() -> None:
    model = load_stored()
    adapted = add_adapters(model, choose_parts(model, "lora", is_chat=True), rank=4)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.eval()
    engine = make_engine(model)
    case = make_case(model, random_ids(30, 1), 8)
    assert engine.statistics().half_bytes >= layer_bytes(load_stored())
    assert list(engine.submit(case.request(8))) == case.expected
    adapted.merge_adapter()  # in place, behind the engine's back
    engine.forget()
    merged = make_case(model, case.input_ids, 8)
    assert list(engine.submit(merged.request(8))) == merged.expected == case.expected
    with adapted.disable_adapter():
        engine.forget()
        assert list(engine.submit(merged.request(8))) == make_case(model, case.input_ids, 8).expected != case.expected


def test_changed_weights_are_copied_again() -> None:
    model = load_stored()
    engine = make_engine(model)
    with torch.no_grad():
        model.get_parameter("transformer.h.0.attn.c_proj.weight").mul_(-1)
    engine.forget_if_changed()
    assert engine.statistics().half_bytes == layer_bytes(model)
    case = make_case(model, random_ids(30, 1), 8)
    assert list(engine.submit(case.request(8))) == case.expected


class TestExpectMany:
    """Copies that nobody asked for by name: where many requests are expected."""

    def test_copies_are_made_and_change_no_token(self) -> None:
        model = load_stored()
        engine = make_engine(model, None)
        assert engine.statistics().half_bytes == 0
        engine.expect_many()
        engine.expect_many()
        assert engine.statistics().half_bytes == layer_bytes(model)
        case = make_case(model, random_ids(30, 1), 10)
        assert list(engine.submit(case.request(10))) == case.expected
        assert_all_accounted_for(engine)
        engine.expect_many()
        assert engine.statistics().half_bytes == 0, "it is closed"

    def test_a_setting_counts_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("qwen_vl.engine.engine.COPIES_PAY_AFTER", 1)
        engine = make_engine(load_stored(), 0)
        engine.expect_many()
        list(engine.submit(make_case(engine.model, random_ids(30, 1), 8).request(8)))
        assert engine.statistics().half_bytes == 0

    def test_one_layer_between_two_tokens_once_they_pay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("qwen_vl.engine.engine.COPIES_PAY_AFTER", 5)
        model = load_stored()
        engine = make_engine(model, None)
        case = make_case(model, random_ids(30, 1), 20)
        handle, sizes = engine.submit(case.request(20)), [0]
        tokens = []
        for token in handle:
            tokens.append(token)
            sizes.append(engine.statistics().half_bytes)
        largest = max(2 * each.numel() for part in (model.transformer.h, model.lm_head) for each in part.parameters())
        assert tokens == case.expected
        assert sizes[:5] == [0] * 5 and sizes[-1] == layer_bytes(model)
        assert max(later - earlier for earlier, later in itertools.pairwise(sizes)) <= largest
        model.get_parameter("transformer.h.0.attn.c_proj.weight").data.mul_(-1)
        engine.forget()
        assert engine.statistics().half_bytes == layer_bytes(model)
        changed = make_case(model, random_ids(30, 1), 20)
        assert list(engine.submit(changed.request(20))) == changed.expected

    def test_only_in_the_memory_that_requests_and_caches_leave(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = load_stored()
        reserved = 17 * MIB  # of `make_engine`: for keys and values, and for prefixes
        for available, expected in ((0, 0), (reserved, 0), (reserved + layer_bytes(model), layer_bytes(model))):
            monkeypatch.setattr("qwen_vl.engine.halves.available_bytes", lambda available=available: available)
            engine = make_engine(model, None)
            engine.expect_many()
            assert engine.statistics().half_bytes == expected
            engine.close()

    def test_a_lack_of_memory_for_them_ends_no_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("qwen_vl.engine.engine.COPIES_PAY_AFTER", 1)

        def fail(_: Linear) -> int:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")  # as PyTorch says it on a CPU

        monkeypatch.setattr(Linear, "keep_half", fail)
        model = load_stored()
        engine, case = make_engine(model, None), make_case(model, random_ids(30, 1), 8)
        assert list(engine.submit(case.request(8))) == case.expected and engine.statistics().half_bytes == 0

    def test_nobody_is_told_that_there_are_none(self, caplog: pytest.LogCaptureFixture) -> None:
        model = load_stored()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.0001)
        engine = make_engine(model, None)
        with caplog.at_level(logging.INFO):
            engine.expect_many()
        assert engine.statistics().half_bytes == 0 and not caplog.text
