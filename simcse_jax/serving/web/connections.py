"""HTTP/1.1 with a limit to how long a client may keep a connection without a request, or an answer unread."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def limited(time_limit_s: float) -> type[H11Protocol]:
    """The protocol for uvicorn's `http`: at its connections, a client's turn ends after so many seconds.

    It is the client's turn until the head of a request is whole, and while so much of an answer is unread that no more
    can be sent. Uvicorn alone limits neither but for the silence after an answer. Bodies are the guard's to limit.
    """
    return type("Limited", (_Limited,), {"time_limit_s": time_limit_s})


class _Limited(H11Protocol):
    time_limit_s: float
    _clock: asyncio.TimerHandle | None = None
    _unread = 0  # bytes of answers, when the clock was set

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._set_clock()

    def handle_events(self) -> None:
        super().handle_events()
        self._set_clock()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._set_clock()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._set_clock()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._set_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_clock()

    def send_400_response(self, msg: str) -> None:
        """Say so where an answer can be sent; what comes behind an answer and is no HTTP ends the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _set_clock(self) -> None:
        """Let it run in the client's turn and no other; data that comes in between gives no more time."""
        ours = self.cycle is not None and not self.cycle.response_complete
        if ours and not self.flow.write_paused:
            self._stop_clock()
        elif self._clock is None:
            self._unread = self.transport.get_write_buffer_size()
            self._clock = self.loop.call_later(self.time_limit_s, self._time_is_up)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _time_is_up(self) -> None:
        self._clock = None
        if 0 < self.transport.get_write_buffer_size() < self._unread:
            self._set_clock()  # slow, but it reads
        else:
            self.transport.abort()  # `close` would wait until all is read
