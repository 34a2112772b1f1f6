"""The command line: `comp VERB …`. A verb's module is imported only when that verb runs."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from comp.errors import CompError, Exit, did_you_mean


@dataclass(frozen=True)
class Argument:
    """One argument of a verb, as argparse takes it."""

    flags: tuple[str, ...]
    options: dict[str, Any]


def arg(*flags: str, **options: Any) -> Argument:
    return Argument(flags, options)


DATA = arg("--data", default="petals", metavar="SET", help="a file of configs/data/ (petals)")
NAME = arg("--name", default=None, metavar="RUN", help="the run's name (the model's name)")
VIEWS = arg(
    "--views", default="flip", metavar="SPEC", help="test-time augmentation, e.g. center, flip, tencrop, multiscale"
)
OWN_VIEWS = arg("--views", default=None, metavar="SPEC", help="test-time augmentation (the ensemble's, else flip)")
RULE = arg("--rule", default=None, metavar="RULE", help="vote, mean, gmean, select, … (the ensemble's, else vote)")
PROCS = arg("--procs", type=int, default=None, metavar="N", help="processes (one per GPU, else 1)")
# key=value words, anywhere on the line; taken out before argparse sees it, so that they never pass for a RUN.
SETTINGS = arg("settings", help="key=value …: anything of a config, e.g. optim.lr=0.05 epochs=3")
RUNS = arg("runs", nargs="*", metavar="RUN", help="run names")
JSON = arg("--json", action="store_true", help="print JSON")


@dataclass(frozen=True)
class Verb:
    """A command: `comp/commands/<module>.py` holds a function of the same name that takes the arguments as keywords."""

    help: str
    arguments: tuple[Argument, ...]
    function: str = ""


VERBS = {
    # Its function is `prepare`: `comp.data` is the room.
    "data": Verb("read the raw files, check them, write the manifest", (DATA, SETTINGS), "prepare"),
    "folds": Verb("split the labelled photos, write folds/<set>.csv", (DATA, SETTINGS)),
    "show": Verb(
        "write a picture of one augmented batch",
        (arg("model", metavar="MODEL"), DATA, arg("--out", default="batch.png", metavar="FILE"), SETTINGS),
    ),
    "model": Verb(
        "print a network's layer table",
        (
            arg("model", metavar="MODEL"),
            arg("--classes", type=int, default=1000),
            arg("--size", type=int, default=None),
        ),
    ),
    "train": Verb(
        "train one fold of a model, or go on where it stopped",
        (
            arg("model", metavar="MODEL", help="a file of configs/models/ or any timm name"),
            arg("--fold", default="0", metavar="K", help="the fold held out, or all (0)"),
            DATA,
            NAME,
            arg(
                "--from", dest="start", default=None, metavar="RUN/foldK@best", help="start from another run's weights"
            ),
            PROCS,
            SETTINGS,
        ),
    ),
    "predict": Verb(
        "write the predictions of a run that are missing",
        (
            RUNS,
            DATA,
            VIEWS,
            PROCS,
            arg("--keep", action="store_true", help="keep each view's probabilities too"),
            SETTINGS,
        ),
    ),
    "scores": Verb(
        "compare the runs' fold scores",
        (
            RUNS,
            DATA,
            arg("--views", default=None, metavar="SPEC", help="only this view set (the best known of each run)"),
            JSON,
            arg("--csv", action="store_true", help="print CSV"),
            arg("--watch", action="store_true", help="print again whenever a score changes"),
        ),
    ),
    "submit": Verb(
        "blend runs into a checked CSV in submissions/",
        (
            RUNS,
            DATA,
            arg("--views", default=None, metavar="SPEC", help="as for predict (the ensemble's, else flip), or auto"),
            RULE,
            NAME,
            arg("--ensemble", default=None, metavar="FILE", help="a file of configs/ensembles/"),
            PROCS,
            arg("--upload", default=None, metavar="MESSAGE", nargs="?", const="", help="send it with Kaggle's client"),
            SETTINGS,
        ),
    ),
    "views": Verb(
        "measure what each view adds on a run's out-of-fold images",
        (
            arg("run", metavar="RUN"),
            DATA,
            arg("--views", default="tencrop", metavar="SPEC", help="the set to take apart (tencrop)"),
            SETTINGS,
        ),
    ),
    "compare": Verb(
        "paired differences between runs, with intervals", (RUNS, DATA, arg("--views", default=None), JSON)
    ),
    "autopsy": Verb(
        "what each member adds to an ensemble", (RUNS, DATA, arg("--ensemble", default=None), OWN_VIEWS, RULE)
    ),
    "explain": Verb("print where every number of a submission came from", (arg("file", metavar="FILE.csv"),)),
    "verify": Verb(
        "recompute a submission from its prediction files",
        (
            arg("file", metavar="FILE.csv"),
            arg("--deep", action="store_true", help="20 random rows from the checkpoints too"),
        ),
    ),
    "import": Verb(
        "make a prediction file from a CSV",
        (
            arg("file", metavar="FILE.csv"),
            DATA,
            NAME,
            arg("--split", choices=("test", "oof"), default="test"),
            arg("--normalize", action="store_true", help="divide rows that do not sum to 1 by their sum"),
        ),
        "import_",
    ),
    "ledger": Verb(
        "the table of submissions and their public scores",
        (
            arg("file", nargs="?", metavar="FILE.csv"),
            DATA,
            arg("--score", type=float),
            arg("--note", default=""),
            arg("--fetch", action="store_true"),
        ),
    ),
    "doctor": Verb(
        "two minutes of probes: why does it not learn?", (arg("model", metavar="MODEL|RUN"), DATA, SETTINGS)
    ),
}


class _Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line like every other error."""

    def error(self, message: str) -> Any:
        raise CompError(self.prog, message, f"see `{self.prog} --help`", Exit.USAGE)


