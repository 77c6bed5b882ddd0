"""Parts: whole or absent, in order, with what is needed to go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cedilla.errors import InputError
from cedilla.inference.parts import Parts, differences, refuse_changes

FACTS = {"sha256": {"input": "a" * 64, "model": "m"}, "settings": {"layers": [5]}, "input": "x"}


def test_parts_come_back_in_order_with_the_last_carry(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "emb.parquet")
    assert not parts.exists()
    parts.begin(FACTS)
    assert parts.exists()
    assert (parts.count(), parts.size()) == (0, 0)
    for number in range(12):
        carry = {"total": np.array([number / 3]), "pending": np.empty((0, 2), np.float32)}
        parts.save(number, pa.table({"n": pa.array([number] * (number % 3), pa.int64())}), carry)
    again = Parts(tmp_path / "emb.parquet")
    assert again.facts == FACTS
    assert again.count() == 12
    assert again.size() > 0
    assert pa.concat_tables(again.tables()).to_pydict() == {
        "n": [n for n in range(12) for _ in range(n % 3)]
    }
    assert again.carry(11)["total"] == 11 / 3
    assert again.carry(11)["pending"].shape == (0, 2)
    again.discard()
    assert not list(tmp_path.iterdir())


def test_drafts_of_a_killed_process_are_no_parts(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "emb.parquet")
    parts.begin(FACTS)
    draft = parts.folder / ".00000000.arrow.123.part.arrow"
    draft.write_text("half")
    assert parts.count() == 0
    parts.sweep()
    assert not draft.exists()
    assert parts.exists()


def test_a_new_beginning_forgets_the_old(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "emb.parquet")
    parts.begin(FACTS)
    parts.save(0, pa.table({"n": [1]}), {})
    parts.begin(FACTS)
    assert parts.count() == 0


def test_what_makes_another_result_is_named() -> None:
    now = {"sha256": {"input": "b" * 64, "model": "m"}, "settings": {"layers": [2], "dtype": "f"}}
    with pytest.raises(InputError) as caught:
        refuse_changes(Path("emb.parquet"), FACTS, now)
    assert [p.what for p in caught.value.problems] == [
        "was begun with another input: aaaaaaaaaaaa… → bbbbbbbbbbbb…",
        "was begun with another layers: [5] → [2]",
        "was begun with another dtype: none → f",
    ]
    refuse_changes(Path("emb.parquet"), FACTS, FACTS | {"input": "y"})
    assert not differences(FACTS, FACTS)


def test_parts_from_the_first_damaged_one_on_are_given_up(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "emb.parquet")
    parts.begin(FACTS)
    for number in range(5):
        parts.save(number, pa.table({"n": [number]}), {})
    assert parts.sweep() == 0
    damaged = parts.folder / "00000002.arrow"
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert parts.sweep() == 3
    assert [table.to_pydict() for table in parts.tables()] == [{"n": [0]}, {"n": [1]}]
