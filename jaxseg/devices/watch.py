"""Ends all processes of a run when one of them ends early: collectives would wait for it, some of them forever.

Every process holds a connection to the first one. The operating system closes it when a process ends, however it ends.
A machine that is lost closes nothing; after `SILENCE` seconds without an answer TCP counts it as gone.
"""

import contextlib
import os
import select
import socket
import sys
import threading
from collections.abc import Iterator

import jax

from jaxseg.base.errors import NonFiniteLoss, Stopped
from jaxseg.devices.processes import AGREED, coordinator, once

DONE, LOST = b"d", b"l"
"""Messages: a process ends in order; another one, whose number follows in 4 bytes, has ended early."""
SILENCE = 30
ENDED = 1
"""Exit status of a process that ends because of another one."""


@contextlib.contextmanager
def together(left: str = "--resume goes on") -> Iterator[None]:
    """Ends this process, with status `ENDED` and a line on stderr, if another one leaves the `with` statement early.

    - `left`: end of that line: what is left, or what to do

    An error that all processes raise, as `processes.once` marks it, ends none early.
    """
    if jax.process_count() == 1:
        yield
        return
    connections, first = _connections(), jax.process_index() == 0
    done, gone = threading.Event(), threading.Thread(target=lambda: _watch(connections, done, left), daemon=True)
    gone.start()
    failed, in_order = True, True
    try:
        yield
        failed = False
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):  # perhaps since another one has ended, which the thread sees
            gone.join(SILENCE)
        in_order = isinstance(error, Stopped | NonFiniteLoss) or getattr(error, AGREED, False)
        raise
    finally:
        for connection in connections.values():
            with contextlib.suppress(OSError):
                connection.sendall(DONE) if in_order else connection.shutdown(socket.SHUT_RDWR)
        if first and in_order:  # JAX's service, which the first process runs, must end last
            gone.join(SILENCE) if failed else done.wait(SILENCE)


def _connections() -> dict[int, socket.socket]:
    """Connections of the first process to all others, or of another one to the first, by the other end's number."""
    first = jax.process_index() == 0
    server = socket.create_server(("", 0)) if first else None
    port = once(lambda: server.getsockname()[1])
    connections = dict(_accepted(server)) if first else {0: _connected(coordinator(), port)}
    for connection in connections.values():
        _keep_alive(connection)
    return connections


def _accepted(server: socket.socket) -> Iterator[tuple[int, socket.socket]]:
    """Accepts a connection of every other process; each sends its number."""
    for _ in range(jax.process_count() - 1):
        connection, _ = server.accept()
        yield int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big"), connection
    server.close()


def _connected(host: str, port: int) -> socket.socket:
    connection = socket.create_connection((host, port), timeout=SILENCE)
    connection.settimeout(None)
    connection.sendall(jax.process_index().to_bytes(4, "big"))
    return connection


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", (SILENCE - 10) // 5)):
        if hasattr(socket, name):  # Windows and macOS lack some
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _watch(connections: dict[int, socket.socket], done: threading.Event, left: str) -> None:
    """Waits until all connections are closed; sets `done` when all others have ended in order.

    Ends this process if a connection is closed before that.
    """
    waiting, ending = {connection: number for number, connection in connections.items()}, set()
    while waiting:
        ready, _, _ = select.select([*waiting], [], [])
        for connection in ready:
            message = _received(connection)
            if message[:1] == DONE:
                ending.add(connection)
            elif connection in ending:
                del waiting[connection]
            else:  # the first process tells whose connection it lost
                number = int.from_bytes(message[1:], "big") if message[:1] == LOST else waiting[connection]
                _leave(number, [other for other in waiting if other is not connection], left)
        if len(ending) == len(connections):
            done.set()


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(5)
    except OSError:
        return b""


def _leave(lost: int, others: list[socket.socket], left: str) -> None:
    """Tells the others, and ends this process, whose main thread may be waiting for the one that is lost."""
    for other in others:
        with contextlib.suppress(OSError):
            other.sendall(LOST + lost.to_bytes(4, "big"))
    here, count = jax.process_index(), jax.process_count()
    what = f"stopped: process {lost} of {count} has ended, so process {here} ends too; {left}"
    with contextlib.suppress(OSError):
        print(what, file=sys.stderr, flush=True)
    os._exit(ENDED)
