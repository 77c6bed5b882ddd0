"""Many processes as one: ``torchrun`` starts them, and each takes its rows of every batch.

Gloo joins them on CPUs, NCCL on GPUs. Every process holds the whole model (DDP), or a part of each
weight (FSDP2, `fully_shard`), for models that do not fit. Gradients are summed and not averaged,
so that a loss that is normalised over the whole batch is the same function of it for any number
of processes. A state on disk is that of one process, so that any number can go on from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from cedilla.errors import InputError
from cedilla.progress import console

T = TypeVar("T")
VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process among all that train one model; alone unless `torchrun` started it."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def rows(self, n: int) -> slice:
        """This process's rows of a batch of n; n must divide by the number of processes."""
        each = n // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def total(self, *values: float | torch.Tensor) -> list[float]:
        """The sum of each value over all processes."""
        sums = torch.stack([torch.as_tensor(v, dtype=torch.float64).cpu() for v in values])
        if self.size > 1:
            sums = sums.to(self.device)
            dist.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def of_first(self, value: T) -> T:
        """The first process's `value`, in all of them."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def together(self, work: Callable[[], T]) -> T:
        """What `work` gives in each process; where it fails in one, all of them stop.

        The first process raises the :class:`InputError` with the problems of all, the others end
        without a word: a failure of all would be told as often as there are processes.
        """
        if self.size == 1:
            return work()
        problems, result = [], None
        try:
            result = work()
        except InputError as error:
            problems = error.problems
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, problems)
        everyone = list(dict.fromkeys(problem for each in found for problem in each))
        if everyone:
            raise InputError(everyone) if self.first else SystemExit(2)
        return result  # type: ignore[return-value]


@contextmanager
def world() -> Iterator[World]:
    """Join the processes that `torchrun` started, for as long as the block runs.

    Raises :class:`InputError` where ``WORLD_SIZE`` promises other processes but not where they
    are, or where there are fewer GPUs than processes on this machine.
    """
    cuda = torch.cuda.is_available()
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield World(device=torch.device("cuda" if cuda else "cpu"))
        return
    if missing := [name for name in VARIABLES if name not in os.environ]:
        what = f"WORLD_SIZE is set, but not {', '.join(missing)}"
        raise InputError.one("environment", what, "start with torchrun, or unset WORLD_SIZE")
    device = _device() if cuda else torch.device("cpu")
    # The others wait while the first process stores genomes and counts baselines.
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(days=1))
    here = World(device=device, rank=dist.get_rank(), size=dist.get_world_size())
    quiet, console.quiet = console.quiet, not here.first
    try:
        yield here
    finally:
        console.quiet = quiet
    # Not after an error: taking leave would wait for processes that wait for this one. Its end
    # makes torchrun end them.
    dist.destroy_process_group()


def _device() -> torch.device:
    """The GPU of this process."""
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= count:
        what = f"process {number + 1} of this machine has no GPU of its own: there are {count}"
        raise InputError.one("torchrun", what, f"start {count} at most (--nproc-per-node)")
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def spread(module: nn.Module, here: World, *, sharded: bool) -> nn.Module:
    """`module` so that its backward pass sums gradients over processes, and its forward pass is
    fed rows of each. With `sharded`, its parameters become parts of themselves, in place.

    What is sharded by itself, to be gathered only while it runs, is each item of a ModuleList.
    """
    if here.size == 1:
        return module
    if not sharded:
        return DistributedDataParallel(module)
    mesh = init_device_mesh(here.device.type, (here.size,))
    # From the inside out, as fully_shard must be applied.
    for part in reversed(list(module.modules())):
        for block in part if isinstance(part, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


@contextmanager
def summing(module: nn.Module, last: bool) -> Iterator[None]:
    """Within, a backward pass leaves gradients with each process, unless it is the `last` part."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def whole_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of one process: names and whole tensors on the CPU.

    All processes must call it; with shards, all but the first get nothing.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {
        "model": get_model_state_dict(model, options=options),
        "optimiser": get_optimizer_state_dict(model, optimiser, options=options),
    }


def restore(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    state: Mapping[str, Any],
    here: World,
) -> None:
    """Take up what `whole_state` gave, which the first process alone must have."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=here.size > 1)
    set_model_state_dict(model, state.get("model", {}), options=options)
    set_optimizer_state_dict(model, optimiser, state.get("optimiser", {}), options=options)
