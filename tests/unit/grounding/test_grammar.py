"""The box grammar: exactly the valid boxes, in any vocabulary, whatever a model would rather write."""

import random
import re
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_vl.errors import ConfigError
from qwen_vl.grounding.box import Box
from qwen_vl.grounding.coordinates import BOX_SHAPE, QUAD_SHAPE, START, Coordinates, Shape, can_become, step
from qwen_vl.grounding.grammar import MAX_BOX_TOKENS, BoxConstraint, BoxGrammar, BoxRule, BoxTokens, Mode, State
from qwen_vl.grounding.tags import ELEMENT_TAGS, IMG_PAD
from qwen_vl.grounding.text import count_unparsed, format_box, parse

from .vocabularies import NAMES, box_tokens, decode, vocabulary

NUMBER = "(0|[1-9][0-9]{0,2})"
VALID = re.compile(rf"\({NUMBER},{NUMBER}\),\({NUMBER},{NUMBER}\)")
TAG = re.compile("|".join(re.escape(tag) for tag in [*(tag for pair in ELEMENT_TAGS.values() for tag in pair), IMG_PAD]))
BOXES = st.tuples(st.integers(0, 998), st.integers(0, 998)).flatmap(
    lambda first: st.builds(Box, st.just(first[0]), st.just(first[1]), st.integers(first[0] + 1, 999), st.integers(first[1] + 1, 999))
)
SPELLINGS = BOXES.map(lambda box: format_box(box)[len("<box>") : -len("</box>")])
NEARLY = st.tuples(SPELLINGS, st.integers(0, 19), st.integers(0, 2), st.text("0123456789(), -", max_size=2)).map(
    lambda drawn: drawn[0][: drawn[1]] + drawn[3] + drawn[0][drawn[1] + drawn[2] :]
)


def advance(shape: Shape, state: Coordinates, text: bytes) -> Coordinates | None:
    """Return the state after some more bytes, or None if they cannot be part of a valid spelling."""
    for byte in text:
        after = step(shape, state, byte)
        if after is None:
            return None
        state = after
    return state


def is_valid(text: str) -> bool:
    """Say in other words than the automaton's what a box may look like."""
    match = VALID.fullmatch(text)
    return match is not None and int(match[1]) < int(match[3]) and int(match[2]) < int(match[4])


@given(st.one_of(SPELLINGS, NEARLY, st.text("019(),", max_size=20)))
def test_the_automaton_accepts_exactly_the_valid_boxes(text: str) -> None:
    state = advance(BOX_SHAPE, START, text.encode())
    assert (state is not None and state.is_complete(BOX_SHAPE)) == is_valid(text)


@given(st.integers(0, 999), st.integers(0, 999), st.integers(0, 999))
def test_digits_go_on_only_towards_a_number_in_bounds(value: int, low: int, high: int) -> None:
    spelled = [str(number) for number in range(low, high + 1)]
    assert can_become(value, low, high) == any(number.startswith(str(value)) for number in spelled)


@pytest.mark.parametrize("shape", [BOX_SHAPE, QUAD_SHAPE], ids=["box", "quad"])
@given(chance=st.randoms(use_true_random=False))
def test_no_state_is_a_dead_end(shape: Shape, chance: random.Random) -> None:
    """Whatever single bytes are taken, a box is complete after no more than the longest spelling."""
    state, length = START, 0
    while not state.is_complete(shape):
        following = [after for byte in b"0123456789()," if (after := advance(shape, state, bytes([byte]))) is not None]
        state = chance.choice(following)
        length += 1
    assert length <= shape.max_bytes


@cache
def spelling_tokens(name: str) -> list[tuple[int, bytes]]:
    return [(index, token) for index, token in vocabulary(name).items() if isinstance(token, bytes) and not set(token) - set(b"0123456789(),")]


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)  # the first example reads the vocabulary
@given(text=SPELLINGS, length=st.integers(0, 18))
def test_the_index_finds_what_a_scan_of_the_vocabulary_finds(name: str, text: str, length: int) -> None:
    state = advance(BOX_SHAPE, START, text[:length].encode())
    assert state is not None
    found = box_tokens(name).coordinates.following(BOX_SHAPE, state)
    expected = {}
    for index, token in spelling_tokens(name):
        if (after := advance(BOX_SHAPE, state, token)) is not None:
            expected[index] = after
    assert found == expected and found or length >= len(text)


