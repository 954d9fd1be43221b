"""Tag strings that mark pictures, references, boxes and quads in the model's text.

<ref>the dog</ref><box>(219,424),(576,896)</box>
"""

REF_START = "<ref>"
REF_END = "</ref>"
BOX_START = "<box>"
BOX_END = "</box>"
QUAD_START = "<quad>"
QUAD_END = "</quad>"
IMG_START = "<img>"
IMG_END = "</img>"
IMG_PAD = "<imgpad>"

# Element key of the list format -> (start tag, end tag).
ELEMENT_TAGS = {
    "image": (IMG_START, IMG_END),
    "ref": (REF_START, REF_END),
    "box": (BOX_START, BOX_END),
    "quad": (QUAD_START, QUAD_END),
}
