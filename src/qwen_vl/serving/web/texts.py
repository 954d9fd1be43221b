"""Every word that the page says, in English and Chinese.

A text that one language lacks cannot be forgotten: all fields are required.

    TEXTS["zh"].send  # "发送"
"""

from dataclasses import dataclass
from typing import Literal

from qwen_vl.serving.errors import ServeError

Language = Literal["en", "zh"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """The words of one language; `{..}` are places for `str.format`."""

    language: Language
    tagline: str
    switch_language: str  # names the other language, in that language
    switch_language_hint: str
    switch_theme: str
    settings: str
    close: str
    new_chat: str

    welcome: str
    welcome_hint: str
    welcome_model: str  # {model}
    nano_hint: str
    examples: str
    example: str  # {question}

    conversation: str
    you: str
    model: str
    writing: str
    picture: str  # {number}
    show_picture: str  # {number}
    show_boxes: str
    num_boxes: str  # {count}
    one_box: str
    edit: str
    regenerate: str
    copy: str
    copied: str
    stopped: str
    cut_off: str
    left_out: str  # {count}
    answered: str  # for screen readers, {text}

    placeholder: str
    question_label: str
    upload: str
    send: str
    stop: str
    pictures_to_send: str
    remove_picture: str  # {name}
    drop_here: str
    editing: str
    cancel: str
    keys: str

    stage: str
    no_picture: str
    no_boxes: str
    boxes: str
    phrase: str
    coordinates: str
    coordinates_hint: str
    confidence: str
    unnamed_box: str  # {number}
    unread_boxes: str  # {count}
    download: str
    download_picture: str
    download_json: str
    download_coco: str

    temperature: str
    temperature_info: str
    top_p: str
    top_p_info: str
    max_new_tokens: str
    max_new_tokens_info: str
    box_rule: str
    box_rule_info: str
    box_rules: tuple[str, str, str, str]  # names of the rules off, any, required, none
    ask_confidence: str
    seed: str
    seed_info: str
    as_release: str
    as_release_info: str
    about: str
    about_text: str
    note: str  # {chat}, {base}, {licence}: links
    licence: str

    error: str
    errors: dict[str, str]  # by the server's code, {detail} is its own sentence
    internal_error: str  # any other
    busy: str
    no_question: str
    question_too_long: str  # {limit}
    too_many_pictures: str  # {limit}
    too_many_turns: str  # {limit}
    picture_not_read: str  # {name}
    picture_too_large: str  # {name}, {limit} MiB
    gone: str

    def explain(self, error: ServeError | None) -> str:
        """Say what went wrong. Args: error: None if nobody knows."""
        return self.internal_error if error is None else self.errors.get(error.code, self.internal_error).format(detail=error.message)


EN = Texts(
    language="en",
    tagline="Ask about pictures, find things in them",
    switch_language="中文",
    switch_language_hint="切换到中文",
    switch_theme="Light or dark",
    settings="Settings",
    close="Close",
    new_chat="New chat",
    welcome="What would you like to see?",
    welcome_hint="Drop a picture anywhere, paste one, or begin with an example.",
    welcome_model="You are talking with {model}.",
    nano_hint="nano is a tiny model that has only ever seen the project's picture book: the examples suit it, photographs puzzle it.",
    examples="Examples",
    example="Try the example: {question}",
    conversation="Conversation",
    you="You",
    model="Model",
    writing="The model is writing",
    picture="Picture {number}",
    show_picture="Show picture {number}",
    show_boxes="Show the boxes of this answer",
    num_boxes="{count} boxes",
    one_box="1 box",
    edit="Edit",
    regenerate="Regenerate",
    copy="Copy",
    copied="Copied",
    stopped="Stopped",
    left_out="The conversation is long: its first turns ({count}) were no longer read.",
    cut_off="Cut off at the longest length allowed",
    answered="The model answers: {text}",
    placeholder="Ask something, or: Find the dog.",
    question_label="Your question",
    upload="Add pictures",
    send="Send",
    stop="Stop",
    pictures_to_send="Pictures to send",
    remove_picture="Remove {name}",
    drop_here="Drop pictures here",
    editing="You are editing an earlier question. What came after it will be replaced.",
    cancel="Cancel",
    keys="Enter sends · Shift+Enter begins a line · Esc stops",
    stage="Picture and boxes",
    no_picture="The picture that you talk about appears here, with the boxes of the answer.",
    no_boxes="No boxes in this answer. Ask for some: “Find the dog.”",
    boxes="Boxes",
    phrase="Phrase",
    coordinates="Corners",
    coordinates_hint="Top left and bottom right, on a grid from 0 to 999",
    confidence="Confidence",
    unnamed_box="Box {number}",
    unread_boxes="Boxes that could not be read: {count}",
    download="Download",
    download_picture="Picture",
    download_json="JSON",
    download_coco="COCO",
    temperature="Temperature",
    temperature_info="0 gives the most likely answer, more gives variety",
    top_p="Top-p",
    top_p_info="Choose among the likeliest words that add up to this share",
    max_new_tokens="Longest answer",
    max_new_tokens_info="In tokens",
    box_rule="Box grammar",
    box_rule_info="How many boxes an answer has; or write a range such as 2, 1.. or 1..4",
    box_rules=("As the model likes", "Any number, well-formed", "At least one", "None"),
    ask_confidence="Tell the confidence of each box",
    seed="Seed",
    seed_info="A number makes sampling repeatable",
    as_release="As the release's demo: cut the last punctuation mark",
    as_release_info="Only to repeat old results exactly",
    about="About",
    about_text="Qwen-VL was made by the Qwen team of Alibaba Cloud. Its weights have a licence of their own.",
    note="Based on {chat} by Alibaba Cloud (base: {base}), under the {licence}. Answers can be wrong; please make nothing harmful.",
    licence="Tongyi Qianwen License Agreement",
    error="That did not work.",
    errors={
        "overloaded": "Many questions wait already. Please try again in a moment.",
        "shutting_down": "The server stops. Please try again later.",
        "engine_down": "The server's engine has stopped. Please try again in a moment.",
        "out_of_memory": "The server lacks the memory for this. Begin a new chat, or try again later.",
        "context_length_exceeded": "This is longer than the model can read. Shorten the question, or show fewer pictures.",
        "invalid_value": "{detail}",
        "invalid_messages": "{detail}",
        "invalid_image": "A picture cannot be used.",
    },
    internal_error="Something went wrong here. Please try again.",
    busy="An answer is still being written. Stop it first.",
    no_question="Write a question too: a picture is not answered by itself.",
    question_too_long="The question is longer than {limit} characters. Shorten it.",
    too_many_pictures="A conversation holds {limit} pictures at most. Begin a new chat.",
    too_many_turns="A conversation holds {limit} questions at most. Begin a new chat.",
    picture_not_read="{name} is not a picture that can be read. JPEG, PNG, WebP, BMP and GIF can.",
    picture_too_large="{name} is too large. At most {limit} MiB are taken.",
    gone="This conversation is gone: the server was restarted, or it was idle for long. Begin again.",
)

ZH = Texts(
    language="zh",
    tagline="看图问答，图中找物",
    switch_language="English",
    switch_language_hint="Switch to English",
    switch_theme="浅色或深色",
    settings="设置",
    close="关闭",
    new_chat="新对话",
    welcome="想看点什么？",
    welcome_hint="把图片拖到页面上、直接粘贴，或从下面的示例开始。",
    welcome_model="与你对话的是 {model}。",
    nano_hint="nano 是一个很小的模型，只见过本项目的图画书：示例适合它，照片会难倒它。",
    examples="示例",
    example="试试示例：{question}",
    conversation="对话",
    you="你",
    model="模型",
    writing="模型正在回答",
    picture="图片 {number}",
    show_picture="查看图片 {number}",
    show_boxes="查看此回答的框",
    num_boxes="{count} 个框",
    one_box="1 个框",
    edit="编辑",
    regenerate="重试",
    copy="复制",
    copied="已复制",
    stopped="已停止",
    left_out="对话太长，最前面的 {count} 轮没有再读。",
    cut_off="已达到长度上限",
    answered="模型回答：{text}",
    placeholder="问点什么，例如：框出图中的狗",
    question_label="你的问题",
    upload="添加图片",
    send="发送",
    stop="停止",
    pictures_to_send="待发送的图片",
    remove_picture="移除 {name}",
    drop_here="把图片放在这里",
    editing="正在编辑之前的问题，其后的对话会被替换。",
    cancel="取消",
    keys="Enter 发送 · Shift+Enter 换行 · Esc 停止",
    stage="图片与框",
    no_picture="正在谈论的图片会显示在这里，并画出回答中的框。",
    no_boxes="这个回答里没有框。可以这样问：“框出图中的狗”",
    boxes="框",
    phrase="短语",
    coordinates="坐标",
    coordinates_hint="左上角与右下角，网格为 0 到 999",
    confidence="置信度",
    unnamed_box="框 {number}",
    unread_boxes="无法读取的框：{count}",
    download="下载",
    download_picture="图片",
    download_json="JSON",
    download_coco="COCO",
    temperature="温度",
    temperature_info="0 给出最可能的回答，越大越多样",
    top_p="Top-p",
    top_p_info="在累计概率达到此值的词中选择",
    max_new_tokens="最长回答",
    max_new_tokens_info="以 token 计",
    box_rule="框语法",
    box_rule_info="回答中框的数量；也可写范围，如 2、1.. 或 1..4",
    box_rules=("由模型决定", "任意个，格式正确", "至少一个", "没有"),
    ask_confidence="给出每个框的置信度",
    seed="随机种子",
    seed_info="填一个数，采样可重复",
    as_release="与原版演示一致：去掉末尾标点",
    as_release_info="仅用于精确复现旧结果",
    about="关于",
    about_text="Qwen-VL 由阿里云通义千问团队研发，其权重另有许可协议。",
    note="基于阿里云的 {chat}（基座：{base}），遵循{licence}。回答可能有误，请勿生成有害内容。",
    licence="《通义千问许可协议》",
    error="没有成功。",
    errors={
        "overloaded": "排队的问题太多，请稍后再试。",
        "shutting_down": "服务器正在停止，请稍后再试。",
        "engine_down": "服务器的引擎已停止，请稍后再试。",
        "out_of_memory": "服务器内存不足。请开始新对话，或稍后再试。",
        "context_length_exceeded": "内容超出模型能读的长度。请缩短问题，或减少图片。",
        "invalid_value": "设置里有一项的值不能用，请检查（例如随机种子与框语法）。",
        "invalid_messages": "这个问题不能这样提问，请修改后再试。",
        "invalid_image": "有一张图片不能用。",
    },
    internal_error="出了点问题，请再试一次。",
    busy="回答还在生成，请先停止。",
    no_question="请再写一个问题：只有图片不会得到回答。",
    question_too_long="问题超过 {limit} 个字符，请缩短。",
    too_many_pictures="一个对话最多 {limit} 张图片，请开始新对话。",
    too_many_turns="一个对话最多 {limit} 个问题，请开始新对话。",
    picture_not_read="{name} 不是能读取的图片。支持 JPEG、PNG、WebP、BMP 和 GIF。",
    picture_too_large="{name} 太大，最多 {limit} MiB。",
    gone="这个对话已不存在：服务器重启过，或闲置太久。请重新开始。",
)

TEXTS: dict[Language, Texts] = {"en": EN, "zh": ZH}


def texts_of(language: object) -> Texts:
    """Return the texts of a language, English for one that the page does not have."""
    return ZH if language == "zh" else EN
