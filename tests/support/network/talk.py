"""Small programs that hosts run to see what their network does to what they send.

    python talk.py sink PORT [CERTIFICATE KEY]        count what each connection brings, a line for each
    python talk.py send HOST PORT BYTES               send so many, print how many came, in how many seconds
    python talk.py text HOST PORT TEXT [CERTIFICATE]  send a text
    python talk.py connect HOST PORT                  print the seconds that a connection takes
    python talk.py count PORT                         count datagrams until one says that it was all
    python talk.py datagrams HOST PORT COUNT          send so many, and then that it was all
    python talk.py clock                              print the wall clock, and how long waiting 0.2 s took

With a certificate they speak TLS. They import nothing of this project.
"""

import contextlib
import socket
import ssl
import sys
import time

CHUNK = bytes(65536)


def sink(port: str, certificate: str = "", key: str = "") -> None:
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    with socket.create_server(("", int(port))) as server:
        print("listening", flush=True)
        while True:
            accepted, _ = server.accept()
            with contextlib.suppress(OSError), accepted:
                talk = accepted if context is None else context.wrap_socket(accepted, server_side=True)
                with talk:
                    count = 0
                    while got := talk.recv(len(CHUNK)):
                        count += len(got)
                    print(count, flush=True)
                    if isinstance(talk, ssl.SSLSocket):
                        talk.unwrap()
                    else:
                        talk.sendall(b"%d\n" % count)


def send(host: str, port: str, count: str) -> None:
    with socket.create_connection((host, int(port)), timeout=60) as talk:
        began, left = time.monotonic(), int(count)
        while left:
            left -= talk.send(CHUNK[: min(left, len(CHUNK))])
        talk.shutdown(socket.SHUT_WR)
        arrived = int(talk.recv(100))
        print(arrived, time.monotonic() - began)


def connected(host: str, port: str, certificate: str) -> socket.socket:
    plain = socket.create_connection((host, int(port)), timeout=60)
    if not certificate:
        return plain
    return ssl.create_default_context(cafile=certificate).wrap_socket(plain, server_hostname=host)


def text(host: str, port: str, words: str, certificate: str = "") -> None:
    with connected(host, port, certificate) as talk:
        talk.sendall(words.encode())
        if isinstance(talk, ssl.SSLSocket):
            talk.unwrap()  # waits until the other end has taken all of it
        else:
            talk.shutdown(socket.SHUT_WR)
            talk.recv(100)


def connect(host: str, port: str) -> None:
    began = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=60):
        print(time.monotonic() - began)


def count(port: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", int(port)))
        print("listening", flush=True)
        came = 0
        while server.recv(100) != b"all":
            came += 1
        print(came, flush=True)


def datagrams(host: str, port: str, number: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for index in range(int(number)):
            client.sendto(b"x", (host, int(port)))
            if index % 50 == 49:
                time.sleep(0.005)  # the receiver's queue holds more than fifty
        for _ in range(30):  # some may be lost; the first that comes ends the count
            time.sleep(0.005)
            with contextlib.suppress(ConnectionError):
                client.sendto(b"all", (host, int(port)))


def clock() -> None:
    began = time.monotonic()
    wall = time.time()
    time.sleep(0.2)
    print(wall, time.monotonic() - began)


if __name__ == "__main__":
    programs = {p.__name__: p for p in (sink, send, text, connect, count, datagrams, clock)}
    programs[sys.argv[1]](*sys.argv[2:])
