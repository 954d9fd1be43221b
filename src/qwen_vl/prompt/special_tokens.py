"""Names of the special tokens, in the order in which their ids follow the byte-pair ranks.

The texts are the release's; ids depend on the size of the vocabulary and are computed by `special_token_ids`.
The tags of boxes, references and quads are also spelled by the grounding parser, which is where their meaning lives.

    special_token_ids(151643)["<img>"]  # 151857
"""

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
NUM_EXTRAS = 205

REF_START, REF_END = "<ref>", "</ref>"
BOX_START, BOX_END = "<box>", "</box>"
QUAD_START, QUAD_END = "<quad>", "</quad>"
IMAGE_START, IMAGE_END = "<img>", "</img>"
IMAGE_PAD = "<imgpad>"

GROUNDING_TOKENS = (REF_START, REF_END, BOX_START, BOX_END, QUAD_START, QUAD_END)
PICTURE_TOKENS = (IMAGE_START, IMAGE_END, IMAGE_PAD)
IMAGE_FAMILY = GROUNDING_TOKENS + PICTURE_TOKENS  # the only tokens that chat contents may hold

SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, *(f"<|extra_{index}|>" for index in range(NUM_EXTRAS)), *IMAGE_FAMILY)


def special_token_ids(num_ranks: int) -> dict[str, int]:
    """Number the special tokens consecutively after a vocabulary of `num_ranks` byte-pair tokens."""
    return {token: num_ranks + index for index, token in enumerate(SPECIAL_TOKENS)}
