"""The picture that is talked about, with the boxes of an answer over it, and the list of the boxes. Everything that is not ours is escaped.

Picture and boxes are two layers of the same shape, so that new boxes do not send the picture again.
"""

from qwen_vl.grounding import BOX_GRID, Box, Ref
from qwen_vl.grounding.confidence import BoxScore
from qwen_vl.serving.web.answers import colours_of
from qwen_vl.serving.web.conversation import Conversation, Turn
from qwen_vl.serving.web.markup import Markup, icon, icon_button, join, tag
from qwen_vl.serving.web.pictures import ShownPicture
from qwen_vl.serving.web.texts import Texts

MAX_SHOWN = 200  # boxes; more would hide the picture
TAG_INSIDE_ABOVE = 70  # grid: a label of a box that begins higher than this stands inside the box


def picture_html(conversation: Conversation, texts: Texts) -> Markup:
    """Write the lower layer: the picture, or what will be here."""
    _, picture, _ = conversation.viewed()
    if picture is None:
        return tag("div", icon("picture"), tag("p", texts.no_picture), class_="no-picture")
    number = _number_of(conversation, picture)
    image = tag("img", src=picture.preview, alt=texts.picture.format(number=number))
    width, height = picture.image.size
    caption = tag("figcaption", f"{texts.picture.format(number=number)} · {picture.name} · {width} × {height}")
    return tag("figure", tag("div", image, class_="frame", style=_frame_style(picture)), caption, class_="layer")


def boxes_html(conversation: Conversation, texts: Texts) -> Markup:
    """Write the upper layer: a frame for each box, and outlines of quads."""
    index, picture, has_boxes = conversation.viewed()
    if picture is None or not has_boxes:
        return Markup("")
    turn = conversation.turns[index]
    refs = turn.refs
    colours = colours_of(refs)
    scores = scores_of(turn)
    # Large boxes first, so that small ones lie above them and can be pointed at.
    places = sorted(((number, place, box) for number, ref in enumerate(refs) for place, box in enumerate(ref.boxes)), key=lambda each: -each[2].area)[
        :MAX_SHOWN
    ]
    boxes = [
        _box_html(box, _label(refs[number], number, texts), scores.get((number, box)), colours[number], _lights(index, number, f"box{place}"), texts)
        for number, place, box in places
    ]
    outlines = _outlines(refs, colours, index)
    return tag("div", tag("div", outlines, *boxes, class_="frame", style=_frame_style(picture)), class_="layer")


def list_html(conversation: Conversation, texts: Texts) -> Markup:
    """Write the table of the boxes, and the downloads."""
    index, picture, has_boxes = conversation.viewed()
    if picture is None or not has_boxes:
        return Markup("")
    turn = conversation.turns[index]
    refs = turn.refs
    unread = tag("p", texts.unread_boxes.format(count=turn.num_unread), class_="quiet") if turn.num_unread else None
    if not refs:
        return join(unread, tag("p", texts.no_boxes, class_="quiet") if turn.has_ended else None)
    colours, scores = colours_of(refs), scores_of(turn)
    rows = [row for number, ref in enumerate(refs) for row in _rows(ref, number, index, colours[number], scores, texts)]
    head = tag("tr", *(tag("th", text, scope="col") for text in (texts.phrase, texts.coordinates, *([texts.confidence] if scores else []))))
    table = tag(
        "table",
        tag("caption", texts.boxes, " ", tag("span", texts.coordinates_hint, class_="quiet")),
        tag("thead", head),
        tag("tbody", *rows[:MAX_SHOWN]),
        class_="boxes",
    )
    return join(_downloads(texts) if turn.has_ended else None, tag("div", table, class_="table"), unread)


def _downloads(texts: Texts) -> Markup:
    kinds = {"picture": texts.download_picture, "json": texts.download_json, "coco": texts.download_coco}
    buttons = (icon_button("download", f"{texts.download}: {name}", "download", name, data_kind=kind) for kind, name in kinds.items())
    return tag("div", *buttons, class_="downloads", role="group", aria_label=texts.download)


