"""What a server is told: where it listens, who may ask, and how much."""

from __future__ import annotations

import dataclasses

from simcse_jax.system.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass(frozen=True)
class Settings:
    """A server's settings; UserError at once for a value that cannot be."""

    name: str = "simcse"  # what clients are told that the model is called
    host: str = "127.0.0.1"  # this machine alone; "0.0.0.0" for all that reach it
    port: int = 8000  # 0 = any that is free
    api_key: str | None = None  # asked of every request but those for the pages and /health
    hosts: tuple[str, ...] = ()  # names by which clients on a loopback address may call it, beside the usual ones
    max_texts: int = 1024  # texts of one request, all its lists together
    max_characters: int = 100_000  # of one text; the model cuts at its own length far before
    max_body: int = 8 * 2**20  # bytes of a request
    max_top_k: int = 1000  # hits of one query
    max_hits: int = 20_000  # hits of one request, all its queries together
    max_waiting: int = 4096  # texts that wait for the model, of all clients; above that, 503
    max_together: int = 256  # texts of several clients that are encoded in one call; more would only make all wait
    max_requests: int = 1000  # at once; above that, 503
    time_limit_s: float = (
        30.0  # for a request to arrive; then for its texts to be encoded; then for them to be searched
    )

    def __post_init__(self) -> None:
        """Check every value."""
        if not 0 <= self.port <= 65535:
            raise UserError(f"port is {self.port}; ports are 0 to 65535, e.g. 8000, and 0 takes any that is free.")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("max_") and value < 1:
                raise UserError(f"{field.name} is {value}; it is a number of at least 1, e.g. {field.default}.")
        if not 0 < self.time_limit_s < float("inf"):
            raise UserError(f"time_limit_s is {self.time_limit_s}; it is a time in seconds above 0, e.g. 30.")
        if not self.host:
            raise UserError("host is empty; give 127.0.0.1 for this machine alone, or 0.0.0.0 for all that reach it.")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            # A key that headers cannot carry would lock everybody out; an empty one would let everybody in.
            raise UserError("The API key is empty or holds characters that a header cannot carry; use ASCII letters.")
        if self.api_key is not None and self.api_key != self.api_key.strip():
            raise UserError("The API key begins or ends with a space, which headers lose; leave it out.")

    @property
    def known_hosts(self) -> tuple[str, ...]:
        """The names that a request may call the server by; () for any.

        Only where it listens to this machine alone: a web page could otherwise point its own name at 127.0.0.1 and
        read the answers in the browser of someone who visits it. Elsewhere, names are the network's business.
        """
        return (*LOOPBACK, *map(str.lower, self.hosts)) if self.host in LOOPBACK else ()
