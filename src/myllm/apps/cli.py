"""The command line: `myllm VERB ...`. Verbs are imported when they are used, so that help is instant."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

from myllm.apps import caption_options, data_options, options, serve_options
from myllm.apps.printing import printable, replace_unencodable
from myllm.apps.startup import without_garbage_collection
from myllm.config import VERSION, nearest
from myllm.errors import ConfigError, MyLLMError, install_command

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
# the packages of the extra `train`; an installation without them cannot run every verb
TRAIN_PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxscript", "tensorboardX", "matplotlib")
SERVE_PACKAGES = ("fastapi", "httpcore2", "prometheus_client", "python-multipart", "uvicorn")


class Verb(NamedTuple):
    """What a verb does, its function as 'module:name', and the class of its options."""

    summary: str
    function: str
    options: type


VERBS: Mapping[str, Verb] = {
    "demo": Verb("draw scenes, train on them, judge, report", "demo:demo", options.DemoOptions),
    "scenes": Verb("draw pictures with captions", "scenes:scenes", options.ScenesOptions),
    "train": Verb("train a captioner, or resume a run", "train:train", options.TrainOptions),
    "caption": Verb("caption pictures and folders", "caption:caption", caption_options.CaptionOptions),
    "alt": Verb("find and fill in missing alternative texts", "alt:alt", options.AltOptions),
    "label": Verb("ask a large model for captions to train on", "label:label", options.LabelOptions),
    "evaluate": Verb("caption a split and score the captions", "evaluate:evaluate_split", options.EvaluateOptions),
    "score": Verb("score captions from any source", "score:score", options.ScoreOptions),
    "compare": Verb("compare two captioners", "compare:compare_two", options.CompareOptions),
    "serve": Verb("serve captioners over HTTP", "serve:serve", serve_options.ServeOptions),
    "data inspect": Verb("count, check and show data", "data:inspect_data", data_options.InspectOptions),
    "data convert": Verb("change the form of data", "data:convert_data", data_options.ConvertOptions),
    "data split": Verb("divide data for training and judging", "data:split_data", data_options.SplitOptions),
    "import": Verb("convert a captioner of another program", "convert:import_model", options.ImportOptions),
    "pull": Verb("download a captioner from a hub", "convert:import_model", options.ImportOptions),
    "push": Verb("upload a captioner to a hub", "convert:push_model", options.PushOptions),
    "export": Verb("convert a captioner for another program", "convert:export_model", options.ExportOptions),
    "average": Verb("average the weights of captioners", "average:average_models", options.AverageOptions),
    "info": Verb("describe a captioner", "info:info", options.InfoOptions),
    "diagram": Verb("draw the architecture", "diagram:diagram", options.DiagramOptions),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `myllm ARGUMENTS...`. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    replace_unencodable()
    group, words = split_group(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(group))
        return DONE if words else WRONG_USAGE
    if words[0] == "--version":
        print(f"myllm {VERSION}")
        return DONE
    return exit_code(lambda: run_verb(group + words[0], words[1:]))


def split_group(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return "data " and the other words if a verb of two words begins with it, like "data split"; else "" and all."""
    group = f"{words[0]} " if words else ""
    is_group = any(name.startswith(group) for name in VERBS if " " in name)
    return (group, list(words[1:])) if words and is_group else ("", list(words))


def run_verb(name: str, words: Sequence[str]) -> int:
    """Parse a verb's words, run it and return its exit code. Raises ConfigError for wrong usage, and as the verb."""
    verb_options = parse_verb(name, words)
    module, _, function = VERBS[name].function.partition(":")
    with without_garbage_collection():
        run: Callable[[Any], int] = getattr(import_module(f"myllm.apps.{module}"), function)
    return run(verb_options)


def parse_verb(name: str, words: Sequence[str], defaults: Mapping[str, Any] | None = None) -> Any:
    """Return the options of `myllm NAME WORDS...`; `defaults` replace the verb's own. Raises ConfigError."""
    if name not in VERBS:
        raise ConfigError(f"unknown verb {name!r}; expected one of {', '.join(VERBS)}{nearest(name, VERBS)}")
    from myllm.apps.parsing import parse  # imports jsonargparse, which `myllm --help` does not need

    return parse(f"myllm {name}", VERBS[name].options, words, defaults)


def exit_code(run: Callable[[], int]) -> int:
    """Call `run` and return the exit code; an error that a user can cause is printed in one line on standard error."""
    try:
        with _exit_on_sigterm():
            return run()
    except MyLLMError as error:
        message, code = str(error), WRONG_USAGE if isinstance(error, ConfigError) else FAILED
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extras = (TRAIN_PACKAGES, SERVE_PACKAGES, ("ray[data]",))
        packages = next((names for names in extras if package in [name.partition("[")[0] for name in names]), None)
        if packages is None:
            raise
        message = f"this needs {package}, which is not installed; install it with `{install_command(*packages)}`"
        code = FAILED
    except KeyboardInterrupt:
        message, code = "interrupted", INTERRUPTED
    except BrokenPipeError:  # `myllm caption ... | head` has not failed
        sys.stderr.close()
        return DONE
    except OSError as error:  # a full disk, a name that is too long, a folder without permission
        message, code = f"{error.filename or 'input or output'}: {error.strerror or error}", FAILED
    except SystemExit as finished:  # the parser's --help
        return DONE if finished.code is None else int(finished.code)
    print(printable(f"myllm: {message}", keep="\n"), file=sys.stderr)
    return code


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program as Ctrl-C does, so that locks and half-written files are removed."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def overview(group: str = "") -> str:
    """Return the help of `myllm` itself: the verbs, or those that begin with `group`, like "data "."""
    rows = "\n".join(f"  {name:<12} {verb.summary}" for name, verb in VERBS.items() if name.startswith(group))
    return (
        f"myllm {VERSION}: captions for pictures.\n\nusage: myllm {group}VERB [options]\n\n{rows}\n\n"
        "`myllm VERB --help` lists the options of a verb. New here? `myllm demo` trains a captioner in ten minutes."
    )
