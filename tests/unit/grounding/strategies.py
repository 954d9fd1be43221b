"""Hypothesis strategies shared by the tests of grounding."""

from hypothesis import strategies as st

from qwen_vl.grounding.box import BOX_MAX, Box, Quad, Ref
from qwen_vl.grounding.export import GroundedPicture

GRID = st.integers(0, BOX_MAX)
BOXES = st.builds(Box, GRID, GRID, GRID, GRID).map(Box.sort)
POINTS = st.tuples(GRID, GRID)
QUADS = st.builds(Quad, st.tuples(POINTS, POINTS, POINTS, POINTS))
PHRASES = st.text(max_size=12).filter(lambda text: "</ref>" not in text)
REFS = st.builds(Ref, PHRASES, st.lists(BOXES, max_size=3).map(tuple), st.lists(QUADS, max_size=2).map(tuple))
PLACED_REFS = REFS.filter(lambda ref: bool(ref.boxes or ref.quads))
SIZES = st.integers(1, 5000)

# Pieces of model text, so that random sequences have tags that open, nest, close, and do not.
PIECES = st.sampled_from(
    ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>", "<|im_end|>", "(1,2),(3,4)", "(999,1000),(-5,1001)"]
    + ["(1.5,2),(3,4)", "(1,2)", "12", ",", "(", ")", " dog", "\u72d7", "e\u0301", "\u0338", "\n", "9" * 30]
)
MODEL_TEXT = st.one_of(st.lists(PIECES, max_size=14).map("".join), st.text(max_size=60))


def pictures(file_name: str) -> st.SearchStrategy[GroundedPicture]:
    """Draw a grounded picture with a given file name."""
    return st.builds(GroundedPicture, st.just(file_name), SIZES, SIZES, st.lists(REFS, max_size=4).map(tuple))
