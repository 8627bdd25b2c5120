"""The one error type that means: the user can fix this."""


class UserError(ValueError):
    """A mistake of the user, told in one line.

    The message names the file, key or flag, what was found there, and what to write instead.
    Command lines print it without a traceback and exit with code 2.
    """
