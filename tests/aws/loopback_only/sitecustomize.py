"""No connection leaves this machine: imported by every Python that has this folder in PYTHONPATH."""

import socket
from typing import Any

_connect, _connect_ex = socket.socket.connect, socket.socket.connect_ex


def _is_loopback(address: Any) -> bool:
    return not isinstance(address, tuple) or str(address[0]) in ("127.0.0.1", "::1", "localhost")


def _refuse_others(connect: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        if not _is_loopback(address):
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    return guarded


def install() -> None:
    """From now on only loopback can be reached."""
    socket.socket.connect = _refuse_others(_connect)  # type: ignore[method-assign]
    socket.socket.connect_ex = _refuse_others(_connect_ex)  # type: ignore[method-assign]


def uninstall() -> None:
    """As it was."""
    socket.socket.connect = _connect  # type: ignore[method-assign]
    socket.socket.connect_ex = _connect_ex  # type: ignore[method-assign]


install()
