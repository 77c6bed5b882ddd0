"""A language model for inference: rows of any length in, hidden states or logits out.

But for rounding, what a row gives does not depend on the rows beside it. On a CPU the rows are
dealt into tiles, and each core takes one tile at a time through the whole model: its activations
stay in the cache, and no core waits for another between two operations.
"""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cedilla.errors import InputError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
TILE_TOKENS = 640


class Shape(Protocol):
    """What a predictor reads of a model's configuration."""

    @property
    def max_tokens(self) -> int: ...
    @property
    def last_layer(self) -> int: ...


class Predictor(ABC):
    """A model on one path of computation; see the families' own.

    Attributes
    ----------
    config:
        The model's.
    device, dtype:
        Where it runs, and the type in which it multiplies.
    path:
        The path by name: two runs that must give the same bytes take the same one.
    """

    config: Any
    device: torch.device
    dtype: torch.dtype
    path: str

    def __init__(self, config: Shape, device: torch.device) -> None:
        self.config, self.device = config, device
        self._workers: ThreadPoolExecutor | None = None
        self._worker_count = 0

    @abstractmethod
    def _states(
        self, rows: Sequence[np.ndarray], wanted: Sequence[int]
    ) -> tuple[Tensor, Sequence[int]]:
        """Layers `wanted` of rows (len(wanted), T, D) float32, and where in T each row begins."""

    @abstractmethod
    def _logits_of(self, hidden: Tensor) -> Tensor:
        """Logits (n, V) float32 of last hidden states (n, D)."""

    @abstractmethod
    def _tiles(self, lengths: Sequence[int], threads: int) -> list[list[int]]:
        """Which rows are computed together."""

    def hidden(self, rows: Sequence[np.ndarray], layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """Hidden states of each row of token ids (L_i,): (len(layers), L_i, D) float32 on the CPU.

        Layer 0 is what the blocks, or convolutions, begin with; layer i follows number i of them;
        the last one (-1) is after the final LayerNorm.

        Raises
        ------
        ValueError
            For an empty row or one longer than the model takes, or a layer that it does not have.
        """
        wanted = self._layer_numbers(layers)

        def run(tile: Sequence[int]) -> list[Tensor]:
            states, starts = self._states([rows[i] for i in tile], wanted)
            here = states.cpu()
            return [here[:, s : s + len(rows[i])] for i, s in zip(tile, starts, strict=True)]

        return self._each_tile(rows, run)

    def logits(
        self, rows: Sequence[np.ndarray], at: Sequence[np.ndarray] | None = None
    ) -> list[Tensor]:
        """Logits (n_i, V) float32 on the CPU at positions `at[i]` (n_i,) of each row; all if None.

        Position 0 is ``<cls>``. Raises ValueError for a row longer than the model takes.
        """
        places = [np.arange(len(row)) for row in rows] if at is None else at

        def run(tile: Sequence[int]) -> list[Tensor]:
            states, starts = self._states([rows[i] for i in tile], [self.config.last_layer])
            picked = [np.asarray(places[i]) + s for i, s in zip(tile, starts, strict=True)]
            chosen = torch.from_numpy(np.concatenate(picked)).to(self.device)
            logits = self._logits_of(states[0, chosen]).cpu()
            return list(logits.split([len(part) for part in picked]))

        return self._each_tile(rows, run)

    def _layer_numbers(self, layers: Sequence[int]) -> list[int]:
        n = self.config.last_layer
        for layer in layers:
            if not -n - 1 <= layer <= n:
                raise ValueError(f"there is no layer {layer}; the model has 0 to {n}")
        return [layer % (n + 1) for layer in layers]

    def _each_tile(
        self, rows: Sequence[np.ndarray], run: Callable[[Sequence[int]], list[Tensor]]
    ) -> list[Tensor]:
        """What `run` gives for each row, in the order of `rows`."""
        if not all(map(len, rows)):
            raise ValueError("a row without tokens; it has <cls> at least")
        longest = max(map(len, rows), default=0)
        if longest > self.config.max_tokens:
            raise ValueError(f"{longest} tokens; the model takes {self.config.max_tokens}")
        threads = torch.get_num_threads()
        tiles = self._tiles([len(row) for row in rows], threads) if len(rows) else []
        results: list[Tensor] = [torch.empty(0)] * len(rows)
        # Too few tiles to go round: all cores work on each tile.
        alone = self.device.type != "cpu" or threads == 1 or len(tiles) < threads
        calls = map if alone else self._pool(threads).map
        for tile, parts in zip(tiles, calls(torch.no_grad()(run), tiles), strict=True):
            for i, part in zip(tile, parts, strict=True):
                results[i] = part
        return results

    def _pool(self, threads: int) -> ThreadPoolExecutor:
        """As many workers as threads, each of which computes on one."""
        if self._workers is None or self._worker_count != threads:
            started = threading.Barrier(threads)

            def alone() -> None:
                # A thread's first look at the number takes over the one last set anywhere, so it
                # must come before the number is set, and not with the first operation.
                torch.get_num_threads()
                torch.set_num_threads(1)
                started.wait()

            self._workers = ThreadPoolExecutor(threads, initializer=alone)
            self._worker_count = threads
            list(self._workers.map(lambda _: None, range(threads)))
            torch.set_num_threads(threads)
        return self._workers


def device_named(name: str | torch.device | None) -> torch.device:
    """The device of that name, or the first GPU if there is one, or else the CPU.

    Raises :class:`InputError` for one that torch does not have here.
    """
    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError):  # torch without CUDA asserts that it has it
        mend = "leave it out, or see `cedilla doctor`"
        raise InputError.one(f"device {device}", "torch has no such device here", mend) from None


def batch_tokens(device: torch.device) -> int:
    """Tokens that keep `device` busy: some tiles for each thread of a CPU."""
    return (
        65_536 if device.type != "cpu" else max(16_384, 4 * TILE_TOKENS * torch.get_num_threads())
    )


def chosen_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type that `precision` means on `device`."""
    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if device.type != "cuda":
        return torch.float32
    # GPUs before Ampere, such as a T4, multiply bfloat16 slowly or not at all.
    recent = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if recent else torch.float16


def placed(module: nn.Module, device: torch.device) -> Any:
    """`module` if it is float32 on `device`, else a copy that is: the caller's stays as it was."""
    weight = next(module.parameters())
    if weight.device == device and weight.dtype == torch.float32:
        return module
    return copy.deepcopy(module).to(device, torch.float32)


def impossible_path(path: str, device: torch.device) -> InputError:
    """The error for a path that does not work on a device."""
    what = f"the kernels of {path!r} do not work on {device} here"
    return InputError.one("cedilla", what, "begin anew, without --resume")
