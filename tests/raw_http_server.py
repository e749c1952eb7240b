"""A server for tests that sends whatever bytes a test wants."""

import contextlib
import re
import socket
import threading


def make_response(body, status=200, *headers):
  """Return the bytes of a response, with a head that fits its body."""
  lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
  return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


@contextlib.contextmanager
def serve_raw(act):
  """Serve what `act` sends to each request.

  Args:
    act: (number of the request from 0, its body, socket); returns the bytes to
      send, or None if it sent what it wanted.

  Yields:
    The address, and a list of the requests' heads.
  """
  listener, heads = socket.create_server(("127.0.0.1", 0), backlog=64), []

  def answer(connection):
    # The client may hang up at any time.
    with connection, contextlib.suppress(OSError):
      connection.settimeout(20)
      received = b""
      while b"\r\n\r\n" not in received:
        received += connection.recv(1 << 16) or b"\r\n\r\n"
      head, _, body = received.partition(b"\r\n\r\n")
      length = re.search(rb"(?i)content-length: (\d+)", head)
      while len(body) < int(length[1] if length else 0):
        body += connection.recv(1 << 16)
      heads.append(head.decode())
      number = len(heads) - 1
      connection.sendall(act(number, body, connection) or b"")

  def accept():
    # Closing the listener ends the loop.
    with contextlib.suppress(OSError):
      while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()

  threading.Thread(target=accept, daemon=True).start()
  try:
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", heads
  finally:
    listener.close()
