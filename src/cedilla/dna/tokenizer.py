"""The k-mer tokenizer of the Nucleotide Transformer family, in NumPy.

A sequence is cut at every N; each piece is read from the left in k-mers and its remainder base
by base; an N is a token of its own. ``<cls>`` stands in front, nothing at the end, pads on the
right. k-mers are numbered in ``product("ATCG")`` order. Version 1 and 2 differ in their special
tokens, and so in every id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch

from cedilla.dna import alphabet
from cedilla.errors import Problem, stop_on_errors

if TYPE_CHECKING:
    from cedilla.models.nucleotide_transformer import NTConfig

ORDER = "ATCG"  # the order in which the family numbers its bases, and so its k-mers
SPECIAL = {
    1: ("<unk>", "<pad>", "<mask>", "<cls>"),
    2: ("<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>"),
}
UNK, PAD, MASK, CLS = range(4)
NAMED = 5  # sequences that an error names; the rest are counted

# A T C G → 0 1 2 3: the digits of a k-mer's number in base 4. U is T; N and other IUPAC codes are
# 4; whatever is no nucleotide code is 255.
_N, _FORBIDDEN = 4, 255
_DIGIT = np.full(256, _FORBIDDEN, dtype=np.uint8)
for _letter in alphabet.IUPAC:
    _base = alphabet.clean(_letter)
    for _case in (_letter.upper(), _letter.lower()):
        _DIGIT[ord(_case)] = _N if _base == "N" else ORDER.index(_base)
_SPECIAL_TOKEN = re.compile(r"(<[a-z]+>)")


class Tokenizer:
    """Turns DNA into token ids and back.

    Parameters
    ----------
    k:
        Bases per token: 6 for the published models, 3 for v2-50m-3mer.
    version:
        1 or 2: which special tokens stand before the k-mers.
    max_tokens:
        The longest sequence that the model takes, ``<cls>`` included; longer ones are refused
        unless `encode` is told to truncate.
    """

    def __init__(self, k: int = 6, *, version: int = 2, max_tokens: int = 2048) -> None:
        self.k = k
        self.version = version
        self.max_tokens = max_tokens
        self.special = SPECIAL[version]
        self._first_base = len(self.special) + 4**k
        self._weights = (4 ** np.arange(k - 1, -1, -1)).astype(np.int32)

    @classmethod
    def for_model(cls, model: torch.nn.Module) -> Tokenizer:
        """The tokenizer that `model` was trained with, read from its configuration."""
        config: NTConfig = model.config  # type: ignore[assignment]
        return cls(config.k, version=config.version, max_tokens=config.max_tokens)

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every token, at the index that is its id."""
        kmers = map("".join, product(ORDER, repeat=self.k))
        return [*self.special, *kmers, *ORDER, "N"]

    def __len__(self) -> int:
        return self._first_base + 5

    def kmer_ids(self, letters: np.ndarray) -> np.ndarray:
        """Ids (…) int32 of k-mers given as ASCII codes of A, C, G, T (…, k)."""
        ids: np.ndarray = _DIGIT[letters] @ self._weights + len(self.special)
        return ids

    def tokenize(self, sequence: str) -> list[str]:
        """The tokens of one sequence, as text, ``<cls>`` first."""
        ids, mask = self.encode([sequence])
        return [self.vocabulary[i] for i in ids[0, mask[0]].tolist()]

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """The text of ids (L,): k-mers and bases joined, special tokens dropped."""
        tokens = (self.vocabulary[int(i)] for i in ids)
        return "".join(token for token in tokens if token not in self.special)

    def encode(
        self, sequences: Sequence[str], *, truncate: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids of a batch.

        Lower case is read as upper case, U as T, other IUPAC codes as N. Special tokens such as
        ``<mask>`` may stand anywhere.

        Returns
        -------
        ids (B, L) int64, padded on the right; mask (B, L) bool, true where there is no pad.

        Raises
        ------
        InputError
            For characters outside the alphabet, and for sequences longer than `max_tokens`
            unless `truncate` is set: all of them at once.
        """
        if isinstance(sequences, str):
            raise TypeError("encode takes a list of sequences: pass [sequence]")
        rows = self.encode_ragged(sequences)
        if truncate:
            rows = [row[: self.max_tokens] for row in rows]
        self.refuse_long(rows)
        return pad(rows)

    def encode_ragged(self, sequences: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each sequence (L_i,) int32, ``<cls>`` first, without pads or limit."""
        problems: list[Problem] = []
        rows = []
        for number, sequence in enumerate(sequences, start=1):
            pieces = _SPECIAL_TOKEN.split(sequence) if "<" in sequence else [sequence]
            try:
                rows.append(self._encode_pieces(pieces))
            except _UnknownCharacterError as error:
                problems.append(
                    Problem(
                        where=f"sequence {number}",
                        what=f"{error} is neither a nucleotide code nor a special token",
                        mend="remove it, or write N for an unknown base",
                    )
                )
        stop_on_errors(problems)
        return rows

    def _encode_pieces(self, pieces: Sequence[str]) -> np.ndarray:
        """<cls> and the tokens of runs of bases and special tokens."""
        arrays = [np.array([CLS], dtype=np.int32)]
        start = 0
        for piece in pieces:
            if piece in self.special:
                arrays.append(np.array([self.special.index(piece)], dtype=np.int32))
            elif piece:
                arrays += self._encode_bases(piece, start)
            start += len(piece)
        return np.concatenate(arrays)

    def _encode_bases(self, text: str, start: int) -> list[np.ndarray]:
        """The tokens of `text`, which begins at `start` of its sequence."""
        # A character beyond ASCII becomes "?", which is forbidden like any other of its kind.
        digits = _DIGIT[np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)]
        highest = digits.max()
        if highest < _N:
            return [self._encode_run(digits)]
        if highest == _FORBIDDEN:
            position = int(np.argmax(digits == _FORBIDDEN))
            raise _UnknownCharacterError(f"{text[position]!r} at position {start + position + 1}")
        edges = np.flatnonzero(np.diff(digits == _N)) + 1
        return [
            np.full(len(run), self._first_base + 4, dtype=np.int32)
            if run[0] == _N
            else self._encode_run(run)
            for run in np.split(digits, edges)
        ]

    def _encode_run(self, digits: np.ndarray) -> np.ndarray:
        """The k-mers of a run of A, C, G, T, and its remainder base by base."""
        n = len(digits) // self.k
        ids = np.empty(n + len(digits) % self.k, dtype=np.int32)
        kmers = digits[: n * self.k].reshape(n, self.k)
        ids[:n] = kmers @ self._weights + len(self.special)
        ids[n:] = digits[n * self.k :] + np.int32(self._first_base)
        return ids

    def refuse_long(
        self,
        rows: Sequence[np.ndarray],
        names: Sequence[str] | None = None,
        *,
        mend: str = "cut it, or pass truncate=True",
    ) -> None:
        """Raise :class:`InputError` with the rows that have more than `max_tokens` tokens.

        `names` say where each row stands, such as ``train.csv line 7``. The first few are named,
        the others counted.
        """
        long = [i for i, row in enumerate(rows) if len(row) > self.max_tokens]
        problems = [
            Problem(
                where=names[i] if names else f"sequence {i + 1}",
                what=f"has {len(rows[i]):,} tokens; the model takes {self.max_tokens:,}",
                mend=mend,
            )
            for i in long[:NAMED]
        ]
        if len(long) > NAMED:
            what = f"{len(long):,} in all have too many tokens"
            problems.append(Problem(where="sequences", what=what, mend=mend))
        stop_on_errors(problems)


class _UnknownCharacterError(ValueError):
    """A character, and its 1-based position, that no token can stand for."""


def pad(rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids (L_i,) as ids (B, L) int64 and mask (B, L) bool, padded on the right."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    longest = int(lengths.max(initial=0))
    mask = np.arange(longest) < lengths[:, None]
    ids = np.full((len(rows), longest), PAD, dtype=np.int64)
    if len(rows):
        ids[mask] = np.concatenate(rows)
    return torch.from_numpy(ids), torch.from_numpy(mask)
