"""The exception that a person, not a programmer, is meant to read, and signals to stop."""

import errno
import signal

# The terminal was closed, or the connection to it was lost. Windows has none.
HANGUP = getattr(signal, "SIGHUP", None)

# What the system says of a disk that takes no more.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (*FULL, errno.EROFS)


class UserError(Exception):
    """Something that the person at the keyboard can put right.

    The message is one line that says what is wrong, what was expected, and what to do. The
    commands print it without a traceback and exit with status 1; every other exception is a bug
    in the project and keeps its traceback.
    """


class PrunedError(UserError):
    """A run of a search was stopped because it promised nothing: no failure of anything."""


class Interrupted(SystemExit):
    """A signal asked the run to stop, and it was saved: not an error, but not the end either."""

    CODE = 75  # sysexits.h: a temporary failure, try again later

    def __init__(self, code: int = CODE) -> None:
        super().__init__(code)


def asking() -> list[int]:
    """Return the signals that ask a run to save and stop; not a hangup that nohup ignores."""
    hangs_up = HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP and hangs_up else [])]


def os_error(error: BaseException | None) -> OSError | None:
    """Return what the system said, which libraries may have wrapped in errors of their own."""
    while error is not None and not isinstance(error, OSError):
        error = None if isinstance(error, UserError) else error.__cause__ or error.__context__
    return error


def one_line(error: BaseException) -> str:
    """Return an exception's whole text on one line; its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text that says anything, else its type's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
