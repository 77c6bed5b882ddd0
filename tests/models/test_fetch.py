"""Fetching published models: from a mirror that misbehaves, from a directory, and never offline.

The mirror is a real HTTP server that speaks what huggingface_hub needs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cedilla.cli import bind
from cedilla.errors import InputError, MissingData
from cedilla.models import cards, fetch
from cedilla.models.cards import FileHash, card
from cedilla.models.convert import models_convert
from cedilla.models.fetch import at_hand, home, models_get
from cedilla.models.lock import LOCK, read_lock
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.weights import save_directory
from cedilla.models.zoo import load, models_show

pytest.importorskip("huggingface_hub")

NAME = "nucleotide-transformer-v2-50m-multi-species"
REPOSITORY = f"InstaDeepAI/{NAME}"
KNOWN, NEWEST = "a" * 40, "b" * 40
WEIGHTS = "model.safetensors"
SHAPE = NTConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    vocab_size=75,
    max_position_embeddings=66,
)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Mirror(ThreadingHTTPServer):
    """Serves the files of `folder` as the repository, at any revision it knows.

    `answers` are given to requests for the weights, one each; then they are served properly.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers: list[Callable[[Handler, bytes], None]] = []
        self.requests: list[tuple[str, str | None]] = []
        self.listed: dict[str, bytes] = {}
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in self.folder.iterdir()} | self.listed

    def asked_for(self, name: str = WEIGHTS) -> list[str | None]:
        """The range of each request for a file."""
        return [sent for path, sent in self.requests if path.endswith(f"/{name}")]


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        assert self.headers["Authorization"] is None
        self.server.requests.append((self.path, self.headers["Range"]))
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) == REPOSITORY:
            self.list(parts[5] if len(parts) > 5 else "main")
        elif "/".join(parts[:2]) == REPOSITORY and parts[4] in self.server.files():
            self.give(parts[4])
        else:
            self.send(404, b"")

    def list(self, revision: str) -> None:
        known = {KNOWN: KNOWN, NEWEST: NEWEST, "main": NEWEST}
        if revision not in known:
            self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        files = [
            {"rfilename": name, "size": len(content), "blobId": "0" * 40}
            | (
                {"lfs": {"size": len(content), "sha256": digest(content), "pointerSize": 1}}
                if name.endswith((".safetensors", ".bin"))
                else {}
            )
            for name, content in self.server.files().items()
        ]
        content = {"id": REPOSITORY, "sha": known[revision], "siblings": files}
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def give(self, name: str) -> None:
        content = self.server.files()[name]
        answers = self.server.answers if name == WEIGHTS else []
        (answers.pop(0) if answers else serve)(self, content)

    def send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


def serve(handler: Handler, content: bytes) -> None:
    start = int((handler.headers["Range"] or "bytes=0-")[6:-1])
    sent = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
    handler.send(206 if start else 200, content[start:], sent)


