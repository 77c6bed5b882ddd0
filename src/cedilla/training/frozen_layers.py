"""The layers of an encoder below all that is trained: computed once, and kept on disk.

Where the lower layers are frozen (methods `top` and `head`), what they give for a sequence is the
same in every epoch and for every seed, head and learning rate. It is computed for all sequences on
both strands by the packed path of inference, and looked up by its tokens from then on: wherever the
encoder is asked for a sequence, the upper layers alone are run.

A file holds the rows of one set of sequences, the shortest first, and a SHA-256 at its end. Its
name is the hash of the frozen weights, the shape of the model, the number of layers, the type of
numbers and the sequences, so that it serves nothing else.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cedilla.files import cache_dir, whole_file
from cedilla.inference.estimate import size_text
from cedilla.models.families import settings_of
from cedilla.models.predictor import batch_tokens
from cedilla.progress import console, track
from cedilla.training.batches import SequenceData
from cedilla.training.encoder_cut import Lower, Split, split_encoder
from cedilla.training.precision import Precision

FORMAT = "cedilla frozen layers 1"
LIMIT = 20e9  # bytes that all files together may take
SEAL = hashlib.sha256().digest_size
CHUNK = 1 << 24
AN_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class FrozenOutputs:
    """What the layers below a cut give for a set of sequences, in a file.

    numbers: the file, mapped. places: where those of a sequence begin, by the digest of its tokens.
    """

    split: Split
    file: Path
    numbers: np.ndarray
    dtype: torch.dtype
    places: dict[bytes, int]

    def of(self, ids: Tensor, mask: Tensor) -> list[Tensor] | None:
        """Arrays (B, n, width) float32 of token ids (B, L), zero at pads.

        None where a sequence is not in the file.
        """
        tokens, counts = ids.cpu().numpy().astype(np.int32), mask.sum(1).tolist()
        rows = [row[:n] for row, n in zip(tokens, counts, strict=True)]
        places = [self.places.get(_digest(row)) for row in rows]
        if None in places:
            return None
        numbers = self.numbers
        arrays = [
            torch.zeros(len(rows), *shape, dtype=self.dtype)
            for shape in self.split.shapes(ids.size(1))
        ]
        for i, (row, place) in enumerate(zip(rows, places, strict=True)):
            at = int(place or 0)
            for array, (n, width) in zip(arrays, self.split.shapes(len(row)), strict=True):
                part = torch.from_numpy(numbers[at : at + n * width].copy()).view(self.dtype)
                array[i, :n] = part.view(n, width)
                at += n * width
        return [array.to(ids.device).float() for array in arrays]


def keep_frozen_outputs(
    encoder: nn.Module,
    data: Iterable[SequenceData],
    precision: Precision,
    *,
    folder: Path | None = None,
    limit: float = LIMIT,
) -> FrozenOutputs | None:
    """Let `encoder` look up what its frozen layers give for the sequences of `data`.

    The file is made where there is none. Nothing is changed, and None returned, where no layer is
    frozen below all trained ones, or, with a word, where the file would be larger than `limit` or
    than half of the free disk. Sequences that are not in `data` are computed as before.

    Parameters
    ----------
    encoder:
        With its trained parameters marked by ``requires_grad``. Its ``encode`` is replaced.
    data:
        Whose both strands are kept.
    precision:
        Of the training: frozen layers are computed in it, and kept in bfloat16 if it is that, else
        in float32.
    folder:
        By default ``frozen`` in the cache.
    limit:
        Bytes that all files of the folder may take; the ones used longest ago make room.
    """
    if (split := split_encoder(encoder)) is None:
        return None
    folder = folder or cache_dir() / "frozen"
    rows = _distinct(data)
    size, most = _size(split, rows, precision), _most(folder, limit)
    if size > most:
        say = f"not keeping what frozen layers give: {size_text(size)}, and {size_text(most)} fit"
        _say(f"note: {say}")
        return None
    key = _key(encoder, split, rows, precision)
    file = folder / f"{key}.frozen"
    if not _is_whole(file, key, size):
        _make_room(folder, limit - size)
        _write(file, key, split.lower(encoder, precision), rows, precision)
    file.touch()
    sizes = (split.numbers(len(row)) for row in rows)
    places = dict(zip(map(_digest, rows), accumulate(sizes, initial=0), strict=False))
    # Opened once: another run may make room and unlink the file, which this one then still reads.
    numbers = np.memmap(file, dtype=_stored(_kept(precision)), mode="r")
    outputs = FrozenOutputs(split, file, numbers, _kept(precision), places)
    _look_up(encoder, outputs)
    return outputs


def describe(
    encoder: nn.Module,
    data: Iterable[SequenceData],
    precision: Precision,
    *,
    folder: Path | None = None,
    limit: float = LIMIT,
) -> str:
    """What :func:`keep_frozen_outputs` would do, in words; empty where nothing."""
    if (split := split_encoder(encoder)) is None:
        return ""
    folder = folder or cache_dir() / "frozen"
    size, most = _size(split, _distinct(data), precision), _most(folder, limit)
    what = "the encoder" if split.whole else f"all below block {split.first + 1}"
    if size > most:
        fits = f"{size_text(size)} do not fit into the {size_text(most)} there are for it"
        return f"{what} is frozen, and computed at every step: {fits}"
    return f"{what} is frozen, and computed once: {size_text(size)} in {folder}"


def _look_up(encoder: Any, outputs: FrozenOutputs) -> None:
    def encode(self: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        arrays = None if mask is None else outputs.of(ids, mask)
        if mask is None or arrays is None:
            computed: Tensor = type(self).encode(self, ids, mask)
            return computed
        return outputs.split.upper(self, arrays, mask)

    encoder.encode = MethodType(encode, encoder)  # a copy of the model has its own


def _distinct(data: Iterable[SequenceData]) -> list[np.ndarray]:
    """Every row of tokens once, the shortest first, in an order that is theirs alone."""
    rows = {row.tobytes(): row for one in data for strand in one.strands for row in strand}
    return [rows[key] for key in sorted(rows, key=lambda key: (len(key), key))]


def _kept(precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision.dtype == torch.bfloat16 else torch.float32


def _stored(dtype: torch.dtype) -> type[np.generic]:
    """NumPy has no bfloat16: its bits are kept as integers."""
    return np.int16 if dtype == torch.bfloat16 else np.float32


def _size(split: Split, rows: Sequence[np.ndarray], precision: Precision) -> int:
    numbers = sum(split.numbers(len(row)) for row in rows)
    return numbers * _kept(precision).itemsize + SEAL


def _most(folder: Path, limit: float) -> float:
    """Bytes that a new file may have."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    ours = sum(file.stat().st_size for file in folder.glob("*.frozen"))
    return min(limit, shutil.disk_usage(there).free / 2 + ours)


