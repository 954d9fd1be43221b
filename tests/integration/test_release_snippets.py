"""The released README's snippets, word for word, after one added line: `import qwen_vl`.

They run in a copy of a reference folder whose Python files raise when they are executed, with `trust_remote_code=True` as people write it, and
without. Names of the hub stand for that folder, and the demo picture's address for one of its pictures; nothing else of the text is changed.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qwen_vl.modeling.model import QWenLMHeadModel
from qwen_vl.processing.tokenization import QWenTokenizer
from tests.reference import FIXTURES

CODE_FILES = ("modeling_qwen", "configuration_qwen", "tokenization_qwen", "visual", "qwen_generation_utils")
TRIPWIRE = "import pathlib\npathlib.Path(__file__).with_name('executed').touch()\nraise RuntimeError('remote code was executed')\n"
TRUST = ", trust_remote_code=True"
PREAMBLE = "import qwen_vl\n"

LOADING = """
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation import GenerationConfig
import torch
torch.manual_seed(1234)

tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen-VL-Chat", trust_remote_code=True)

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen-VL-Chat", device_map="cpu", trust_remote_code=True).eval()

model.generation_config = GenerationConfig.from_pretrained("Qwen/Qwen-VL-Chat", trust_remote_code=True)
"""

CHAT = """
query = tokenizer.from_list_format([
    {'image': 'demo.jpeg'},
    {'text': '这是什么?'},
])
response, history = model.chat(tokenizer, query=query, history=None)
print(response)

response, history = model.chat(tokenizer, '框出图中击掌的位置', history=history)
print(response)
image = tokenizer.draw_bbox_on_latest_picture(response, history)
if image:
  image.save('1.jpg')
else:
  print("no box")
"""

TAGS = """
image_path = 'demo.jpeg'
response, history = model.chat(tokenizer, query=f'<img>{image_path}</img>这是什么', history=None)
print(response)

response, history = model.chat(tokenizer, '输出"击掌"的检测框', history=history)
print(response)
"""

ARGUMENTS = """
history = []
response, returned = model.chat(
    tokenizer, 'hello', history=history, append_history=False, stop_words_ids=[[151643]],
    top_p=0.5, temperature=0.7, do_sample=True, system='You are brief.',
)
"""

STREAM = """
history = None
for text in model.chat_stream(tokenizer, '你好', history=history):
    print(text)
"""

BASE = """
query = tokenizer.from_list_format([
    {'image': 'demo.jpeg'},
    {'text': 'Generate the caption in English with grounding:'},
])
inputs = tokenizer(query, return_tensors='pt')
inputs = inputs.to(model.device)
pred = model.generate(**inputs)
response = tokenizer.decode(pred.cpu()[0], skip_special_tokens=False)
print(response)
image = tokenizer.draw_bbox_on_latest_picture(response)
if image:
  image.save('2.jpg')
else:
  print("no box")
"""

TUTORIAL = """
torch.manual_seed(5678)

query = tokenizer.from_list_format([
    {'image': 'demo.jpeg'},
    {'image': 'second.png'},
    {'text': '上面两张图片分别是哪两个城市？请对它们进行对比。'},
])
response, history = model.chat(tokenizer, query=query, history=None)
print(response)

query = tokenizer.from_list_format([
    {'text': '图里有啥'},
])
response, history = model.chat(tokenizer, query=query, history=history)
print(response)

query = tokenizer.from_list_format([
    {'text': '请给我框出图中上海环球金融中心和东方明珠'},
])
response, history = model.chat(tokenizer, query=query, history=history)
print(response)
tokenizer.draw_bbox_on_latest_picture(response, history)
"""

DRAWING = """
response = '<ref>击掌</ref><box>(536,509),(588,602)</box>'
history = [('Picture 1: <img>demo.jpeg</img>\\n框出图中击掌的位置', response)]
image = tokenizer.draw_bbox_on_latest_picture(response, history)
if image:
  image.save('1.jpg')
elements = tokenizer.to_list_format(response)
"""

EVALUATION = """
tokenizer.padding_side = 'left'
tokenizer.pad_token_id = tokenizer.eod_id
prompts = ['<img>demo.jpeg</img>Describe the image in English:', '<img>second.png</img>What is it? Answer:']
input_ids = tokenizer(prompts, return_tensors='pt', padding='longest')
attention_mask = input_ids.attention_mask
input_ids = input_ids.input_ids
pred = model.generate(
    input_ids=input_ids.to(model.device),
    attention_mask=attention_mask.to(model.device),
    do_sample=False,
    num_beams=1,
    max_new_tokens=10,
    min_new_tokens=1,
    length_penalty=1,
    num_return_sequences=1,
    output_hidden_states=True,
    use_cache=True,
    pad_token_id=tokenizer.eod_id,
    eos_token_id=tokenizer.eod_id,
)
answers = [tokenizer.decode(_[input_ids.size(1):].cpu(), skip_special_tokens=True).strip() for _ in pred]
"""

ADAPTER = """
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained(
    "adapter", # path to the output directory
    device_map="cpu",
    trust_remote_code=True
).eval()
merged_model = model.merge_and_unload()
merged_model.save_pretrained("merged", max_shard_size="2048MB", safe_serialization=True)
"""


@pytest.fixture(scope="module")
def released_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat checkpoint in the released layout, with code files that tell when they are executed."""
    folder = tmp_path_factory.mktemp("release") / "Qwen-VL-Chat"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors", "qwen.tiktoken", "tokenizer_config.json"):
        shutil.copy(FIXTURES / "tiny-448" / name, folder)
    assert "modeling_qwen.QWenLMHeadModel" in (folder / "config.json").read_text()
    for name in CODE_FILES:
        (folder / f"{name}.py").write_text(TRIPWIRE)
    return folder


