"""Between Cedilla's layout of a model and Hugging Face's, without loss."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cedilla.errors import InputError
from cedilla.files import write_json, write_text
from cedilla.models.cards import ALIASES, CARDS, ModelCard
from cedilla.models.families import Config, family_of
from cedilla.models.hugging_face import CODE, dead_weights, settings, tokenizer_files
from cedilla.models.lock import read_lock, refuse_altered
from cedilla.models.nucleotide_transformer import NTConfig
from cedilla.models.shards import KINDS, Stored, grouped, tensors, write_shards
from cedilla.models.weights import is_dead, read_config, read_headers, write_config
from cedilla.models.zoo import directory
from cedilla.progress import progress_bar
from cedilla.version import __version__

Layout = Literal["hf", "cedilla"]
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def models_convert(
    source: str,
    *,
    out: Path,
    to: Layout,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    shard_size: str = "5GB",
    dry_run: bool = False,
) -> Path:
    """Write a model in the layout of Hugging Face, or of Cedilla.

    hf is what transformers reads: config.json, the tokenizer's files, and weights with those that
    the published code expects and does not use. Version 1 loads in transformers as it is; version 2
    needs InstaDeep's published code, as the README.md that is written says.
    cedilla is config.json and the weights that the model uses; others are kept only if they could
    not be written again. Both are safetensors. To one layout and back gives the same weights, bit
    for bit.

    Parameters
    ----------
    source
        A directory with a model in either layout, or a name of `cedilla models`.
    out
        The directory to write.
    to
        The layout.
    dtype
        How the weights are stored; by default as in the source.
    shard_size
        The largest size of a weight file, such as 500MB or 2GB.
    dry_run
        Say what would be written, and stop.

    Returns
    -------
    Path
        The directory.

    Raises
    ------
    InputError
        The source is no model or damaged, or `out` holds a model already.
    MissingData
        The source is a name whose weights cannot be had.

    Examples
    --------
    cedilla models convert my_model --to hf --out my_model_hf
    cedilla models convert my_model_hf --to cedilla --out my_model --dtype bfloat16
    """
    limit = _bytes(shard_size)
    path = directory(source)
    if out.exists() and not out.is_dir():
        raise InputError.one(out, "is not a directory", "choose another --out")
    for name in ("config.json", *KINDS):
        if (out / name).exists():
            raise InputError.one(out / name, "is there already", "choose another --out")
    refuse_altered(path)
    config = read_config(path / "config.json")
    if to == "hf":
        _refuse_without_counterpart(config, path / "config.json")
    asked: torch.dtype | None = getattr(torch, dtype) if dtype else None
    plan = _plan(config, read_headers(path, config, dead=True), to, asked)
    if dry_run:
        print(_summary(plan, out, limit))
        return out
    out.mkdir(parents=True, exist_ok=True)
    with progress_bar(transient=True) as bar:
        row = bar.add_task("weights", total=len(plan.dtypes))

        def take(names: Sequence[str]) -> dict[str, Tensor]:
            bar.advance(row, len(names))
            return plan.take(names)

        write_shards(plan.sizes, take, out, limit)
    found = _card_of(source, path)
    _write_texts(plan, out, found.name if found else path.name, found)
    print(out)
    return out


def _refuse_without_counterpart(config: Config, path: Path) -> None:
    what = ""
    if not isinstance(config, NTConfig):
        what = f"is a {family_of(config).title}, which no code in Hugging Face's layout can read"
    elif config.rope_scaling:
        what = "has rescaled rotary positions, which the published code does not know"
    if what:
        raise InputError.one(path, what, "use it in Cedilla, or `cedilla models export` it")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """Which weights are written, from where, and in which type.

    stored: the source's weights; made: those that are written without being in the source.
    dtypes, sizes: type and bytes of everything that is written, in order.
    """

    config: Config
    to: Layout
    stored: dict[str, Stored]
    made: dict[str, Tensor]
    dtypes: dict[str, torch.dtype]

    @property
    def sizes(self) -> dict[str, int]:
        shapes = {n: w.shape for n, w in self.stored.items()} | {
            n: tuple(w.shape) for n, w in self.made.items()
        }
        return {n: torch.Size(shapes[n]).numel() * t.itemsize for n, t in self.dtypes.items()}

    @property
    def dtype(self) -> torch.dtype:
        """That of the first weight, which stands for all of them."""
        return next(iter(self.dtypes.values()))

    def take(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Weights by name, as they are to be written."""
        chosen = {name: self.stored[name] for name in names if name in self.stored}
        made = [(name, self.made[name]) for name in names if name in self.made]
        return {name: self._cast(name, w) for name, w in chain(tensors(chosen), made)}

    def _cast(self, name: str, weight: Tensor) -> Tensor:
        cast = torch.empty(weight.shape, dtype=self.dtypes[name]).copy_(weight)
        if self.dtypes[name] == torch.float16 and bool(cast.isinf().any() > weight.isinf().any()):
            where = self.stored[name].file if name in self.stored else name
            what = f"{name} has values beyond float16's range"
            raise InputError.one(where, what, "choose --dtype bfloat16 or float32")
        return cast


