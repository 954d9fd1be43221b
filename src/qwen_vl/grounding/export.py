"""Exchange grounded pictures with other tools: COCO, YOLO, and JSON lines.

All functions are pure: they take and return documents in memory. JSON lines keep everything. COCO and YOLO know classes and not phrases, so
there a phrase is its one-line label, and refs of one picture with the same label become one (`merge_labels` does the same).

    pictures = [GroundedPicture("beach.jpg", 1024, 683, tuple(parse(answer)))]
    Path("coco.json").write_text(json.dumps(to_coco(pictures)))
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from qwen_vl.errors import ConfigError
from qwen_vl.grounding.box import BOX_GRID, BOX_MAX, Box, Quad, Ref

YOLO_CLASSES = "classes.txt"


@dataclass(frozen=True, slots=True)
class GroundedPicture:
    """A picture's file name, its size in pixels, and what was found on it."""

    file_name: str
    width: int
    height: int
    refs: tuple[Ref, ...] = ()

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ConfigError(f"{self.file_name}: width={self.width}, height={self.height} is not a picture size; both must be 1 or more")


def merge_labels(refs: Iterable[Ref]) -> tuple[Ref, ...]:
    """Join refs with the same label, in order of first appearance, and use the label as text; drop refs without a place."""
    places: dict[str, tuple[list[Box], list[Quad]]] = {}
    for ref in refs:
        if ref.boxes or ref.quads:
            boxes, quads = places.setdefault(ref.label, ([], []))
            boxes += ref.boxes
            quads += ref.quads
    return tuple(Ref(label, tuple(boxes), tuple(quads)) for label, (boxes, quads) in places.items())


def _number_labels(pictures: Iterable[GroundedPicture]) -> dict[str, int]:
    """Number the labels of all pictures from 0 in order of first appearance."""
    labels = dict.fromkeys(ref.label for picture in pictures for ref in merge_labels(picture.refs))
    return {label: number for number, label in enumerate(labels)}


# COCO ------------------------------------------------------------------------------------------------------------------------------------


def to_coco(pictures: Sequence[GroundedPicture]) -> dict[str, list[dict[str, Any]]]:
    """Make a COCO detection document; ids count from 1, boxes are [x, y, width, height] in unrounded pixels.

    A quad is an annotation with its bounding box, its outline as `segmentation`, and the extra key `quad` (grid points) that marks it.
    """
    categories = {label: number + 1 for label, number in _number_labels(pictures).items()}
    annotations: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, 1):
        for fields in _coco_places(picture, categories):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0, **fields})
    return {
        "images": [{"id": number, "file_name": p.file_name, "width": p.width, "height": p.height} for number, p in enumerate(pictures, 1)],
        "annotations": annotations,
        "categories": [{"id": number, "name": label} for label, number in categories.items()],
    }


def _coco_places(picture: GroundedPicture, categories: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    for ref in merge_labels(picture.refs):
        for box in ref.boxes:
            yield {"category_id": categories[ref.label], **_coco_box(box, picture), "segmentation": []}
        for quad in ref.quads:
            outline = [value for x, y in quad.points for value in (x / BOX_GRID * picture.width, y / BOX_GRID * picture.height)]
            shape = {"segmentation": [outline], "quad": [list(point) for point in quad.points]}
            yield {"category_id": categories[ref.label], **_coco_box(quad.to_box(), picture), **shape}


def _coco_box(box: Box, picture: GroundedPicture) -> dict[str, Any]:
    x1, y1, x2, y2 = box.to_fractions()
    width, height = (x2 - x1) * picture.width, (y2 - y1) * picture.height
    return {"bbox": [x1 * picture.width, y1 * picture.height, width, height], "area": width * height}


def from_coco(document: Mapping[str, Any]) -> list[GroundedPicture]:
    """Read a COCO detection document, ours or another tool's; segmentations and unknown keys are left aside.

    Raises: ConfigError if a key is missing, an id points nowhere, or a size or box is not made of numbers.
    """
    try:
        names = {category["id"]: str(category["name"]) for category in document["categories"]}
        images = {image["id"]: image for image in document["images"]}
        refs: dict[Any, list[Ref]] = {image_id: [] for image_id in images}
        for annotation in document["annotations"]:
            image = images[annotation["image_id"]]
            refs[image["id"]].append(_coco_ref(annotation, names[annotation["category_id"]], image["width"], image["height"]))
        return [GroundedPicture(str(image["file_name"]), image["width"], image["height"], merge_labels(refs[key])) for key, image in images.items()]
    except KeyError as error:
        raise ConfigError(f"the COCO document lacks {error} or refers to it without defining it; see images, annotations, categories") from error
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"the COCO document cannot be read: {error}") from error


def _coco_ref(annotation: Mapping[str, Any], name: str, width: int, height: int) -> Ref:
    if "quad" in annotation:
        return Ref(name, (), (_read_quad(annotation["quad"]),))
    x, y, box_width, box_height = annotation["bbox"]
    return Ref(name, (Box.from_px(x, y, x + box_width, y + box_height, width, height),))


# YOLO ------------------------------------------------------------------------------------------------------------------------------------


def to_yolo(pictures: Sequence[GroundedPicture]) -> dict[str, str]:
    """Make the files of a YOLO data set: relative path -> content.

    `classes.txt` has one label per line. `labels/NAME.txt` has a line per place, in fractions of the picture: `class centre_x centre_y width
    height` for a box, `class x1 y1 .. x4 y4` for a quad (the form for turned boxes and outlines). A picture's leading `images/` is dropped.
    Raises: ConfigError if two pictures would share a label file, or a file name leads out of the data set.
    """
    classes = _number_labels(pictures)
    files = {YOLO_CLASSES: "".join(label + "\n" for label in classes)}
    for picture in pictures:
        path = _yolo_label_path(picture.file_name)
        if path in files:
            raise ConfigError(f"two pictures would share the label file {path}; give pictures names that differ before the suffix")
        files[path] = "".join(line + "\n" for line in _yolo_lines(picture, classes))
    return files


