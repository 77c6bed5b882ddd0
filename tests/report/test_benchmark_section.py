"""Who is better, in words: our models, published ones and our own baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cedilla.report.benchmark_section import Standing, benchmark_sections, headline, standings
from cedilla.report.page import Paragraph
from cedilla.report.results import gather
from cedilla.report.wording import decimal
from cedilla.tasks.published import published

TASK = "prom/prom_core_all"


def stand(path: Path) -> Standing:
    (place,) = standings(gather([path]).results)
    return place


@pytest.mark.parametrize(("strength", "words"), [(3.0, "above all"), (0.2, "higher ones: DNABERT")])
def test_the_headline_says_who_is_higher(
    tmp_path: Path, finetuned: Any, strength: float, words: str
) -> None:
    metrics = finetuned(tmp_path / "a", task=TASK, protocol="same protocol", strength=strength)
    text = headline(stand(tmp_path))
    assert words in text
    assert decimal(metrics["test"]["mcc"]) in text
    assert "on 400 test sequences" in text


def test_published_values_are_those_of_the_catalogue(tmp_path: Path, finetuned: Any) -> None:
    finetuned(tmp_path / "a", task=TASK, protocol="same protocol")
    shown = {score.model: score.value for score in stand(tmp_path).published()}
    table = published(TASK)
    assert shown == dict(zip(table["model"], table["value_0to1"], strict=True))


def test_another_protocol_is_never_compared(tmp_path: Path, finetuned: Any) -> None:
    finetuned(tmp_path / "a", task=TASK, protocol="different split", strength=3.0)
    place = stand(tmp_path)
    assert "not comparable" in headline(place)
    (section,) = benchmark_sections([place])
    texts = " ".join(block.text for block in section.blocks if isinstance(block, Paragraph))
    assert "By another protocol, and so not comparable" in texts
    assert "Published and" not in texts


def test_baselines_are_cnn_kmer_and_random_weights_and_are_told_when_higher(
    tmp_path: Path, finetuned: Any
) -> None:
    run = {"task": TASK, "protocol": "same protocol"}
    finetuned(tmp_path / "mini", strength=0.8, **run)
    finetuned(tmp_path / "cnn", strength=2.0, model="cnn", **run)
    finetuned(tmp_path / "kmer", strength=0.5, model="kmer", epochs=0, **run)
    finetuned(tmp_path / "random", strength=0.4, weights="random", **run)
    finetuned(tmp_path / "less", strength=3.0, model="cnn", task=TASK, protocol="different split")
    place = stand(tmp_path)
    assert place.ours.model == "mini, lora"
    assert [score.model for score in place.baselines()] == [
        "cnn (cnn)",
        "kmer",
        "mini, random weights",
    ]
    assert "Higher among our own baselines: cnn (cnn)" in headline(place)


def test_of_several_models_the_best_on_dev_stands_for_all(tmp_path: Path, finetuned: Any) -> None:
    run = {"task": TASK, "protocol": "same protocol"}
    finetuned(tmp_path / "a", strength=0.6, **run)
    better = finetuned(tmp_path / "b", strength=1.6, seed=1, **run)
    place = stand(tmp_path)
    assert place.ours.model == "mini, lora (b)"
    assert place.ours.value == better["test"]["mcc"]


def test_a_task_that_nobody_published_on(tmp_path: Path, finetuned: Any) -> None:
    finetuned(tmp_path / "a", task="my/own", protocol=None)
    assert "nothing published is at hand" in headline(stand(tmp_path))
