"""Options that mean the same in every subcommand."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen_vl.cli.output import note

if TYPE_CHECKING:
    from qwen_vl.api import QwenVL

Model = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Folder or hub name of the checkpoint [default: the bundled nano]")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps [default: a GPU if there is one]")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16 [default: float32 on a CPU, 16 bits on a GPU and for Int4]")]
Seed = Annotated[int | None, typer.Option("--seed", help="Make sampling repeatable [default: by chance, where the checkpoint samples]")]
MaxNewTokens = Annotated[int | None, typer.Option("--max-new-tokens", metavar="N", help="Longest answer in tokens [default: the checkpoint's own]")]
Temperature = Annotated[float | None, typer.Option("--temperature", help="0 for the most likely answer [default: the checkpoint's own]")]
Boxes = Annotated[
    str | None,
    typer.Option(
        "--boxes", metavar="RULE", help="No malformed boxes, and how many: any, required, none, 2, 1.., 1..4 [default: off; any for ground]"
    ),
]
Confidence = Annotated[bool, typer.Option("--confidence", help="Say how sure the model was of each box")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text")]
Draw = Annotated[Path | None, typer.Option("--draw", metavar="FILE", help="Draw the answer's boxes on the picture and save it here")]
Font = Annotated[Path | None, typer.Option("--font", metavar="FILE", help="Font of the drawn labels [default: the bundled one]")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the answer here instead of to stdout")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist")]


def sampling_of(
    seed: int | None, max_new_tokens: int | None, temperature: float | None, boxes: str | None = None, confidence: bool = False
) -> dict[str, Any]:
    """Return the settings that were given, by the names of `QwenVL`'s arguments. Raises: ConfigError for one that cannot work."""
    from qwen_vl.api.sampling import Sampling

    given = {"seed": seed, "max_new_tokens": max_new_tokens, "temperature": temperature, "boxes": boxes, "confidence": confidence or None}
    settings = {name: value for name, value in given.items() if value is not None}
    Sampling.of(**settings)  # said before the model is loaded, which takes longer
    return settings


def load_model(model: str | None, device: str | None, dtype: str | None, **engine: Any) -> "QwenVL":
    """Load the checkpoint, saying so on stderr if somebody watches.

    Args: engine: bounds of the engine by name, see `QwenVL.load`. Raises: CheckpointError, ConfigError, CapacityError.
    """
    note(f"loading {model or 'nano'} ..")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    from qwen_vl.api import QwenVL

    return QwenVL.load(model, device=device, dtype=dtype, **engine)
