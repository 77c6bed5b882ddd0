"""The page: its numbers, that it stands alone, and that a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cedilla.errors import InputError
from cedilla.report.report import report
from cedilla.report.wording import decimal, signed
from cedilla.run_directory import Run

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FIGURES = ("methylation", "gue_benchmark", "training_history", "ranking_curves")
VOID = {"meta", "img", "source", "br", "hr", "input", "link"}


class Reader(HTMLParser):
    """Tags, attributes, text, and the rows of tables; every tag must be closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data + "|"


@pytest.fixture(scope="module")
def page(experiment: Path) -> Path:
    return report((experiment,))


@pytest.fixture(scope="module")
def html(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reader(html: str) -> Reader:
    return Reader(html)


def metrics_of(experiment: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((experiment / name / "metrics.json").read_text()))


def row(reader: Reader, *beginning: str) -> list[str]:
    """The first row whose leading cells are `beginning`, each cell without its small print."""
    rows = [[cell.split("|")[0] for cell in cells] for cells in reader.rows]
    return next(cells for cells in rows if tuple(cells[: len(beginning)]) == beginning)


def test_the_page_and_its_figures_lie_in_the_run(page: Path, experiment: Path) -> None:
    assert page == experiment / "report.html"
    for name in FIGURES:
        image = Image.open(experiment / "plots" / f"{name}.png")
        assert image.width == 1560
        assert 400 < image.height < 4000
        drawn = (np.asarray(image.convert("L")) < 250).mean()
        assert 0.01 < drawn < 0.4, name


def test_the_path_is_printed_and_out_is_heeded(
    tmp_path: Path, finetuned: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    finetuned(tmp_path / "run", epochs=0, task="prom/prom_core_all")
    page = report((tmp_path / "run",), out=tmp_path / "elsewhere", title="Mine")
    assert page == tmp_path / "elsewhere" / "report.html"
    assert capsys.readouterr().out.strip() == str(page)
    assert not (tmp_path / "run" / "report.html").exists()
    assert "<h1>Mine</h1>" in page.read_text()


def test_scores_are_those_of_the_metrics(reader: Reader, experiment: Path) -> None:
    metrics = metrics_of(experiment, "guide-clean")
    keys = ("accuracy", "f1", "precision", "recall", "mcc", "auroc")
    shown = [cells for cells in reader.rows if cells and cells[0] in ("train|", "dev|", "test|")]
    for split in ("train", "dev", "test"):
        wanted = [f"{metrics[split]['n']:,}", *(decimal(metrics[split][key]) for key in keys)]
        assert wanted in [[c.split("|")[0] for c in cells[1:]] for cells in shown]
    low, high = metrics["intervals"]["test"]["mcc"]
    assert f"{decimal(low)}–{decimal(high)}" in reader.text


def test_arms_and_differences_are_those_of_the_metrics(reader: Reader, experiment: Path) -> None:
    metrics = metrics_of(experiment, "h3k4me3")
    arm = metrics["arms"]["sequence+beta"]
    wanted = [decimal(arm[key]) for key in ("auroc", "auprc", "mcc")]
    assert row(reader, "sequence + beta")[1:] == [*wanted, decimal(arm["sd"]["auroc"])]
    d = next(d for d in metrics["differences"] if d["arm"] == "sequence+beta")
    cells = row(reader, "sequence + beta − sequence")
    assert cells[1] == signed(d["difference"])
    assert cells[2] == f"{signed(d['low'])} to {signed(d['high'])}"
    assert cells[3] == "< 0.001"
    assert metrics["verdict"]["sentence"] in reader.text


def test_intervals_are_not_said_to_come_from_what_was_not_resampled(
    tmp_path: Path, compared: Any
) -> None:
    """Rows or blocks of the genome: the verdict's limits say which, for each comparison."""
    compared(tmp_path / "run")
    seen = Reader(report((tmp_path / "run",)).read_text()).text
    assert seen.count("bootstrap interval") == 2
    assert "intervals over rows" not in seen
    assert "block-bootstrap" not in seen


def test_the_top_says_what_was_found_left_out_and_is_synthetic(reader: Reader) -> None:
    top = reader.text.split("Paired differences")[0]
    assert "Synthetic: no evidence about biology" in top
    assert "Short form" in top
    assert "cedilla data get EMP/H3K4me3" in top
    assert "1,469 rows (no beta)" in top
    assert "yeast, which has no CpG methylation" in reader.text


def test_the_end_has_settings_versions_hashes_seeds_and_limits(reader: Reader) -> None:
    end = reader.text.split("Limits of the evidence")[-1]
    assert re.search(r"table\.csv\|?\s*23,600", re.sub(r"\s+", " ", end))
    assert re.search(r"\b[0-9a-f]{64}\b", end)
    assert row(reader, "h3k4me3", "compare")[2:4] == ["0, 1, 2", "cpu"]
    for text in ("Betas are population medians.", "torch 2", "batch_size: 16", "Published values"):
        assert text in end


def test_nothing_is_fetched_and_nothing_runs(html: str, reader: Reader) -> None:
    assert not [tag for tag, _ in reader.tags if tag in ("script", "link", "iframe", "object")]
    for _, attributes in reader.tags:
        for name in ("src", "srcset", "href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#"))
        assert not [name for name in attributes if name.startswith("on")]
    style = html.split("<style>")[1].split("</style>", maxsplit=1)[0]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for _, a in reader.tags if "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_it_can_be_read_without_eyes(reader: Reader) -> None:
    tags = reader.tags
    assert all(len(a["alt"] or "") > 40 for tag, a in tags if tag == "img")
    assert all(a.get("scope") for tag, a in tags if tag == "th")
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in tags:
        label = attributes.get("aria-labelledby") or (attributes.get("href") or "#s1")[1:]
        assert label in ids
    assert ("html", {"lang": "en"}) in tags


@pytest.mark.parametrize("dark", [False, True])
def test_letters_have_contrast(html: str, dark: bool) -> None:
    blocks = re.findall(r":root \{([^}]*)\}", html)
    colors = dict(re.findall(r"--(\w+): (#\w{6})", blocks[1 if dark else 0]))
    for ink in ("ink", "muted", "accent", "warn"):
        for paper in ("paper", "band"):
            assert contrast(colors[ink], colors[paper]) >= 4.5, (ink, paper)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_names_cannot_smuggle_in_html(tmp_path: Path, finetuned: Any) -> None:
    evil = "<script>alert(1)</script>"
    finetuned(tmp_path / "<b>run", model=evil, epochs=0)
    html = report((tmp_path,), title=f"{evil} `{evil}`").read_text()
    assert "<script" not in html
    assert "<b>run" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_optional_parts_may_be_missing(tmp_path: Path, finetuned: Any) -> None:
    metrics = finetuned(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "predictions")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "config.yaml").unlink()
    bare = {"test": {"mcc": metrics["test"]["mcc"], "auroc": None}, "model": "mini"}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(bare))
    page = report((tmp_path / "run",))
    assert decimal(metrics["test"]["mcc"]) in page.read_text()
    assert not (tmp_path / "run" / "plots").exists()


