"""The catalogue against what is known of GUE, and against the manifest of the real files."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest

from cedilla.errors import InputError
from cedilla.tasks.catalogue import GUE, find_task, tasks

COMMIT = "486343e5212361d6cd7ed03c624f430ed3d5f02e"
DATA = os.environ.get("CEDILLA_DATA")

gue = [task for task in tasks() if task.source is GUE]


def test_gue_has_28_tasks_of_three_files():
    assert len(gue) == 28
    assert all(task.splits == ("train", "dev", "test") for task in gue)
    assert find_task("prom_core_all").file("train").rows == 47_356
    assert find_task("EMP/H3K4me3").file("test").rows == 3_680


def test_every_file_has_a_hash_and_gue_files_a_pinned_address():
    files = [file for task in gue for file in task.files]
    assert len({file.url for file in files}) == len({file.path for file in files}) == 84
    for file in files:
        assert file.url == (
            f"https://raw.githubusercontent.com/wds-seu/DeepGene/{COMMIT}/data/GUE/"
            f"{file.task}/{file.split}.csv"
        )
        assert re.fullmatch("[0-9a-f]{40}", file.git_blob_sha1)
        kind, digits = file.checksum
        assert len(digits) == {"sha256": 64, "git blob sha1": 40}[kind]


def test_a_table_without_an_address_says_where_it_is_from():
    hm27 = find_task("hm27")
    assert hm27.file("all").url is None
    assert "27kanno" in hm27.source.origin
    assert hm27.file("all").checksum[0] == "sha256"


def test_yeast_and_virus_have_no_cpg_methylation():
    without = {task.name for task in tasks() if not task.cpg_methylation}
    assert without == {t.name for t in tasks() if t.name.startswith(("EMP/", "virus/"))}


def test_metric_and_classes():
    assert {t.name for t in gue if t.metric != "mcc"} == {"virus/covid"}
    assert {t.name: t.classes for t in gue if t.classes != 2} == {
        "splice/reconstructed": 3,
        "virus/covid": 9,
    }


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("prom/prom_core_all", "prom/prom_core_all"),
        ("prom_core_all", "prom/prom_core_all"),
        ("gue/prom/prom_core_all", "prom/prom_core_all"),
        ("h3k4me3", "EMP/H3K4me3"),
        ("tf0", "tf/0"),
        ("mouse/0", "mouse/0"),
        ("splice", "splice/reconstructed"),
        ("covid", "virus/covid"),
        ("hm27_gm12878", "methylation/hm27_gm12878"),
    ],
)
def test_tasks_are_found_by_name_and_alias(name, task):
    assert find_task(name).name == task


def test_no_name_stands_for_two_tasks():
    names = [key.lower() for task in tasks() for key in (task.name, *task.aliases)]
    assert len(names) == len(set(names))


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(InputError, match="did you mean prom/prom_core_all"):
        find_task("prom_core_al")
    with pytest.raises(InputError, match="cedilla data list") as error:
        find_task("protein folding")
    assert "did you mean" not in str(error.value)


def test_an_unknown_split_names_those_that_there_are():
    with pytest.raises(InputError, match="it has train, dev, test"):
        find_task("tf/0").file("valid")


def test_tasks_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        find_task("tf/0").classes = 3


@pytest.mark.skipif(DATA is None, reason="CEDILLA_DATA is not set")
def test_the_catalogue_equals_the_manifest():
    manifest = pd.read_csv(Path(DATA) / "gue" / "MANIFEST.csv")
    files = {(file.task, file.split): file for task in gue for file in task.files}
    assert len(manifest) == len(files)
    for row in manifest.itertuples():
        file = files[row.task, row.split]
        assert (file.rows, file.git_blob_sha1) == (row.expected_rows, row.git_blob_sha1)
        if not pd.isna(row.rows):
            assert (file.sha256, file.bytes) == (row.sha256_csv, row.bytes)
            lengths = row.maxlen, len(json.loads(row.labels))
            assert lengths == (find_task(row.task).length, find_task(row.task).classes)
