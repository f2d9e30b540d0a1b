"""What an error of an object store means: try again, give credentials, or neither."""

import errno
from typing import Any

import pytest

from simcse_jax.system.file_systems import is_denied, is_passing


class WithStatus(Exception):
    """Carry an HTTP status, as gcsfs's errors do in `code` and aiohttp's in `status`."""

    def __init__(self, **status: Any) -> None:
        super().__init__("failed")
        self.__dict__.update(status)


class NoCredentialsError(Exception):
    """Have the name of botocore's error."""


@pytest.mark.parametrize(
    ("error", "passing", "denied"),
    [
        (WithStatus(code=503), True, False),
        (WithStatus(status="429"), True, False),
        (WithStatus(code=404), False, False),
        (WithStatus(code=401), False, True),
        (WithStatus(status_code=403), False, True),
        (ConnectionResetError(), True, False),
        (TimeoutError(), True, False),
        (OSError(errno.EHOSTUNREACH, "no route"), True, False),
        (FileNotFoundError(errno.ENOENT, "none"), False, False),
        (PermissionError(), False, True),
        (OSError("Forbidden: gs://bucket/name"), False, True),
        (NoCredentialsError(), False, True),
        (ValueError("Bad Credentials"), False, True),
        (ValueError("bad bucket name"), False, False),
    ],
    ids=repr,
)
def test_an_error_may_pass_or_asks_for_credentials(error: Exception, passing: bool, denied: bool) -> None:
    assert (is_passing(error), is_denied(error)) == (passing, denied)
