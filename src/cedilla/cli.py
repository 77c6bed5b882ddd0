"""The command line: a thin door to the verbs, built from their signatures and docstrings.

``cedilla VERB --flag value``, ``cedilla.VERB(flag=value)`` and a step of a YAML file all end in
:func:`bind`, so that the three know the same names, take the same types and refuse the same
mistakes.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import inspect
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin

from cyclopts import (
    App,
    Argument,
    ArgumentCollection,
    CycloptsError,
    Parameter,
    Token,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from cedilla.errors import InputError, Problem, stop_on_errors
from cedilla.version import __version__

# The help stands here and not in the docstrings, because `cedilla --help` must not import torch.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("cedilla.demo:demo", "Run the three experiments in short form."),
    "run": ("cedilla.config:run", "Run an experiment from a YAML file."),
    "methylation simulate": (
        "cedilla.methylation.simulate:simulate",
        "Make sequences with realistic methylation, and labels.",
    ),
    "methylation check": ("cedilla.methylation.check:check", "Find what is wrong in a table."),
    "finetune": ("cedilla.training.finetune:finetune", "Adapt a model to labelled sequences."),
    "tune": ("cedilla.training.tune:tune", "Search settings of fine-tuning, on dev alone."),
    "merge": ("cedilla.training.merge:merge", "Fold an adapter into its base model."),
    "compare": ("cedilla.evaluation.compare:compare", "Ask what methylation adds to sequence."),
    "evaluate": ("cedilla.evaluation.evaluate:evaluate", "Score predictions, with intervals."),
    "embed": ("cedilla.inference.embed:embed", "Turn sequences into vectors."),
    "predict": ("cedilla.inference.predict:predict", "Predict with a fine-tuned model."),
    "predict-mask": (
        "cedilla.inference.predict_mask:predict_mask",
        "Predict masked bases, or score whole sequences.",
    ),
    "report": ("cedilla.report.report:report", "Write one HTML page about runs."),
    "models": (
        "cedilla.models.zoo:models",
        "List the models, or show, fetch, convert or export one.",
    ),
    "models list": ("cedilla.models.zoo:models", "List the models that can be loaded by name."),
    "models show": ("cedilla.models.zoo:models_show", "Say what is known about a model."),
    "models get": ("cedilla.models.fetch:models_get", "Fetch a model's files and check them."),
    "models convert": (
        "cedilla.models.convert:models_convert",
        "Convert a model to or from Hugging Face's layout.",
    ),
    "models export": ("cedilla.models.export:models_export", "Write a model as an ONNX file."),
    "data list": ("cedilla.tasks.download:data_list", "List the data sets."),
    "data get": ("cedilla.tasks.download:data_get", "Download a data set into the cache."),
    "pretrain": ("cedilla.training.pretrain:pretrain", "Train a model from scratch on genomes."),
    "doctor": ("cedilla.doctor:doctor", "Say what this machine and installation can do."),
}
EXAMPLE_WIDTH = 72
GROUPS = {
    "methylation": "Simulate or check methylation tables.",
    "models": "List the models, or show, fetch, convert or export one.",
    "data": "List or download data sets.",
}


def main(tokens: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 2 bad input or usage, 130 interrupted."""
    # A kill unwinds like Ctrl-C, so that drafts of files are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        sys.exit(_exit_code(sys.argv[1:] if tokens is None else list(tokens)))


def _exit_code(tokens: Sequence[str]) -> int:
    verb = _verb_of(tokens)
    try:
        bind(verb, tokens=tokens)()
        sys.stdout.flush()
    except InputError as error:
        _print_problems(error.problems)
        return 2
    except KeyboardInterrupt:
        resumes = verb is not None and "resume" in inspect.signature(load_verb(verb)).parameters
        _say("interrupted" + ("; run again with --resume" if resumes else ""))
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output has left; Python would complain once more while it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOTDIR):
            raise
        _say(f"error: {error.filename or 'writing'}: {error.strerror}")
        return 2
    return 0


def load_verb(verb: str) -> Callable[..., Any]:
    """The function behind a verb, such as ``methylation check``."""
    module, _, name = VERBS[verb][0].partition(":")
    return getattr(importlib.import_module(module), name)


