"""The words of the picture book: what can be drawn, in which colours, on which backgrounds, in English and Chinese.

Every other file of the package looks things up here, so a new kind is one line here and one drawing function in `things`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of thing: its names and how it sits in a scene.

    `aspect` is the usual width / height of its box, `place` is where it lives ("ground", "sky" or "any"), and `group` is its family
    (people, animals, plants, houses, vehicles, toys, shapes or sign).
    """

    name: str
    plural: str
    zh: str
    measure: str  # Chinese measure word: 一"只"狗
    group: str
    place: str
    aspect: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Colour:
    """A colour that things may have, and what it is called."""

    name: str
    zh: str
    rgb: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Background:
    """A place that a scene shows, and how captions speak of it."""

    name: str  # as in "on the beach", with its preposition in `phrase`
    phrase: str
    zh: str
    zh_phrase: str


def _kind(name: str, plural: str, zh: str, measure: str, group: str, place: str, aspect: float) -> Kind:
    return Kind(name=name, plural=plural, zh=zh, measure=measure, group=group, place=place, aspect=aspect)


KINDS: tuple[Kind, ...] = (
    _kind("girl", "girls", "女孩", "个", "people", "ground", 0.5),
    _kind("boy", "boys", "男孩", "个", "people", "ground", 0.5),
    _kind("woman", "women", "女人", "个", "people", "ground", 0.45),
    _kind("man", "men", "男人", "个", "people", "ground", 0.45),
    _kind("dog", "dogs", "狗", "只", "animals", "ground", 1.25),
    _kind("cat", "cats", "猫", "只", "animals", "ground", 1.1),
    _kind("rabbit", "rabbits", "兔子", "只", "animals", "ground", 0.75),
    _kind("bird", "birds", "鸟", "只", "animals", "sky", 1.3),
    _kind("fish", "fish", "鱼", "条", "animals", "any", 1.6),
    _kind("butterfly", "butterflies", "蝴蝶", "只", "animals", "sky", 1.15),
    _kind("tree", "trees", "树", "棵", "plants", "ground", 0.7),
    _kind("flower", "flowers", "花", "朵", "plants", "ground", 0.65),
    _kind("mushroom", "mushrooms", "蘑菇", "个", "plants", "ground", 0.95),
    _kind("house", "houses", "房子", "座", "houses", "ground", 1.05),
    _kind("tent", "tents", "帐篷", "顶", "houses", "ground", 1.35),
    _kind("car", "cars", "汽车", "辆", "vehicles", "ground", 1.9),
    _kind("bus", "buses", "公交车", "辆", "vehicles", "ground", 1.8),
    _kind("bicycle", "bicycles", "自行车", "辆", "vehicles", "ground", 1.5),
    _kind("boat", "boats", "船", "艘", "vehicles", "ground", 1.25),
    _kind("airplane", "airplanes", "飞机", "架", "vehicles", "sky", 1.9),
    _kind("ball", "balls", "球", "个", "toys", "any", 1.0),
    _kind("kite", "kites", "风筝", "只", "toys", "sky", 0.75),
    _kind("balloon", "balloons", "气球", "个", "toys", "sky", 0.6),
    _kind("umbrella", "umbrellas", "雨伞", "把", "toys", "ground", 1.05),
    _kind("hat", "hats", "帽子", "顶", "toys", "any", 1.5),
    _kind("cup", "cups", "杯子", "个", "toys", "any", 1.0),
    _kind("circle", "circles", "圆形", "个", "shapes", "any", 1.0),
    _kind("square", "squares", "正方形", "个", "shapes", "any", 1.0),
    _kind("triangle", "triangles", "三角形", "个", "shapes", "any", 1.1),
    _kind("star", "stars", "星星", "颗", "shapes", "any", 1.05),
    _kind("sign", "signs", "牌子", "块", "sign", "ground", 1.3),
)

COLOURS: tuple[Colour, ...] = (
    Colour(name="red", zh="红色", rgb=(214, 48, 49)),
    Colour(name="orange", zh="橙色", rgb=(240, 136, 30)),
    Colour(name="yellow", zh="黄色", rgb=(250, 211, 40)),
    Colour(name="green", zh="绿色", rgb=(58, 160, 72)),
    Colour(name="blue", zh="蓝色", rgb=(48, 104, 214)),
    Colour(name="purple", zh="紫色", rgb=(136, 70, 176)),
    Colour(name="pink", zh="粉色", rgb=(246, 150, 186)),
    Colour(name="brown", zh="棕色", rgb=(130, 84, 48)),
    Colour(name="white", zh="白色", rgb=(248, 248, 246)),
    Colour(name="black", zh="黑色", rgb=(40, 40, 44)),
)

BACKGROUNDS: tuple[Background, ...] = (
    Background(name="beach", phrase="on the beach", zh="沙滩", zh_phrase="在沙滩上"),
    Background(name="street", phrase="on the street", zh="街道", zh_phrase="在街道上"),
    Background(name="park", phrase="in the park", zh="公园", zh_phrase="在公园里"),
    Background(name="night", phrase="at night", zh="夜晚", zh_phrase="在夜晚"),
    Background(name="snow", phrase="in the snow", zh="雪地", zh_phrase="在雪地里"),
    Background(name="room", phrase="in the room", zh="房间", zh_phrase="在房间里"),
)

SIGN_WORDS: tuple[str, ...] = (
    "OPEN", "STOP", "EXIT", "CAFE", "TAXI", "HOTEL", "SALE", "ZOO", "BOOK", "MILK",
    "出口", "入口", "小心", "学校", "医院", "公园", "书店", "茶", "停车", "欢迎",
)  # fmt: skip

# Object and colour pairs that only evaluation seeds may draw, to show that names and colours are learnt apart.
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("car", "green"),
        ("dog", "purple"),
        ("ball", "brown"),
        ("house", "pink"),
        ("cat", "blue"),
        ("balloon", "black"),
        ("girl", "orange"),
        ("star", "white"),
    }
)

EVALUATION_SEED_START = 1_000_000_000  # seeds from here on are for evaluation only; training uses the seeds below
DEVELOPMENT_SEED_START = 1_500_000_000  # .. and from here on for choosing between recipes and checkpoints, never for reported scores

KIND_BY_NAME = {kind.name: kind for kind in KINDS}
COLOUR_BY_NAME = {colour.name: colour for colour in COLOURS}
BACKGROUND_BY_NAME = {background.name: background for background in BACKGROUNDS}
