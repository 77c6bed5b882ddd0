"""Experiments as YAML files: a list of steps, each a verb with its arguments.

.. code-block:: yaml

    title: The guide's experiment
    about: One paragraph that the report prints.
    out: runs/guide
    steps:
      - methylation simulate: {n: 1000, out: "{out}/data"}
      - finetune:
          train: "{out}/data/train.parquet"
          dev: "{out}/data/dev.parquet"
          test: "{out}/data/test.parquet"
          epochs: 3
          out: "{out}/finetune"
          short: {epochs: 1}      # with --short, these arguments instead
          only_if_data: true      # leave the step out where its data cannot be had
      - report: {runs: ["{out}"]}

Arguments are the verb's own, checked by the code that checks the command line.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from cedilla.cli import VERBS, bind, load_verb, nearest
from cedilla.errors import InputError, MissingData, Problem, stop_on_errors
from cedilla.progress import console
from cedilla.run_directory import Run, find_runs

KEYS = ("title", "about", "out", "steps")
STEP_KEYS = ("short", "only_if_data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A verb with the arguments that it will be called with, checked.

    written: the arguments as the file has them, with ``{out}`` for the directory of the whole, so
    that a moved directory is still the same experiment.
    """

    verb: str
    settings: dict[str, Any]
    written: dict[str, Any]
    only_if_data: bool
    call: Callable[[], Any]

    def __str__(self) -> str:
        hints = get_type_hints(load_verb(self.verb))
        words = [word for k, v in self.settings.items() for word in _words(k, v, hints)]
        return shlex.join(["cedilla", *self.verb.split(), *words])


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a file is to be run.

    out: what ``{out}`` stands for.
    short: whether the steps' ``short`` arguments replace their own.
    passed: values for the steps that have such a parameter and do not set it.
    """

    out: Path
    short: bool
    passed: dict[str, Any]


def run(
    config: Path,
    *,
    out: Path | None = None,
    resume: bool = False,
    short: bool = False,
    dry_run: bool = False,
    data_dir: Path | None = None,
) -> Path:
    """Run the steps of a YAML file, after checking all of them.

    A step is a verb with its arguments, such as ``finetune: {train: a.csv, out: "{out}/a"}``;
    ``{out}`` is the directory of the whole. Unknown names and wrong types anywhere in the file
    are reported at once, before anything runs. What was run is in ``config.yaml`` there.

    Parameters
    ----------
    config
        The YAML file, or the name of one that comes with Cedilla, such as guide.
    out
        The directory of the whole, instead of the file's own ``out``.
    resume
        Take up an interrupted run.
    short
        Run the short form: each step's ``short`` arguments replace its own.
    dry_run
        Check the file, print the commands that it stands for, and stop.
    data_dir
        The first folder in which the steps look for data.

    Returns
    -------
    Path
        The directory of the whole.

    Raises
    ------
    InputError
        The file cannot be used, or a step could not use its input.

    Examples
    --------
    cedilla run guide --out runs/guide
    cedilla run my_experiment.yaml --short --dry-run
    """
    path = Path(config)
    path = path if path.exists() or path.name != str(config) else load_packaged(path.stem)
    document = _read(path)
    out = Path(out or document.get("out") or Path("runs") / path.stem)
    passed = {"resume": resume or None, "data_dir": data_dir}
    steps = _steps(document, path, Form(out=out, short=short, passed=passed))
    if dry_run:
        print("\n".join(map(str, steps)))
        return out
    effective: dict[str, Any] = {
        key: document[key] for key in ("title", "about") if key in document
    }
    effective |= {"out": out, "steps": [_as_document(step) for step in steps]}
    whole = Run.start(out, verb="run", config=effective, resume=resume)
    whole.note(title=document.get("title"), about=document.get("about"), short=short, left_out=[])
    for number, step in enumerate(steps, start=1):
        console.print(f"[bold]\\[{number}/{len(steps)}] {step.verb}[/bold]", highlight=False)
        _carry_out(step, whole)
    whole.note(complete=True)
    return out


def load_packaged(name: str) -> Path:
    """The path of a YAML file that comes with Cedilla, such as ``guide``."""
    folder = Path(str(resources.files("cedilla") / "configs"))
    path = folder / f"{name}.yaml"
    if not path.exists():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise InputError.one(name, "is no file, nor a name that comes along", nearest(name, known))
    return path


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not the loss of the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key_node.value!r} stands twice",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; raises :class:`InputError` where a key stands twice."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # a SafeLoader
    except IsADirectoryError:
        raise InputError.one(path, "is a directory", "name a YAML file") from None
    except FileNotFoundError:
        raise InputError.one(path, "does not exist", "check the path") from None
    except UnicodeDecodeError:
        raise InputError.one(path, "is not UTF-8 text", "save the file as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError.one(f"{path} line {line}", f"is not YAML: {error.problem}") from None
    except (yaml.YAMLError, TypeError) as error:
        raise InputError.one(path, f"is not YAML: {error}".splitlines()[0]) from None


def _read(path: Path) -> dict[str, Any]:
    document = read_yaml(path)
    if not isinstance(document, dict) or not isinstance(document.get("steps"), list):
        raise InputError.one(path, "has no list of steps", "write steps: and - verb: {…} below")
    if not isinstance(document.get("out", ""), str):
        raise InputError.one(path, f"out is {document['out']!r}", "write the path of a directory")
    return document


def _steps(document: dict[str, Any], path: Path, form: Form) -> list[Step]:
    problems = [
        Problem(where=str(path), what=f"there is no setting {key}", mend=nearest(str(key), KEYS))
        for key in document
        if key not in KEYS
    ]
    steps = []
    for number, entry in enumerate(document["steps"], start=1):
        try:
            steps.append(_step(entry, f"{path} step {number}", form))
        except InputError as error:
            problems += error.problems
    stop_on_errors(problems)
    return steps


def _step(entry: Any, where: str, form: Form) -> Step:
    entry = {entry: None} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or len(entry) != 1:
        raise InputError.one(where, "is not one verb with its arguments", "write - verb: {…}")
    ((verb, given),) = entry.items()
    verbs = [name for name in VERBS if name != "run"]
    if verb not in verbs:
        raise InputError.one(where, f"there is no verb {verb}", nearest(str(verb), verbs))
    where = f"{where} ({verb})"
    if not isinstance(given, dict | None) or not isinstance(
        (given or {}).get("short"), dict | None
    ):
        raise InputError.one(where, "has no mapping of arguments", "write name: value pairs")
    given = dict(given or {})
    instead = given.pop("short", None) or {}
    only_if_data = given.pop("only_if_data", False)
    settings = _filled(given, form.out)
    shortened = settings | _filled(instead, form.out)
    parameters = inspect.signature(load_verb(verb)).parameters
    passed = {k: v for k, v in form.passed.items() if k in parameters and v is not None}
    problems: dict[Problem, None] = {}
    calls = []
    # The form that is not asked for is checked too: its mistakes should not wait for their day.
    for arguments in (settings, shortened):
        try:
            calls.append(bind(verb, settings=passed | arguments, where=where))
        except InputError as error:
            problems |= dict.fromkeys(error.problems)
    if not isinstance(only_if_data, bool):
        what = f"only_if_data is {only_if_data!r}"
        problems[Problem(where=where, what=what, mend="write true or false")] = None
    stop_on_errors(problems)
    return Step(
        verb=verb,
        settings=shortened if form.short else settings,
        written=given | instead if form.short else given,
        only_if_data=only_if_data,
        call=calls[form.short],
    )


def _filled(value: Any, out: Path) -> Any:
    """`value` with ``{out}`` replaced in all its texts."""
    if isinstance(value, str):
        return value.replace("{out}", str(out))
    if isinstance(value, dict):
        return {key: _filled(item, out) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, out) for item in value]
    return value


def _as_document(step: Step) -> dict[str, Any]:
    flag = {"only_if_data": True} if step.only_if_data else {}
    return {step.verb: step.written | flag}


def _carry_out(step: Step, whole: Run) -> None:
    if step.verb == "report" and whole.manifest["left_out"] and not find_runs(whole.path):
        console.print("no report: every step was left out", style="yellow")
        return
    try:
        step.call()
    except MissingData as error:
        if not step.only_if_data:
            raise
        sentences = [f"{step.verb} left out: {problem}" for problem in error.problems]
        for sentence in sentences:
            console.print(sentence, style="yellow", highlight=False, markup=False)
        whole.note(left_out=list(dict.fromkeys([*whole.manifest["left_out"], *sentences])))


def _words(key: str, value: Any, hints: dict[str, Any]) -> list[str]:
    flag = f"--{key.replace('_', '-')}"
    hint = hints[key.replace("-", "_")]
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if get_origin(hint) is tuple and Ellipsis not in get_args(hint):
        return [flag, *map(str, value)]
    return [f"{flag}={item}" for item in (value if isinstance(value, list) else [value])]
