"""Weight files: one or several, safetensors or PyTorch's own, read and written piece by piece.

The names are Hugging Face's: ``model.safetensors`` or ``pytorch_model.bin``, or shards such as
``model-00001-of-00002.safetensors`` beside an index. A ``.bin`` file is a pickle, which could run
code: it is read with ``weights_only=True``, which knows tensors and nothing else.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cedilla.errors import InputError, Problem, stop_on_errors
from cedilla.files import whole_file, write_json

# In the order in which they are looked for.
SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
KINDS = (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLE, f"{PICKLE}.index.json")
# Weights are taken from their file in pieces of this size, after each of which the file is closed:
# a file that stays mapped into memory stays resident as far as it was read.
PIECE = 256 * 2**20
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool, "U8": torch.uint8,
    "I8": torch.int8, "I16": torch.int16,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """Where a weight is stored, its shape, and its type."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its size on disk."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def main_file(directory: Path) -> Path:
    """The file that holds a directory's weights, or the index of those that do."""
    for name in KINDS:
        if (directory / name).is_file():
            return directory / name
    raise InputError.one(
        directory / SAFETENSORS,
        "not found",
        f"the weights must be in {SAFETENSORS} or {PICKLE}, or in shards with an index",
    )


def weight_files(main: Path) -> list[Path]:
    """The files with the weights: `main` itself, or the shards that it is the index of.

    Raises :class:`InputError` with all the shards that are absent.
    """
    if not main.name.endswith(".index.json"):
        return [main]
    files = [main.parent / name for name in shard_names(main)]
    stop_on_errors(
        Problem(where=str(file), what="not found", mend=f"{main.name} names it; fetch it too")
        for file in files
        if not file.is_file()
    )
    return files


def shard_names(index: Path) -> list[str]:
    """The shards that an index names, in order."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("it names files of another folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"damaged: {type(error).__name__}: {error}"
        raise InputError.one(index, what, "fetch or copy it again") from None
    return names


def headers(files: Sequence[Path]) -> dict[str, Stored]:
    """Every weight of some files by name, without reading the weights themselves.

    Raises :class:`InputError` with all the files that are damaged, or hold a weight that an
    earlier one has already.
    """
    found: dict[str, Stored] = {}
    problems: list[Problem] = []
    for file in files:
        try:
            here = _pickle_header(file) if file.suffix == ".bin" else _header(file)
        except InputError as error:
            problems += error.problems
            continue
        problems += [
            Problem(where=f"{file} {name}", what=f"is in {found[name].file.name} too")
            for name in here.keys() & found.keys()
        ]
        found |= here
    stop_on_errors(problems)
    return found


def tensors(stored: Mapping[str, Stored]) -> Iterator[tuple[str, Tensor]]:
    """Weights one after the other, file by file. Each is to be copied before the next is taken."""
    for piece in _pieces(stored):
        file = stored[piece[0]].file
        if file.suffix == ".bin":
            content = _unpickle(file, "cpu")
            for name in piece:
                yield name, content[name]
            del content
        else:
            with _opened(file) as weights:
                for name in piece:
                    yield name, weights.get_tensor(name)


def write_shards(
    sizes: Mapping[str, int],
    take: Callable[[Sequence[str]], Mapping[str, Tensor]],
    directory: Path,
    limit: int,
) -> list[Path]:
    """Write weights as safetensors, a new file before one exceeds `limit` bytes.

    sizes: the bytes of every weight by name.
    take: the weights of one file by name, contiguous; they are let go before the next ones.

    Returns the files, with their index if there are several.
    """
    groups = list(grouped(sizes, limit))
    files = []
    for number, names in enumerate(groups, start=1):
        several = f"model-{number:05}-of-{len(groups):05}.safetensors"
        files.append(directory / (several if len(groups) > 1 else SAFETENSORS))
        with whole_file(files[-1]) as draft:
            save_file(dict(take(names)), draft, metadata={"format": "pt"})
    if len(groups) > 1:
        places = {n: file.name for file, names in zip(files, groups, strict=True) for n in names}
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": dict(sorted(places.items())),
        }
        files.append(directory / f"{SAFETENSORS}.index.json")
        write_json(files[-1], index)
    return files


def grouped(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Names in their order, in groups of at most `limit` bytes, or of a single larger weight."""
    group: list[str] = []
    total = 0
    for name, size in sizes.items():
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


def _pieces(stored: Mapping[str, Stored]) -> Iterator[list[str]]:
    """Names by file, in groups of about `PIECE` bytes."""
    by_file: dict[Path, dict[str, int]] = {}
    for name, where in stored.items():
        by_file.setdefault(where.file, {})[name] = where.bytes
    for sizes in by_file.values():
        yield from grouped(sizes, PIECE)


def _header(file: Path) -> dict[str, Stored]:
    with _opened(file) as weights:
        slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
        types = {name: str(piece.get_dtype()) for name, piece in slices.items()}
        stop_on_errors(
            Problem(where=f"{file} {name}", what=f"is stored as {kind}", mend="convert it first")
            for name, kind in types.items()
            if kind not in _DTYPES
        )
        return {
            name: Stored(file=file, shape=tuple(piece.get_shape()), dtype=_DTYPES[types[name]])
            for name, piece in slices.items()
        }


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise InputError.one(file, f"damaged: {error}", "fetch or copy it again") from None


def _pickle_header(file: Path) -> dict[str, Stored]:
    content = _unpickle(file, "meta")
    return {
        name: Stored(file=file, shape=tuple(weight.shape), dtype=weight.dtype)
        for name, weight in content.items()
    }


def _unpickle(file: Path, device: str) -> dict[str, Tensor]:
    """The weights in a ``.bin`` file, mapped into memory and not yet read."""
    again = "fetch or copy it again"
    if not zipfile.is_zipfile(file):
        what = "damaged, or not written by torch.save (1.6 or later)"
        raise InputError.one(file, what, again)
    try:
        content = torch.load(file, map_location=device, weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = "refused: it holds more than weights" + (f", a call of {found[1]}" if found else "")
        mend = f"loading it could run code; take {SAFETENSORS} from a source that you trust"
        raise InputError.one(file, what, mend) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        what = f"damaged: {type(error).__name__}: {error}".splitlines()[0]
        raise InputError.one(file, what, again) from None
    if not isinstance(content, dict) or not all(isinstance(w, Tensor) for w in content.values()):
        raise InputError.one(file, "holds no weights by name", "is it a model's weight file?")
    return content
