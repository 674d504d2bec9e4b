#!/usr/bin/env python3
"""An S3 server with bad days: a reverse proxy that passes most requests on and spoils some.

    fault_proxy.py --upstream 127.0.0.1:7480 --rate 0.2 --seed 1 --port-file PORT --stats STATS

It speaks HTTP/1.1 without TLS. Request line, headers and body go on byte for byte, Host too, so that
signatures stay right. A request is spoiled with the probability --rate, in one of the ways that
apply to it, each as likely as the others. What happens to a request depends on the seed, its method,
its target and how often that came before, and on nothing else: the order in which the requests of a
program's threads arrive changes nothing.

Answers without asking the server (the body of the request is read and thrown away):
  internal    500 InternalError
  slowdown    503 SlowDown
  empty       503 without a body
  expired     403 ExpiredToken
  skewed      403 RequestTimeTooSkewed, with the true time in the header Date
  timeout     400 RequestTimeout, and the connection is closed
  conflict    409 ConditionalRequestConflict (If-Match or If-None-Match on PUT or POST)
Silence:
  hang        no answer for --hang seconds, then the connection is closed
  close       the connection is closed at once
After asking the server:
  latency     everything works, --latency seconds later
  lost        PUT, POST, DELETE: done by the server, but the connection is closed without an answer
  reset       GET: the connection is reset in the middle of the body
  truncate    GET: the connection is closed in the middle of the body
  flip        GET: one byte of the body is another one; only if --only asks for it

--stats is a JSON object, replaced after each fault and at the end (SIGTERM or SIGINT): `requests`,
`passed` (not spoiled), `faults` (of each kind, how many), `upstream_lost` (the server itself closed a
connection; not of our doing).
"""

import argparse
import asyncio
import collections
import email.utils
import json
import os
import random
import signal
import socket
import struct
import sys
import uuid

PIECE = 256 * 1024
ANY = ("internal", "slowdown", "empty", "expired", "skewed", "timeout", "hang", "close", "latency")
KINDS = (*ANY, "conflict", "lost", "reset", "truncate", "flip")
ERRORS = {
    "internal": (500, "InternalError", "We encountered an internal error. Please try again."),
    "slowdown": (503, "SlowDown", "Please reduce your request rate."),
    "empty": (503, None, None),
    "expired": (403, "ExpiredToken", "The provided token has expired."),
    "skewed": (403, "RequestTimeTooSkewed",
               "The difference between the request time and the current time is too large."),
    "timeout": (400, "RequestTimeout", "Your socket connection to the server was not read from "
                "or written to within the timeout period."),
    "conflict": (409, "ConditionalRequestConflict", "The conditional request cannot succeed due to "
                 "a conflicting operation against this resource."),
}
REASONS = {400: "Bad Request", 403: "Forbidden", 409: "Conflict", 500: "Internal Server Error",
           503: "Service Unavailable"}


class Lost(Exception):
    """The other end has gone."""


class Head:
    """The first line and the headers of a message: raw, to be passed on, and to be looked into."""

    def __init__(self, raw):
        self.raw = raw
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        self.first = first.split(" ", 2)
        self.headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()

    def says(self, name, word):
        return word in self.headers.get(name, "").lower()

    def keeps(self, version):
        return version == "HTTP/1.1" and not self.says("connection", "close")


