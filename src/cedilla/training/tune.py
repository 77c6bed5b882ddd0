"""Search the settings of a fine-tuning, on dev alone."""

from __future__ import annotations

import gc
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from cedilla.cli import bind
from cedilla.config import Step
from cedilla.errors import InputError, MissingData, stop_on_errors, unmet
from cedilla.files import whole_file, write_text
from cedilla.progress import console
from cedilla.run_directory import Run
from cedilla.training.cost import estimate
from cedilla.training.finetune import read_data
from cedilla.training.loop import LAST, dev_score, is_out_of_memory
from cedilla.training.plan import check_select, make_data, make_plan
from cedilla.training.search_space import Space, defaults, read_space
from cedilla.training.splits import Splits
from cedilla.training.suggestions import (
    Direction,
    State,
    Trial,
    best_of,
    next_trial,
    refuse_without_optuna,
)
from cedilla.training.targets import DIRECTION

WHERE = "cedilla tune"
SAMPLE = 3  # trials whose cost is measured in a dry run
PLACES = ("train", "dev", "test", "data_dir")  # of files, which count by their content


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What is searched, and by which metric of dev."""

    space: Space
    metric: str
    prune: bool
    seed: int

    @property
    def direction(self) -> Direction:
        """Of a better value of the metric."""
        return DIRECTION[self.metric]


def tune(
    space: Path,
    *,
    out: Path,
    trials: int = 20,
    prune: bool = True,
    seed: int = 0,
    data_dir: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> Path:
    """Search settings of `cedilla finetune` for the best score on dev; test stays closed.

    Every trial is a run of `cedilla finetune` in ``trials/`` of `out`. Leaves ``trials.csv``,
    ``metrics.json`` and ``best.yaml``, which `cedilla run` takes, and prints the command that
    trains with the best settings and opens the test set once.

    Parameters
    ----------
    space:
        A YAML file: under `fixed` the settings of every trial, under `search` those to choose,
        each with a range such as {low: 1e-4, high: 1e-2, log: true} or a list of choices.
    out:
        The directory of the search.
    trials:
        How many settings to try; a finished search can be resumed with more.
    prune:
        Stop a trial after an epoch in which it is worse than half of the complete trials were.
    seed:
        Of the search; the trials have the seed that `fixed` gives them.
    data_dir:
        Where to look for a task's files first.
    resume:
        Go on with an interrupted search in `out`.
    dry_run:
        Check the space and the data, print what the trials would take, and stop.

    Examples
    --------
    cedilla tune space.yaml --out runs/search --trials 20
    """
    refuse_without_optuna()
    stop_on_errors(unmet(WHERE, [(trials >= 1, f"trials {trials} is impossible", "1 at least")]))
    given = read_space(Path(space))
    if data_dir:
        given = replace(given, fixed=given.fixed | {"data_dir": str(data_dir)})
    files, splits = read_data(_settings(given, {}, out))
    search = Search(space=given, metric=_metric(given, splits), prune=prune, seed=seed)
    for note in splits.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if trials > given.size:
        trials = int(given.size)
        console.print(f"note: every point of the space is a trial: {trials:,}")
    if dry_run:
        _print_cost(search, splits, trials)
        return out
    run = _start(search, Path(space), out, trials, resume)
    if run.complete:
        console.print(f"{out} is complete")
        return out
    run.note_inputs(
        [{"path": path, "role": s, "rows": len(dict(splits)[s])} for s, path in files.items()]
    )
    run.note(seed=seed, metric=search.metric)
    done = _finished(run)
    while len(done) < trials:
        done.append(_next(run, search, done, trials))
        _drop_weights(run.path, done, search)
    _drop_weights(run.path, done, search)  # a kill may have come before
    _finish(run, search, done)
    return out


def _settings(space: Space, chosen: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """All settings of a trial, in the types of the verb's signature, defaults included."""
    return defaults() | _call(space, chosen, out).keywords


def _call(space: Space, chosen: Mapping[str, Any], out: Path) -> Any:
    own = {"out": str(out), "dev_only": True, "resume": True}
    return bind("finetune", settings=space.settings(chosen) | own, where=WHERE)


def _metric(space: Space, splits: Splits) -> str:
    """The metric that trials are compared by: the one that selects epochs, if any does."""
    select = space.fixed.get("select") or LAST
    check_select(select, splits.target)
    return splits.target.metric if select == LAST else select


