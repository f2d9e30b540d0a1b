"""The one exception that a user is expected to see, and others in a line."""


class UserError(Exception):
    """A failure with a known cause outside the code: a file, a key, a model folder, the network.

    The message fits on one screen: what is wrong, its value, the limit, and a value or command that works.
    Entry points print it without a traceback and exit with status 2.
    """

    # Whether every process of the run raises it at this point, so that they can part in order.
    everywhere = False


def short(error: BaseException) -> str:
    """The first line of an error; of a long one, where it begins and ends."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first if len(first) < 300 else f'{first[:80]} ... {first[-200:]}'}"
