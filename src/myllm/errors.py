"""Errors that a user can cause. The command line prints each as one message, without a traceback.

MyLLMError
    ConfigError        an option, or a combination of options
    DataError          pictures, captions or splits
    CheckpointError    weights and the files around them
"""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class MyLLMError(Exception):
    """Base class of all errors that a user can cause; the message says what to do."""


class ConfigError(MyLLMError, ValueError):
    """An option, or a combination of options, that cannot work."""


class DataError(MyLLMError):
    """Pictures, captions or splits that are missing, broken or in an unexpected form."""


class CheckpointError(MyLLMError):
    """Weights that are missing, damaged, hostile, of a newer format or of another geometry."""


def reason(error: BaseException) -> str:
    """First line of an error's message, or its class name if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def tokenizer_errors() -> Iterator[None]:
    """Raise CheckpointError for a panic of the library tokenizers, which is not an Exception.

    A tokenizer's regular expression may need more steps than the library permits for some text.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(
            f"the captioner's tokenizer failed on a text ({reason(error)}); its regular expressions may be hostile or "
            "damaged: take the tokenizer that the captioner was trained with"
        ) from None


def install_command(*packages: str) -> str:
    """Command that installs packages into the running Python, for messages: `/path/to/python -m pip install ...`."""
    return f"{shlex.quote(sys.executable)} -m pip install {shlex.join(packages)}"