def bind(
    verb: str | None,
    *,
    tokens: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    where: str = "",
) -> Callable[[], Any]:
    """The call that a command line or a mapping of settings asks for, checked, not yet made.

    tokens: all words after ``cedilla``, the verb among them.
    settings: parameter names (``data_dir`` or ``data-dir``) and values as YAML has them.
    where: how problems name the place; the command by default.

    Raises :class:`InputError` with every unknown name, missing value and wrong type.
    """
    words = list(tokens) if tokens is not None else (verb or "").split()
    where = where or " ".join(["cedilla", *(verb or "").split()])
    app = _app(verb, partial(_examine, settings=settings, words=words, where=where))
    try:
        function, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    except UnknownCommandError as error:
        # Its own message would import every verb to find the nearest.
        group = words[0] if words[0] in GROUPS else ""
        known = [name.removeprefix(f"{group} ") for name in VERBS if name.startswith(group)]
        word = (error.unused_tokens or words)[0]
        what = f"there is no {'option' if word.startswith('-') else 'verb'} {word}"
        mend = nearest(word, [*known, "--help", "--version"])
        raise InputError.one(f"{where} {group}".strip(), what, mend) from None
    except UnknownOptionError as error:
        # Met before `_examine` where a verb also takes words without an option.
        problems = _unknown_options(words, where, error.argument_collection)
        raise InputError(problems or [_problem(where, error)]) from None
    except CycloptsError as error:
        raise InputError([_problem(where, error)]) from None
    return partial(function, *bound.args, **bound.kwargs)


def nearest(word: str, known: Iterable[str]) -> str:
    """A mend that names the known word closest to `word`, or all of them."""
    words = list(known)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(words)}"


def _app(verb: str | None, examine: Callable[..., None]) -> App:
    """All verbs; the one that is asked for is imported, the others stand there by name."""
    app = App(
        name="cedilla",
        help="DNA language models that read methylation: pre-train, adapt, evaluate, explain.",
        help_epilogue="Start with: cedilla demo --out runs/demo",
        version=__version__,
        config=examine,
        default_parameter=Parameter(negative_iterable="", show_default=_shown),
    )
    for position, (name, (path, text)) in enumerate(VERBS.items()):
        *group, last = name.split()
        first = name.split()[0]
        if first in GROUPS and first not in app:
            app.command(App(name=first, help=GROUPS[first], help_epilogue="", sort_key=position))
        home = app[group[0]] if group else app
        if name == verb:
            function = load_verb(name)
            epilogue = _examples(function)
            if name in GROUPS:
                app[name].default(_documented(function))
                app[name].help_epilogue = epilogue
            else:
                home.command(_documented(function), name=last, help_epilogue=epilogue)
        elif name not in GROUPS:
            home.command(path, name=last, help=text, sort_key=position)
    return app


def _verb_of(tokens: Sequence[str]) -> str | None:
    for length in (2, 1):
        if " ".join(tokens[:length]) in VERBS:
            return " ".join(tokens[:length])
    return None