@settings(deadline=None)
@given(st.lists(BOXES, min_size=1, max_size=3), st.sampled_from(NAMES), st.randoms(use_true_random=False))
def test_every_valid_box_can_be_written_in_every_way_to_cut_it(boxes: list[Box], name: str, chance: random.Random) -> None:
    tokens = box_tokens(name)
    grammar = BoxGrammar(tokens)
    state = grammar.start
    by_bytes = {token: index for index, token in tokens.coordinates.spelling.items()}
    for box in boxes:
        pieces = [tokens.box_start]
        rest = format_box(box)[len("<box>") : -len("</box>")].encode()
        while rest:
            piece = chance.choice([rest[:length] for length in range(1, len(rest) + 1) if rest[:length] in by_bytes])
            pieces.append(by_bytes[piece])
            rest = rest[len(piece) :]
        for token_id in (*pieces, tokens.box_end):
            assert token_id in allowed_ids(grammar, state)
            state = grammar.advance(state, token_id)
    assert state == State(num_boxes=len(boxes), num_tokens=state.num_tokens)


def allowed_ids(grammar: BoxGrammar, state: State) -> list[int]:
    allowed = grammar.allowed(state)
    assert allowed is not None
    return allowed.tolist()


def generate(grammar: BoxGrammar, chance: random.Random) -> list[int]:
    """Write an answer by chance alone, with the end and the tags made more likely than among 152,000 equals.

    Taking any allowed token with the same chance is what the highest of random logits does.
    """
    state, ids, tokens = grammar.start, list[int](), grammar.tokens
    while grammar.max_tokens is None or len(ids) < grammar.max_tokens:
        allowed = grammar.allowed(state)
        assert allowed is not None and len(allowed)
        first_tag = int(np.searchsorted(allowed, tokens.ref_start))
        low = first_tag if chance.random() < 0.5 and first_tag < len(allowed) else 0
        token_id = int(allowed[low + int(chance.random() * (len(allowed) - low))])
        if chance.random() < 0.1 and tokens.end_ids[0] == allowed[np.searchsorted(allowed, tokens.end_ids[0]) % len(allowed)]:
            token_id = tokens.end_ids[0]
        if token_id in tokens.end_ids:
            break
        ids.append(token_id)
        state = grammar.advance(state, token_id)
        assert state.mode is not Mode.OVER
    return ids


def check(text: str, rule: BoxRule) -> int:
    """Check that an answer keeps to the rule and to the grammar, cut off or not. Returns: the number of its boxes."""
    written = re.findall("<box>(.*?)</box>", text, flags=re.DOTALL)
    assert all(map(is_valid, written)) and count_unparsed(text) == 0
    assert len(written) == sum(len(ref.boxes) for ref in parse(text))
    assert rule.least <= len(written) and (rule.most is None or len(written) <= rule.most)
    opened = ""
    for tag in TAG.findall(text):
        assert tag in ("<ref>", "<box>", "<quad>") if not opened else tag == f"</{opened[1:]}"
        opened = tag if not opened else ""
    assert not opened
    return len(written)


@pytest.mark.parametrize("name", NAMES)
def test_ten_thousand_random_answers_hold_only_valid_boxes(name: str) -> None:
    """10,000 answers over the three vocabularies, half of them cut off by their length, with one box required."""
    chance, rule = random.Random(7), BoxRule.parse("required")
    grammars = [BoxGrammar(box_tokens(name), rule, max_tokens) for max_tokens in (*range(MAX_BOX_TOKENS, MAX_BOX_TOKENS + 12), 400)]
    num_boxes = 0
    for _ in range(3334):
        num_boxes += check(decode(name, generate(chance.choice(grammars), chance)), rule)
    assert num_boxes >= 3334


@pytest.mark.parametrize("text", ["any", "required", "none", "2", "2..3", "3..", "0..1"])
@pytest.mark.parametrize("name", ["nano", "merged"])
def test_rules_are_kept(name: str, text: str) -> None:
    chance, rule = random.Random(text), BoxRule.parse(text)
    for max_tokens in (rule.least * MAX_BOX_TOKENS + 1, 90, 300):
        grammar = BoxGrammar(box_tokens(name), rule, max_tokens)
        for _ in range(20):
            check(decode(name, generate(grammar, chance)), rule)


def test_without_boxes_no_tag_is_written_at_all() -> None:
    tokens = box_tokens("nano")
    allowed = set(allowed_ids(BoxGrammar(tokens, BoxRule.parse("none")), State()))
    assert allowed & {tokens.ref_start, tokens.box_start, tokens.quad_start} == set()
    assert set(tokens.end_ids) <= allowed


