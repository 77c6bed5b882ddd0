"""Distillation: a smaller model learns what a larger one expects, and not the right token alone.

Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531: both distributions are softened by a
temperature T, and the divergence is multiplied by T², which keeps its gradients' size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import InputError
from cedilla.models.zoo import load
from cedilla.training.precision import Precision


class Teacher:
    """A frozen model of the zoo or a directory, for a student of the same tokenizer.

    Raises
    ------
    InputError
        When it reads other tokens than the student, or fewer at a time.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, tokens: int, device: torch.device) -> None:
        self.model = load(name, device=device).requires_grad_(False)
        theirs, where = Tokenizer.for_model(self.model), f"teacher {name!r}"
        if theirs.vocabulary != tokenizer.vocabulary:
            what = f"reads {_read(theirs)}; the student reads {_read(tokenizer)}"
            raise InputError.one(where, what, f"give the student --k {theirs.k}, or choose another")
        if theirs.max_tokens < tokens:
            what = f"takes {theirs.max_tokens:,} tokens; the student learns from {tokens:,}"
            raise InputError.one(where, what, "lower --tokens")

    @torch.no_grad()
    def logits(self, corrupted: Tensor, where: Tensor, precision: Precision) -> Tensor:
        """What it expects (n, V) at the n positions `where` (B, L) of corrupted ids (B, L)."""
        with precision.autocast():
            logits: Tensor = self.model.lm_head(self.model.encode(corrupted)[where])
        return logits


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student) (n,) of logits (n, V) softened by the temperature T."""
    ours = F.log_softmax(student.float() / temperature, dim=-1)
    theirs = F.log_softmax(teacher.float() / temperature, dim=-1)
    parts = F.kl_div(ours, theirs, reduction="none", log_target=True)
    return temperature**2 * parts.sum(-1)


def _read(tokenizer: Tokenizer) -> str:
    return f"{tokenizer.k}-mers with ids of version {tokenizer.version}"
