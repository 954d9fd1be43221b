"""Receipts: a shop, one to three items with their prices, and the total, which is their sum.

A receipt is a pure function of its seed; `receipt_page` is its picture, `ask_receipt` asks about it and `receipt_json` writes it down.
"""

import json
from dataclasses import dataclass

from .dialogue import Language, Turn
from .dice import Dice, check_seed
from .pages import PAGE_SIZE, PAPERS, Page, Panel, Sheet, Word

SHOPS: tuple[str, ...] = ("CAFE", "HOTEL", "ZOO", "BOOK", "SALE", "书店", "公园", "学校", "医院", "茶")
ITEMS: tuple[tuple[str, ...], ...] = (
    ("TEA", "MILK", "CAKE", "EGG", "FISH", "RICE", "SOUP", "HAT", "CUP", "BALL"),
    ("茶", "牛奶", "蛋糕", "鸡蛋", "鱼", "米饭", "汤", "帽子", "杯子", "球"),
)
TOTALS: tuple[str, ...] = ("TOTAL", "总计")  # by the language of the items
MAX_PRICE = 20
_DICE = 502  # the stream of receipts, apart from those of scenes and charts
_MARGIN, _HEADER = 30, (22, 92)  # pixels: the sides, the rows of the shop
_ROWS, _ROW_HEIGHT, _PITCH = 126, 54, 74  # the first item's top, a word's height, from row to row
_PRICE_WIDTH = 110
_RULE = (120, 116, 124)


@dataclass(frozen=True, slots=True)
class Item:
    """A row of a receipt."""

    name: str
    price: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt(Sheet):
    """A receipt; the names of its items differ, and one price is the highest."""

    shop: str
    items: tuple[Item, ...]
    total_word: str

    @property
    def total(self) -> int:
        """What the last row says: the sum of all prices."""
        return sum(item.price for item in self.items)


def make_receipt(seed: int) -> Receipt:
    """Compose the receipt of a seed, the same on every machine. Raises: ConfigError for a negative seed."""
    check_seed(seed)
    dice = Dice(seed, _DICE)
    script = dice.below(len(ITEMS))
    number = dice.weighted(((1, 0.25), (2, 0.4), (3, 0.35)))
    names, prices = dice.shuffled(ITEMS[script])[:number], dice.shuffled(range(1, MAX_PRICE + 1))[:number]
    items = tuple(Item(*each) for each in zip(names, prices, strict=True))
    return Receipt(seed=seed, shop=dice.pick(SHOPS), items=items, total_word=TOTALS[script], paper=dice.below(len(PAPERS)))


def receipt_page(receipt: Receipt) -> Page:
    """Lay the receipt out: the shop on top, a row for each item, prices at the right, the total below a rule."""
    width = PAGE_SIZE[0]
    words = [Word(receipt.shop, (_MARGIN, _HEADER[0], width - _MARGIN, _HEADER[1]))]
    rules = [_HEADER[1] + 14]
    rows = [*((item.name, item.price) for item in receipt.items), (receipt.total_word, receipt.total)]
    for number, (name, price) in enumerate(rows):
        y = _ROWS + number * _PITCH
        if number == len(receipt.items):
            rules.append(y)
            y += 18
        words.append(Word(name, (_MARGIN, y, width - _MARGIN - _PRICE_WIDTH - 20, y + _ROW_HEIGHT)))
        words.append(Word(str(price), (width - _MARGIN - _PRICE_WIDTH, y, width - _MARGIN, y + _ROW_HEIGHT)))
    panels = tuple(Panel(_RULE, (_MARGIN, y, width - _MARGIN, y + 4), is_outlined=False) for y in rules)
    return Page(width=receipt.width, height=receipt.height, paper=PAPERS[receipt.paper], panels=panels, words=tuple(words))


def receipt_json(receipt: Receipt) -> str:
    """Write a receipt as JSON: `{"shop": "CAFE", "items": [{"name": "TEA", "price": 4}], "total": 4}`."""
    items = [{"name": item.name, "price": item.price} for item in receipt.items]
    return json.dumps({"shop": receipt.shop, "items": items, "total": receipt.total}, ensure_ascii=False)


def ask_receipt(receipt: Receipt, language: Language, dice: Dice) -> list[Turn]:
    """Ask for the shop, a price, the total, the number of items and, of several, the dearest; each has one right answer."""
    item = dice.pick(receipt.items)
    answers = {"shop": receipt.shop, "price": str(item.price), "total": str(receipt.total), "number": str(len(receipt.items))}
    if len(receipt.items) > 1:
        answers["dearest"] = max(receipt.items, key=lambda each: each.price).name
    return [Turn(dice.pick(_ASK[language][key]).format(name=item.name), answer) for key, answer in answers.items()]


def ask_receipt_json(receipt: Receipt, language: Language, dice: Dice) -> Turn:
    """Ask for the whole receipt as JSON."""
    return Turn(dice.pick(_JSON[language]), receipt_json(receipt))


_ASK: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "shop": ("Which shop is this from?", "What is the name of the shop?"),
        "price": ("How much is {name}?", "What does {name} cost?"),
        "total": ("What is the total?", "How much is it in all?"),
        "number": ("How many items are on the receipt?", "How many things were bought?"),
        "dearest": ("Which item costs the most?", "What was the dearest item?"),
    },
    "zh": {
        "shop": ("这是哪家店的小票？", "店名是什么？"),
        "price": ("{name}多少钱？", "{name}的价格是多少？"),
        "total": ("总计多少钱？", "一共多少钱？"),
        "number": ("小票上有几样东西？", "一共买了几样东西？"),
        "dearest": ("哪样最贵？", "最贵的是什么？"),
    },
}
_JSON: dict[Language, tuple[str, ...]] = {
    "en": ("Read the receipt as JSON.", "Write this receipt as JSON."),
    "zh": ("用JSON写出这张小票。", "把这张小票写成JSON。"),
}