def test_scores_that_do_not_follow_from_the_predictions_are_called_out(
    tmp_path: Path, finetuned: Any, html: str
) -> None:
    metrics = finetuned(tmp_path / "run", epochs=0)
    metrics["test"]["mcc"] += 0.1
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    warning = "do not follow from the predictions"
    assert warning in report((tmp_path / "run",)).read_text()
    assert warning not in html


def test_runs_of_other_verbs_are_shown_as_recorded(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", verb="evaluate", config={})
    run.finish({"test": {"mcc": 0.4321}, "note": "<i>"})
    reader = Reader(report((tmp_path,)).read_text())
    assert row(reader, "test.mcc") == ["test.mcc", "0.432"]


def test_several_classes_need_no_curves(tmp_path: Path) -> None:
    import pandas as pd

    from cedilla.metrics.classification import classification_metrics

    labels = np.arange(90) % 3
    probabilities = np.full((90, 3), 0.2)
    probabilities[np.arange(90), labels] = 0.6
    run = Run.start(tmp_path / "run", verb="finetune", config={})
    table = pd.DataFrame(probabilities, columns=[f"probability_{k}" for k in range(3)])
    run.write_predictions("test", table.assign(label=labels))
    run.finish({"model": "mini", "test": classification_metrics(labels, probabilities)})
    html = report((tmp_path,)).read_text()
    assert "mini reaches test MCC 1.000" in html
    assert "do not follow" not in html


def test_a_directory_without_runs_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no complete run; give the --out") as caught:
        report((tmp_path,))
    assert len(caught.value.problems) == 1
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="no run directory"):
        report(())


def browse(page: Path, profile: Path, *flags: str) -> str:
    assert BROWSER
    quiet = "--no-first-run --disable-background-networking --disable-component-update"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += [*quiet.split(), "--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}"]
    done = subprocess.run(
        [*command, *flags, page.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


PROBE = """<script>addEventListener("load", () => {
  const shown = [...document.images].filter(image => image.offsetWidth > 0)
  const small = [...document.querySelectorAll("main *, header *")]
    .filter(e => e.innerText && parseFloat(getComputedStyle(e).fontSize) < 16)
  parent.postMessage({
    width: innerWidth, page: document.documentElement.scrollWidth,
    images: shown.length, loaded: shown.filter(image => image.naturalWidth > 0).length,
    small: small.map(e => e.tagName),
  }, "*")
})</script>"""
# A headless window is never narrower than 500 pixels; a frame in it is as narrow as a phone.
FRAME = """<!DOCTYPE html><title></title>
<script>onmessage = event => { document.title = JSON.stringify(event.data) }</script>
<iframe src="probed.html" style="border: 0; width: %dpx; height: 844px"></iframe>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_a_browser_shows_it_without_sideways_scrolling(
    html: str, tmp_path: Path, width: int
) -> None:
    probed = re.sub(r"<meta http-equiv.*?>", "", html) + PROBE
    (tmp_path / "probed.html").write_text(probed, encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME % width, encoding="utf-8")
    flags = ("--dump-dom", "--window-size=1400,900")
    dom = browse(tmp_path / "frame.html", tmp_path / "profile", *flags)
    seen = json.loads(re.findall("<title>(.*?)</title>", dom)[0])
    assert seen["width"] == width
    assert seen["page"] <= width
    assert seen["images"] == seen["loaded"] == len(FIGURES)
    assert seen["small"] == []


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_prints_it(page: Path, tmp_path: Path) -> None:
    pdf = tmp_path / "report.pdf"
    browse(page, tmp_path / "profile", f"--print-to-pdf={pdf}")
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 20
