"""The one exception a user is meant to read."""


class RebarError(Exception):
    """A mistake or a fault outside our code, told in one clear message.

    The message says what is wrong, where, and what to do about it. Command-line programs print it
    without a traceback (see :mod:`rebar.cli`); anything else that is raised is a bug of ours.
    """