def _start(search: Search, space: Path, out: Path, trials: int, resume: bool) -> Run:
    """The directory of the search; one that is complete is taken up again for more trials."""
    fixed = search.space.fixed
    config: dict[str, Any] = {"space": space} | {
        name: Path(fixed[name]) for name in PLACES if name in fixed
    }
    config |= {
        "fixed": {name: value for name, value in fixed.items() if name not in PLACES},
        "search": {name: asdict(one) for name, one in search.space.search.items()},
        "prune": search.prune,
        "seed": search.seed,
        "out": out,
    }
    run = Run.start(out, verb="tune", config=config, resume=resume)
    if run.complete and len(_finished(run)) < trials:
        (run.path / "metrics.json").unlink()
        run = Run.start(out, verb="tune", config=config, resume=True)
    return run


def _finished(run: Run) -> list[Trial]:
    events = [event for event in run.events() if event["event"] == "trial"]
    trials = []
    for event in events:
        values = {name: value for name, value in event.items() if name != "event"}
        values["scores"] = {int(epoch): score for epoch, score in values["scores"].items()}
        trials.append(Trial(**values))
    return trials


def _next(run: Run, search: Search, done: Sequence[Trial], trials: int) -> Trial:
    """Carry out the next trial, or what is left of an interrupted one."""
    number = len(done) + 1
    settings, asked = next_trial(
        search.space, done, number=number, direction=search.direction, seed=search.seed
    )
    begun = [e for e in run.events() if e["event"] == "begun" and e["number"] == number]
    if begun:  # under another version of Optuna it may be another suggestion
        settings = begun[0]["settings"]
    else:
        run.log(event="begun", number=number, settings=settings)
    left = sum(trial.seconds for trial in done) / max(1, len(done)) * (trials - len(done)) / 60
    soon = f"; about {left:.0f} minutes left" if left >= 1 else ""
    console.print(
        f"[{number}/{trials}] {_words(search, settings)}{soon}", markup=False, highlight=False
    )
    trial = _trial(search, number, settings, asked, run.path / "trials" / f"{number:04d}")
    run.log(event="trial", **asdict(trial))
    _write_table(run.path, [*done, trial], search)
    console.print(_said(trial, [*done, trial], search), markup=False, highlight=False)
    if torch.cuda.is_available():
        gc.collect()  # a model in a cycle of references would take memory from the next trial
    return trial


def _trial(
    search: Search, number: int, settings: dict[str, Any], asked: Any, folder: Path
) -> Trial:
    state, reason = _carry_out(search, settings, asked, folder)
    run = Run(folder)
    epochs = [event for event in run.events() if event["event"] == "epoch"]
    scores = {event["epoch"]: dev_score(event, search.metric) for event in epochs}
    score = scores[run.metrics["best_epoch"]] if state == "complete" else None
    if score is not None and math.isnan(score):
        state, score, reason = "failed", None, f"{search.metric} of dev is undefined"
    return Trial(
        number=number,
        settings=settings,
        state=state,
        scores={epoch: score for epoch, score in scores.items() if not math.isnan(score)},
        score=score,
        seconds=round(sum(event["seconds"] for event in epochs), 1),
        reason=reason,
    )


def _carry_out(
    search: Search, settings: Mapping[str, Any], asked: Any, folder: Path
) -> tuple[State, str]:
    """How a trial ended, and why unless it is complete."""
    import optuna

    def after_epoch(event: dict[str, Any]) -> None:
        score = dev_score(event, search.metric)
        if search.prune and not math.isnan(score):
            asked.report(score, event["epoch"])
            if asked.should_prune():
                raise optuna.TrialPruned(f"after epoch {event['epoch']}")

    try:
        _call(search.space, settings, folder)(after_epoch=after_epoch)
    except optuna.TrialPruned as pruned:
        return "pruned", str(pruned)
    except MissingData:  # no fault of the settings
        raise
    except InputError as error:
        return "failed", str(error)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return "failed", f"out of memory: {str(error).splitlines()[0]}"
    return "complete", ""


def _said(trial: Trial, done: Sequence[Trial], search: Search) -> str:
    if trial.state != "complete":
        return f"trial {trial.number} {trial.state}: {trial.reason}"
    best = best_of(done, search.direction)
    assert best is not None
    assert best.score is not None
    return (
        f"trial {trial.number}: {search.metric} of dev {trial.score:.4f}; "
        f"best so far {best.score:.4f} in trial {best.number}"
    )


