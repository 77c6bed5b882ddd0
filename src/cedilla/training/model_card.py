"""The model card: what a fine-tuned model is for, what it was made of, and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cedilla.errors import InputError
from cedilla.files import sha256
from cedilla.models.cards import card
from cedilla.training.label_columns import some
from cedilla.training.loop import LAST
from cedilla.training.plan import Plan
from cedilla.training.splits import Splits
from cedilla.version import __version__

if TYPE_CHECKING:
    from cedilla.training.model_directory import Classifier


def model_card(about: Classifier, plan: Plan, splits: Splits, metrics: Mapping[str, Any]) -> str:
    """The card as Markdown; `metrics` by split, with ``intervals`` where there are some."""
    environment = Environment(
        loader=PackageLoader("cedilla.training", "."), undefined=StrictUndefined, autoescape=False
    )
    scores = {split: metrics[split] for split, _ in splits if split in metrics}
    intervals = metrics.get("intervals", {})

    def cell(split: str, name: str) -> str:
        value, between = scores[split][name], intervals.get(split, {}).get(name)
        text = "–" if math.isnan(value) else f"{value:.3f}"
        return text + (f" [{between[0]:.3f}, {between[1]:.3f}]" if between else "")

    return environment.get_template("model_card.md").render(
        about=about,
        title=f"{', '.join(about.target.columns[:3])}: {about.target.kind}",
        target=str(about.target),
        outputs=some(about.target.names),
        version=__version__,
        data=[
            {"split": s, "file": t.path.name, "rows": len(t), "sha256": sha256(t.path)}
            for s, t in splits
        ],
        trained_on=splits.trained_on,
        settings=_settings(plan),
        chosen=plan.schedule.select != LAST,
        scores=scores,
        names=[name for name, value in scores["dev"].items() if isinstance(value, float)],
        intervals=intervals,
        cell=cell,
        licence=_licence(about.began),
    )


def _settings(plan: Plan) -> dict[str, str]:
    schedule, adapter = plan.schedule, plan.adapter
    found = {"method": plan.method, "trained": str(plan.trainable)}
    if plan.method in ("lora", "dora", "rslora"):
        found["rank, alpha"] = f"{adapter.rank}, {adapter.alpha:g}"
    return found | {
        "learning rate": f"{schedule.learning_rate:.2g}, {schedule.decay}, "
        f"{schedule.warmup:.0%} warm-up",
        "epochs, batch size": f"{schedule.epochs}, {schedule.batch_size}",
        "weight decay, dropout": f"{schedule.weight_decay:g}, {adapter.dropout:g}",
        "epoch kept": "the last" if schedule.select == LAST else f"best {schedule.select} on dev",
        "seed": str(schedule.seed),
    }


def _licence(base: str) -> str:
    try:
        found = card(base)
    except InputError:
        return f"That of `{base}`, which is not known here, binds what is made from it."
    if found.licence.startswith("CC"):
        return f"`{base}` is under {found.licence}: so is what is made from it."
    return f"`{base}` is under {found.licence}."
