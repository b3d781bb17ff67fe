"""Exceptions that end a command: errors that are reported to the user, and signals."""


class RebarError(Exception):
    """A user error or an external failure, reported as one message without a traceback.

    The message states the object, the problem and the fix. ``code`` is a stable identifier such as ``beton-truncated``:
    scripts and tests depend on the code, not on the wording. ``docs/errors.md`` documents every code with its cause and
    its fix. Any other exception that reaches the user is a bug.
    """

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle ``code`` too: worker processes send their errors to the parent."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[RebarError], args: tuple[object, ...], attributes: dict[str, object]) -> RebarError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(attributes)
    return error


class Terminated(BaseException):
    """A signal that asks the process to end; ``signal_number`` is its number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number
