"""Fine-tuning as a verb: what it learns, writes, refuses, and takes up again."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from cedilla.errors import InputError
from cedilla.metrics.classification import METRICS, classification_metrics
from cedilla.training import finetune as module
from cedilla.training import loop
from cedilla.training.finetune import finetune

FAST = {"epochs": 2, "batch_size": 16, "learning_rate": 5e-3}


def results(out: Path) -> tuple[dict, dict[str, pd.DataFrame]]:
    predictions = {
        split: pd.read_parquet(out / "predictions" / f"{split}.parquet")
        for split in ("train", "dev", "test")
    }
    return json.loads((out / "metrics.json").read_text()), predictions


def epochs(out: Path) -> list[dict]:
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in event.items() if k != "seconds"} for event in events]


def assert_same(a: Path, b: Path) -> None:
    """Two runs agree bit for bit in their numbers, events and predictions."""
    (metrics_a, predictions_a), (metrics_b, predictions_b) = results(a), results(b)
    assert metrics_a == metrics_b
    assert epochs(a) == epochs(b)
    for split, frame in predictions_a.items():
        pd.testing.assert_frame_equal(frame, predictions_b[split], check_exact=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny, request):
    """One complete run of the tiny transformer, read by several tests."""
    from tests_training_tables import tables_in  # noqa: F401