def break_off(handler: Handler, content: bytes) -> None:
    handler.send(200, content[: len(content) // 2], length=len(content))


def ignore_range(handler: Handler, content: bytes) -> None:
    handler.send(200, content)


def spoil(handler: Handler, content: bytes) -> None:
    handler.send(200, content[:-1] + bytes([content[-1] ^ 1]))


def fail(handler: Handler, _: bytes) -> None:
    handler.send(500, b"sorry")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """No place but those of this test, and a network that ends at this machine."""
    monkeypatch.delenv("CEDILLA_OFFLINE", raising=False)
    monkeypatch.delenv("CEDILLA_MODELS", raising=False)
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # The client reads its environment once, when it is imported.
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def published(tmp_path, monkeypatch) -> Path:
    """A small model in the published layout, whose shape stands on the card of NAME."""
    torch.manual_seed(0)
    save_directory(NucleotideTransformer(SHAPE), tmp_path / "small")
    folder = models_convert(str(tmp_path / "small"), out=tmp_path / "published", to="hf")
    found = replace(card(NAME), config=SHAPE, revision="", files={})
    monkeypatch.setitem(cards.CARDS, NAME, found)
    return folder


@pytest.fixture
def known(published, monkeypatch) -> FileHash:
    """The card knows the commit and the hash of the weights."""
    content = (published / WEIGHTS).read_bytes()
    found = FileHash(bytes=len(content), sha256=digest(content))
    changed = replace(card(NAME), revision=KNOWN, files={WEIGHTS: found})
    monkeypatch.setitem(cards.CARDS, NAME, changed)
    return found


@pytest.fixture
def mirror(published) -> Iterator[Mirror]:
    with Mirror(published) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def same_weights(folder: Path, published: Path) -> bool:
    a, b = load_file(folder / WEIGHTS), load_file(published / WEIGHTS)
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in b)


def spoil_file(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def parts(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("**/*.part")]


def only(call, kind=InputError) -> str:
    with pytest.raises(kind) as caught:
        call()
    (problem,) = caught.value.problems
    return str(problem)


def test_a_model_is_fetched_pinned_and_loaded_by_name(published, mirror, capsys):
    (published / "modeling_esm.py").write_text("raise SystemExit")
    torch.save({}, published / "pytorch_model.bin")
    out = models_get(NAME, from_=mirror.url)
    assert out == home() / NAME
    assert capsys.readouterr().out == f"{out}\n"
    assert same_weights(out, published)
    fetched = {"config.json", WEIGHTS, "vocab.txt", "tokenizer_config.json"}
    fetched.add("special_tokens_map.json")
    assert {p.name for p in out.iterdir()} - {".lock"} == fetched | {LOCK}
    lock = read_lock(out)
    assert (lock.repository, lock.revision) == (REPOSITORY, NEWEST)
    assert set(lock.files) == fetched
    assert lock.files[WEIGHTS].sha256 == digest((published / WEIGHTS).read_bytes())
    assert load(NAME).config.hidden_size == 32
    assert at_hand(card(NAME)) == {"cache": out}


def test_the_known_commit_is_asked_for(known, mirror):
    models_get(NAME, from_=mirror.url)
    assert read_lock(home() / NAME).revision == KNOWN
    assert all(f"/{KNOWN}" in path for path, _ in mirror.requests)


def test_another_revision_is_fetched_where_asked_for(known, mirror):
    models_get(NAME, from_=mirror.url, revision="main")
    assert read_lock(home() / NAME).revision == NEWEST
    message = only(lambda: models_get(NAME, from_=mirror.url, revision="typo"), MissingData)
    assert "RevisionNotFoundError" in message
    assert "name another --revision" in message


def test_what_an_earlier_download_pinned_is_fetched_again(mirror):
    out = models_get(NAME, from_=mirror.url)
    assert read_lock(out).revision == NEWEST
    mirror.requests.clear()
    (out / "vocab.txt").unlink()
    models_get(NAME, from_=mirror.url)
    assert all(f"/{NEWEST}" in path for path, _ in mirror.requests)
    assert mirror.asked_for() == []
    assert mirror.asked_for("vocab.txt") == [None]


def test_what_is_there_and_whole_needs_no_connection(mirror, capsys):
    out = models_get(NAME, from_=mirror.url)
    mirror.requests.clear()
    assert models_get(NAME) == out
    assert "is here already, whole and unaltered" in capsys.readouterr().err
    assert mirror.requests == []


def test_an_altered_file_is_refused_and_fetched_anew(published, mirror):
    out = models_get(NAME, from_=mirror.url)
    content = (out / WEIGHTS).read_bytes()
    spoil_file(out / WEIGHTS)
    assert f"{WEIGHTS}: altered: its sha256 is " in only(lambda: load(NAME))
    (out / WEIGHTS).write_bytes(content[:-9])
    assert f"{len(content):,} when it was fetched" in only(lambda: load(NAME))
    models_get(NAME, from_=mirror.url)
    assert same_weights(out, published)
    load(NAME)


def test_a_download_that_breaks_off_goes_on(published, mirror, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 20)
    mirror.answers = [break_off]
    half = (published / WEIGHTS).stat().st_size // 2
    out = models_get(NAME, from_=mirror.url)
    assert same_weights(out, published)
    assert mirror.asked_for() == [None, f"bytes={half}-"]


def part_of(out: Path, published: Path) -> Path:
    sha = digest((published / WEIGHTS).read_bytes())
    out.mkdir(parents=True)
    return out / f".{WEIGHTS}.{sha[:16]}.part"


def test_a_part_left_by_a_killed_process_is_taken_up(published, mirror):
    part = part_of(home() / NAME, published)
    part.write_bytes((published / WEIGHTS).read_bytes()[:1000])
    assert same_weights(models_get(NAME, from_=mirror.url), published)
    assert mirror.asked_for() == ["bytes=1000-"]
    assert parts(home()) == []


def test_until_all_is_there_the_directory_is_no_model(published, mirror):
    out = models_get(NAME, from_=mirror.url)
    spoil_file(out / WEIGHTS)
    mirror.answers = [fail]
    with pytest.raises(MissingData):
        models_get(NAME, from_=mirror.url)
    assert at_hand(card(NAME)) == {}
    mirror.requests.clear()
    assert same_weights(models_get(NAME, from_=mirror.url), published)
    assert all(f"/{NEWEST}" in path for path, _ in mirror.requests), "the pin outlives it"


def test_a_server_without_ranges_sends_the_whole_again(published, mirror):
    part_of(home() / NAME, published).write_bytes(b"x" * 1000)
    mirror.answers = [ignore_range]
    assert same_weights(models_get(NAME, from_=mirror.url), published)


def test_a_spoilt_part_is_thrown_away(published, mirror):
    part_of(home() / NAME, published).write_bytes(b"x" * 1000)
    assert same_weights(models_get(NAME, from_=mirror.url), published)
    assert mirror.asked_for() == ["bytes=1000-", None]


def test_wrong_bytes_are_refused_with_both_hashes(published, mirror, monkeypatch):
    mirror.answers = [spoil]
    message = only(lambda: models_get(NAME, from_=mirror.url))
    assert f"{REPOSITORY} {WEIGHTS}: is another file: its sha256 is " in message
    assert f"expected {digest((published / WEIGHTS).read_bytes())}" in message
    assert parts(home()) == []
    assert at_hand(card(NAME)) == {}
    monkeypatch.setenv("CEDILLA_OFFLINE", "1")
    assert "weights are not on this machine" in only(lambda: load(NAME), MissingData)


def test_a_mirror_that_offers_another_file_at_the_known_commit_is_refused(known, mirror):
    weights = load_file(mirror.folder / WEIGHTS)
    weights["lm_head.bias"] += 1
    save_file(weights, mirror.folder / WEIGHTS)
    message = only(lambda: models_get(NAME, from_=mirror.url))
    assert "is offered with sha256 " in message
    assert f"that commit has {known.sha256}" in message
    assert mirror.asked_for() == []


def test_a_server_in_trouble_is_missing_data_and_keeps_the_part(published, mirror):
    part = part_of(home() / NAME, published)
    part.write_bytes((published / WEIGHTS).read_bytes()[:1000])
    mirror.answers = [fail]
    message = only(lambda: models_get(NAME, from_=mirror.url), MissingData)
    assert "weights cannot be had: HfHubHTTPError: " in message
    assert f"put {REPOSITORY}'s config.json and weights in $CEDILLA_MODELS/{NAME}" in message
    assert part.stat().st_size == 1000


def test_the_files_of_another_model_are_refused(published, mirror):
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    message = only(lambda: models_get(NAME, from_=mirror.url))
    assert f"num_hidden_layers is 3; {NAME} has 2" in message
    assert read_lock(home() / NAME) is None


def test_weights_that_do_not_fit_are_named(published, mirror):
    weights = load_file(published / WEIGHTS)
    del weights["lm_head.bias"]
    save_file(weights, published / WEIGHTS)
    message = only(lambda: models_get(NAME, from_=mirror.url))
    assert f"{WEIGHTS} lm_head.bias: is missing" in message


def test_a_repository_without_weights_is_refused(published, mirror):
    (published / WEIGHTS).unlink()
    message = only(lambda: models_get(NAME, from_=mirror.url))
    assert f"{REPOSITORY}: has no config.json and weights at {NEWEST}" in message


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_fetched_with_their_index(published, mirror, tmp_path, kind):
    (published / WEIGHTS).unlink()
    models_convert(str(tmp_path / "small"), out=tmp_path / "s", to="hf", shard_size="20KB")
    index = json.loads((tmp_path / "s" / "model.safetensors.index.json").read_text())
    if kind == "bin":
        for path in (tmp_path / "s").glob("*.safetensors"):
            name = f"pytorch_{path.name.replace('.safetensors', '.bin')}"
            torch.save(load_file(path), published / name)
        places = {
            n: f"pytorch_{f.replace('.safetensors', '.bin')}"
            for n, f in index["weight_map"].items()
        }
        (published / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    else:
        for path in (tmp_path / "s").glob("*.safetensors*"):
            shutil.copy(path, published)
    (published / "model-of-something-else.bin").write_bytes(b"")
    out = models_get(NAME, from_=mirror.url)
    assert len(list(out.glob(f"*.{kind}"))) == len(set(index["weight_map"].values()))
    small = load(tmp_path / "small").state_dict()
    assert all(torch.equal(w, small[n]) for n, w in load(NAME).state_dict().items())


def test_a_directory_is_copied_and_checked(known, published, tmp_path, monkeypatch):
    monkeypatch.setenv("CEDILLA_MODELS", str(tmp_path / "models"))
    out = models_get(NAME, from_=str(published))
    assert out == tmp_path / "models" / NAME
    assert same_weights(out, published)
    assert read_lock(out).revision == KNOWN, "the hashes say which commit it is"
    assert models_get(NAME) == out
    spoil_file(published / WEIGHTS)
    message = only(lambda: models_get(NAME, from_=str(published), to=tmp_path / "other"))
    assert f"published/{WEIGHTS}: is not {NAME}'s: its sha256 is " in message
    assert not (tmp_path / "other").exists()


def test_a_directory_put_by_hand_is_recorded_where_it_is(published, tmp_path, monkeypatch):
    monkeypatch.setenv("CEDILLA_MODELS", str(tmp_path / "models"))
    shutil.copytree(published, tmp_path / "models" / NAME)
    load(NAME)
    out = models_get(NAME, from_=str(tmp_path / "models" / NAME))
    assert read_lock(out).repository == REPOSITORY
    spoil_file(out / WEIGHTS)
    assert "altered" in only(lambda: load(NAME))


def test_a_file_put_by_hand_that_was_altered_is_refused(known, published, tmp_path, monkeypatch):
    monkeypatch.setenv("CEDILLA_MODELS", str(tmp_path / "models"))
    shutil.copytree(published, tmp_path / "models" / NAME)
    load(NAME)
    path = tmp_path / "models" / NAME / WEIGHTS
    spoil_file(path)
    message = only(lambda: load(NAME))
    assert f"{path}: altered: its sha256 is " in message
    assert f"{known.sha256} as published" in message
    # Another form of the same model is no altered file.
    path.unlink()
    models_convert(str(published), out=tmp_path / "half", to="hf", dtype="bfloat16")
    shutil.copy(tmp_path / "half" / WEIGHTS, path)
    load(NAME)


def test_a_source_that_is_no_directory_is_refused(tmp_path):
    message = only(lambda: models_get(NAME, from_=str(tmp_path / "typo")))
    assert message.endswith("is not a directory; name a directory, or an address that begins with "
                            "http:// or https://")  # fmt: skip
    (tmp_path / "empty").mkdir()
    message = only(lambda: models_get(NAME, from_=str(tmp_path / "empty")))
    assert "empty/config.json: not found" in message


@pytest.mark.parametrize("flag", ["1", "true"])
def test_offline_nothing_connects(mirror, monkeypatch, flag):
    monkeypatch.setenv("CEDILLA_OFFLINE", flag)
    for call in (lambda: models_get(NAME, from_=mirror.url), lambda: load(NAME)):
        message = only(call, MissingData)
        assert "weights are not on this machine, and CEDILLA_OFFLINE is set" in message
        assert f"$CEDILLA_MODELS/{NAME}" in message
    assert mirror.requests == []
    models_get(NAME, from_=str(mirror.folder))
    load(NAME)


def test_without_the_client_the_mend_is_the_same(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    message = only(lambda: models_get(NAME), MissingData)
    assert "huggingface_hub is not installed" in message
    assert f"$CEDILLA_MODELS/{NAME}, or install cedilla[hub]" in message


def test_no_server_is_missing_data():
    call = partial(models_get, NAME, from_="http://127.0.0.1:9")
    assert "weights cannot be had" in only(call, MissingData)


def test_what_transformers_downloaded_is_found(published, tmp_path):
    repository = tmp_path / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = repository / "snapshots" / NEWEST
    shutil.copytree(published, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(NEWEST)
    assert at_hand(card(NAME)) == {"Hugging Face's cache": snapshot}
    assert load(NAME).config.hidden_size == 32
    (snapshot / WEIGHTS).unlink()
    assert at_hand(card(NAME)) == {}


def test_a_dry_run_writes_nothing_and_says_what_is_here(published, mirror, tmp_path, capsys):
    out = tmp_path / "out"
    models_get(NAME, from_=mirror.url, to=out, dry_run=True)
    size = (published / WEIGHTS).stat().st_size
    said = capsys.readouterr().out
    assert f"{REPOSITORY} at {NEWEST} → {out}" in said
    assert f"{size:,}  {WEIGHTS}\n" in said
    assert "licence: CC BY-NC-SA 4.0" in said
    assert not out.exists()
    out.mkdir()
    shutil.copy(published / WEIGHTS, out)
    models_get(NAME, from_=mirror.url, to=out, dry_run=True)
    assert f"{size:,}  {WEIGHTS}  (here)\n" in capsys.readouterr().out


def test_a_full_disk_is_told_before(mirror, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    assert "has 0.0 GB free" in only(lambda: models_get(NAME, from_=mirror.url))
    assert mirror.asked_for() == []


def test_two_processes_download_once(published, mirror):
    threads = [
        threading.Thread(target=models_get, args=(NAME,), kwargs={"from_": mirror.url})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mirror.asked_for() == mirror.asked_for("config.json") == [None]
    assert same_weights(home() / NAME, published)


def test_a_file_is_no_place_for_a_model(tmp_path):
    (tmp_path / "file").touch()
    assert "is not a directory; choose another --to" in only(
        lambda: models_get(NAME, to=tmp_path / "file")
    )


def test_what_is_part_of_cedilla_is_not_fetched():
    for name in ("mini", "cnn", "kmer"):
        assert "is part of Cedilla" in only(partial(models_get, name))


def test_show_says_where_the_files_are(mirror, capsys):
    models_show(NAME)
    assert f"not here; `cedilla models get {NAME}` fetches them" in capsys.readouterr().out
    out = models_get(NAME, from_=mirror.url)
    capsys.readouterr()
    models_show(NAME)
    assert f"files       {out} (cache)\n" in capsys.readouterr().out


def test_the_command_line_knows_the_same_names(tmp_path):
    words = ["models", "get", NAME, "--from", "http://a", "--to", str(tmp_path), "--dry-run"]
    call = bind("models get", tokens=words)
    assert call.keywords == {"to": tmp_path, "from_": "http://a", "dry_run": True}
