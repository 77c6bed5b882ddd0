"""Finding, checking and downloading files, against a real HTTP server that misbehaves."""

import gzip
import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cedilla.errors import InputError, MissingData
from cedilla.tasks import download
from cedilla.tasks.catalogue import DataFile, find_task, tasks
from cedilla.tasks.download import data_get, data_list, locate

DATA = os.environ.get("CEDILLA_DATA")
CONTENT = b"sequence,label\n" + b"".join(b"%s,%d\n" % (b"ACGT" * 25, i % 2) for i in range(3000))
GIT_SHA1 = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SIZE = len(CONTENT)
HALF = SIZE // 2
PATH = "gue/toy/0/train.csv"


class Server(ThreadingHTTPServer):
    """Answers each request by the next of `answers`, and properly when these are used up."""

    def __init__(self):
        self.answers: list[Callable] = []
        self.ranges: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/train.csv"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.ranges.append(self.headers["Range"])
        (self.server.answers.pop(0) if self.server.answers else serve)(self)

    def log_message(self, *_):
        pass


def send(handler, status, body, *, length=None, start=None):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    if start is not None:
        handler.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
    handler.end_headers()
    handler.wfile.write(body)


def serve(handler):
    start = int((handler.headers["Range"] or "bytes=0-")[6:-1])
    if start >= len(CONTENT):
        send(handler, 416, b"")
    else:
        send(handler, 206 if start else 200, CONTENT[start:], start=start or None)


def break_off(handler, *, after=HALF):
    send(handler, 200, CONTENT[:after], length=len(CONTENT))


def ignore_range(handler):
    send(handler, 200, CONTENT)


def lie(handler, *, by):
    send(handler, 200, CONTENT, length=len(CONTENT) + by)


def serve_something_else(handler):
    send(handler, 200, CONTENT.replace(b"A", b"T"))


def fail(handler, *, status):
    send(handler, status, b"sorry")


@pytest.fixture(autouse=True)
def no_data_but_a_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("CEDILLA_DATA", raising=False)
    monkeypatch.delenv("CEDILLA_OFFLINE", raising=False)
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "BACKOFF", (0.0, 0.0, 0.0))


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def toy(url, *, size: int | None = SIZE, sha256=None):
    file = DataFile(
        task="toy/0",
        split="train",
        path=PATH,
        rows=3000,
        bytes=size,
        git_blob_sha1=GIT_SHA1,
        sha256=sha256,
        url=url,
    )
    return replace(find_task("tf/0"), name="toy/0", aliases=(), files=(file,))


@pytest.fixture
def task(server):
    return toy(server.url)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / PATH


def put(folder: Path, content=CONTENT, path=PATH) -> Path:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)
    return folder / path


@pytest.mark.parametrize("sha256", [None, SHA256])
def test_a_download_lands_in_the_cache_and_is_used_again(server, target, sha256):
    task = toy(server.url, sha256=sha256)
    assert locate(task, "train") == target
    assert target.read_bytes() == CONTENT
    assert [p.name for p in target.parent.iterdir() if p.suffix != ".lock"] == ["train.csv"]
    locate(task, "train")
    assert server.ranges == [None]


def test_a_download_that_breaks_off_is_resumed(server, task, target):
    server.answers = [break_off]
    assert locate(task, "train").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_a_part_left_by_a_killed_process_is_resumed(server, task, target):
    put(target.parent, CONTENT[:1000], "train.csv.part")
    assert locate(task, "train").read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


def test_a_whole_part_left_by_a_killed_process_needs_no_request(server, task, target):
    put(target.parent, CONTENT, "train.csv.part")
    assert locate(task, "train").read_bytes() == CONTENT
    assert server.ranges == []


def test_a_wrong_part_is_thrown_away_and_the_download_starts_anew(server, task, target):
    put(target.parent, b"x" * 1000, "train.csv.part")
    assert locate(task, "train").read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-", None]


def test_a_server_that_ignores_range_sends_the_whole_again(server, task):
    server.answers = [break_off, ignore_range]
    assert locate(task, "train").read_bytes() == CONTENT


def test_a_wrong_length_is_refused_where_the_length_is_known(server, task, target):
    server.answers = [partial(lie, by=100)]
    with pytest.raises(InputError, match="announces") as error:
        locate(task, "train")
    assert f"{len(CONTENT):,}" in str(error.value)
    assert not target.exists()


def test_a_length_too_long_is_settled_by_the_hash(server, target):
    server.answers = [partial(lie, by=100)]
    assert locate(toy(server.url, size=None), "train").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={len(CONTENT)}-"]


def test_a_length_too_short_never_passes_for_the_file(server, target):
    server.answers = [partial(lie, by=-100)]
    with pytest.raises(InputError, match=GIT_SHA1):
        locate(toy(server.url, size=None), "train")
    assert not target.exists()


def test_wrong_bytes_are_refused_with_both_hashes(server, target):
    server.answers = [serve_something_else]
    other = hashlib.sha256(CONTENT.replace(b"A", b"T")).hexdigest()
    with pytest.raises(InputError, match=f"{other}, expected {SHA256}") as error:
        locate(toy(server.url, sha256=SHA256), "train")
    assert not isinstance(error.value, MissingData)
    assert not target.exists()
    assert not target.with_name("train.csv.part").exists()


