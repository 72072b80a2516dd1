"""The one exception a user is meant to read, and how others are quoted in it."""


class InputError(Exception):
    """Something the user gave cannot be used: a setting, a file, a folder, a dataset.

    The message is one sentence (or one per problem, a line each) that names the value, the place and the remedy. The command line prints it
    without a traceback and exits with status 2.
    """


def on_one_line(error: BaseException) -> str:
    """What another library's error says, fit to be quoted in a sentence: one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
