"""Fresh models: vocabulary, configuration, and queries that look at their own place of the picture."""

import torch
from torch import Tensor

from qwen_vl.modeling.configuration import QWenConfig
from qwen_vl.modeling.positions import resize_position_table, sine_position_table
from qwen_vl.modeling.resampler import Resampler
from qwen_vl.training.picturebook.fresh import align_queries, lesson_texts
from qwen_vl.training.picturebook.vocabulary import MAX_TOKEN_BYTES, learn_ranks


def attention_of_queries(pool: Resampler, num_patches: int) -> Tensor:
    """Return how much each query attends to each place by position alone, [num_heads, num_queries, num_patches]."""
    keys = resize_position_table(pool.pos_embed, num_patches)
    dim = keys.shape[1]
    weights, biases = pool.attn.in_proj_weight, pool.attn.in_proj_bias
    query = torch.nn.functional.linear(pool.ln_q(pool.query) + pool.pos_embed, weights[:dim], biases[:dim])
    key = torch.nn.functional.linear(keys, weights[dim : 2 * dim], biases[dim : 2 * dim])
    heads = [states.unflatten(-1, (pool.attn.num_heads, -1)).transpose(0, 1) for states in (query, key)]
    return (heads[0] @ heads[1].transpose(-2, -1) * pool.attn.head_dim**-0.5).softmax(dim=-1)


def test_aligned_queries_attend_to_their_own_patches() -> None:
    pool = Resampler(QWenConfig(), num_queries=36, dim=256, num_heads=2, vision_dim=8)
    with torch.no_grad():
        pool.pos_embed.copy_(sine_position_table(36, 256))
        pool.query.zero_()
        pool.attn.in_proj_bias.zero_()
    align_queries(pool, 144)
    attention = attention_of_queries(pool, 144).unflatten(-1, (12, 12)).detach()  # [num_heads, 36, 12, 12]
    for query in range(36):
        row, column = 2 * (query // 6), 2 * (query % 6)
        assert (attention[:, query, row : row + 2, column : column + 2].sum(dim=(-2, -1)) > 0.4).all()


def test_the_vocabulary_learns_the_words_of_the_lessons() -> None:
    ranks = learn_ranks(lesson_texts(300), 1280)
    tokens = set(ranks)
    assert list(ranks.values()) == list(range(len(ranks))) and list(ranks)[:256] == [bytes([byte]) for byte in range(256)]
    assert {b"user", b"assistant", b"system", "图中".encode()} <= tokens
    assert max(map(len, tokens)) <= MAX_TOKEN_BYTES
    assert not any(b"<ref" in token or b"box>" in token for token in tokens)


def test_learning_is_repeatable() -> None:
    assert learn_ranks(lesson_texts(10), 400) == learn_ranks(lesson_texts(10), 400)