def test_not_found_is_not_tried_again(server, task, tmp_path):
    server.answers = [partial(fail, status=404)]
    with pytest.raises(MissingData, match="HTTP 404") as error:
        locate(task, "train")
    assert len(server.ranges) == 1
    message = str(error.value)
    for part in ("toy/0 train", str(tmp_path / "cache"), "CEDILLA_DATA", server.url, GIT_SHA1):
        assert part in message


def test_a_busy_server_is_tried_again(server, task):
    server.answers = [partial(fail, status=503), partial(fail, status=429)]
    assert locate(task, "train").read_bytes() == CONTENT
    assert len(server.ranges) == 3


def test_a_server_that_always_breaks_off_is_given_up_and_the_part_kept(server, target):
    server.answers = [break_off, *[partial(fail, status=500)] * 3]
    with pytest.raises(MissingData, match="HTTP 500"):
        locate(toy(server.url), "train")
    assert len(server.ranges) == 4
    assert target.with_name("train.csv.part").stat().st_size == HALF


def test_two_processes_download_once(server, task):
    threads = [threading.Thread(target=locate, args=(task, "train")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.ranges == [None]


@pytest.mark.parametrize("flag", ["1", "true"])
def test_offline_nothing_is_downloaded(server, task, monkeypatch, flag):
    monkeypatch.setenv("CEDILLA_OFFLINE", flag)
    with pytest.raises(MissingData, match="CEDILLA_OFFLINE is set"):
        locate(task, "train")
    assert server.ranges == []
    monkeypatch.setenv("CEDILLA_OFFLINE", "0")
    locate(task, "train")


def test_no_server_no_name_no_scheme_no_address(task):
    for url, reason in [
        ("http://127.0.0.1:1/train.csv", "refused"),
        ("http://name.invalid/train.csv", "name.invalid"),
        ("ftp://127.0.0.1/train.csv", "neither http, https nor file"),
        (None, "no public address"),
    ]:
        with pytest.raises(MissingData, match=reason):
            locate(toy(url), "train")


def test_a_file_address_is_copied(tmp_path, target):
    source = put(tmp_path / "mirror")
    assert locate(toy(source.as_uri()), "train") == target
    assert target.read_bytes() == CONTENT


def test_places_are_tried_in_order(tmp_path, task, monkeypatch):
    folders = {name: tmp_path / name for name in ("dir", "data", "cache")}
    monkeypatch.setenv("CEDILLA_DATA", str(folders["data"]))
    expected = [put(folder) for folder in folders.values()]
    for path in expected:
        assert locate(task, "train", data_dir=folders["dir"]) == path
        path.unlink()


@pytest.mark.parametrize("path", [PATH, "GUE/toy/0/train.csv", "toy/0/train.csv"])
@pytest.mark.parametrize("packed", [False, True])
def test_layouts_of_a_folder(tmp_path, task, path, packed):
    content = gzip.compress(CONTENT) if packed else CONTENT
    expected = put(tmp_path, content, path + ".gz" * packed)
    assert locate(task, "train", data_dir=str(tmp_path)) == expected


def test_a_file_with_another_hash_is_refused(tmp_path, task):
    path = put(tmp_path, CONTENT[:-1])
    found = hashlib.sha1(b"blob %d\0" % (len(CONTENT) - 1) + CONTENT[:-1]).hexdigest()
    with pytest.raises(InputError, match=f"{path}.*{found}, expected {GIT_SHA1}.*move it away"):
        locate(task, "train", data_dir=tmp_path)


def test_a_truncated_gzip_is_refused(tmp_path, task):
    path = put(tmp_path, gzip.compress(CONTENT)[:-20], PATH + ".gz")
    with pytest.raises(InputError, match=f"{path}.*cannot be read"):
        locate(task, "train", data_dir=tmp_path)


def test_a_folder_that_is_none_is_refused(tmp_path, task):
    with pytest.raises(InputError, match="is not a folder; check --data-dir"):
        locate(task, "train", data_dir=tmp_path / "typo")


def test_a_cache_that_cannot_be_written_is_named(tmp_path, task, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot be written.*CEDILLA_CACHE"):
        locate(task, "train")


def test_a_table_without_address_says_how_to_get_it():
    with pytest.raises(MissingData, match=r"hm27_seq_beta_gm12878.parquet.*27kanno"):
        locate("hm27", "all")


def test_list_prints_one_line_a_task(tmp_path, capsys):
    put(tmp_path, path="gue/tf/0/dev.csv.gz")
    data_list(data_dir=tmp_path)
    lines = capsys.readouterr().out.splitlines()
    for task in tasks():
        (line,) = [line for line in lines if line.startswith(f"{task.name} ")]
        rows = "/".join(str(file.rows) for file in task.files)
        assert rows in line
        assert ("data dir, no train, no test" if task.name == "tf/0" else "not here") in line


@pytest.mark.skipif(DATA is None, reason="CEDILLA_DATA is not set")
def test_get_prints_where_the_files_are(capsys):
    data_get("mouse3", data_dir=DATA)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [
        "mouse/3 train",
        "mouse/3 dev",
        "mouse/3 test",
    ]
    assert all(Path(line.split("\t")[1]).is_file() for line in lines)


@pytest.mark.skipif(DATA is None, reason="CEDILLA_DATA is not set")
def test_every_real_file_has_the_hash_of_the_catalogue(monkeypatch):
    monkeypatch.setenv("CEDILLA_OFFLINE", "1")
    present = [
        (task, file.split)
        for task in tasks()
        for file in task.files
        if download.find_local(file, data_dir=DATA)
    ]
    assert len(present) >= 48
    for task, split in present:
        locate(task, split, data_dir=DATA)
