"""Report expected failures as `UserError`, and any error in one line."""


class UserError(Exception):
    """Report a failure whose cause is outside the code: a file, a key, a model folder, the network.

    The message fits on one screen: what is wrong, its value, the limit, and a value or command that works. Commands
    print it without a traceback and exit with status 2.
    """

    # True when every process of the run raises it at this point, so that all can leave in order.
    everywhere = False


def short(error: BaseException) -> str:
    """Return the type and the first line of an error; of a long line only both ends."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first if len(first) < 300 else f'{first[:80]} ... {first[-200:]}'}"
