"""Tables of predictions: one row a sequence, labels beside what the model says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cedilla.dna.tables import SequenceTable
from cedilla.training.splits import labels_of
from cedilla.training.targets import Target


def predictions_frame(
    table: SequenceTable, target: Target, predictions: Any, *, split: str, seed: int
) -> pd.DataFrame:
    """Labels and predictions of a table's rows, by the target's kind.

    ================  ==================================================================
    classes           ``label``, ``probability`` (of class 1), or ``probability_0``, …
    multilabel        ``label_NAME`` and ``probability_NAME`` a column
    regression        ``label_NAME`` and ``prediction_NAME`` a column
    fraction          the same
    per_base          lists: ``label``, and ``probability_0``, … a class
    ================  ==================================================================
    """
    columns = {"id": table.ids} | label_columns(target, labels_of(table))
    columns |= prediction_columns(target, predictions)
    columns |= {"split": split, "seed": seed, "group": None, "block": None}
    return pd.DataFrame(columns)


def label_columns(target: Target, labels: np.ndarray) -> dict[str, Any]:
    """The labels by column."""
    if target.kind in ("classes", "per_base"):
        return {"label": list(labels) if labels.dtype == object else labels}
    return {f"label_{name}": labels[:, i] for i, name in enumerate(target.names)}


def prediction_columns(target: Target, predictions: Any) -> dict[str, Any]:
    """The predictions by column."""
    if target.kind == "per_base":
        return {
            f"probability_{c}": [np.asarray(row[:, c], dtype=np.float32) for row in predictions]
            for c in range(target.outputs)
        }
    if target.kind == "classes":
        if target.outputs == 2:
            return {"probability": predictions[:, 1]}
        return {f"probability_{c}": predictions[:, c] for c in range(target.outputs)}
    word = "probability" if target.kind == "multilabel" else "prediction"
    return {f"{word}_{name}": predictions[:, i] for i, name in enumerate(target.names)}
