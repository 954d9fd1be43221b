"""From the name of a kind to its drawing: a new kind is one line in the catalog, one function and one line here.

draw_thing(image, Thing(kind="dog", colour="brown", box_px=(20, 200, 180, 328), flipped=False, variant=0, text=None))
"""

from collections.abc import Callable
from functools import lru_cache

from PIL import Image

from . import animals, buildings, people, plants, shapes, toys, vehicles
from .canvas import Drawing, render
from .palette import Rgb, colour_rgb
from .scene import NUM_VARIANTS, Thing

_DRAW_KIND: dict[str, Callable[[Drawing, Rgb, int], None]] = {
    "girl": people.draw_girl,
    "boy": people.draw_boy,
    "woman": people.draw_woman,
    "man": people.draw_man,
    "dog": animals.draw_dog,
    "cat": animals.draw_cat,
    "rabbit": animals.draw_rabbit,
    "bird": animals.draw_bird,
    "fish": animals.draw_fish,
    "butterfly": animals.draw_butterfly,
    "tree": plants.draw_tree,
    "flower": plants.draw_flower,
    "mushroom": plants.draw_mushroom,
    "house": buildings.draw_house,
    "tent": buildings.draw_tent,
    "car": vehicles.draw_car,
    "bus": vehicles.draw_bus,
    "bicycle": vehicles.draw_bicycle,
    "boat": vehicles.draw_boat,
    "airplane": vehicles.draw_airplane,
    "ball": toys.draw_ball,
    "kite": toys.draw_kite,
    "balloon": toys.draw_balloon,
    "umbrella": toys.draw_umbrella,
    "hat": toys.draw_hat,
    "cup": toys.draw_cup,
    "circle": shapes.draw_circle,
    "square": shapes.draw_square,
    "triangle": shapes.draw_triangle,
    "star": shapes.draw_star,
    "sign": buildings.draw_sign,
}


def draw_thing(image: Image.Image, thing: Thing) -> None:
    """Draw one thing onto the picture; its visible pixels touch all four sides of `thing.box_px` and none lies outside."""
    drawing = _drawing_of(thing.kind, thing.colour, thing.variant % NUM_VARIANTS)
    render(image, drawing, thing.box_px, flipped=thing.flipped, text=thing.text)


@lru_cache(maxsize=2048)
def _drawing_of(kind: str, colour: str, variant: int) -> Drawing:
    drawing = Drawing()
    _DRAW_KIND[kind](drawing, colour_rgb(colour), variant)
    return drawing
