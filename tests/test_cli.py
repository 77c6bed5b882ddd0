"""The command line: built from the verbs, plain about mistakes, quiet about everything else."""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

import cedilla
from cedilla.cli import VERBS, bind, load_verb, main, one_line_each
from cedilla.errors import InputError, Problem

COMMAND = Path(sys.executable).with_name("cedilla")


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80", **environment},
        check=False,
    )


def probe(
    table: Path,
    *,
    dev: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0,),
    splits: tuple[float, float] = (0.9, 0.1),
    extra: Sequence[str] | None = None,
    method: Literal["full", "lora"] = "full",
    epochs: int = 3,
    rate: float | None = None,
    label: str | None = "label",
    resume: bool = False,
) -> None:
    """Do what the table's name says.

    Parameters
    ----------
    table
        The table.
    dev, seeds:
        Of both.

    Examples
    --------
    cedilla probe a.csv --dev chr7,chr10
    """
    if table.name == "bad":
        raise InputError(
            [
                Problem(where="bad line 2", what="is odd", mend="even it"),
                Problem(where="bad line 3", what="is odd", mend="even it"),
                Problem(where="bad", what="is old"),
            ]
        )
    if table.name == "interrupted":
        raise KeyboardInterrupt
    if table.name == "full disk":
        raise OSError(errno.ENOSPC, "No space left on device", "out/a.json")
    if table.name == "bug":
        raise OSError(errno.EIO, "Input/output error")
    warnings.warn("internal affairs", FutureWarning, stacklevel=1)
    print("done")


@pytest.fixture
def _probe(monkeypatch):
    monkeypatch.setitem(VERBS, "probe", (f"{__name__}:probe", "Try things."))


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(words)
    return caught.value.code


def test_the_whole_help_fits_one_screen():
    done = command("--help")
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    for name in VERBS:
        assert name.split()[0] in done.stdout


def test_the_whole_help_imports_no_verb():
    script = (
        "import sys\nfrom cedilla.cli import main\n"
        "try: main(['--help'])\n"
        "finally: sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_shows_an_example_that_parses(verb, capsys):
    assert call(*verb.split(), "--help") == 0
    shown = capsys.readouterr().out
    assert "xample" in shown
    assert max(map(len, shown.splitlines())) <= 80
    examples = re.findall(
        rf"(cedilla {verb}\b[^`\n]*)", one_line_each(inspect.getdoc(load_verb(verb)))
    )
    assert examples
    for example in examples:
        bind(verb, tokens=shlex.split(example)[1:])


def test_the_same_verbs_in_python():
    for verb in VERBS:
        name = verb.split()[-1].replace("-", "_")
        if not verb.startswith(("data", "models")):
            assert inspect.unwrap(getattr(cedilla, name)) is load_verb(verb)
    assert set(cedilla.__all__) <= set(dir(cedilla))
    assert cedilla.load("mini").training is False
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = cedilla.lod


def test_python_takes_names_and_paths_as_the_command_line_does(tmp_path):
    taken = cedilla.as_called(taking)
    assert taken("a/b", out="c", dev="chr7, chr10", runs="d", either="mini") == (
        (Path("a/b"), Path("c"), ("chr7", "chr10"), (Path("d"),), "mini")
    )
    assert taken(Path("a"), dev=["x"]) == (Path("a"), None, ["x"], (), "e")
    assert cedilla.simulate(out=str(tmp_path / "s"), n=40, length=60) == tmp_path / "s"
    assert cedilla.as_called(counting)(3) == (3,)
    with pytest.raises(TypeError, match="nn"):
        cedilla.simulate(out=tmp_path, nn=40)


def test_python_refuses_other_choices_as_the_command_line_does(tmp_path):
    for wrong in ({"pooling": "avg"}, {"strands": "reverse"}, {"dtype": "int8"}):
        with pytest.raises(InputError, match=r"cedilla.embed: \w+='\w+' is no choice; choose "):
            cedilla.embed(["ACGTACGT"], out=tmp_path / "x.npy", **wrong)
    assert not list(tmp_path.iterdir())


def counting(numbers: tuple[int, ...]):
    return numbers


def taking(
    table: Path,
    *,
    out: Path | None = None,
    dev: tuple[str, ...] = (),
    runs: tuple[Path, ...] = (),
    either: str | Path = "e",
):
    return table, out, dev, runs, either


def test_a_verb_stays_a_verb_when_its_module_is_imported():
    for name in ("report", "doctor"):
        module = importlib.import_module(f"cedilla.{name}")
        vars(cedilla).pop(name, None)
        setattr(cedilla, name, module)  # as the import system does
        assert inspect.unwrap(getattr(cedilla, name)) is load_verb(name)


@pytest.mark.usefixtures("_probe")
def test_words_become_the_types_of_the_signature():
    words = "probe a.csv --dev chr7,chr10 --seeds 1,2 --seeds 3 --splits .8 .2 --extra a"
    words += " --method lora --epochs 2.0 --rate 5e-5 --resume"
    assert bind("probe", tokens=words.split()).keywords == {
        "dev": ("chr7", "chr10"),
        "seeds": (1, 2, 3),
        "splits": (0.8, 0.2),
        "extra": ["a"],
        "method": "lora",
        "epochs": 2,
        "rate": 5e-5,
        "resume": True,
    }
    assert bind("probe", tokens=["probe", "a.csv"]).args == (Path("a.csv"),)


@pytest.mark.usefixtures("_probe")
def test_settings_become_the_types_of_the_signature():
    settings = {"table": "a.csv", "dev": "chr7, chr10", "seeds": [1, 2], "splits": [0.8, 0.2]}
    settings |= {"extra": [], "epochs": "2", "rate": None, "label": None, "resume": False}
    call = bind("probe", settings=settings)
    assert call.args == (Path("a.csv"),)
    assert call.keywords["dev"] == ("chr7", "chr10")
    assert call.keywords["seeds"] == (1, 2)
    assert call.keywords["splits"] == (0.8, 0.2)
    assert not call.keywords["extra"]
    assert call.keywords["epochs"] == 2
    assert call.keywords["label"] is None
    assert bind("probe", settings={"table": "a", "dev": ["x", "y"]}).keywords["dev"] == ("x", "y")


@pytest.mark.usefixtures("_probe")
def test_all_mistakes_of_a_command_are_told_at_once(capsys):
    assert call("probe", "--epochs", "1.5", "--rate", "fast", "--method=lra") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "error: cedilla probe: TABLE is missing",
        "  mend: see cedilla probe --help",
        'error: cedilla probe: invalid value "lra" for --method',
        '  mend: Choose from: "full", "lora". Did you mean "lora"?',
        "error: cedilla probe: invalid value for --epochs: 1.5 is no whole number",
        'error: cedilla probe: invalid value for --rate: unable to convert "fast" into float',
    ]
    assert call("probe", "a.csv", "--sed", "1", "--epoch=3") == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: cedilla probe: there is no option --sed",
        "  mend: did you mean --seeds?",
        "error: cedilla probe: there is no option --epoch",
        "  mend: did you mean --epochs?",
    ]
    assert call("methylation", "simulate", "--lngth=3", "--n=many") == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: cedilla methylation simulate: there is no option --lngth",
        "  mend: did you mean --length?",
        "error: cedilla methylation simulate: --out is missing",
        "  mend: see cedilla methylation simulate --help",
        "error: cedilla methylation simulate: invalid value for --n:"
        ' unable to convert "many" into int',
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("finetne --train a", "cedilla: there is no verb finetne\n  mend: did you mean finetune?"),
        ("methylation chek", "methylation: there is no verb chek\n  mend: did you mean check?"),
        ("--verson", "cedilla: there is no option --verson\n  mend: did you mean --version?"),
        ("zzz", "cedilla: there is no verb zzz\n  mend: known are demo, run, methylation sim"),
        ("models x", "cedilla models: x belongs to no option\n  mend: see cedilla models --help"),
        ("methylation simulate --out", "parameter --out requires an argument"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(words, said, capsys):
    assert call(*words.split()) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("_probe")
def test_bad_input_is_told_plainly_and_a_mend_once(capsys):
    assert call("probe", "bad") == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: bad line 2: is odd",
        "error: bad line 3: is odd",
        "  mend: even it",
        "error: bad: is old",
    ]


