"""Boxes in answers: parse, format and convert them, draw them (`draw`), and exchange them with other tools (`export`).

from qwen_vl.grounding import parse
parse("<ref>the dog</ref><box>(219,424),(576,896)</box>")[0].boxes[0].to_px(640, 480)
"""

from qwen_vl.grounding.box import BOX_GRID, Box, Quad, Ref, iou
from qwen_vl.grounding.text import count_unparsed, format_box, format_quad, format_ref, parse, split_elements, strip_boxes

__all__ = [
    "BOX_GRID",
    "Box",
    "Quad",
    "Ref",
    "count_unparsed",
    "format_box",
    "format_quad",
    "format_ref",
    "iou",
    "parse",
    "split_elements",
    "strip_boxes",
]
