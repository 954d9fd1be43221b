"""Talk without a picture: who nano is, what it can do, hello, thanks and goodbye."""

from .dialogue import LANGUAGES, Language, Task, Turn
from .dice import Dice

# Several questions, one answer.
_TALK: dict[Language, tuple[tuple[tuple[str, ...], str], ...]] = {
    "en": (
        (("Who are you?", "What is your name?", "What are you?", "Tell me about yourself."), "I am nano, a small Qwen-VL model."),
        (
            ("What can you do?", "How can you help me?", "What are you able to do?"),
            "I can look at a picture, answer questions about it and draw boxes.",
        ),
        (("Hello", "Hello!", "Hi", "Hi!", "Good morning!"), "Hello! Show me a picture and ask me about it."),
        (("Thank you.", "Thanks!", "Thank you very much!"), "You are welcome!"),
        (("Goodbye.", "Bye!", "See you!"), "Goodbye!"),
        (("How are you?", "How do you do?"), "I am fine, thank you. Show me a picture!"),
        (("Who made you?", "Who trained you?"), "I was trained on a picture book, from scratch."),
        (("Which languages do you speak?", "Do you speak Chinese?"), "I speak English and Chinese."),
    ),
    "zh": (
        (("你是谁？", "你叫什么名字？", "你是什么？", "介绍一下你自己。"), "我是nano，一个小小的Qwen-VL模型。"),
        (("你能做什么？", "你会做什么？", "你可以帮我做什么？"), "我能看图，回答关于图的问题，还能画框。"),
        (("你好", "你好！", "您好！", "早上好！"), "你好！给我看一张图，问我问题吧。"),
        (("谢谢", "谢谢你。", "多谢！"), "不客气！"),
        (("再见", "再见！", "拜拜！"), "再见！"),
        (("你好吗？", "你怎么样？"), "我很好，谢谢。给我看一张图吧！"),
        (("谁训练了你？", "你是谁做的？"), "我是用一本图画书从头训练的。"),
        (("你会说什么语言？", "你会说英语吗？"), "我会说英语和中文。"),
    ),
}


def small_talk(seed: int) -> list[Task]:
    """Make three short talks per language: two of one turn and one of two.

    Raises: ConfigError for a negative seed.
    """
    tasks = []
    for number, language in enumerate(LANGUAGES):
        dice = Dice(seed, number)
        turns = [Turn(dice.pick(questions), answer) for questions, answer in dice.shuffled(_TALK[language])[:4]]
        tasks += [Task("small_talk", language, part, num_pictures=0) for part in ((turns[0],), (turns[1],), (turns[2], turns[3]))]
    return Dice(seed).shuffled(tasks)