def _make_room(folder: Path, limit: float) -> None:
    """Remove the files that were used longest ago, until the others have at most `limit` bytes."""
    files = [(file.stat(), file) for file in folder.glob("*.frozen")]
    total = 0
    for found, file in sorted(files, key=lambda one: -one[0].st_mtime):
        total += found.st_size
        # What another process is writing stays, what a killed one has left does not.
        written = file.name.startswith(".") and time.time() - found.st_mtime < AN_HOUR
        if total > limit and not written:
            file.unlink(missing_ok=True)


def _digest(row: np.ndarray) -> bytes:
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()


def _key(encoder: Any, split: Split, rows: Sequence[np.ndarray], precision: Precision) -> str:
    """Changes when a frozen weight, the model's shape, the cut, the type or a sequence does."""
    found = hashlib.sha256()
    facts = settings_of(encoder.config)
    found.update(f"{FORMAT} {split.first} {precision.dtype} {sorted(facts.items())}".encode())
    for name, weight in sorted(encoder.state_dict().items()):
        if split.is_below(name):
            bits = weight.detach().cpu().contiguous().flatten().view(torch.uint8)
            found.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            found.update(bits.numpy())
    for row in rows:
        found.update(_digest(row))
    return found.hexdigest()


def _write(
    file: Path, key: str, lower: Lower, rows: Sequence[np.ndarray], precision: Precision
) -> None:
    seal = hashlib.sha256(key.encode())
    batches = _batches([len(row) for row in rows], batch_tokens(torch.device(precision.device)))
    with whole_file(file) as draft, open(draft, "wb") as out:
        for batch in track(batches, "frozen layers", transient=True):
            for array in chain.from_iterable(lower(rows[batch])):
                values = array.to(_kept(precision)).contiguous()
                bits = values.view(torch.uint8).numpy().data
                seal.update(bits)
                out.write(bits)
        out.write(seal.digest())


def _batches(lengths: Sequence[int], tokens: int) -> list[slice]:
    """Rows in order, as many together as have about so many tokens, one at least."""
    number = np.cumsum(lengths) // tokens
    cuts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(lengths)]
    return [slice(a, b) for a, b in pairwise(cuts) if a < b]


def _is_whole(file: Path, key: str, size: int) -> bool:
    """Whether a file is there, and is what its name says; says so where it is not."""
    if not file.exists():
        return False
    if file.stat().st_size == size and _seal(file, key) == _last(file):
        return True
    _say(f"note: {file} is damaged or of something else: it is made anew")
    return False


def _seal(file: Path, key: str) -> bytes:
    found = hashlib.sha256(key.encode())
    left = file.stat().st_size - SEAL
    with open(file, "rb") as opened:
        while left and (chunk := opened.read(min(CHUNK, left))):
            found.update(chunk)
            left -= len(chunk)
    return found.digest()


def _last(file: Path) -> bytes:
    with open(file, "rb") as opened:
        opened.seek(-SEAL, 2)
        return opened.read()


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
