"""What a user can cause. The command line prints these as one message, never as a traceback."""


class MyLLMError(Exception):
    """Base of every error that has a way out the user can take; the message names it."""


class ConfigError(MyLLMError, ValueError):
    """An option, or a combination of options, that cannot work."""


class DataError(MyLLMError):
    """Pictures, captions or splits that are missing, broken or of another form than expected."""


class CheckpointError(MyLLMError):
    """Weights that are missing, damaged, hostile, of a newer format or of another geometry."""


def reason(error: BaseException) -> str:
    """The first line of what another library said, or the kind of its error where it said nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
