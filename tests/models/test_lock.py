"""The record of fetched files: what changed is found, what did not is not read again."""

from __future__ import annotations

import os
import shutil

import pytest

from cedilla.errors import InputError
from cedilla.models import lock
from cedilla.models.lock import LOCK, altered, read_lock, refuse_altered, write_lock


@pytest.fixture
def locked(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    write_lock(tmp_path, repository="some/model", revision="f" * 40, hashes={"b": "", "a": ""})
    return tmp_path


def problems(folder, **options):
    return [
        str(problem).replace(f"{folder}/", "")
        for problem in altered(folder, read_lock(folder), **options)
    ]


def test_a_record_is_read_as_it_was_written(locked):
    found = read_lock(locked)
    assert (found.repository, found.revision) == ("some/model", "f" * 40)
    assert list(found.files) == ["a", "b"]
    assert found.files["a"].bytes == 100
    assert problems(locked) == problems(locked, thorough=True) == []


def test_every_changed_file_is_named(locked):
    (locked / "a").write_bytes(b"c" * 100)
    (locked / "b").write_bytes(b"b" * 99)
    mend = "fetch it again, or remove cedilla.lock.json if you changed it on purpose"
    first, second = problems(locked)
    assert first.startswith("a: altered: its sha256 is ")
    assert second == f"b: has 99 bytes, 100 when it was fetched; {mend}"
    (locked / "a").unlink()
    assert problems(locked)[0] == f"a: not found; {mend}"
    with pytest.raises(InputError, match="not found"):
        refuse_altered(locked)


def test_a_change_behind_the_time_of_change_needs_a_thorough_look(locked):
    before = (locked / "a").stat()
    (locked / "a").write_bytes(b"c" * 100)
    os.utime(locked / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert problems(locked) == []
    assert len(problems(locked, thorough=True)) == 1


def test_unchanged_files_are_not_hashed_again(locked, monkeypatch):
    monkeypatch.setattr(lock, "sha256", lambda _: pytest.fail("hashed"))
    assert problems(locked) == []


def test_a_copy_is_as_good(locked, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "model"
    shutil.copytree(locked, copy, copy_function=shutil.copyfile)
    assert problems(copy) == []


def test_without_a_record_there_is_nothing_to_refuse(tmp_path):
    assert read_lock(tmp_path) is None
    refuse_altered(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": {"a": {}}}'])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(InputError, match=r"cedilla.lock.json: damaged: .*; remove it"):
        read_lock(tmp_path)
