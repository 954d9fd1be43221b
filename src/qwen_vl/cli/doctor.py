"""Say what this machine can do with Qwen-VL, what is missing or broken, and what to do about it.

Looks at Python and the libraries, PyTorch's build, the GPU, memory, disk, the font, the bundled checkpoint and the optional parts. Nothing is
changed or downloaded. The exit code is 1 if something that is needed is broken, else 0.

\b
Examples:
    qwen-vl doctor
    qwen-vl doctor --json
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from qwen_vl.cli import options
from qwen_vl.cli.output import show, show_json
from qwen_vl.errors import QwenVLError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OK, NOTE, PROBLEM = "ok", "note", "problem"
SIGNS = {OK: "+", NOTE: "-", PROBLEM: "!"}
PACKAGE = "qwen-vl"
GIB = 2**30
EXTRAS = {  # that people install, and what for
    "train": "finetune, merge, train, and the curves of a training",
    "deepspeed": "finetune with DeepSpeed ZeRO",
    "serve": "serve: answers over HTTP, in OpenAI's and DashScope's forms",
    "web": "web: a page in the browser",
    "scale": "serve from several machines or GPUs, with Ray",
    "eval": "evaluate: benchmarks and their metrics",
}
CONTEXT = 2048  # tokens for which memory is counted
IMPORT_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: str
    found: str
    advice: str = ""


def run(as_json: options.Json = False) -> None:
    """Look and tell."""
    findings = list(examine())
    is_fit = all(finding.status != PROBLEM for finding in findings)
    if as_json:
        show_json({"is_fit": is_fit, "findings": [asdict(finding) for finding in findings]})
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            show(f"{SIGNS[finding.status]} {finding.name:<{width}}  {finding.found}")
            if finding.advice:
                show(f"  {'':<{width}}  -> {finding.advice}")
        show("Everything that is needed is there." if is_fit else "Lines with ! need a remedy.")
    if not is_fit:
        raise typer.Exit(1)


def examine() -> Iterator[Finding]:
    """Yield everything that was found, the ground first: what fails there explains what fails above it."""
    yield look_at_python()
    libraries = list(look_at_requirements())
    yield from libraries
    if any(finding.name in ("torch", "transformers") and finding.status == PROBLEM for finding in libraries):
        return  # nothing below could be looked at
    yield look_at_torchvision()
    yield from look_at_devices()
    yield look_at_memory()
    yield look_at_int4()
    yield look_at_compiler()
    yield look_at_font()
    yield look_at_nano()
    yield look_at_disk()
    yield from look_at_extras()
    yield from look_at_stale_locks()


def look_at_python() -> Finding:
    """Return which Python runs."""
    return Finding("python", OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} processors")


def requirements() -> dict[str, list["Requirement"]]:
    """Return what the installed package asks for, by extra; "" is what it always needs. Empty when it runs from sources that were not installed."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[Requirement]] = {}
    for line in lines:
        wanted = Requirement(line)
        for extra in ("", *EXTRAS):
            if wanted.marker is None:
                is_wanted = extra == ""
            else:
                is_wanted = wanted.marker.evaluate({"extra": extra}) and (extra == "" or not wanted.marker.evaluate({"extra": ""}))
            if is_wanted:
                found.setdefault(extra, []).append(wanted)
    return found


def extra_of(module: str) -> str | None:
    """Return the extra that brings a module, or None if none does."""
    name = module.partition(".")[0].replace("_", "-")
    return next((extra for extra, wanted in requirements().items() if extra and any(each.name == name for each in wanted)), None)


