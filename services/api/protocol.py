"""Guard connections: a request's headers must come in time, and nobody may hold all connections open."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from services.site import Settings, auth


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a deadline for headers and a limit of connections, which are closed beyond it."""

    header_seconds = 15.0
    """Seconds from a connection, or the first byte of a further request on it, until the request's headers are complete."""
    most = 1024
    """The most open connections; a client's address (of IPv6 its /64) may have half of them."""
    _deadline: asyncio.TimerHandle | None = None
    _address: str | None = None

    def connection_made(self, transport: Any) -> None:
        """Take a connection, or close it where there are too many."""
        super().connection_made(transport)
        self._address = auth.network(self.client[0]) if self.client else None
        own = sum(getattr(connection, "_address", None) == self._address for connection in self.connections)
        if len(self.connections) > self.most or own > self.most // 2:
            transport.abort()
            return
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request; the first ones start the deadline of its headers."""
        if not self._busy():
            self._await_headers()
        super().data_received(data)
        if self._busy():
            self._forget_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._forget_deadline()
        super().connection_lost(exc)

    def _busy(self) -> bool:
        """Whether a request whose headers have come is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _await_headers(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.header_seconds, self._too_late)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if not self._busy():
            self.transport.abort()


def guarded(settings: Settings) -> type[GuardedProtocol]:
    """Return the protocol with the limits of a site."""
    return type(
        "SiteProtocol", (GuardedProtocol,), {"header_seconds": settings.header_seconds, "most": settings.connections}
    )