def parser() -> argparse.ArgumentParser:
    """The whole command line, without importing any command."""
    top = _Parser(
        prog="comp", description="Train on a competition's folds, and submit an ensemble with an honest score."
    )
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        settings = str(SETTINGS.options["help"]) if SETTINGS in verb.arguments else None
        one = verbs.add_parser(name, help=verb.help, description=verb.help, epilog=settings)
        one.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        for argument in (each for each in verb.arguments if each is not SETTINGS):
            one.add_argument(*argument.flags, **argument.options)
    return top


def command(verb: str) -> Callable[..., Any]:
    """The plain function behind a verb, e.g. `command("train")("resnet34", fold=0)`."""
    name = VERBS[verb].function or verb
    found: Callable[..., Any] = getattr(importlib.import_module(f"comp.commands.{name}"), name)
    return found


def _run(words: Sequence[str]) -> None:
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        raise CompError(f"comp {words[0]}", "there is no such command", did_you_mean(words[0], VERBS, 20), Exit.USAGE)
    verb = VERBS.get(next(iter(words), ""))
    settings = (
        [word for word in words if re.match(r"\w+(\.\w+)*=", word)] if verb and SETTINGS in verb.arguments else []
    )
    arguments = vars(parser().parse_args([word for word in words if word not in settings]))
    name = arguments.pop("verb")
    arguments.pop("debug")
    if verb and SETTINGS in verb.arguments:
        arguments["settings"] = settings
    command(name)(**arguments)


def main(words: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code; every error is one line on stderr, the last."""
    words = list(sys.argv[1:] if words is None else words)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    if sys.stdout is None or sys.stderr is None:  # closed by the shell: files would be opened in their place
        what = "stdout: is closed; send it to /dev/null if nobody shall read it"
        _leave(OSError(what), Exit.SYSTEM, words, what)
    try:
        with _listening():
            _run(words)
        sys.stdout.flush()
        _end(Exit.DONE)
    except CompError as error:
        _leave(error, error.code, words)
    except _Signal as error:
        name = signal.Signals(error.number).name
        line = f"comp {' '.join(words[:1])}: stopped by {name}; the same command goes on"
        _leave(error, 128 + error.number, words, line)
    except KeyboardInterrupt as error:
        _leave(error, Exit.INTERRUPT, words, "interrupted; the same command goes on")
    except BrokenPipeError as error:
        _leave(error, Exit.SYSTEM, words, "stdout: was closed while there was more to print; keep it open")
    except MemoryError as error:
        _leave(error, Exit.SYSTEM, words, "memory: not enough; use a smaller batch or fewer workers")
    except OSError as error:
        from comp.files import system_error

        _leave(error, Exit.SYSTEM, words, str(system_error(error.filename or "system", error)))
    except Exception as error:
        what = f"comp {' '.join(words[:1])}: unexpected {type(error).__name__} ({error}); run it again with --debug"
        _leave(error, 1, words, " ".join(what.split()))


class _Signal(BaseException):
    """A signal that came while nothing was to be saved."""

    def __init__(self, number: int):
        self.number = number


@contextmanager
def _listening() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception; training and predicting listen in their own way while they run.

    A SIGHUP that is ignored stays ignored: the command was started with nohup.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        raise _Signal(number)

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _drain_stdout() -> None:
    """Send what cannot be printed nowhere: the interpreter flushes stdout on its way out, and would end with 120."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        with suppress(OSError, ValueError):
            stdout = sys.stdout.fileno() if sys.stdout else 1
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere != stdout:
                os.dup2(nowhere, stdout)
                os.close(nowhere)


def _leave(error: BaseException, code: int, words: Sequence[str], line: str = "") -> None:
    if "--debug" in words:
        import traceback

        traceback.print_exception(error)
    _drain_stdout()
    try:
        print(f"error: {line or error}", file=sys.stderr, flush=True)
    except OSError:
        os._exit(int(code))  # stderr is gone too; there is nobody to tell
    _end(code)
    sys.exit(int(code))


def _end(code: int) -> None:
    """End a process that is one of several (comp.launch.leave); any other goes on to its ordinary end."""
    if "WORLD_SIZE" in os.environ:
        from comp import launch

        launch.leave(int(code))


if __name__ == "__main__":
    main()
