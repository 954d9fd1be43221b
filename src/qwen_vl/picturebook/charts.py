"""Bar charts: a title, two to four bars with a name below and a value above each.

A chart is a pure function of its seed; `chart_page` is its picture and `ask_chart` asks about it.
"""

from dataclasses import dataclass

from .catalog import COLOURS
from .dialogue import Language, Turn
from .dice import Dice, check_seed
from .pages import PAGE_SIZE, PAPERS, Page, Panel, Sheet, Word
from .palette import colour_rgb
from .phrases import colour_name

CHART_TITLES: tuple[str, ...] = ("SALE", "RAIN", "TRIP", "BOOK", "人数", "书店", "雨天", "公园")
CHART_NAMES: tuple[tuple[str, ...], ...] = (
    ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN"),
    ("TEA", "EGG", "CAKE", "MILK", "FISH"),
    ("A", "B", "C", "D", "E"),
    ("一月", "二月", "三月", "五月", "六月"),
    ("茶", "鱼", "牛奶", "蛋糕", "鸡蛋"),
)
MAX_VALUE = 20
_DICE = 501  # the stream of charts, apart from that of scenes
_DRAWN = tuple(colour.name for colour in COLOURS if colour.name not in ("white", "black"))
_MARGIN, _TITLE, _BASE = 24, (20, 84), 366  # pixels: the sides, the rows of the title, the foot of the bars
_TOP = 168  # of the highest bar
_VALUE_HEIGHT, _NAME_HEIGHT = 52, 56


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a chart; its colour is one of the catalogue's."""

    name: str
    colour: str
    value: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart(Sheet):
    """A bar chart; names, colours and values of its bars all differ."""

    title: str
    bars: tuple[Bar, ...]


def make_chart(seed: int) -> Chart:
    """Compose the chart of a seed, the same on every machine. Raises: ConfigError for a negative seed."""
    check_seed(seed)
    dice = Dice(seed, _DICE)
    number = dice.weighted(((2, 0.3), (3, 0.4), (4, 0.3)))
    names = dice.shuffled(dice.pick(CHART_NAMES))[:number]
    colours = dice.shuffled(_DRAWN)[:number]
    values = dice.shuffled(range(1, MAX_VALUE + 1))[:number]
    bars = tuple(Bar(*each) for each in zip(names, colours, values, strict=True))
    return Chart(seed=seed, title=dice.pick(CHART_TITLES), bars=bars, paper=dice.below(len(PAPERS)))


def chart_page(chart: Chart) -> Page:
    """Lay the chart out: bars as high as their values, from a common foot."""
    pitch = (PAGE_SIZE[0] - 2 * _MARGIN) // len(chart.bars)
    gap = pitch // 10
    top_value = max(bar.value for bar in chart.bars)
    words = [Word(chart.title, (_MARGIN, _TITLE[0], PAGE_SIZE[0] - _MARGIN, _TITLE[1]))]
    panels = []
    for number, bar in enumerate(chart.bars):
        x1 = _MARGIN + number * pitch + gap
        x2 = x1 + pitch - 2 * gap
        y1 = _BASE - max(round((_BASE - _TOP) * bar.value / top_value), 8)
        panels.append(Panel(colour_rgb(bar.colour), (x1 + gap, y1, x2 - gap, _BASE)))
        words.append(Word(str(bar.value), (x1, y1 - _VALUE_HEIGHT - 6, x2, y1 - 6)))
        words.append(Word(bar.name, (x1, _BASE + 12, x2, _BASE + 12 + _NAME_HEIGHT)))
    panels.append(Panel((90, 88, 96), (_MARGIN // 2, _BASE, PAGE_SIZE[0] - _MARGIN // 2, _BASE + 4), is_outlined=False))
    return Page(width=chart.width, height=chart.height, paper=PAPERS[chart.paper], panels=tuple(panels), words=tuple(words))


def ask_chart(chart: Chart, language: Language, dice: Dice) -> list[Turn]:
    """Ask for the title, a value, the highest and lowest bar, their number, a colour and the bar of a colour; each has one right answer."""
    one, other = dice.pick(chart.bars), dice.pick(chart.bars)
    ordered = sorted(chart.bars, key=lambda bar: bar.value)
    words = {"name": one.name, "colour": colour_name(other.colour, language)}
    answers = {
        "title": chart.title,
        "value": str(one.value),
        "highest": ordered[-1].name,
        "lowest": ordered[0].name,
        "number": str(len(chart.bars)),
        "colour": colour_name(one.colour, language),
        "which": other.name,
    }
    return [Turn(dice.pick(_ASK[language][key]).format(**words), answer) for key, answer in answers.items()]


_ASK: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "title": ("What is the title of the chart?", "What does the chart show?"),
        "value": ("What is the value of {name}?", "How many has {name}?"),
        "highest": ("Which bar is the highest?", "Which one has the most?"),
        "lowest": ("Which bar is the lowest?", "Which one has the least?"),
        "number": ("How many bars are there?", "How many bars are in the chart?"),
        "colour": ("What colour is the bar of {name}?", "What color is {name}?"),
        "which": ("What is the name of the {colour} bar?", "Which bar is {colour}?"),
    },
    "zh": {
        "title": ("图的标题是什么？", "这张图表的标题是什么？"),
        "value": ("{name}是多少？", "{name}有多少？"),
        "highest": ("哪个最高？", "哪个最多？"),
        "lowest": ("哪个最低？", "哪个最少？"),
        "number": ("图中有几个柱子？", "一共有几个柱子？"),
        "colour": ("{name}是什么颜色的？", "{name}的柱子是什么颜色的？"),
        "which": ("{colour}的是哪个？", "{colour}的柱子是哪个？"),
    },
}
