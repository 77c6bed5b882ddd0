"""What this machine and this installation can do, on one screen."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from cedilla.version import __version__

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # that decide which kernels are fast
INTERNAL_EXTRAS = ("dev", "notebook")


def doctor(*, bench: bool = False) -> None:
    """Say what this machine and installation can do, and whether the default model works.

    Exits with code 1 if something without which Cedilla cannot work is broken.

    Parameters
    ----------
    bench:
        Also measure, for half a minute, which path inference takes here and how fast it is.

    Examples
    --------
    cedilla doctor
    cedilla doctor --bench
    """
    broken = []
    looks = LOOKS | ({"speed": _speed} if bench else {})
    for heading, look in looks.items():
        try:
            lines = list(look())
        # A diagnosis must go on past what is broken, whatever is broken about it.
        except Exception as error:
            broken.append(heading)
            lines = [f"BROKEN: {type(error).__name__}: {error}".splitlines()[0]]
        for k, line in enumerate(lines):
            print(f"{heading if k == 0 else '':<10}{line}")
    if broken:
        print(f"\nBroken: {', '.join(broken)}. Install anew: pip install --force-reinstall cedilla")
        raise SystemExit(1)


def _versions() -> Iterator[str]:
    yield f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    yield sys.executable
    names = [_name(need) for need in _requirements() if "extra ==" not in need]
    found = {name: _version(name) for name in names}
    absent = [name for name, version in found.items() if version is None]
    if absent:
        raise ImportError(f"not installed: {', '.join(absent)}")
    yield ", ".join(f"{n} {found[n]}" for n in ("numpy", "pandas", "scikit-learn", "peft", "pysam"))


def _processor() -> Iterator[str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    model = re.search(r"^model name\s*: (.*)", text, re.MULTILINE)
    yield f"{model[1] if model else platform.processor() or platform.machine()}, {cores} cores"
    flags = re.search(r"^flags\s*: (.*)", text, re.MULTILINE)
    if flags:
        present = flags[1].split()
        yield ", ".join(f"{flag} {'yes' if flag in present else 'no'}" for flag in FLAGS)


def _memory() -> Iterator[str]:
    if not hasattr(os, "sysconf"):
        yield "unknown"
        return
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    yield f"{total / 2**30:.1f} GiB"


def _torch() -> Iterator[str]:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    kernels = torch.backends.cpu.get_cpu_capability()
    yield f"{torch.__version__} ({build}), {kernels} kernels, {torch.get_num_threads()} threads"
    gpus = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    for gpu in gpus:
        yield f"GPU {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
    if not gpus:
        yield "no GPU"


def _data() -> Iterator[str]:
    from cedilla.files import cache_dir
    from cedilla.tasks.catalogue import tasks
    from cedilla.tasks.download import find_local

    files = [file for task in tasks() for file in task.files]
    found = Counter(local[0] for file in files if (local := find_local(file)))
    places = {"CEDILLA_DATA": os.environ.get("CEDILLA_DATA"), "cache": str(cache_dir())}
    for number, (place, folder) in enumerate(places.items(), start=1):
        if folder is None:
            yield f"{number}. {place}: not set"
        elif not Path(folder).is_dir():
            yield f"{number}. {place}: {folder} does not exist"
        else:
            yield f"{number}. {place}: {folder}, {found[place]} of {len(files)} benchmark files"
    yield "3. download, by `cedilla data get TASK`"


def _extras() -> Iterator[str]:
    needs: dict[str, list[str]] = {}
    for need in _requirements():
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", need)
        if extra and extra[1] not in INTERNAL_EXTRAS:
            needs.setdefault(extra[1], []).append(_name(need))
    absent = [extra for extra, names in needs.items() if None in map(_version, names)]
    yield "present: " + (", ".join(sorted(needs.keys() - set(absent))) or "none")
    if absent:
        yield f"absent: {', '.join(sorted(absent))}; pip install 'cedilla[{sorted(absent)[0]}]'"


def _model() -> Iterator[str]:
    import torch

    from cedilla.dna.tokenizer import Tokenizer
    from cedilla.models.zoo import load

    started = time.perf_counter()
    model = load("mini")
    ids, mask = Tokenizer.for_model(model).encode(["ACGTTGCA" * 16])
    with torch.inference_mode():
        finite = bool(torch.isfinite(model(ids, mask).logits).all())
    if not finite:
        raise ArithmeticError("its output is not finite")
    parameters = sum(math.prod(weight.shape) for weight in model.parameters())
    seconds = time.perf_counter() - started
    yield f"mini loads and answers: {parameters / 1e6:.1f} M parameters, {seconds:.1f} s"


def _speed() -> Iterator[str]:
    import numpy as np
    import torch

    from cedilla.models.cards import card
    from cedilla.models.linear_kernels import gain
    from cedilla.models.nucleotide_transformer import NucleotideTransformer
    from cedilla.models.packed import PackedModel
    from cedilla.models.predictor import Precision
    from cedilla.models.speed import MatrixPeak, flops, seconds

    config = card("v2-50m").config
    assert config is not None
    model = NucleotideTransformer(config)
    rng = np.random.default_rng(0)
    rows = [rng.integers(6, 4102, n).astype(np.int32) for n in rng.integers(50, 513, 8)]
    tokens, work = sum(map(len, rows)), flops(config, map(len, rows))
    yield f"embedding 8 sequences of 50 to 512 tokens, shape of v2-50m, {tokens:,} tokens"
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    if torch.cuda.is_available():
        precisions = ("float32", "auto")
    for precision in precisions:
        fast = PackedModel(model, precision=precision)
        peak = MatrixPeak(fast.dtype, fast.device)
        embed = partial(fast.hidden, rows)
        best = math.inf
        for _ in range(3):
            best = min(best, seconds(embed))
            peak.measure()
        line = f"{fast.path}: {tokens / best:,.0f} tokens/s, {work / best / peak.best:.0%} of the "
        line += f"matrix peak of {peak.best / 1e9:,.0f} GFLOP/s"
        on_cpu = fast.device.type == "cpu"
        yield line + (f"; oneDNN {gain(fast.dtype):.2f} × PyTorch" if on_cpu else "")


LOOKS: dict[str, Callable[[], Iterator[str]]] = {
    "cedilla": _versions,
    "processor": _processor,
    "memory": _memory,
    "torch": _torch,
    "data": _data,
    "extras": _extras,
    "model": _model,
}


def _requirements() -> list[str]:
    return importlib.metadata.requires("cedilla") or []


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
