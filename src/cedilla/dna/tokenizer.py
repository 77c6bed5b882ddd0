"""The k-mer tokenizer of the Nucleotide Transformer family, in NumPy.

A sequence is cut at every N; each piece is read from the left in k-mers and its remainder base
by base; an N is a token of its own. ``<cls>`` stands in front, nothing at the end, pads on the
right. k-mers are numbered in ``product("ATCG")`` order. Version 1 and 2 differ in their special
tokens, and so in every id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np
import torch

from cedilla.dna import alphabet
from cedilla.errors import Problem, stop_on_errors

if TYPE_CHECKING:
    from cedilla.models.families import Config
    from cedilla.models.predictor import Predictor

ORDER = "ATCG"  # the order in which the family numbers its bases, and so its k-mers
SPECIAL = {
    1: ("<unk>", "<pad>", "<mask>", "<cls>"),
    2: ("<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>"),
}
UNK, PAD, MASK, CLS = range(4)
NAMED = 5  # sequences that an error names; the rest are counted
BLOCK = 1 << 18  # letters encoded in one pass: enough to hide its fixed cost, few enough for caches

# Bytes beyond ASCII, which no text contains: special token i is 128 + i where it is written out in
# a sequence, and in front of every sequence stands `_FRONT`.
_SPECIAL, _FRONT = 0x80, 0xC0
_WRITTEN = re.compile(rb"<[a-z]+>")


class Tokenizer:
    """Turns DNA into token ids and back.

    Parameters
    ----------
    k:
        Bases per token, 1 to 8: 6 for the published models, 3 for v2-50m-3mer.
    version:
        1 or 2: which special tokens stand before the k-mers.
    max_tokens:
        The longest sequence that the model takes, ``<cls>`` included; longer ones are refused
        unless `encode` is told to truncate.

    Attributes
    ----------
    kmers, bases:
        Which ids are k-mers, and which are single A, T, C and G; both in the order of `ORDER`.
    """

    def __init__(self, k: int = 6, *, version: int = 2, max_tokens: int = 2048) -> None:
        if not 1 <= k <= 8:
            raise ValueError(f"k is from 1 to 8, not {k}")
        self.k = k
        self.version = version
        self.max_tokens = max_tokens
        self.special = SPECIAL[version]
        self.kmers = slice(len(self.special), len(self.special) + 4**k)
        self.bases = slice(self.kmers.stop, self.kmers.stop + 4)
        self._single = self._ids_of_bytes()
        self._special_byte = {t.encode(): bytes([_SPECIAL + i]) for i, t in enumerate(self.special)}

    @classmethod
    def for_model(cls, model: torch.nn.Module | Predictor) -> Tokenizer:
        """The tokenizer that `model` was trained with, read from its configuration."""
        config: Config = model.config  # type: ignore[assignment]
        return cls(config.k, version=config.version, max_tokens=config.max_tokens)

    def _ids_of_bytes(self) -> np.ndarray:
        """Ids (256,) of what is no k-mer, by its byte: a base, N, a special token; -1 if none."""
        ids = np.full(256, -1, dtype=np.int32)
        for code in alphabet.IUPAC:
            base = self.bases.start + (ORDER + "N").index(alphabet.clean(code))
            ids[[ord(code), ord(code.lower())]] = base
        ids[_SPECIAL : _SPECIAL + len(self.special)] = np.arange(len(self.special))
        ids[_FRONT] = CLS
        return ids

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every token, at the index that is its id."""
        kmers = map("".join, product(ORDER, repeat=self.k))
        return [*self.special, *kmers, *ORDER, "N"]

    def __len__(self) -> int:
        return self.bases.stop + 1

    def kmer_ids(self, letters: np.ndarray) -> np.ndarray:
        """Ids (…) int32 of k-mers given as ASCII codes of A, C, G, T (…, k)."""
        numbers = _numbers(_digits(letters.reshape(-1)), self.k, step=self.k)
        return (numbers + np.int32(len(self.special))).reshape(letters.shape[:-1])

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
        """Token ids of each sequence (L_i,) int32, ``<cls>`` first, without pads or limit.

        The rows are views of a few large arrays. Raises :class:`InputError` as `encode` does.
        """
        texts, rows, problems = list(sequences), [], []
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        for block in _blocks(lengths):
            found = self._encode_bases(texts[block], lengths[block])
            if found is None:
                found, wrong = self._encode_any(texts[block], first=block.start + 1)
                problems += wrong
            rows += found
        stop_on_errors(problems)
        return rows

    def _encode_bases(self, texts: list[str], lengths: np.ndarray) -> list[np.ndarray] | None:
        """The rows of sequences of A, C, G and T in either case; None if there is anything else.

        The text is laid out with k letters for every token: those of a k-mer are its own, those
        of ``<cls>`` and of single bases are filled up. So one pass reads all of them.
        """
        k = self.k
        rest = lengths % k
        tokens = 1 + lengths // k + rest
        ends = np.cumsum(tokens)
        # Each sequence's filling: for its single bases, and for the next <cls>.
        fill = ["A" * (r * (k - 1) + k) for r in range(k)]
        parts = [fill[0]] * (2 * len(texts) + 1)
        parts[1::2] = texts
        parts[2::2] = [fill[r] for r in rest.tolist()]
        text = "".join(parts)
        letters = np.frombuffer(_ascii(text), dtype=np.uint8)[:-k]
        # N, the usual exception, is found sooner by itself.
        if "N" in text or not _are_bases(letters).all():
            return None
        ids = self.kmer_ids(letters.reshape(-1, k))
        ids[ends - tokens] = CLS
        within = _ranges(rest)
        first = np.repeat(ends - rest, rest)
        ids[first + within] = self._single.take(letters[first * k + within])
        return _rows(ids, tokens)

    def _encode_any(self, texts: list[str], first: int) -> tuple[list[np.ndarray], list[Problem]]:
        """The rows of any sequences, numbered from `first`, or what is wrong with them."""
        text = self._one_byte_each(texts)
        padded = np.frombuffer(text + bytes(self.k - 1), dtype=np.uint8)
        letters = padded[: len(text)]
        known = _are_bases(letters)
        # A run of bases has its k-mers first, then single bases; of all else each byte is a token.
        starts = np.append(0, np.flatnonzero(np.diff(known)) + 1)
        lengths = np.diff(starts, append=len(letters))
        kmers = np.where(known[starts], lengths // self.k, 0)
        counts = np.stack([kmers, lengths - self.k * kmers], axis=1).ravel()
        is_kmer = np.repeat(np.tile([True, False], len(starts)), counts)
        at = np.zeros(len(is_kmer), dtype=np.int64)
        np.cumsum(is_kmer[:-1].astype(np.uint8) * np.uint8(self.k - 1) + np.uint8(1), out=at[1:])
        ids = _numbers(_digits(padded), self.k).take(at) + np.int32(len(self.special))
        single = np.flatnonzero(~is_kmer)
        others = letters.take(at.take(single))
        ids[single] = self._single.take(others)
        if ids.min() < 0:
            return [], self._forbidden(texts, text, first)
        return _rows(ids, np.diff(single[others == _FRONT], append=len(ids))), []

    def _one_byte_each(self, texts: list[str]) -> bytes:
        """Sequences in a row, `_FRONT` before each, one byte for each special token, U as T."""
        pure = texts
        if not all(map(str.isascii, texts)):
            pure = [_ascii(text).decode() for text in texts]
        joined = "".join(chr(_FRONT) + text for text in pure).encode("latin-1")
        if b"<" in joined:
            joined = _WRITTEN.sub(lambda m: self._special_byte.get(m[0], m[0]), joined)
        return joined.replace(b"U", b"T").replace(b"u", b"t")

    def _forbidden(self, texts: list[str], joined: bytes, first: int) -> list[Problem]:
        """The first forbidden character of each sequence that has one."""
        letters = np.frombuffer(joined, dtype=np.uint8)
        fronts = np.flatnonzero(letters == _FRONT)
        wrong = np.flatnonzero(self._single.take(letters) < 0)
        numbers, firsts = np.unique(np.searchsorted(fronts, wrong), return_index=True)
        problems = []
        for i, at in zip((numbers - 1).tolist(), wrong[firsts].tolist(), strict=True):
            before = joined[fronts[i] + 1 : at]
            position = sum(len(self.special[b - _SPECIAL]) if b >= _SPECIAL else 1 for b in before)
            what = f"{texts[i][position]!r} at position {position + 1}"
            problems.append(
                Problem(
                    where=f"sequence {first + i}",
                    what=f"{what} is neither a nucleotide code nor a special token",
                    mend="remove it, or write N for an unknown base",
                )
            )
        return problems

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


def pad(rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids (L_i,) as ids (B, L) int64 and mask (B, L) bool, padded on the right."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    longest = int(lengths.max(initial=0))
    mask = np.arange(longest) < lengths[:, None]
    ids = np.full((len(rows), longest), PAD, dtype=np.int64)
    if len(rows):
        ids[mask] = np.concatenate(rows)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _blocks(lengths: np.ndarray) -> Iterator[slice]:
    """Sequences in order, as many together as have about `BLOCK` letters, at least one."""
    number = (np.cumsum(lengths) - lengths) // BLOCK
    cuts = np.flatnonzero(np.diff(number)) + 1
    return (slice(a, b) for a, b in pairwise([0, *cuts.tolist(), len(lengths)]) if a < b)


def _ascii(text: str) -> bytes:
    """One byte a character; "?", which is forbidden, for those beyond ASCII."""
    return text.encode("ascii", "replace")


def _are_bases(letters: np.ndarray) -> np.ndarray:
    """Which of `letters` (n,) are A, C, G or T, in either case."""
    upper = letters & 0xDF
    known = upper == ord("A")
    for base in b"CGT":
        known |= upper == base
    return known


def _digits(letters: np.ndarray) -> np.ndarray:
    """The digits (n,) of letters A, C, G, T (n,) in either case: two bits of their ASCII code."""
    digits = letters >> 2
    digits &= 1
    digits |= letters & 2
    return digits


def _numbers(digits: np.ndarray, k: int, step: int = 1) -> np.ndarray:
    """The numbers (n,) uint16 of the k-mers that begin at every `step`-th of `digits`, k ≤ 8."""
    # Numbers of 1, 2, then 4 digits, at each of them. Multiplied, as NumPy's left shift is slow.
    short, width = digits, 1
    while 2 * width <= min(k, 4):
        longer = short[:-width] * np.uint8(4**width)
        longer += short[width:]
        short, width = longer, 2 * width
    # A k-mer's first and last such number; where they overlap they agree.
    span, shift = max(0, len(digits) - k + 1), k - width
    numbers = short[:span:step].astype(np.uint16)
    numbers *= np.uint16(4**shift)
    numbers |= short[shift : shift + span : step].astype(np.uint16)
    return numbers


def _ranges(counts: np.ndarray) -> np.ndarray:
    """0, 1, … n - 1 for each n of `counts`, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) - np.repeat(ends - counts, counts)


def _rows(ids: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """`ids` cut into rows of so many."""
    if (counts == counts[0]).all():
        return list(ids.reshape(len(counts), -1))  # the same, and quicker
    ends = np.cumsum(counts)
    return [ids[a:b] for a, b in zip((ends - counts).tolist(), ends.tolist(), strict=True)]
