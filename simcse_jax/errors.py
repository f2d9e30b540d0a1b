"""The one exception that a user is expected to see."""


class UserError(Exception):
    """A failure with a known cause outside the code: a file, a key, a model folder, the network.

    The message fits on one screen: what is wrong, its value, the limit, and a value or command that works.
    Entry points print it without a traceback and exit with status 2.
    """
