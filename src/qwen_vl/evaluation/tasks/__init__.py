"""All benchmarks by name: `TASKS["vqav2_val"]`. One file for each benchmark; its `TASKS` are the splits."""

from qwen_vl.errors import ConfigError, nearest
from qwen_vl.evaluation.task import Task
from qwen_vl.evaluation.tasks import (
    ai2d,
    chartqa,
    docvqa,
    flickr30k,
    gqa,
    grit,
    infographicsvqa,
    mathvista,
    mmbench,
    mme,
    mmmu,
    nocaps,
    ocrvqa,
    okvqa,
    picturebook,
    refcoco,
    scienceqa,
    seed,
    textvqa,
    touchstone,
    vizwiz,
    vqav2,
)

_CAPTIONING = (*nocaps.TASKS, *flickr30k.TASKS)
_QUESTIONS = (*vqav2.TASKS, *okvqa.TASKS, *gqa.TASKS, *scienceqa.TASKS, *vizwiz.TASKS)
_TEXT = (*textvqa.TASKS, *docvqa.TASKS, *infographicsvqa.TASKS, *chartqa.TASKS, *ai2d.TASKS, *ocrvqa.TASKS)
_GROUNDING = (*refcoco.TASKS, *grit.TASKS)
_SUITES = (*mme.TASKS, *seed.TASKS, *mmbench.TASKS, *touchstone.TASKS, *mmmu.TASKS, *mathvista.TASKS, *picturebook.TASKS)

TASKS: dict[str, Task] = {task.name: task for task in (*_CAPTIONING, *_QUESTIONS, *_TEXT, *_GROUNDING, *_SUITES)}


def find_task(name: str) -> Task:
    """Return a task by its name. Raises: ConfigError that suggests the nearest names."""
    if name not in TASKS:
        hint = nearest(name, TASKS, most=3) or f"; there are {', '.join(TASKS)}."
        raise ConfigError(f"There is no task {name!r}{hint}")
    return TASKS[name]
