"""Make a fresh model from a recipe: configuration, vocabulary and weights, with the resampler's queries aligned to the picture's grid."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GenerationConfig

from qwen_vl.modeling.configuration import QWenConfig
from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.modeling.positions import resize_position_table
from qwen_vl.modeling.resampler import Resampler
from qwen_vl.picturebook.compare import compare_tasks
from qwen_vl.picturebook.scene import make_scene
from qwen_vl.picturebook.tasks import make_tasks, small_talk
from qwen_vl.processing.tokenization import QWenTokenizer
from qwen_vl.processing.vocabulary import write_ranks
from qwen_vl.prompt.chatml import DEFAULT_SYSTEM

from .recipe import ModelRecipe
from .vocabulary import learn_ranks

ROW_MULTIPLE = 64  # the embedding has a few rows more than the vocabulary, as in the release
VOCABULARY_FIRST_SEED = 900_000_000  # training scenes that no stage uses
TAG = re.compile(r"</?(?:ref|box|quad)>")
CONTENT_SCALE = 0.2  # initial scale of the resampler's contents, so that positions decide first
SHARPNESS = 18.0  # of the initial attention of a query to its own place: about 70 % falls on its own patches
MIN_SPREAD, MAX_GAIN_SPREAD = 0.05, 0.3  # weaker directions of the position table are left out; weak ones are not blown up


def lesson_texts(num_scenes: int) -> Iterator[str]:
    """Yield all texts of the lessons about `num_scenes` scenes, for the vocabulary."""
    for _ in range(num_scenes):  # every conversation has these, so each of their words should be one token
        yield from ("system", "user", "assistant", DEFAULT_SYSTEM, "Picture 1: ", "Picture 2: ")
    for seed in range(VOCABULARY_FIRST_SEED, VOCABULARY_FIRST_SEED + num_scenes):
        scene, other = make_scene(seed), make_scene(seed + num_scenes)
        for task in [*make_tasks(scene), *compare_tasks(scene, other), *small_talk(seed)]:
            for turn in task.turns:
                yield from TAG.split(turn.question + " " + turn.answer)


def make_tokenizer(recipe: ModelRecipe, folder: Path) -> QWenTokenizer:
    """Learn the vocabulary and write the tokenizer's files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_ranks(folder / "qwen.tiktoken", learn_ranks(lesson_texts(recipe.vocabulary_scenes), recipe.num_ranks))
    tokenizer = QWenTokenizer(folder / "qwen.tiktoken", image_slots=recipe.num_queries, model_max_length=recipe.seq_length)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_config(recipe: ModelRecipe, tokenizer: QWenTokenizer) -> QWenConfig:
    """Return the released configuration format with the recipe's sizes."""
    return QWenConfig(
        vocab_size=math.ceil(len(tokenizer) / ROW_MULTIPLE) * ROW_MULTIPLE,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        kv_channels=recipe.hidden_size // recipe.num_heads,
        intermediate_size=2 * recipe.mlp_dim,
        seq_length=recipe.seq_length,
        max_position_embeddings=4 * recipe.seq_length,
        architectures=["QWenLMHeadModel"],
        visual={
            "heads": recipe.vision_heads,
            "image_size": recipe.image_size,
            "image_start_id": tokenizer.img_start_id,
            "layers": recipe.vision_layers,
            "mlp_ratio": recipe.vision_mlp_ratio,
            "n_queries": recipe.num_queries,
            "output_dim": recipe.hidden_size,
            "patch_size": recipe.patch_size,
            "width": recipe.vision_width,
        },
    )


def make_model(recipe: ModelRecipe, tokenizer: QWenTokenizer) -> QWenLMHeadModel:
    """Build a fresh model, chat format set, queries aligned."""
    model = QWenLMHeadModel(make_config(recipe, tokenizer))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eod_id,
        pad_token_id=tokenizer.eod_id,
        max_new_tokens=256,
        do_sample=False,
        chat_format="chatml",
        max_window_size=recipe.seq_length - 512,
    )
    align_queries(model.transformer.visual.attn_pool, (recipe.image_size // recipe.patch_size) ** 2)
    return model


@torch.no_grad()
def align_queries(pool: Resampler, num_patches: int) -> None:
    """Set the resampler so that each query attends to the patches at its own place of the picture.

    Queries and keys are projected on the position table's leading components, scaled to equal size; there equal places have the largest
    product. Contents start small, so that positions decide at first.
    """
    table = resize_position_table(pool.pos_embed, num_patches)
    mean, dim, head_dim = table.mean(dim=0), table.shape[1], pool.attn.head_dim
    _, spread, directions = torch.linalg.svd(table - mean, full_matrices=False)
    spread = spread / math.sqrt(num_patches)  # standard deviation over places
    kept = int((spread > MIN_SPREAD).sum())
    gain = math.sqrt(SHARPNESS * math.sqrt(head_dim) / kept)
    scaled = gain * directions[:kept] / spread[:kept, None].clamp(min=MAX_GAIN_SPREAD)  # [kept, dim]
    projection = torch.zeros(dim, dim)
    for head in range(pool.attn.num_heads):
        projection[head * head_dim : head * head_dim + kept] = scaled
    pool.attn.in_proj_weight[: 2 * dim] = torch.cat((projection, projection))
    pool.attn.in_proj_bias[: 2 * dim] = (-projection @ mean).repeat(2)
    pool.ln_q.weight.fill_(CONTENT_SCALE)
    pool.ln_kv.weight.fill_(CONTENT_SCALE)
    torch.nn.init.normal_(pool.attn.in_proj_weight[2 * dim :], std=dim**-0.5 / CONTENT_SCALE)
    torch.nn.init.normal_(pool.attn.out_proj.weight, std=dim**-0.5)