def _yolo_label_path(file_name: str) -> str:
    path = PurePosixPath(file_name)
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"picture name {file_name!r} is not a path inside a data set; give a relative path without '..'")
    inner = PurePosixPath(*path.parts[1:]) if path.parts[0] == "images" and len(path.parts) > 1 else path
    return str("labels" / inner.with_suffix(".txt"))


def _yolo_lines(picture: GroundedPicture, classes: Mapping[str, int]) -> Iterator[str]:
    for ref in merge_labels(picture.refs):
        rows = [((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1) for x1, y1, x2, y2 in (box.to_fractions() for box in ref.boxes)]
        corners = [[value / BOX_GRID for point in quad.points for value in point] for quad in ref.quads]
        for row in [*rows, *corners]:
            yield " ".join([str(classes[ref.label]), *(f"{value:.6f}" for value in row)])


def from_yolo(files: Mapping[str, str], sizes: Mapping[str, tuple[int, int]]) -> list[GroundedPicture]:
    """Read the files of a YOLO data set.

    Args:
        files: relative path -> content, as `to_yolo` returns: `classes.txt` and the label files.
        sizes: picture file name -> (width, height) in pixels, which YOLO does not store. A picture without a label file has no boxes.
    Raises: ConfigError if `classes.txt` is missing, a line cannot be read, or a label file belongs to no picture.
    """
    if YOLO_CLASSES not in files:
        raise ConfigError(f"the data set lacks {YOLO_CLASSES}, which names the classes, one per line")
    names = [line.removesuffix("\r") for line in files[YOLO_CLASSES].removesuffix("\n").split("\n")] if files[YOLO_CLASSES] else []
    paths = {_yolo_label_path(file_name): file_name for file_name in sizes}
    strays = [path for path in files if path.endswith(".txt") and path != YOLO_CLASSES and path not in paths]
    if strays:
        raise ConfigError(f"label file {strays[0]} belongs to no picture; add the picture to sizes")
    return [GroundedPicture(name, *sizes[name], merge_labels(_yolo_refs(path, files.get(path, ""), names))) for path, name in paths.items()]


def _yolo_refs(path: str, content: str, names: Sequence[str]) -> Iterator[Ref]:
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield _yolo_ref(line.split(), names)
        except (ValueError, OverflowError, IndexError) as error:
            raise ConfigError(f"{path} line {number}: {line[:80]!r} is not a class of {len(names)} and 4 or 8 fractions") from error


def _yolo_ref(fields: Sequence[str], names: Sequence[str]) -> Ref:
    number, values = int(fields[0]), [float(field) for field in fields[1:]]
    if number < 0:
        raise IndexError(number)
    if len(values) == 8:
        grid = [min(max(round(value * BOX_GRID), 0), BOX_MAX) for value in values]
        first, second, third, fourth = zip(grid[::2], grid[1::2], strict=True)
        return Ref(names[number], (), (Quad((first, second, third, fourth)),))
    x, y, width, height = values
    return Ref(names[number], (Box.from_fractions(x - width / 2, y - height / 2, x + width / 2, y + height / 2),))


# JSON lines ------------------------------------------------------------------------------------------------------------------------------


def to_jsonl(pictures: Iterable[GroundedPicture]) -> str:
    """Write one JSON object per picture and line: image, width, height, refs with text, boxes and quads on the 0..999 grid."""
    return "".join(json.dumps(_to_json(picture), ensure_ascii=False) + "\n" for picture in pictures)


def _to_json(picture: GroundedPicture) -> dict[str, Any]:
    refs = [{"text": ref.text, "boxes": [box.to_tuple() for box in ref.boxes], "quads": [quad.points for quad in ref.quads]} for ref in picture.refs]
    return {"image": picture.file_name, "width": picture.width, "height": picture.height, "refs": refs}


def from_jsonl(text: str) -> list[GroundedPicture]:
    """Read what `to_jsonl` wrote; the exact inverse. Empty lines are skipped.

    Raises: ConfigError naming the line, if it is not such an object or holds coordinates outside the grid (pixels, for example).
    """
    return [_from_json(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _from_json(number: int, line: str) -> GroundedPicture:
    try:
        document = json.loads(line)
        return GroundedPicture(str(document["image"]), document["width"], document["height"], tuple(map(_read_ref, document["refs"])))
    except KeyError as error:
        raise ConfigError(f"line {number} lacks the key {error}; a picture has image, width, height, refs") from error
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"line {number} is not a grounded picture: {error}") from error


def _read_ref(document: Mapping[str, Any]) -> Ref:
    boxes = tuple(Box(*_read_grid(box, 4)) for box in document.get("boxes", ()))
    return Ref(str(document["text"]), boxes, tuple(map(_read_quad, document.get("quads", ()))))


def _read_quad(points: Sequence[Sequence[Any]]) -> Quad:
    first, second, third, fourth = ((x, y) for x, y in (_read_grid(point, 2) for point in points))
    return Quad((first, second, third, fourth))


def _read_grid(values: Sequence[Any], count: int) -> list[int]:
    whole = [value for value in values if type(value) is int and 0 <= value <= BOX_MAX]
    if len(whole) != count or len(values) != count:
        raise ConfigError(f"{values!r:.80} is not {count} whole numbers from 0 to {BOX_MAX}; give grid coordinates, not pixels")
    return whole
