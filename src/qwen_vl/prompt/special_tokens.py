"""Names of the special tokens, in the order in which their ids follow the byte-pair ranks.

The texts are the release's (tags are spelled in grounding.tags); ids depend on the size of the vocabulary.

    special_token_ids(151643)["<img>"]  # 151857
"""

from qwen_vl.grounding.tags import BOX_END, BOX_START, IMG_END, IMG_PAD, IMG_START, QUAD_END, QUAD_START, REF_END, REF_START

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
NUM_EXTRAS = 205

GROUNDING_TOKENS = (REF_START, REF_END, BOX_START, BOX_END, QUAD_START, QUAD_END)
PICTURE_TOKENS = (IMG_START, IMG_END, IMG_PAD)
IMAGE_FAMILY = GROUNDING_TOKENS + PICTURE_TOKENS  # the only tokens that chat contents may hold

SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, *(f"<|extra_{index}|>" for index in range(NUM_EXTRAS)), *IMAGE_FAMILY)


def special_token_ids(num_ranks: int) -> dict[str, int]:
    """Number the special tokens consecutively after a vocabulary of `num_ranks` byte-pair tokens."""
    return {token: num_ranks + index for index, token in enumerate(SPECIAL_TOKENS)}
