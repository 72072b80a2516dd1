"""The one exception a user is meant to read."""


class InputError(Exception):
    """Something the user gave cannot be used: a setting, a file, a folder, a dataset.

    The message is one sentence (or one per problem, a line each) that names the value, the place and the remedy. The command line prints it
    without a traceback and exits with status 2.
    """