async def read_head(reader):
    """None where the connection was closed between two messages."""
    try:
        return Head(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise Lost from error
        return None
    except (OSError, asyncio.LimitOverrunError) as error:
        raise Lost from error


async def body(reader, head, length_without=0):
    """The body of a message in pieces as they come, the framing of a chunked one included.

    length_without: what it has if the head says nothing, 0 or None (all until the end)."""
    if head.says("transfer-encoding", "chunked"):
        size = None
        while size != 0:
            line = await reader.readuntil(b"\r\n")
            yield line
            size = int(line.split(b";")[0], 16)
            if size:
                async for piece in exactly(reader, size + 2):
                    yield piece
        while line != b"\r\n":  # headers after the body, then an empty line
            line = await reader.readuntil(b"\r\n")
            yield line
        return
    length = head.headers.get("content-length")
    length = int(length) if length is not None else length_without
    if length is not None:
        async for piece in exactly(reader, length):
            yield piece
        return
    while piece := await reader.read(PIECE):
        yield piece


async def exactly(reader, length):
    while length:
        piece = await reader.read(min(length, PIECE))
        if not piece:
            raise Lost
        length -= len(piece)
        yield piece


class Proxy:
    def __init__(self, options):
        self.options = options
        self.seen = collections.Counter()
        self.faults = dict.fromkeys(options.kinds, 0)
        self.requests = self.passed = self.upstream_lost = 0

    # --- what is spoiled --------------------------------------------------------------------

    def choose(self, method, target, head):
        """The fault for this request, or None, and what else is random about it."""
        options = self.options
        self.requests += 1
        self.seen[method, target] += 1
        chance = random.Random(f"{options.seed} {method} {target} {self.seen[method, target]}")
        kinds = [kind for kind in options.kinds if self.applies(kind, method, head)]
        if (
            not kinds
            or (options.match and options.match not in target)
            or (options.method and method not in options.method)
            or (options.most is not None and sum(self.faults.values()) >= options.most)
            or chance.random() >= options.rate
        ):
            return None, chance
        return chance.choice(kinds), chance

    @staticmethod
    def applies(kind, method, head):
        if kind == "conflict":
            conditional = "if-match" in head.headers or "if-none-match" in head.headers
            return conditional and method in ("PUT", "POST")
        if kind == "lost":
            return method in ("PUT", "POST", "DELETE")
        if kind in ("reset", "truncate", "flip"):
            return method == "GET"
        return True

    def count(self, kind):
        self.faults[kind] += 1
        self.write()

    def write(self):
        if not self.options.stats:
            return
        stats = {"requests": self.requests, "passed": self.passed, "faults": self.faults,
                 "upstream_lost": self.upstream_lost}
        put_in_place(self.options.stats, json.dumps(stats) + "\n")

    # --- one connection ---------------------------------------------------------------------

    async def connection(self, reader, writer):
        upstream = None
        try:
            while (head := await read_head(reader)) is not None:
                if upstream is not None and upstream[0].at_eof():
                    upstream[1].close()  # it had been idle for too long
                    upstream = None
                if upstream is None:
                    upstream = await self.connect()
                if not await self.exchange(head, reader, writer, *upstream):
                    break
        except (Lost, OSError, ValueError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # whoever is left sees a closed connection
        finally:
            writer.close()
            if upstream is not None:
                upstream[1].close()

    async def connect(self):
        try:
            return await asyncio.open_connection(*self.options.upstream, limit=PIECE)
        except OSError as error:
            self.upstream_lost += 1
            raise Lost from error

    async def exchange(self, head, reader, writer, up_reader, up_writer):
        """One request and its answer; whether the connection can be used for the next one."""
        method, target, version = head.first
        kind, chance = self.choose(method, target, head)
        if kind is None:
            self.passed += 1
        elif kind not in ("lost", "reset", "truncate", "flip"):
            self.count(kind)
        if kind == "hang":
            await asyncio.sleep(self.options.hang)
            return False
        if kind == "close":
            return False
        if kind in ERRORS:
            return await self.refuse(kind, head, reader, writer)
        if kind == "latency":
            await asyncio.sleep(self.options.latency)

        answer = await self.ask(head, reader, writer, up_reader, up_writer)
        bare = method == "HEAD" or answer.first[1] in ("204", "304")
        length = 0 if bare else None
        if kind == "lost":
            self.count(kind)
            if not bare:
                async for _ in body(up_reader, answer, length):
                    pass
            return False
        if kind in ("reset", "truncate", "flip"):
            good = answer.first[1] in ("200", "206")
            if good and await self.spoil(kind, chance, answer, up_reader, writer):
                return kind == "flip" and head.keeps(version) and answer.keeps(answer.first[0])
            self.passed += 1
        writer.write(answer.raw)
        if not bare:
            async for piece in body(up_reader, answer, length):
                writer.write(piece)
                await writer.drain()
        await writer.drain()
        framed = bare or "content-length" in answer.headers or "transfer-encoding" in answer.headers
        return framed and head.keeps(version) and answer.keeps(answer.first[0])

    async def ask(self, head, reader, writer, up_reader, up_writer):
        """Passes a request on, and returns the head of the answer."""
        try:
            up_writer.write(head.raw)
            waits = head.says("expect", "100-continue")
            if not waits:
                await self.send_body(head, reader, up_writer)
            while True:
                await up_writer.drain()
                answer = await read_head(up_reader)
                if answer is None:
                    raise Lost
                if answer.first[1] != "100":
                    break
                if waits:
                    waits = False
                    writer.write(answer.raw)
                    await writer.drain()
                    await self.send_body(head, reader, up_writer)
        except (Lost, OSError):
            self.upstream_lost += 1
            raise
        if waits:
            # Refused before the body was asked for; whether it comes is not known.
            answer.headers["connection"] = "close"
        return answer

    @staticmethod
    async def send_body(head, reader, up_writer):
        async for piece in body(reader, head):
            try:
                up_writer.write(piece)
                await up_writer.drain()
            except OSError:
                return  # the server has answered already, and closed

    async def refuse(self, kind, head, reader, writer):
        status, code, message = ERRORS[kind]
        closes = kind == "timeout" or head.says("expect", "100-continue")
        if not head.says("expect", "100-continue"):
            async for _ in body(reader, head):
                pass
        request = uuid.uuid4().hex[:16].upper()
        text = ""
        if code is not None:
            path = head.first[1].split("?")[0]
            escaped = path.replace("&", "&amp;").replace("<", "&lt;")
            text = (
                '<?xml version="1.0" encoding="UTF-8"?>\n'
                f"<Error><Code>{code}</Code><Message>{message}</Message>"
                f"<Resource>{escaped}</Resource><RequestId>{request}</RequestId>"
                f"<HostId>{request}</HostId></Error>"
            )
        lines = [
            f"HTTP/1.1 {status} {REASONS[status]}",
            f"x-amz-request-id: {request}",
            f"Date: {email.utils.formatdate(usegmt=True)}",
            f"Content-Length: {len(text)}",
        ]
        if text:
            lines.append("Content-Type: application/xml")
        if closes:
            lines.append("Connection: close")
        if head.first[0] == "HEAD":
            text = ""  # the length is that of what a GET would have got
        writer.write(("\r\n".join(lines) + "\r\n\r\n" + text).encode())
        await writer.drain()
        return not closes and head.keeps(head.first[2])

    async def spoil(self, kind, chance, answer, reader, writer):
        """Gives a body that is cut off or has another byte; False where there is none."""
        length = int(answer.headers.get("content-length", 0))
        if not length and (kind == "flip" or not answer.says("transfer-encoding", "chunked")):
            return False
        self.count(kind)
        pieces = body(reader, answer)
        if not length:
            # Its length is not known before: it is a list of keys, and short.
            whole = b"".join([piece async for piece in pieces])
            writer.write(answer.raw + whole[: chance.randrange(len(whole))])
        else:
            at = chance.randrange(length)
            writer.write(answer.raw)
            async for piece in pieces:
                if kind == "flip":
                    if 0 <= at < len(piece):
                        piece = bytearray(piece)
                        piece[at] ^= 1 << chance.randrange(8)
                    at -= len(piece)
                elif at < len(piece):
                    writer.write(piece[:at])
                    break
                else:
                    at -= len(piece)
                writer.write(piece)
                await writer.drain()
        if kind == "reset":
            # What is sent already should arrive; a reset that overtakes it would be a `close`.
            while writer.transport.get_write_buffer_size():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.005)
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        return True


def put_in_place(path, text):
    with open(f"{path}.{os.getpid()}.tmp", "w") as file:
        file.write(text)
    os.replace(file.name, path)


def address(text):
    host, _, port = text.removeprefix("http://").rstrip("/").rpartition(":")
    return host, int(port)


def kinds(text):
    chosen = text.split(",")
    for kind in chosen:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"{kind} is none of {', '.join(KINDS)}")
    return chosen


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", type=address, default=("127.0.0.1", 0), metavar="HOST:PORT")
    parser.add_argument("--upstream", type=address, required=True, metavar="HOST:PORT")
    parser.add_argument("--rate", type=float, default=0.2, help="share of requests (%(default)s)")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--only", type=kinds, metavar="KINDS", help="these faults, by comma")
    parser.add_argument("--but", type=kinds, default=[], metavar="KINDS", help="not these")
    parser.add_argument("--match", metavar="TEXT", help="only requests with this in their target")
    parser.add_argument("--method", type=lambda text: text.split(","), metavar="METHODS")
    parser.add_argument("--most", type=int, metavar="N", help="no more faults than this")
    parser.add_argument("--hang", type=float, default=3, metavar="SECONDS")
    parser.add_argument("--latency", type=float, default=0.5, metavar="SECONDS")
    parser.add_argument("--port-file", metavar="FILE", help="gets the port when it is open")
    parser.add_argument("--stats", metavar="FILE")
    options = parser.parse_args()
    options.kinds = options.only or [kind for kind in KINDS if kind != "flip"]
    options.kinds = [kind for kind in options.kinds if kind not in options.but]
    return options


async def main(options):
    proxy = Proxy(options)
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    server = await asyncio.start_server(proxy.connection, *options.listen, limit=PIECE)
    host, port = server.sockets[0].getsockname()
    proxy.write()
    if options.port_file:
        put_in_place(options.port_file, f"{port}\n")
    print(f"http://{host}:{port} -> {':'.join(map(str, options.upstream))}", file=sys.stderr)
    await end.wait()
    server.close()
    proxy.write()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
