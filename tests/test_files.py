"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import hashlib
import os
import stat

import pytest

from cedilla import files
from cedilla.files import sha256, whole_file, write_json, write_text


def left_in(path):
    return sorted(p.name for p in path.iterdir())


def test_a_file_appears_whole_in_folders_that_are_made(tmp_path):
    target = tmp_path / "a" / "b" / "table.csv.gz"
    with whole_file(target) as draft:
        assert draft.parent == target.parent
        assert draft.suffix == ".gz"  # writers choose their format by it
        draft.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert left_in(target.parent) == ["table.csv.gz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_no_draft(tmp_path, error):
    target = tmp_path / "x.txt"
    target.write_text("old")

    def write():
        with whole_file(target) as draft:
            draft.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert target.read_text() == "old"
    assert left_in(tmp_path) == ["x.txt"]


def test_a_result_is_as_readable_as_any_other_file(tmp_path):
    with whole_file(tmp_path / "private") as draft:
        os.close(os.open(draft, os.O_CREAT | os.O_WRONLY, 0o600))
    (tmp_path / "usual").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("private", "usual")}
    assert len(modes) == 1


def test_text_is_utf8_and_json_is_strict(tmp_path):
    write_text(tmp_path / "a.txt", "β ≥ 0.5")
    assert (tmp_path / "a.txt").read_bytes().decode() == "β ≥ 0.5"
    write_json(tmp_path / "a.json", {"ç": [1, None]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8").startswith('{\n  "ç"')
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "a.json", {"x": number})
    assert left_in(tmp_path) == ["a.json", "a.txt"]


def test_the_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"ACGT" * 100_000)
    assert sha256(tmp_path / "x") == hashlib.sha256(b"ACGT" * 100_000).hexdigest()


def test_the_cache_follows_the_platform(monkeypatch, tmp_path):
    monkeypatch.delenv("CEDILLA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for platform in ("linux", "darwin", "win32"):
        monkeypatch.setattr(files.sys, "platform", platform)
        assert "cedilla" in files.cache_dir().parts
    monkeypatch.setattr(files.sys, "platform", "linux")
    assert files.cache_dir() == tmp_path / "cedilla"
