"""Draw a scene: the background, then its things from back to front.

The same scene gives the same bytes everywhere: the only font is the bundled one and all variation comes from the scene's seed.

    draw_scene(make_scene(7)).save("scene.png")
"""

from PIL import Image

from .backgrounds import draw_background
from .scene import Scene
from .things import draw_thing


def draw_scene(scene: Scene) -> Image.Image:
    """Draw the scene as an RGB picture of scene.width x scene.height pixels."""
    image = draw_background(scene.background, width=scene.width, height=scene.height, seed=scene.seed)
    for thing in scene.things:
        draw_thing(image, thing)
    return image