def test_tags_are_not_spelled_out_in_bytes() -> None:
    """In text the byte `>` is refused exactly where it would complete a tag."""
    tokens = box_tokens("merged")
    grammar = BoxGrammar(tokens)
    by_bytes = {token: index for index, token in vocabulary("merged").items() if isinstance(token, bytes)}
    for text in (b"<box", b"</box", b"<ref", b"a <im", b"<imgpad", b"</quad", b"<<box"):
        state = grammar.start
        for byte in text:
            state = grammar.advance(state, by_bytes[bytes([byte])])
        spells = any((text + b">").endswith(tag.encode()) for tag in ("<box>", "</box>", "<ref>", "<imgpad>", "</quad>"))
        assert (by_bytes[b">"] in allowed_ids(grammar, state)) is not spells
        assert (grammar.advance(state, by_bytes[b">"]).mode is Mode.OVER) is spells
    assert by_bytes[b"</box>"] not in allowed_ids(grammar, grammar.start) and by_bytes[b"<ref>x"] not in allowed_ids(grammar, grammar.start)


def test_an_answer_cannot_end_inside_a_phrase_or_a_box() -> None:
    tokens = box_tokens("nano")
    grammar = BoxGrammar(tokens)
    for start in (tokens.ref_start, tokens.box_start, tokens.quad_start):
        state = grammar.advance(grammar.start, start)
        assert not set(tokens.end_ids) & set(allowed_ids(grammar, state))
        assert grammar.advance(state, tokens.end_ids[0]).mode is Mode.OVER
    assert grammar.allowed(grammar.advance(grammar.start, tokens.end_ids[0])) is None


def test_a_box_is_not_begun_where_it_could_not_be_finished() -> None:
    tokens = box_tokens("nano")
    assert tokens.box_start in allowed_ids(BoxGrammar(tokens, max_tokens=MAX_BOX_TOKENS), State())
    assert tokens.box_start not in allowed_ids(BoxGrammar(tokens, max_tokens=MAX_BOX_TOKENS - 1), State())
    required = BoxGrammar(tokens, BoxRule(least=1), MAX_BOX_TOKENS)
    assert allowed_ids(required, State()) == [tokens.box_start]
    with pytest.raises(ConfigError, match=f"max_new_tokens={MAX_BOX_TOKENS - 1} does not hold"):
        BoxGrammar(tokens, BoxRule(least=1), MAX_BOX_TOKENS - 1)


class Counting(BoxGrammar):
    num_advanced = 0

    def advance(self, state: State, token_id: int) -> State:
        self.num_advanced += 1
        return super().advance(state, token_id)


def test_the_constraint_reads_each_token_once_and_notices_another_answer() -> None:
    grammar = Counting(box_tokens("nano"), BoxRule.parse("1..2"))
    constraint, ids = BoxConstraint(grammar), list[int]()
    for token_id in generate(BoxGrammar(box_tokens("nano"), BoxRule.parse("2"), 200), random.Random(1)):
        allowed = constraint.allowed(ids)
        fresh = BoxConstraint(BoxGrammar(box_tokens("nano"), grammar.rule)).allowed(ids)
        assert allowed is not None and fresh is not None and np.array_equal(allowed, fresh) and token_id in allowed
        ids.append(token_id)
    assert grammar.num_advanced == len(ids) - 1
    constraint.allowed(ids[:3])
    assert grammar.num_advanced == len(ids) - 1 + 3


def test_choices_of_text_are_shared() -> None:
    grammar = BoxGrammar(box_tokens("released"))
    first, again = grammar.allowed(State()), grammar.allowed(State(num_tokens=5))
    assert first is again and first is not None and len(first) > 151_000


@pytest.mark.parametrize("text", ["", "some", "-1", "1.5", "1...2", "2..1", "..3", "1..2..3", "1" * 7])
def test_other_rules_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="boxes="):
        BoxRule.parse(text)


def test_rules_are_read() -> None:
    assert [BoxRule.parse(text) for text in ("any", "required", "none", "2", "1..", "1..4")] == [
        BoxRule(),
        BoxRule(least=1),
        BoxRule(most=0),
        BoxRule(2, 2),
        BoxRule(1),
        BoxRule(1, 4),
    ]


def test_a_vocabulary_without_tags_is_refused() -> None:
    with pytest.raises(ConfigError, match="no token <ref>"):
        BoxTokens({0: b"a", 1: "<|endoftext|>"}, [1])


def test_states_name_what_was_written() -> None:
    assert advance(BOX_SHAPE, START, b"(219,4") == Coordinates(3, 4, (219,))
    assert advance(BOX_SHAPE, START, b"(219,4)") == Coordinates(5, None, (219, 4))
    assert advance(BOX_SHAPE, START, b"(999,") is advance(BOX_SHAPE, START, b"(01") is None