def scores_of(turn: Turn) -> dict[tuple[int, Box], BoxScore]:
    """Return the score of each box by the index of its ref and the box; scores stand in the order of the boxes."""
    waiting = list(turn.scores)
    found: dict[tuple[int, Box], BoxScore] = {}
    for number, ref in enumerate(turn.refs):
        for box in ref.boxes:
            if waiting and waiting[0].box == box:
                found[number, box] = waiting.pop(0)
    return found


def _number_of(conversation: Conversation, picture: ShownPicture) -> int:
    return next(number for number, each in enumerate(conversation.pictures, 1) if each is picture)


def _frame_style(picture: ShownPicture) -> str:
    return f"--w:{picture.image.width};--h:{picture.image.height}"


def _label(ref: Ref, number: int, texts: Texts) -> str:
    return ref.label or texts.unnamed_box.format(number=number + 1)


def corners(box: Box) -> str:
    """Write a box's corners."""
    return f"({box.x1}, {box.y1}) – ({box.x2}, {box.y2})"


def _percent(score: BoxScore) -> str:
    return f"{score.confidence:.0%}"


def _lights(turn: int, number: int, shape: str) -> dict[str, str]:
    """Return what says which things light up together: a shape and its line of the list, and all shapes of a phrase when the phrase is pointed at."""
    return {"data_ref": f"{turn}-{number}", "data_shape": f"{turn}-{number}-{shape}"}


def _box_html(box: Box, label: str, score: BoxScore | None, colour: str, lights: dict[str, str], texts: Texts) -> Markup:
    sure = f"{texts.confidence} {_percent(score)}" if score else None
    x1, y1, x2, y2 = (value * 100 / BOX_GRID for value in box.sort().clip().to_tuple())
    style = f"--c:{colour};left:{x1:.1f}%;top:{y1:.1f}%;width:{x2 - x1:.1f}%;height:{y2 - y1:.1f}%"
    inside = "inside " if box.y1 < TAG_INSIDE_ABOVE else ""
    leftwards = "leftwards" if box.x1 > BOX_GRID * 0.6 else ""
    tip = tag("span", corners(box), f" · {sure}" if sure else None, class_="tip")
    name = tag("span", tag("b", label), tip, class_="tag")
    spoken = ", ".join(filter(None, (label, corners(box), sure)))
    css = f"box {inside}{leftwards}".strip()
    return tag("div", name, class_=css, style=style, tabindex="0", role="img", aria_label=spoken, **lights)


def _outlines(refs: list[Ref], colours: list[str], turn: int) -> Markup | None:
    shapes = [
        tag("polygon", points=" ".join(f"{x},{y}" for x, y in quad.points), style=f"--c:{colours[number]}", **_lights(turn, number, f"quad{place}"))
        for number, ref in enumerate(refs)
        for place, quad in enumerate(ref.quads)
    ][:MAX_SHOWN]
    if not shapes:
        return None
    return tag("svg", *shapes, viewBox=f"0 0 {BOX_GRID} {BOX_GRID}", preserveAspectRatio="none", class_="outlines", aria_hidden="true")


def _rows(ref: Ref, number: int, turn: int, colour: str, scores: dict[tuple[int, Box], BoxScore], texts: Texts) -> list[Markup]:
    label = _label(ref, number, texts)
    name = join(tag("i", class_="dot", style=f"--c:{colour}"), label)
    rows = []
    for place, box in enumerate(ref.boxes):
        score = scores.get((number, box))
        sure = tag("td", _percent(score) if score else None, class_="number") if scores else None
        cells = (tag("td", name, class_="phrase-cell"), tag("td", corners(box), class_="number"), sure)
        rows.append(tag("tr", *cells, tabindex="0", **_lights(turn, number, f"box{place}")))
    for place, quad in enumerate(ref.quads):
        points = ", ".join(f"({x}, {y})" for x, y in quad.points)
        cells = (tag("td", name), tag("td", points, class_="number"), tag("td") if scores else None)
        rows.append(tag("tr", *cells, tabindex="0", **_lights(turn, number, f"quad{place}")))
    return rows
