"""Spaces of settings: what a YAML file describes, and all that can be wrong with one at once."""

from __future__ import annotations

import math

import pytest

from cedilla.errors import InputError
from cedilla.training.search_space import Choice, Range, read_space

GOOD = """
fixed: {train: a.csv, dev: b.csv, model: mini, method: lora, label: [y_*, z]}
search:
  learning-rate: {low: 1e-4, high: 1e-2, log: true}
  alpha: {low: 8, high: 32}
  rank: {low: 2, high: 16, step: 2}
  dropout: {low: 0, high: 0.3, step: 0.1}
  pooling: [mean, null]
  targets: [[query, value], dense]
"""
BAD = """
fixd: 3
fixed: {train: a.csv, modle: mini, method: lra, dropout: 2, out: x, epochs: 2}
search:
  learning_rte: [1e-3]
  learning_rate: {lo: 1e-4, high: 1e-2, log: 3}
  rank: {low: 0, high: 16, step: 2}
  pooling: [mean, mea]
  decay: {low: 1, high: 2}
  model: {low: 1, high: 2}
  warmup: {low: 0.5, high: 0.1}
  ema: {low: 0, high: 0.9, log: true}
  clip: {low: 1, high: 2, log: true, step: 0.3}
  rows: [10, 20]
  epochs: {low: 1, high: 2.5}
  gamma: 3
  batch_size: []
  dev_only: [true]
"""


@pytest.fixture
def read(tmp_path):
    def _read(text):
        path = tmp_path / "space.yaml"
        path.write_text(text)
        return read_space(path)

    return _read


@pytest.fixture
def complaints(read, tmp_path):
    def _complaints(text):
        with pytest.raises(InputError) as caught:
            read(text)
        return [str(problem).removeprefix(f"{tmp_path}/") for problem in caught.value.problems]

    return _complaints


def test_ranges_and_choices_have_the_types_of_the_settings(read):
    space = read(GOOD)
    assert space.fixed == {
        "train": "a.csv",
        "dev": "b.csv",
        "model": "mini",
        "method": "lora",
        "label": ["y_*", "z"],
    }
    assert space.search == {
        "learning_rate": Range(low=1e-4, high=1e-2, log=True),  # 1e-4 is a text in YAML
        "alpha": Range(low=8.0, high=32.0),
        "rank": Range(low=2, high=16, step=2),
        "dropout": Range(low=0.0, high=0.3, step=0.1),
        "pooling": Choice(values=("mean", None)),
        "targets": Choice(values=(["query", "value"], ["dense"])),
    }
    assert type(space.search["alpha"].low) is float
    assert type(space.search["rank"].high) is int


def test_how_many_points_there_are(read):
    space = read(GOOD)
    sizes = {name: one.size for name, one in space.search.items()}
    assert sizes == {
        "learning_rate": math.inf,
        "alpha": math.inf,
        "rank": 8,
        "dropout": 4,
        "pooling": 2,
        "targets": 2,
    }
    assert space.size == math.inf
    assert read("search: {epochs: {low: 1, high: 4}, balanced: [true, false]}").size == 8


def test_all_that_is_wrong_is_said_at_once(complaints):
    found = complaints(BAD)
    expected = [
        "space.yaml: there is no key fixd; did you mean fixed?",
        "space.yaml fixed: out is set by the search; remove it",
        "space.yaml search: dev_only is set by the search; remove it",
        "space.yaml search: with several values of rows, scores on dev would not compare",
        "space.yaml: epochs is both fixed and searched; remove one",
        "space.yaml fixed: there is no setting modle; did you mean model?",
        'space.yaml fixed: invalid value "lra" for method',
        "space.yaml search: there is no setting learning_rte; did you mean learning_rate?",
        "space.yaml search: learning_rate: a range has no lo; did you mean low?",
        "space.yaml search: learning_rate: low missing; write {low: …, high: …}",
        "space.yaml search: learning_rate: log is 3; write true or false",
        'space.yaml search: invalid value "mea" for pooling',
        'space.yaml search: invalid value "1" for decay',
        'space.yaml search: invalid value "2" for decay',
        "space.yaml search: model is no number, and has no range; write a list of choices",
        "space.yaml search: warmup: low 0.5 is not below high 0.1",
        "space.yaml search: ema: low 0.0 has no logarithm; start above 0",
        "space.yaml search: clip: has a step and a logarithm; choose one of them",
        "space.yaml search: clip: steps of 0.3 from 1.0 do not end at 2.0; change one of them",
        "space.yaml search: invalid value for epochs: 2.5 is no whole number",
        "space.yaml search: gamma: 3 is no range; write {low: …, high: …} or a list of choices",
        "space.yaml search: batch_size has no choices",
        "space.yaml: rank 0 is impossible; 1 at least",
        "space.yaml: dropout 2.0 is impossible; from 0 to below 1",
    ]
    for problem, start in zip(found, expected, strict=True):
        assert problem.startswith(start)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "space.yaml: has no settings; write fixed: and search:, each a mapping"),
        ("- a", "space.yaml: has no settings"),
        ("fixed: {model: mini}", "space.yaml: has nothing to search"),
        ("search: [rank]", "space.yaml: search is no mapping of settings"),
        ("search: {rank: [1], rank: [2]}", "space.yaml line 1: is not YAML: the key 'rank' stands"),
        ("search: {rank: {low: 1, high: 4, step: 0}}", "space.yaml search: rank: step 0 is not"),
        ("search: {model: [kmer, mini]}", "space.yaml: the model kmer has no settings to choose"),
        ("search: {rank: [2, 4]}", "space.yaml: rank does nothing with method full; leave it out"),
        ("search: {patience: [0, 3]}", "space.yaml: patience waits for a better metric"),
        ("{fixed: {model: kmer}, search: {rank: [1, 2]}}", "space.yaml: the model kmer has no"),
    ],
)
def test_what_is_no_space(complaints, text, said):
    assert complaints(text)[0].startswith(said)


def test_a_trial_has_the_settings_of_its_method_alone(read):
    space = read("{fixed: {top_layers: 3}, search: {method: [full, lora, top], rank: [2, 4]}}")
    assert space.settings({"method": "full", "rank": 2}) == {"method": "full"}
    assert space.settings({"method": "lora", "rank": 2}) == {"method": "lora", "rank": 2}
    assert space.settings({"method": "top", "rank": 2}) == {"method": "top", "top_layers": 3}
    assert space.chosen({"method": "top", "rank": 2}) == {"method": "top"}
    assert space.chosen({"method": "lora", "rank": 2}) == {"method": "lora", "rank": 2}
