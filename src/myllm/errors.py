"""What a user can cause. The command line prints these as one message, never as a traceback."""


class MyLLMError(Exception):
    """Base of every error that has a way out the user can take; the message names it."""


class ConfigError(MyLLMError, ValueError):
    """An option, or a combination of options, that cannot work."""


class DataError(MyLLMError):
    """Pictures, captions or splits that are missing, broken or of another form than expected."""


class CheckpointError(MyLLMError):
    """Weights that are missing, damaged, hostile, of a newer format or of another geometry."""