def _shown(default: Any) -> str | None:
    if default is None or default is False or default == ():
        return None
    if default is True:
        return "yes"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _documented(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with a docstring that has one entry a parameter, as cyclopts expects.

    numpydoc also allows ``rank, alpha:`` as one entry.
    """

    def one_each(match: re.Match[str]) -> str:
        names, rest = match["names"].split(","), match["rest"]
        return "".join(f"{match['indent']}{name.strip()}{rest}" for name in names)

    @wraps(function)
    def documented(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    entry = r"^(?P<indent> *)(?P<names>\w+(?:, \w+)+)(?P<rest> *:.*\n(?:(?P=indent) +.*\n)+)"
    documented.__doc__ = re.sub(entry, one_each, function.__doc__ or "", flags=re.MULTILINE)
    return documented


def _examples(function: Callable[..., Any]) -> str:
    doc = inspect.getdoc(function) or ""
    section = re.search(r"^Examples\n-+\n(.*?)(?=^\w+\n-+\n|\Z)", doc, re.MULTILINE | re.DOTALL)
    if not section:
        return ""
    text = inspect.cleandoc(section[1].removeprefix("::").replace("::\n", ":\n"))
    lines = map(_folded, one_line_each(text).splitlines())
    return "Example:\n\n```\n" + "\n".join(lines) + "\n```"


def one_line_each(text: str) -> str:
    """`text` with every command that runs over several lines put on one."""
    return re.sub(r" *\\?\n *(?=--)", " ", text)


def _folded(line: str) -> str:
    """A long command over several lines, as a shell takes it."""
    folded = [""]
    for part in re.split(r" (?=--)", line):
        if len(folded[-1]) + len(part) > EXAMPLE_WIDTH:
            folded.append("   ")
        folded[-1] += f" {part}"
    return " \\\n".join(folded)[1:]


def _examine(
    _app: App,
    commands: tuple[str, ...],
    arguments: ArgumentCollection,
    *,
    settings: Mapping[str, Any] | None,
    words: Sequence[str],
    where: str,
) -> None:
    """Before cyclopts converts anything: add the settings, and find all that is wrong at once."""
    arguments = ArgumentCollection(one for one in arguments if one.parse)  # others are Python's
    problems = _take(settings or {}, where, arguments)
    problems += _unknown_options(words, where, arguments)
    for argument in arguments:
        name = argument.field_info.name
        if settings is None:
            name = name.upper() if argument.index is not None else argument.name
        _split_commas(argument)
        if argument.has_tokens:
            problems += _conversion(argument, name, where)
        elif argument.required and name not in (settings or ()):
            mend = f"see cedilla {' '.join(commands)} --help"
            problems.append(Problem(where=where, what=f"{name} is missing", mend=mend))
    stop_on_errors(problems)


def _conversion(argument: Argument, name: str, where: str) -> list[Problem]:
    try:
        argument.convert()
    except CycloptsError as error:
        problem = _problem(where, error)
        what = problem.what if name in problem.what else f"{name}: {problem.what}"
        return [replace(problem, what=what)]
    # cyclopts rounds 0.5 epochs to 0 without a word.
    texts = [
        token.value for token in argument.tokens if int in (argument.hint, *get_args(argument.hint))
    ]
    return [
        Problem(where=where, what=f"invalid value for {name}: {text} is no whole number")
        for text in texts
        if "." in text and not float(text).is_integer()
    ]


def _take(settings: Mapping[str, Any], where: str, arguments: ArgumentCollection) -> list[Problem]:
    problems = []
    by_name = {argument.field_info.name: argument for argument in arguments}
    for key, value in settings.items():
        name = str(key).replace("-", "_")
        if name not in by_name:
            what = f"there is no setting {key}"
            problems.append(Problem(where=where, what=what, mend=nearest(name, by_name)))
            continue
        many = by_name[name].token_count() not in ((0, False), (1, False))
        if isinstance(value, Mapping) or (isinstance(value, list) and not many):
            problems.append(Problem(where=where, what=f"{name} takes one value, not {value}"))
            continue
        for token in _words_of(name, value):
            by_name[name].append(token)
    return problems


def _words_of(name: str, value: Any) -> list[Token]:
    """A YAML value as the words that would stand for it on the command line."""
    if value == []:
        return [Token(keyword=name, implicit_value=())]
    return [
        Token(keyword=name, implicit_value=None, index=k)
        if item is None
        else Token(keyword=name, value=str(item), index=k)
        for k, item in enumerate(value if isinstance(value, list) else [value])
    ]


def _unknown_options(
    words: Sequence[str], where: str, arguments: ArgumentCollection
) -> list[Problem]:
    known = [name for argument in arguments for name in argument.names]
    flags = [word.split("=", 1)[0] for word in words if word.startswith("-")]
    return [
        Problem(where=where, what=f"there is no option {flag}", mend=nearest(flag, known))
        for flag in flags[: flags.index("--") if "--" in flags else None]
        if flag.startswith("--") and not _known(flag, arguments)
    ]


def _known(flag: str, arguments: ArgumentCollection) -> bool:
    try:
        arguments.match(flag)
    except ValueError:
        return False
    return True


def _split_commas(argument: Argument) -> None:
    """``--dev chr7,chr10`` are two values where a parameter takes any number of words."""
    if _takes_many(argument.hint):
        parts = [(token, part) for token in argument.tokens for part in token.value.split(",")]
        argument.tokens[:] = [
            token.evolve(value=part.strip(), index=k) for k, (token, part) in enumerate(parts)
        ]


def _takes_many(hint: Any) -> bool:
    many, inner = get_origin(hint), get_args(hint)
    if many in (Union, UnionType):
        return any(_takes_many(option) for option in inner)
    variadic = many in (list, Sequence) or (many is tuple and Ellipsis in inner)
    return variadic and inner[0] in (str, int, float)


def _problem(where: str, error: CycloptsError) -> Problem:
    error.verbose = False
    if isinstance(error, UnusedCliTokensError):
        what = f"{' '.join(error.unused_tokens or ())} belongs to no option"
        return Problem(where=where, what=what, mend=f"see {where} --help")
    what, _, mend = str(error).partition(". ")
    return Problem(where=where, what=what[:1].lower() + what[1:].rstrip("."), mend=mend)


def _print_problems(problems: Sequence[Problem]) -> None:
    for k, problem in enumerate(problems):
        _say(f"error: {problem.where}: {problem.what}")
        again = k + 1 < len(problems) and problems[k + 1].mend == problem.mend
        if problem.mend and not again:
            _say(f"  mend: {problem.mend}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
