"""A model as an ONNX file, for runtimes without PyTorch, with its vocabulary in it."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from cedilla.dna.tokenizer import CLS, MASK, Tokenizer, pad
from cedilla.errors import InputError
from cedilla.files import whole_file
from cedilla.models.cards import ALIASES, CARDS
from cedilla.models.families import Config, LanguageModel
from cedilla.models.hybrid import HybridConfig
from cedilla.models.zoo import directory, load
from cedilla.progress import console
from cedilla.version import __version__

if TYPE_CHECKING:
    import onnx_ir

NEEDS = ("onnx", "onnxruntime", "onnxscript")
INPUTS = ("input_ids", "attention_mask")
TOLERANCE = 1e-4
# A file of the format, which is a protobuf message, holds 2 GiB at most, the graph included.
LARGEST_FILE = 2**31 - 2**24
TOKENIZATION = (
    "upper case, U as T; cut at every N, which is a token; each piece in k-mers from its left, the "
    "remainder base by base; <cls> in front, nothing behind, <pad> on the right with attention 0; "
    "ids are positions in the vocabulary"
)


def models_export(
    source: str, *, out: Path, hidden_states: bool = False, dry_run: bool = False
) -> Path:
    """Write a model as an ONNX file, and prove with onnxruntime that it gives the same numbers.

    Inputs: input_ids and attention_mask, int64 (batch, length), of any batch and of any length up
    to the model's. Outputs, float32: logits (batch, length, vocabulary) and last_hidden_state
    (batch, length, width), after the final LayerNorm. The file's metadata hold the name, licence,
    vocabulary, k and version, so that it can be used without Cedilla. Weights of more than 2 GB
    stand in a second file, OUT.data, which must stay beside the first.

    Parameters
    ----------
    source
        A name of `cedilla models`, or a directory with a model.
    out
        The file to write, such as mini.onnx.
    hidden_states
        Add the output hidden_states (layers + 1, batch, length, width): the embeddings, then what
        each block gives, the last one normalised.
    dry_run
        Say what would be written, and stop.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        An extra is not installed, `out` is there already, or a number of the file differs from
        the model's by more than 1e-4; then no file is left.
    MissingData
        The source is a name whose weights cannot be had.

    Examples
    --------
    cedilla models export mini --out mini.onnx
    """
    _refuse_without_extra()
    if out.suffix != ".onnx":
        raise InputError.one(out, "does not end in .onnx", "name it so that runtimes take it")
    data = out.with_name(f"{out.name}.data")
    for path in (out, data):
        if path.exists():
            raise InputError.one(path, "is there already", "choose another --out")
    model = load(source)
    size = sum(p.numel() * 4 for p in model.parameters())
    if dry_run:
        console.print(_estimate(size))
        return out
    external = data.name if size > LARGEST_FILE else None
    graph = _graph(model, hidden_states=hidden_states)
    graph.metadata_props.update(_metadata(source, model.config))
    try:
        with whole_file(out) as draft:
            _save(graph, draft, external)
            differences = _differences(model, draft, hidden_states=hidden_states)
            _refuse_difference(out, differences)
    except BaseException:
        data.unlink(missing_ok=True)
        raise
    worst = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    said = f"{out}: equal to the model up to {worst} (largest absolute difference)"
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    return out


def _estimate(size: int) -> str:
    """What an export of `size` bytes of weights would take."""
    # Measured at 0.2 GB: the graph, the file and the runtime hold the weights once each, or twice.
    return (
        f"{size / 1e6:,.1f} MB to write, about {(10 + size / 1e7) / 60:.1f} minutes and "
        f"{5 * size / 1e9 + 0.5:.1f} GB of memory"
    )


class _Outputs(nn.Module):
    """A model with the inputs and outputs of the file."""

    def __init__(self, model: LanguageModel, *, hidden_states: bool) -> None:
        super().__init__()
        self.model = model
        self.hidden_states = hidden_states

    @property
    def names(self) -> list[str]:
        """Of the outputs."""
        return ["logits", "last_hidden_state"] + ["hidden_states"] * self.hidden_states

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        out = self.model(input_ids, attention_mask, hidden_states=self.hidden_states)
        states = out.hidden_states
        return (out.logits, out.hidden) + ((torch.stack(states),) if states else ())


def _graph(model: LanguageModel, *, hidden_states: bool) -> onnx_ir.Model:
    outputs = _Outputs(model, hidden_states=hidden_states).eval()
    batch = torch.export.Dim("batch")
    length = torch.export.Dim("length", min=_shortest(model.config), max=model.config.max_tokens)
    ids, mask = _samples(model.config)[-1]
    with _quiet():
        program = torch.onnx.export(
            outputs,
            (ids, mask.long()),
            dynamo=True,
            verbose=False,
            input_names=INPUTS,
            output_names=outputs.names,
            dynamic_shapes={name: {0: batch, 1: length} for name in INPUTS},
        )
    assert program is not None
    return program.model


def _metadata(source: str, config: Config) -> dict[str, str]:
    """What a user of the file must know, as text."""
    name = ALIASES.get(source, source)
    known = name in CARDS and not (Path(source) / "config.json").exists()
    tokenizer = Tokenizer(config.k, version=config.version, max_tokens=config.max_tokens)
    return {
        "name": name if known else directory(source).resolve().name,
        "licence": CARDS[name].licence if known else "unknown",
        "version": str(config.version),
        "k": str(config.k),
        "max_tokens": str(config.max_tokens),
        "vocabulary": json.dumps(tokenizer.vocabulary),
        "tokenization": TOKENIZATION,
        "exported_by": f"cedilla {__version__}",
    }


def _save(graph: onnx_ir.Model, path: Path, external: str | None) -> None:
    """Write the file and, with a name in `external`, its weights beside it."""
    import onnx_ir

    onnx_ir.save(graph, path, external_data=external)


@torch.no_grad()
def _differences(model: LanguageModel, path: Path, *, hidden_states: bool) -> dict[str, float]:
    """The largest absolute difference of each output, over samples of several shapes."""
    import onnxruntime

    outputs = _Outputs(model, hidden_states=hidden_states)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = dict.fromkeys(outputs.names, 0.0)
    for ids, mask in _samples(model.config):
        feed = dict(zip(INPUTS, (ids.numpy(), mask.long().numpy()), strict=True))
        pairs = zip(outputs.names, outputs(ids, mask), session.run(None, feed), strict=True)
        for name, ours, theirs in pairs:
            gap = (ours - torch.from_numpy(theirs)).abs()[..., mask, :].max().item()
            # Not `max`, which would let a NaN pass.
            found[name] = gap if not gap <= found[name] else found[name]
    return found


def _samples(config: Config) -> list[tuple[Tensor, Tensor]]:
    """ids and mask of batches of one and many, short and long, with pads and ``<mask>``."""
    rng = np.random.default_rng(0)
    longest = config.max_tokens
    first = len(Tokenizer(config.k, version=config.version).special)
    batches = []
    one = _shortest(config)
    for lengths in (
        [one],
        [2],
        [7],
        [min(longest, 400)],
        [min(longest, n) for n in (9, one, 33, 20)],
    ):
        rows = [rng.integers(first, config.vocab_size, n, dtype=np.int32) for n in lengths]
        for row in rows:
            row[rng.random(len(row)) < 0.15] = MASK
            row[0] = CLS
        batches.append(pad(rows))
    return batches


def _shortest(config: Config) -> int:
    """Tokens of the shortest input: a hybrid's ``<cls>`` is the mean over one base at least."""
    return 2 if isinstance(config, HybridConfig) else 1


def _refuse_difference(out: Path, differences: dict[str, float]) -> None:
    wrong = [f"{n} {value:.1e}" for n, value in differences.items() if not value <= TOLERANCE]
    if wrong:
        what = f"differs from the model: {', '.join(wrong)}; {TOLERANCE} is allowed"
        raise InputError.one(out, what, "try other versions of onnxruntime and torch")


def _refuse_without_extra() -> None:
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        what = f"{', '.join(missing)} not installed"
        raise InputError.one("cedilla models export", what, "pip install 'cedilla[onnx]'")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's words about deprecated parts of torch, which it uses itself, and
    about libraries that are not needed."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
