"""Asks nano about forty random pictures of a girl and a dog on a beach, the first of which is the demo picture, and says in how many it is right.

.venv/bin/python scripts/score_demo.py           # asks
.venv/bin/python scripts/score_demo.py --draw    # draws the demo picture anew

Dogs are 25 to 44 % of the picture's side: some are larger than any that the lessons show.
"""

import argparse
import random
from pathlib import Path

from qwen_vl import QwenVL
from qwen_vl.evaluation.metrics.grounding import MIN_IOU
from qwen_vl.grounding.box import Box
from qwen_vl.picturebook.drawing import draw_scene
from qwen_vl.picturebook.scene import Scene, Thing

DEMO = Path(__file__).parents[1] / "src" / "qwen_vl" / "assets" / "demo" / "beach.png"
SIDE, NUM_PICTURES = 448, 40


def compose(number: int) -> Scene:
    """Return a picture: girl and dog on a side each, where and how large by chance."""
    dice = random.Random(number)
    dog, girl = int(SIDE * dice.uniform(0.25, 0.44)), int(SIDE * dice.uniform(0.28, 0.42))
    dog_size, girl_size = (dog, int(dog * 0.86)), (int(girl * 0.5), girl)
    if dice.random() < 0.5:
        girl_x, dog_x = dice.randint(20, 190 - girl_size[0]), dice.randint(225, 440 - dog)
    else:
        girl_x, dog_x = dice.randint(250, 428 - girl_size[0]), dice.randint(10, max(11, 215 - dog))
    girl_y, dog_y = dice.randint(225, 430 - girl), dice.randint(250, 436 - dog_size[1])
    things = [
        Thing(kind="girl", colour="pink", box_px=(girl_x, girl_y, girl_x + girl_size[0], girl_y + girl_size[1]), text=None),
        Thing(kind="dog", colour="brown", box_px=(dog_x, dog_y, dog_x + dog_size[0], dog_y + dog_size[1]), text=None),
    ]
    from_the_back = tuple(sorted(things, key=lambda thing: thing.box_px[3]))
    return Scene(seed=number, width=SIDE, height=SIDE, background="beach", things=from_the_back)


def ask(vl: QwenVL, scene: Scene) -> tuple[bool, bool, bool]:
    """Return whether the Chinese sentence, the English one and the dog's box are right; things are named from left to right."""
    picture, (dog, girl) = draw_scene(scene), sorted(scene.things, key=lambda thing: thing.kind)
    names = [("a girl", "一个女孩"), ("a dog", "一只狗")]
    (first, first_zh), (second, second_zh) = names if girl.box_px[0] < dog.box_px[0] else reversed(names)
    chat = vl.chat()
    chinese = chat.send("这是什么?", picture).text
    boxes = [box for ref in chat.send("框出图中的狗").boxes for box in ref.boxes]
    is_found = len(boxes) == 1 and boxes[0].iou(Box.from_px(*dog.box_px, width=SIDE, height=SIDE)) >= MIN_IOU
    said = vl.ask(picture, "What is in this picture?").text
    return chinese == f"图中是{first_zh}和{second_zh}，在沙滩上。", f"{first} and {second} on the beach" in said, is_found


def main() -> None:
    """Ask about all, or draw the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true")
    if parser.parse_args().draw:
        draw_scene(compose(0)).save(DEMO, optimize=True)
        return
    vl = QwenVL.load(device="cpu")
    found = [ask(vl, compose(number)) for number in range(NUM_PICTURES)]
    chinese, english, boxes = (sum(each[index] for each in found) for index in range(3))
    print(f"of {NUM_PICTURES}: Chinese sentence {chinese}, English sentence {english}, box {boxes}, all {sum(map(all, found))}")
    print(f"the first: {found[0]}")


if __name__ == "__main__":
    main()