def _words(search: Search, settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in search.space.chosen(settings).items()
    )


def _write_table(folder: Path, done: Sequence[Trial], search: Search) -> None:
    rows = [
        {"number": trial.number, "state": trial.state, search.metric: trial.score}
        | {"epochs": len(trial.scores), "seconds": trial.seconds}
        | dict.fromkeys(search.space.search)
        | search.space.chosen(trial.settings)
        | {"reason": trial.reason}
        for trial in done
    ]
    with whole_file(folder / "trials.csv") as draft:
        pd.DataFrame(rows).to_csv(draft, index=False)


def _drop_weights(folder: Path, done: Sequence[Trial], search: Search) -> None:
    """Keep the weights of the best trial alone: those of large models fill a disk."""
    best = best_of(done, search.direction)
    for trial in done:
        where = folder / "trials" / f"{trial.number:04d}"
        is_best = best is not None and trial.number == best.number
        for name in ["checkpoints/last"] if is_best else ["checkpoints", "model"]:
            shutil.rmtree(where / name, ignore_errors=True)


def _finish(run: Run, search: Search, done: Sequence[Trial]) -> None:
    """Write the results, and say how to go on."""
    best = best_of(done, search.direction)
    if best is None:
        raise _no_result(run.path, done)
    step = _final(search.space, best, run.path)
    title = f"Trained with the best of {len(done)} trials"
    document = {"title": title, "out": str(run.path / "best"), "steps": [{step.verb: step.written}]}
    write_text(run.path / "best.yaml", yaml.safe_dump(document, sort_keys=False))
    counts = {
        state: sum(t.state == state for t in done) for state in ("complete", "pruned", "failed")
    }
    run.finish(
        {"metric": search.metric, "direction": search.direction, "trials": len(done)}
        | counts
        | {
            "best": {
                "trial": best.number,
                "score": best.score,
                "settings": search.space.chosen(best.settings),
            }
        }
    )
    text = f"best {search.metric} of dev: {best.score:.4f} in trial {best.number}"
    console.print(f"{text}: {_words(search, best.settings)}", markup=False, highlight=False)
    if step.settings.get("dev_only"):
        console.print("no test set is named: give --test instead of --dev-only to open one")
    console.print("train with these settings, and open the test set once:")
    print(step)


def _no_result(folder: Path, done: Sequence[Trial]) -> InputError:
    reasons = Counter(trial.reason for trial in done)
    what = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
    mend = "mend the space, and choose another --out"
    return InputError.one(folder, f"no trial is complete: {what}", mend)


def _final(space: Space, best: Trial, folder: Path) -> Step:
    """The fine-tuning with the best settings that opens the test set, where one is named."""
    chosen = {n: v for n, v in space.settings(best.settings).items() if v is not None}
    if not {"test", "task"} & chosen.keys():
        chosen["dev_only"] = True
    settings = chosen | {"out": str(folder / "best" / "finetune")}
    return Step(
        verb="finetune",
        settings=settings,
        written=chosen | {"out": "{out}/finetune"},
        only_if_data=False,
        call=bind("finetune", settings=settings, where=WHERE),
    )


def _print_cost(search: Search, splits: Splits, trials: int) -> None:
    """What the first few trials would take, measured in real steps, and so all of them."""
    seconds = []
    for number in range(1, min(SAMPLE, trials) + 1):
        settings, _ = next_trial(
            search.space, (), number=number, direction=search.direction, seed=search.seed
        )
        every = _settings(search.space, settings, Path("trial"))
        words = _words(search, settings)
        try:
            plan = make_plan(splits, every)
            cost = estimate(splits, make_data(splits, plan.tokenizer, every["long"]), plan)
        except InputError as error:
            console.print(f"{words}: {error}", markup=False, highlight=False, soft_wrap=True)
            continue
        console.print(f"{words}: {cost.text}", markup=False, highlight=False, soft_wrap=True)
        seconds.append(cost.seconds or 0.0)
    if not seconds:
        raise InputError.one(WHERE, "none of the first trials could begin", "mend the space")
    minutes = sum(seconds) / len(seconds) / 60
    less = ", less what is pruned" if search.prune else ""
    console.print(f"{trials} trials of {minutes:.1f} minutes: {trials * minutes:.1f} minutes{less}")