@pytest.mark.usefixtures("_probe")
def test_what_stops_a_verb_from_outside(capsys):
    assert call("probe", "interrupted") == 130
    assert capsys.readouterr().err == "interrupted; run again with --resume\n"
    assert call("probe", "full disk") == 2
    assert capsys.readouterr().err == "error: out/a.json: No space left on device\n"
    with pytest.raises(OSError, match="Input/output error"):
        main(["probe", "bug"])


@pytest.mark.usefixtures("_probe")
def test_warnings_of_libraries_do_not_reach_the_user(capsys):
    assert call("probe", "fine") == 0
    assert capsys.readouterr() == ("done\n", "")


def test_no_words_and_version_and_groups(capsys):
    assert call() == 0
    assert "Usage: cedilla COMMAND" in capsys.readouterr().out
    assert call("--version") == 0
    assert capsys.readouterr().out == f"{cedilla.__version__}\n"
    assert call("methylation") == 0
    assert "simulate" in capsys.readouterr().out


def test_the_installed_command_works_and_refuses(tmp_path):
    done = command("methylation", "simulate", "--n", "40", "--length=60", "--out", str(tmp_path))
    assert done.returncode == 0
    assert (tmp_path / "train.parquet").exists()
    (tmp_path / "empty.csv").touch()
    refused = command("methylation", "check", str(tmp_path / "empty.csv"))
    assert refused.returncode == 2
    assert "empty" in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_reader_that_leaves_early_is_no_error():
    with subprocess.Popen(
        [COMMAND, "data", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


def test_an_interrupted_run_leaves_only_whole_files(tmp_path, capsys):
    genome = tmp_path / "genome.fa"
    genome.write_text(">chr1\n" + "ACGTTGCAAC" * 2000 + "\n")
    words = ["pretrain", f"--genomes={genome}", f"--out={tmp_path / 'run'}", "--layers=1", "--k=3"]
    words += ["--hidden-size=8", "--heads=1", "--intermediate-size=8", "--tokens=16"]
    words += ["--batch-size=4", "--checkpoint-every=2"]
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    # A process that a script puts in the background ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        assert call(*words, "--steps=1000000") == 130
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.endswith("interrupted; run again with --resume\n")
    assert not [file for file in tmp_path.rglob("*") if ".part" in file.name]
    assert not (tmp_path / "run" / "metrics.json").exists()
