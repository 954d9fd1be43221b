"""RefCOCO, RefCOCO+ (Yu et al. 2016) and RefCOCOg (Mao et al. 2016): find what a phrase names in a COCO photograph."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_vl.errors import DataError
from qwen_vl.evaluation.files import Entry, Record, read_list, read_object
from qwen_vl.evaluation.metrics.grounding import MIN_IOU, average_precision, box_iou, first_box
from qwen_vl.evaluation.prepare import Preparation, file_name, locate
from qwen_vl.evaluation.task import PICTURE, Pair, Prepared, Sample, Score, answer_of, mean
from qwen_vl.evaluation.tasks.common import RecordTask
from qwen_vl.grounding.box import to_px_scoring


@dataclass(frozen=True, kw_only=True)
class GroundingTask(RecordTask):
    """Records `{image, sent, bbox, width, height}`, the box as corners in pixels. Phrases are known by their number in the file."""

    metric: str = "accuracy at IoU 0.5"
    id_key: str | None = None
    min_new_tokens: int = 10
    max_new_tokens: int = 28

    def sample(self, id: str, record: Record, base: Path) -> Sample:
        """Open a box after the phrase. Source: FACTS 9.3."""
        size = {key: record.number(key) for key in ("width", "height")}
        return Sample(
            id=id,
            pictures=(locate(base, record.text("image")),),
            prompt=f"{PICTURE}<ref>{record.text('sent')}</ref><box>",
            reference=list(record.box("bbox")) if self.has_references or record.entry.get("bbox") is not None else None,
            extra={"image": record.text("image"), "sent": record.text("sent"), "example_id": record.entry.get("example_id"), **size},
        )

    def mark(self, pairs: Sequence[Pair]) -> Score:
        """Score by overlap; with confidences also by average precision."""
        scores, read = {}, {}
        overlaps = []
        for sample, result in pairs:
            box = read[sample.id] = first_box("" if result.error is not None else result.answer)
            overlaps.append(box_iou(box, sample.reference, sample.extra["width"], sample.extra["height"]))
            scores[sample.id] = 100.0 * (overlaps[-1] >= MIN_IOU)
        others = {"mean IoU": 100 * mean(overlaps)}
        if any(result.confidences is not None for _, result in pairs):
            found = [(result.confidences[0], scores[sample.id] > 0) for sample, result in pairs if result.confidences and read[sample.id]]
            others["average precision"] = 100 * average_precision(found, len(pairs))
        unread = sum(box is None for box in read.values())
        return Score.of_means(pairs, scores, others=others, num_unparsed=unread, parsed={id: box and list(box) for id, box in read.items()})

    def records(self, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        """Return `{image, sent, answer, bbox, gt_bbox}`: boxes in pixels, null where none was read."""
        return [
            {
                "image": sample.extra["image"],
                "sent": sample.extra["sent"],
                "answer": answer_of(result),
                "bbox": to_px(answer_of(result), sample),
                "gt_bbox": sample.reference,
            }
            for sample, result in pairs
        ]


def to_px(answer: str, sample: Sample) -> list[float] | None:
    """Return the first box of an answer in pixels of the sample's picture, as scoring counts them."""
    box = first_box(answer)
    width, height = sample.extra["width"], sample.extra["height"]
    return None if box is None else list(to_px_scoring(box, width, height))


@dataclass(frozen=True, kw_only=True)
class RefCocoTask(GroundingTask):
    """Official: `refs({split_by}).json`, the published pickle written as JSON, `instances.json`, and COCO's `train2014/` pictures."""

    split: str
    split_by: str

    def prepare(self, official: Path, root: Path) -> Prepared:
        """Read the phrases of the split, one sample for each."""
        book = Preparation(self, official, root)
        name = f"refs({self.split_by})"
        if book.find_optional(f"{name}.json") is None and book.find_optional(f"{name}.p"):
            raise DataError(
                f"{book.find(f'{name}.p')} is a pickle, which runs code when it is loaded, so it is never opened here. If you trust it, convert it: "
                f'python -c \'import json, pickle; json.dump(pickle.load(open("{name}.p", "rb")), open("{name}.json", "w"))\''
            )
        refs = book.read(read_list, f"{name}.json")
        instances = book.read(read_object, "instances.json")
        images = {record.id("id"): record for record in instances.records("images")}
        annotations = {record.id("id"): record for record in instances.records("annotations")}
        lines = [line for ref in refs if ref.text("split") == self.split for line in _lines_of(book, ref, images, annotations)]
        return book.finish(book.write_lines(self.files[0], lines))


def _lines_of(book: Preparation, ref: Record, images: dict[str, Record], annotations: dict[str, Record]) -> list[Entry]:
    """Return the phrases of a thing."""
    image, annotation = images.get(ref.id("image_id")), annotations.get(ref.id("ann_id"))
    if image is None or annotation is None:
        raise DataError(f"{ref.place} names an image_id or ann_id that instances.json has not. Are both from one set?")
    x, y, width, height = annotation.box("bbox")
    place = book.picture(file_name(image.text("file_name")), ("train2014", "images/train2014", "images", "."))
    line = {"bbox": [x, y, x + width, y + height], "width": int(image.number("width")), "height": int(image.number("height"))}
    return [{"image": place, "sent": sentence.text("sent"), **line} for sentence in ref.records("sentences")]


def _splits(folder: str, title: str, split_by: str, sizes: dict[str, int]) -> tuple[RefCocoTask, ...]:
    return tuple(
        RefCocoTask(
            name=f"{folder}_{split}",
            title=f"{title} {split}",
            split=split,
            split_by=split_by,
            files=(f"{folder}/{folder}_{split}.jsonl",),
            usual_size=size,
        )
        for split, size in sizes.items()
    )


TASKS = (
    *_splits("refcoco", "RefCOCO", "unc", {"val": 10_834, "testA": 5_657, "testB": 5_095}),
    *_splits("refcoco+", "RefCOCO+", "unc", {"val": 10_758, "testA": 5_726, "testB": 4_889}),
    *_splits("refcocog", "RefCOCOg", "umd", {"val": 4_896, "test": 9_602}),
)