def version_of(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def look_at_requirements() -> Iterator[Finding]:
    """Yield each library that is always needed."""
    wanted = requirements().get("", [])
    if not wanted:
        yield Finding(PACKAGE, NOTE, "runs from sources that are not installed, so versions cannot be compared", "pip install -e .")
    for each in wanted:
        version = version_of(each.name)
        if version is None:
            yield Finding(each.name, PROBLEM, "not installed", f'pip install "{each.name}{each.specifier}"')
        elif not each.specifier.contains(version, prereleases=True):
            yield Finding(each.name, NOTE, f"{version}, outside of what is tested ({each.specifier})", f'pip install "{each.name}{each.specifier}"')
        else:
            yield Finding(each.name, OK, version)


def look_at_torchvision() -> Finding:
    """Say whether a torchvision is there that breaks transformers: one that was built for another torch."""
    version = version_of("torchvision")
    if version is None:
        return Finding("torchvision", OK, "not installed, and not needed")
    if can_import("torchvision"):
        return Finding("torchvision", OK, f"{version}, not needed")
    return Finding(
        "torchvision",
        PROBLEM,
        f"{version} cannot be imported, which breaks transformers' picture processors",
        "pip uninstall torchvision (it is not needed)",
    )


def can_import(module: str) -> bool:
    """Tell whether a module can be imported, in a process of its own."""
    try:
        return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, timeout=IMPORT_SECONDS, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def look_at_devices() -> Iterator[Finding]:
    """Yield what PyTorch computes on."""
    import torch

    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "the CPU alone"
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("cpu", OK, f"PyTorch {torch.__version__}, built for {built_for}; instructions {capability}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            has_bfloat16 = facts.major >= 8
            found = f"{facts.name}, {facts.total_memory / GIB:.1f} GiB, {'bfloat16' if has_bfloat16 else 'no quick bfloat16: float16 is used'}"
            yield Finding(f"gpu {number}", OK, found)
    elif torch.backends.mps.is_available():
        yield Finding("gpu", OK, "Apple's, by --device mps")
    elif shutil.which("nvidia-smi"):
        advice = (
            "install a PyTorch with CUDA: https://pytorch.org/get-started"
            if not torch.version.cuda
            else "look at nvidia-smi: driver and PyTorch differ"
        )
        yield Finding("gpu", PROBLEM, f"there is an NVIDIA driver, but this PyTorch ({built_for}) does not see a GPU", advice)
    else:
        yield Finding("gpu", NOTE, "none; everything runs on the CPU", "for the released models a GPU with 12 GiB (Int4) or 24 GiB is recommended")


def look_at_memory() -> Finding:
    """Say which precisions of the released model fit the memory of this machine's best device."""
    import torch

    from qwen_vl.profiling.costs import DTYPES, INT4, Costs
    from qwen_vl.profiling.device import free_memory_bytes
    from qwen_vl.profiling.shapes import read_shape

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free, full = free_memory_bytes(device), read_shape("full")
    needed = {precision: Costs.of(full, precision).needed_bytes(CONTEXT) for precision in (*DTYPES, INT4)}
    if free is None:
        return Finding(
            "memory", NOTE, "this system does not tell how much is free", "; ".join(f"{name} needs {gib(size)}" for name, size in needed.items())
        )
    fitting = [name for name, size in needed.items() if size <= free]
    found = f"{gib(free)} free on {device.type}; of the released model with {CONTEXT:,} tokens fit: {', '.join(fitting) or 'none'}"
    least = min(needed, key=lambda name: needed[name])
    return Finding("memory", OK if fitting else NOTE, found, "" if fitting else f"{least} needs {gib(needed[least])}; the bundled nano runs anywhere")


def gib(count: int) -> str:
    """Return a size as text."""
    return f"{count / GIB:.1f} GiB"


def look_at_int4() -> Finding:
    """Say whether Int4 checkpoints are multiplied by a kernel of this device."""
    import torch

    from qwen_vl.quantization.kernels import find_kernel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if find_kernel(device):
        return Finding("int4", OK, f"PyTorch's kernel works on {device.type}")
    return Finding(
        "int4", NOTE, f"no kernel on {device.type}: Int4 checkpoints load and answer, but slowly", "use a GPU of 2020 or newer, or a CPU with AVX2"
    )


def look_at_compiler() -> Finding:
    """Say whether `torch.compile` finds what it needs."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("cl")
    if compiler:
        return Finding("compiler", OK, Path(compiler).name)
    return Finding("compiler", NOTE, "no C++ compiler: nothing is compiled at run time", "install g++ for --torch-compile and DeepSpeed")


def look_at_font() -> Finding:
    """Say whether labels can be drawn, in Chinese too."""
    from qwen_vl.grounding.fonts import load_font

    try:
        wide = load_font(24).getlength("狗")
    except QwenVLError as error:
        return Finding("font", PROBLEM, str(error), "install the package again; or give --font FILE when drawing")
    return Finding("font", OK if wide > 0 else PROBLEM, "the bundled one draws English and Chinese")


def look_at_nano() -> Finding:
    """Say whether the bundled checkpoint is whole."""
    from qwen_vl.api.loading import resolve_folder
    from qwen_vl.checkpoint_facts import check_folder

    try:
        facts = check_folder(resolve_folder(None))
    except QwenVLError as error:
        return Finding("nano", PROBLEM, str(error), "install the package again")
    return Finding("nano", OK, f"the bundled checkpoint is whole ({facts.num_bytes / 2**20:.0f} MiB)")


def look_at_disk() -> Finding:
    """Say whether the released checkpoint would fit where the hub's files are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from qwen_vl.profiling.costs import Costs
    from qwen_vl.profiling.shapes import read_shape

    folder = next(path for path in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if path.exists())
    free, needed = shutil.disk_usage(folder).free, Costs.of(read_shape("full"), "bfloat16").weight_bytes
    found = f"{gib(free)} free in {folder}"
    if free >= needed:
        return Finding("disk", OK, found)
    return Finding("disk", NOTE, f"{found}; the released checkpoint has {gib(needed)}", "make room, or set HF_HOME to a larger disk")


def look_at_extras() -> Iterator[Finding]:
    """Yield each optional part: whole, outdated or missing, and what it is for."""
    wanted = requirements()
    for extra, purpose in EXTRAS.items():
        versions = {each: version_of(each.name) for each in wanted.get(extra, [])}
        missing = [each.name for each, version in versions.items() if version is None]
        odd = [f"{each.name} {version}" for each, version in versions.items() if version and not each.specifier.contains(version, prereleases=True)]
        command = f'pip install "{PACKAGE}[{extra}]"'
        if missing:
            yield Finding(f"[{extra}]", NOTE, f"not installed ({', '.join(missing)}); for {purpose}", command)
        elif odd:
            yield Finding(f"[{extra}]", NOTE, f"{', '.join(odd)}: outside of what is tested; for {purpose}", command)
        elif versions:
            yield Finding(f"[{extra}]", OK, f"installed; for {purpose}")


def look_at_stale_locks() -> Iterator[Finding]:
    """Yield locks that a killed build left behind: everybody who needs what was built waits for them for ever."""
    if util.find_spec("deepspeed") is None:
        return
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in sorted(root.glob("**/lock")) if root.is_dir() else []:
        yield Finding(
            "deepspeed", NOTE, f"{lock} is held: something is built now, or was killed while it was built", f"if nothing is being built: rm {lock}"
        )