def _plan(
    config: Config, stored: Mapping[str, Stored], to: Layout, asked: torch.dtype | None
) -> _Plan:
    usual = dead_weights(config) if isinstance(config, NTConfig) else {}
    # What `--to hf` writes anyway is not carried along.
    there = {name: stored[name] for name in usual.keys() & stored.keys()}
    redundant = {name for name, w in tensors(there) if torch.equal(w, usual[name].to(w.dtype))}
    kept = {name: where for name, where in stored.items() if name not in redundant}
    made = {name: w for name, w in usual.items() if name not in kept} if to == "hf" else {}
    first = next(iter(kept.values())).dtype
    dtypes = {name: where.dtype for name, where in kept.items()}
    dtypes |= dict.fromkeys(made, first)
    if asked:
        dtypes = {n: asked if t.is_floating_point else t for n, t in dtypes.items()}
    # In bfloat16 the angles of far positions would be wrong by whole turns.
    dtypes |= {name: torch.float32 for name in dtypes if name.endswith("inv_freq")}
    return _Plan(config=config, to=to, stored=kept, made=made, dtypes=dtypes)


def _write_texts(plan: _Plan, out: Path, title: str, found: ModelCard | None) -> None:
    """The configuration last: until it is there, the directory is no model."""
    write_text(out / "README.md", _readme(plan, title, found))
    config = plan.config
    if plan.to == "hf" and isinstance(config, NTConfig):
        for name, text in tokenizer_files(config).items():
            write_text(out / name, text)
        write_json(out / "config.json", settings(config, plan.dtype))
        return
    if isinstance(config, NTConfig) and config.gated == config.rotary:
        config = replace(config, add_bias_fnn=None)  # as the family has it
    write_config(out, config)


def _readme(plan: _Plan, title: str, found: ModelCard | None) -> str:
    config = plan.config
    licence = "cc-by-nc-sa-4.0" if found and found.repository else "apache-2.0" if found else None
    head = [f"license: {licence}", "tags: [DNA, biology, genomics]"] if licence else []
    origin = f"https://huggingface.co/{found.repository}" if found and found.repository else ""
    rights = f"under {found.licence}" if found else "under the licence of its source"
    stored = str(plan.dtype).removeprefix("torch.")
    return "\n".join(
        [
            *(["---", *head, "---", ""] if head else []),
            f"# {title}",
            "",
            *_described(config),
            f"stored in {stored}, {rights}.",
            f"Converted by Cedilla {__version__}{f' from {origin}' if origin else ''}.",
            "",
            *(
                _hugging_face_use(config)
                if plan.to == "hf" and isinstance(config, NTConfig)
                else CEDILLA_USE
            ),
            "",
        ]
    )


def _described(config: Config) -> list[str]:
    if isinstance(config, NTConfig):
        return [
            f"A Nucleotide Transformer v{config.version} of {config.num_hidden_layers} layers of "
            f"width {config.hidden_size},",
            f"over {config.k}-mers,",
        ]
    return [
        f"A hybrid of convolutions and {config.num_hidden_layers} Transformer layers of width "
        f"{config.block_size},",
        "over single bases,",
    ]


CEDILLA_USE = ["```python", "import cedilla", 'model = cedilla.load("this directory")', "```"]


def _hugging_face_use(config: NTConfig) -> list[str]:
    remote = ", trust_remote_code=True" if config.gated else ""
    if config.gated:
        note = [
            f"The architecture is not part of transformers. Its code is that of {CODE}",
            "(modeling_esm.py and esm_config.py): `auto_map` in config.json names it, and",
            "transformers before version 5 downloads it. Without a connection, put both files here",
            "and remove from `auto_map` what stands before each `--`.",
        ]
    else:
        note = [
            "transformers up to 4.55.4 gives right logits. 4.56 to 5.0 count pads as tokens where",
            "an input has both pads and `<mask>`.",
        ]
    return [
        *note,
        "",
        "```python",
        "from transformers import AutoModelForMaskedLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("this directory")',
        f'model = AutoModelForMaskedLM.from_pretrained("this directory"{remote})',
        "```",
        "",
        "Always pass an attention mask: without one, the model attends to pads.",
    ]


def _card_of(source: str, path: Path) -> ModelCard | None:
    """The card of a source that is known by name, or was fetched from its repository."""
    lock = read_lock(path)
    name = ALIASES.get(lock.repository if lock else source, source)
    return CARDS.get(name) if lock or not Path(source).is_dir() else None


def _summary(plan: _Plan, out: Path, limit: int) -> str:
    groups = [sum(plan.sizes[n] for n in names) for names in grouped(plan.sizes, limit)]
    return "\n".join(
        [
            f"{len(plan.dtypes):,} weights, {sum(groups):,} bytes in {len(groups)} file(s) → {out}",
            f"{sum(is_dead(n, plan.config) for n in plan.dtypes)} of them the model does not use",
            f"memory: {max(groups):,} bytes at a time",
        ]
    )


def _bytes(text: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B)\s*", text, re.IGNORECASE)
    size = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise InputError.one("--shard-size", f"{text!r} is no size", "write 500MB or 2GB")
    return size
