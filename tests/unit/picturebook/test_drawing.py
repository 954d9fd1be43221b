"""The drawings: exact boxes, recognizable colours, the same picture every time."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qwen_vl.picturebook.backgrounds import draw_background
from qwen_vl.picturebook.catalog import BACKGROUNDS, COLOURS, KIND_BY_NAME, KINDS, SIGN_WORDS, Kind
from qwen_vl.picturebook.drawing import draw_scene
from qwen_vl.picturebook.palette import Rgb, colour_rgb
from qwen_vl.picturebook.scene import NUM_VARIANTS, Scene, Thing, demo_scene, make_scene
from qwen_vl.picturebook.things import draw_thing

PAPER: Rgb = (255, 0, 255)  # no drawing uses this colour
RGB_CODE = (65536, 256, 1)
MARGIN = 12
TOLERANCE_PX = 2

kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def draw_alone(
    kind: Kind, colour: str, *, size: float = 120, stretch: float = 1.0, flipped: bool = False, variant: int = 0, text: str | None = None
) -> Image.Image:
    """Draw one thing on flat paper, with a margin on every side."""
    width, height = round(size * (kind.aspect * stretch) ** 0.5), round(size / (kind.aspect * stretch) ** 0.5)
    image = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    box_px = (MARGIN, MARGIN, MARGIN + width, MARGIN + height)
    draw_thing(image, Thing(kind=kind.name, colour=colour, box_px=box_px, flipped=flipped, variant=variant, text=text))
    return image


def changed(image: Image.Image) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = np.any(np.asarray(image) != PAPER, axis=2)
    return mask


def assert_fills_box(image: Image.Image) -> None:
    """Require that the drawing reaches all four sides of its box and never leaves it."""
    mask = changed(image)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    gaps = (columns[0] - MARGIN, rows[0] - MARGIN, image.width - MARGIN - 1 - columns[-1], image.height - MARGIN - 1 - rows[-1])
    assert min(gaps) >= 0, f"drawn outside its box: {gaps}"
    assert max(gaps) <= TOLERANCE_PX, f"does not reach the sides of its box: {gaps}"


@kinds
def test_every_look_fills_its_box_exactly(kind: Kind) -> None:
    for number, colour in enumerate(COLOURS):
        for flipped in (False, True):
            for variant in (number % NUM_VARIANTS, (number + 1) % NUM_VARIANTS):
                assert_fills_box(draw_alone(kind, colour.name, flipped=flipped, variant=variant))


@kinds
@pytest.mark.parametrize(("size", "stretch"), [(40, 1.0), (70, 0.8), (200, 1.25)])
def test_boxes_are_exact_at_other_sizes_and_proportions(kind: Kind, size: float, stretch: float) -> None:
    for variant in range(NUM_VARIANTS):
        assert_fills_box(draw_alone(kind, "blue", size=size, stretch=stretch, variant=variant))


@kinds
def test_main_colour_is_the_commonest(kind: Kind) -> None:
    for number, colour in enumerate(COLOURS):
        for variant in (number % NUM_VARIANTS, (number + 3) % NUM_VARIANTS):
            pixels = np.asarray(draw_alone(kind, colour.name, size=90, variant=variant)).astype(int) @ RGB_CODE
            values, counts = np.unique(pixels[pixels != np.dot(PAPER, RGB_CODE)], return_counts=True)
            share = counts.max() / counts.sum()
            assert values[counts.argmax()] == np.dot(colour.rgb, RGB_CODE), f"{colour.name} {kind.name}, variant {variant}"
            assert share > 0.2, f"{colour.name} {kind.name}, variant {variant}: only {share:.0%} of its pixels"


def test_kinds_differ_even_when_tiny() -> None:
    """At 30 pixels, in one colour and one box, any two kinds differ in a tenth of their pixels, and that by a clear step."""
    tiny = {}
    for kind in KINDS:
        image = Image.new("RGB", (150, 150), (214, 226, 214))
        draw_thing(image, Thing(kind=kind.name, colour="red", box_px=(0, 0, 150, 150), text="12" if kind.name == "sign" else None))
        tiny[kind.name] = np.asarray(image.reduce(5)).astype(int)
    names = sorted(tiny)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            steps = np.abs(tiny[first] - tiny[second]).max(axis=2)
            assert (steps > 40).mean() > 0.1, f"{first} and {second} look alike"


def test_flipping_mirrors_the_drawing_but_not_its_text() -> None:
    dog = KIND_BY_NAME["dog"]
    plain, flipped = np.asarray(draw_alone(dog, "brown")).astype(int), np.asarray(draw_alone(dog, "brown", flipped=True)).astype(int)
    assert np.abs(plain[:, ::-1] - flipped).mean() < 3  # rounding at the edges
    assert np.abs(plain - flipped).mean() > 20
    sign = KIND_BY_NAME["sign"]
    plain, flipped = (np.asarray(draw_alone(sign, "blue", flipped=side, text="EXIT")).astype(int) for side in (False, True))
    assert np.abs(plain - flipped).mean() < 3


@pytest.mark.parametrize("text", [*SIGN_WORDS, "7", "42", "305"])
def test_sign_text_is_large_and_stays_on_its_board(text: str) -> None:
    kind = KIND_BY_NAME["sign"]
    for colour in ("white", "orange", "black"):
        image = draw_alone(kind, colour, text=text)
        assert_fills_box(image)
        difference = np.abs(np.asarray(image).astype(int) - np.asarray(draw_alone(kind, colour)).astype(int)).max(axis=2)
        rows, columns = np.flatnonzero((difference > 40).any(axis=1)), np.flatnonzero((difference > 40).any(axis=0))
        width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
        board_width, board_height = image.width - 2 * MARGIN, 0.74 * (image.height - 2 * MARGIN)
        assert width > 0.6 * board_width or height > 0.5 * board_height
        assert columns[0] > MARGIN + 0.04 * board_width and columns[-1] < MARGIN + 0.96 * board_width
        assert rows[0] > MARGIN + 0.04 * board_height and rows[-1] < MARGIN + 0.96 * board_height


@pytest.mark.parametrize("background", [background.name for background in BACKGROUNDS])
def test_every_colour_stands_out_from_every_background(background: str) -> None:
    """A rim of at least 1 pixel differs from the background by a clear step, white in snow and black at night included."""
    for seed in range(4):
        before = draw_background(background, width=448, height=448, seed=seed)
        for colour in COLOURS:
            for y in (30, 190, 360):
                after = before.copy()
                draw_thing(after, Thing(kind="circle", colour=colour.name, box_px=(180, y, 260, y + 80)))
                rim = np.abs(np.asarray(after).astype(int)[y + 38 : y + 42, 180:183] - np.asarray(before).astype(int)[y + 38 : y + 42, 180:183])
                assert rim.max() > 30, f"{colour.name} on {background} at {y}"


@pytest.mark.parametrize("background", [background.name for background in BACKGROUNDS])
def test_backgrounds_vary_with_the_seed_only(background: str) -> None:
    def pixels(seed: int) -> bytes:
        return draw_background(background, width=320, height=240, seed=seed).tobytes()

    assert pixels(3) == pixels(3)
    assert len({pixels(seed) for seed in range(8)}) == 8


@pytest.mark.parametrize("background", [background.name for background in BACKGROUNDS])
def test_backgrounds_hold_no_colour_of_a_thing(background: str) -> None:
    for seed in range(4):
        pixels = np.asarray(draw_background(background, width=448, height=448, seed=seed)).astype(int)
        for colour in COLOURS:
            near = np.abs(pixels - colour.rgb).max(axis=2) < 12
            assert near.mean() < 0.04, f"{colour.name} in {background}"  # clouds and snowflakes are nearly white


def test_scenes_are_drawn_back_to_front_at_their_size() -> None:
    behind = Thing(kind="square", colour="red", box_px=(20, 20, 100, 100))
    front = Thing(kind="square", colour="blue", box_px=(60, 60, 140, 140))
    image = draw_scene(Scene(seed=1, width=200, height=160, background="park", things=(behind, front)))
    assert (image.mode, image.size) == ("RGB", (200, 160))
    assert image.getpixel((40, 40)) == colour_rgb("red")
    assert image.getpixel((80, 80)) == colour_rgb("blue")


def test_things_may_reach_the_edge_of_the_picture() -> None:
    thing = Thing(kind="square", colour="green", box_px=(150, 120, 200, 160))
    image = draw_scene(Scene(seed=1, width=200, height=160, background="room", things=(thing,)))
    assert image.getpixel((195, 155)) == colour_rgb("green")


def test_made_scenes_change_only_the_boxes() -> None:
    for seed in range(12):
        scene = make_scene(seed)
        image = np.asarray(draw_scene(scene))
        outside = np.ones(image.shape[:2], dtype=bool)
        for x1, y1, x2, y2 in (thing.box_px for thing in scene.things):
            outside[y1:y2, x1:x2] = False
        empty = np.asarray(draw_background(scene.background, width=scene.width, height=scene.height, seed=scene.seed))
        assert np.array_equal(image[outside], empty[outside])


def test_same_scene_gives_the_same_bytes_in_another_process() -> None:
    program = (
        "import hashlib; from qwen_vl.picturebook.drawing import draw_scene; from qwen_vl.picturebook.scene import demo_scene, make_scene\n"
        "print(hashlib.sha256(b''.join(draw_scene(s).tobytes() for s in (demo_scene(), *map(make_scene, range(6))))).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    other = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout.strip()
    scenes = (demo_scene(), *map(make_scene, range(6)))
    assert hashlib.sha256(b"".join(draw_scene(scene).tobytes() for scene in scenes)).hexdigest() == other
