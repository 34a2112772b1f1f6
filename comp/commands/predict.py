"""`comp predict`: the predictions of runs that are missing."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from comp import config, files, launch, terminal
from comp.commands import common
from comp.errors import CompError, Exit
from comp.inference import cost
from comp.inference import spec as specs
from comp.runs import Fold, Run, all_runs

if TYPE_CHECKING:
    from pathlib import Path

    from comp.config import DataConfig


WORTH_SAYING = 10.0  # seconds; what is shorter is over before it is read


def predict(
    runs: Sequence[str] = (),
    *,
    data: str = "petals",
    views: str = "flip",
    procs: int | None = None,
    keep: bool = False,
    settings: Sequence[str] = (),
) -> None:
    """Write the out-of-fold and test predictions that runs lack, for all their finished folds.

    Args:
        runs: Run names; none means every run of the set.
        data: The data set.
        views: The views, e.g. `flip` or `tencrop`.
        procs: Processes; default one per GPU, else one.
        keep: Keep each view's probabilities too, as float16.
        settings: `data.key=value` words.
    """
    home, data_config, rest = common.project(data, settings)
    common.only_data(rest)
    spec = specs.parse(views, data_config.symmetries)
    wanted = [Run(home, data, config.check_name("run", name)) for name in runs] or all_runs(home, data)
    if not wanted:
        raise CompError(f"DATA={data}", "has no runs yet", f"train one: make train DATA={data}", Exit.USAGE)
    splits = ("oof", "test", "val") if data_config.val == "audit" else ("oof", "test")
    todo: list[tuple[Fold, list[str]]] = []
    for run in wanted:
        run.config()  # a name without a run is an error
        finished = run.finished()
        if not finished:
            terminal.say(f"{run.name}: no fold is finished, nothing to predict")
        for fold in finished:
            missing = [split for split in splits if not fold.predictions(split, spec.file_name).exists()]
            if missing:
                todo.append((fold, missing))
    if not todo:
        terminal.say(f"nothing is missing: the {spec.file_name} predictions of {len(wanted)} run(s) are there")
        return
    if launch.wanted(procs):
        words = ["predict", *runs, "--data", data, "--views", views, *(["--keep"] if keep else []), *settings]
        launch.start(procs, words)
        return
    _predict(home, data_config, spec, todo, keep)


def _predict(
    home: Path, data_config: DataConfig, spec: specs.ViewSpec, todo: Sequence[tuple[Fold, list[str]]], keep: bool
) -> None:
    """Predict fold after fold, each run's photos at its own resolution; stopped, the files so far stay."""
    from comp.data.loader import default_workers
    from comp.inference.predict import predict as predict_split
    from comp.nets import store
    from comp.training.building import make_accelerator
    from comp.training.processes import Team
    from comp.training.stopping import Asked, Stopping

    said: set[str] = set()  # runs whose cost was said: it is the same for all their folds
    with Stopping().listening() as stopping:
        for fold, missing in todo:
            run = fold.config()
            _, dataset = common.of_run(home, run)
            folds = common.split(home, data_config, dataset)
            accelerator = make_accelerator(run, fold.path)
            team = Team(run.hang_limit)
            stored = store.load_model(fold, accelerator.device)
            with contextlib.ExitStack() as stack:
                if team.first:
                    stack.enter_context(files.lock(fold.lock, f"predicting {fold}"))

                def stop(team: Team = team) -> None:
                    (code,) = team.most(int(stopping.asked() or 0))
                    if code:
                        raise Asked(Exit(code))

                for split in missing:
                    total = sum(1 for value in dataset.splits if value == split) or sum(
                        1 for number in folds.values() if number == fold.number
                    )
                    image = stored.image
                    shape = cost.aspect(dataset.widths, dataset.heights)
                    if fold.run.name not in said:
                        said.add(fold.run.name)
                        terminal.say(
                            f"{fold} {split}: {cost.cost_line(spec, image.crop, image.test_size, shape, total)}"
                        )

                    def estimate(seconds: float, what: str = f"{fold} {split}") -> None:
                        if seconds > WORTH_SAYING:
                            terminal.say(f"{what}: about {cost.duration(seconds)}")

                    try:
                        with team.together(fold), terminal.progress(f"{fold} {split}", total) as advance:
                            found = predict_split(
                                fold,
                                stored,
                                split,
                                spec,
                                dataset,
                                folds,
                                precision=run.precision,
                                device=accelerator.device,
                                save=team.first,
                                workers=default_workers(team.world),
                                keep=keep,
                                rank=team.rank,
                                world=team.world,
                                gather=team.gather,
                                progress=advance,
                                estimate=estimate,
                                stop=stop,
                            )
                    except Asked as asked:
                        raise asked.error(fold, f"the predictions before {split} are saved") from None
                    team.wait()
                    terminal.say(f"{fold} {split}: {len(found.ids)} photos, {found.ms_per_image:.1f} ms each")