@pytest.fixture(params=[True, False], ids=["trusted", "untrusted"])
def run(request: pytest.FixtureRequest, released_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run snippets one after another in an own folder with two pictures; afterwards nothing of the checkpoint was executed."""
    monkeypatch.chdir(tmp_path)
    Image.open(FIXTURES / "tiny-448" / "scene.png").convert("RGB").save("demo.jpeg")
    shutil.copy(FIXTURES / "tiny-448" / "gray.png", "second.png")

    def run_snippets(*snippets: str) -> dict[str, Any]:
        text = PREAMBLE + "".join(snippets).replace("Qwen/Qwen-VL-Chat", str(released_folder))
        text = text.replace("[[151643]]", "[[640]]")  # the small vocabulary's end token
        names: dict[str, Any] = {}
        exec(compile(text if request.param else text.replace(TRUST, ""), "snippet", "exec"), names)
        return names

    yield run_snippets
    assert not (released_folder / "executed").exists()
    assert not [name for name in sys.modules if name.startswith("transformers_modules") and name.rpartition(".")[2] in CODE_FILES]


def test_loading(run: Any) -> None:
    names = run(LOADING)
    assert isinstance(names["model"], QWenLMHeadModel) and isinstance(names["tokenizer"], QWenTokenizer)
    assert not names["model"].training and names["model"].generation_config.chat_format == "chatml"


@pytest.mark.parametrize(
    ("arguments", "dtype"),
    [("bf16=True", torch.bfloat16), ("fp16=True", torch.float16), ("fp32=True", torch.float32), ("resume_download=True", torch.float32)],
)
def test_loading_with_arguments(run: Any, arguments: str, dtype: torch.dtype) -> None:
    names = run(LOADING.replace('device_map="cpu"', f'device_map="auto", {arguments}'))
    assert names["model"].dtype == dtype


def test_chat(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = run(LOADING, CHAT)
    assert len(names["history"]) == 2 and names["history"][1] == ("框出图中击掌的位置", names["response"])
    assert names["query"].startswith("Picture 1:") and "<img>demo.jpeg</img>\n这是什么?" in names["query"]
    assert names["response"] in capsys.readouterr().out


def test_pictures_in_tags(run: Any) -> None:
    assert [query for query, _ in run(LOADING, TAGS)["history"]] == ["<img>demo.jpeg</img>这是什么", '输出"击掌"的检测框']


def test_chat_arguments(run: Any) -> None:
    names = run(LOADING, ARGUMENTS)
    assert names["history"] == [] and isinstance(names["response"], str)


def test_stream(run: Any) -> None:
    names = run(LOADING, STREAM)
    assert names["text"].strip() == names["model"].chat(names["tokenizer"], "你好", history=None)[0]


def test_base_model(run: Any) -> None:
    names = run(LOADING, BASE)
    assert set(names["inputs"]) == {"input_ids", "token_type_ids", "attention_mask"}
    assert names["response"].startswith(names["query"])
    assert names["pred"].shape[0] == 1


def test_tutorial(run: Any) -> None:
    names = run(LOADING, TUTORIAL)
    assert len(names["history"]) == 3 and names["history"][1][0] == "图里有啥"


def test_drawing(run: Any) -> None:
    names = run(LOADING, DRAWING)
    assert names["elements"] == [{"ref": "击掌"}, {"box": "(536,509),(588,602)"}]
    with Image.open("1.jpg") as drawn, Image.open("demo.jpeg") as original:
        assert drawn.size == original.size


def test_evaluation(run: Any) -> None:
    names = run(LOADING, EVALUATION)
    assert len(names["answers"]) == 2
    model, tokenizer = names["model"], names["tokenizer"]
    alone = tokenizer(names["prompts"][1], return_tensors="pt")
    expected = model.generate(**alone, do_sample=False, max_new_tokens=10)[0, alone.input_ids.size(1) :]
    assert names["pred"][1, names["input_ids"].size(1) :].tolist() == expected.tolist()


# PEFT 0.21 reads attributes that transformers 5.23 deprecates.
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_adapter(run: Any, released_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # PEFT asks the hub for a tokenizer otherwise
    names = run(LOADING)
    targets = ["c_attn", "attn.c_proj", "w1", "w2"]
    adapted = peft.get_peft_model(names["model"], peft.LoraConfig(r=4, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
    adapted.peft_config["default"].base_model_name_or_path = str(released_folder)
    adapters = {name.partition(".lora_A")[0].rpartition("transformer.h.")[2] for name in adapted.state_dict() if ".lora_A" in name}
    assert adapters == {f"{layer}.{module}" for layer in (0, 1) for module in ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2")}
    adapted.save_pretrained("adapter")
    merged = run(ADAPTER)["merged_model"]
    assert isinstance(merged, QWenLMHeadModel) and Path("merged/model.safetensors").is_file()
