"""A server of two replicas, one of which loses its engine when it is first told to: python -m tests.integration.dying_replica PORT FILE

Whichever replica takes the file away dies.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from qwen_vl.api import QwenVL
from qwen_vl.serving.scale.run import ScaleSettings, serve_replicas
from qwen_vl.serving.settings import ServeSettings


def load(file: Path) -> QwenVL:
    """Load nano, with an engine that is gone once somebody says so."""
    vl = QwenVL.load()
    begin = vl.begin

    def may_die(messages: Any, **more: Any) -> Any:
        if "die" in str(messages):
            try:
                file.unlink()
                vl.engine.close()
            except FileNotFoundError:  # another replica has died of it
                pass
        return begin(messages, **more)

    vl.begin = may_die  # type: ignore[method-assign]
    return vl


def tell(url: str) -> None:
    sys.stderr.write(f"answers at {url}\n")


if __name__ == "__main__":
    settings = ServeSettings(port=int(sys.argv[1]))
    scale = ScaleSettings(replicas=2, cpus=0.5)
    sys.exit(serve_replicas(partial(load, Path(sys.argv[2])), settings, scale, greet=tell))
