#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The other end of a guest's network, as a program in the outer machine. Its last line says what came of it.

    net_peer.py echo ADDRESS PORT BYTES SEED   sends BYTES that follow from SEED to a guest that sends them back, and
                                               compares them: "same BYTES", or where they differ
    net_peer.py talk ADDRESS PORT SEED FILE    the same, one short piece after another, until there is a FILE, which has
                                               whatever it has: "same BYTES" or what is wrong
    net_peer.py ping ADDRESS COUNT             one ping after another: "answered COUNT lost N doubled N median SECONDS"
    net_peer.py rarp ADDRESS                   a line "announced" whenever that Ethernet address is, by a RARP broadcast
    net_peer.py sink PORT                      takes one connection until its end: "took BYTES SECONDS"
    net_peer.py source ADDRESS PORT BYTES      sends BYTES and waits until the guest closes: "gave BYTES SECONDS"
"""

import os
import random
import select
import socket
import statistics
import struct
import sys
import threading
import time

ETHERTYPE_RARP = 0x8035  # RFC 903
PIECE = 1 << 20
SHORT_PIECE = 32 << 10  # takes both ends' windows at once
TALK_EVERY_S = 0.02  # often enough to speak in whatever goes on, and leaves the machine to others
LIMIT_S = 600  # without a byte: a stop of 30 s is no reason to give up


def pieces(total, seed):
    numbers = random.Random(seed)
    for start in range(0, total, PIECE):
        yield numbers.randbytes(min(PIECE, total - start))


def connect(address, port):
    until = time.monotonic() + LIMIT_S
    while True:
        try:
            connection = socket.create_connection((address, port), LIMIT_S)
            connection.settimeout(LIMIT_S)
            return connection
        except ConnectionRefusedError: # the guest's program does not listen yet
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def echo(address, port, total, seed):
    connection = connect(address, port)

    def send():
        for piece in pieces(total, seed):
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    at = 0
    for piece in pieces(total, seed):
        rest = memoryview(piece)
        while rest:
            got = connection.recv(len(rest))
            if not got:
                return f"ended after {at} of {total}"
            if got != rest[:len(got)]:
                wrong = next(index for index, byte in enumerate(got) if byte != rest[index])
                return f"differs at {at + wrong}"
            rest = rest[len(got):]
            at += len(got)
    sender.join(LIMIT_S)
    return f"same {at}" if not connection.recv(1) else f"more than {at}"


def receive(connection, count):
    """The next so many bytes, or fewer where it ends."""
    got = bytearray()
    while len(got) < count and (piece := connection.recv(count - len(got))):
        got += piece
    return bytes(got)


def talk(address, port, seed, enough):
    connection = connect(address, port)
    print("connected", flush=True)
    numbers = random.Random(seed)
    total = 0
    while not os.path.exists(enough):
        piece = numbers.randbytes(SHORT_PIECE)
        connection.sendall(piece)
        got = receive(connection, len(piece))
        if got != piece:
            return f"{'differs' if len(got) == len(piece) else 'ended'} within {SHORT_PIECE} bytes after {total}"
        total += len(piece)
        time.sleep(TALK_EVERY_S)
    connection.shutdown(socket.SHUT_WR)
    return f"same {total}" if not connection.recv(1) else f"more than {total}"


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def ping(address, count):
    """Each is sent when the one before was answered, or is taken for lost: after a minute, so that a stop is none."""
    limit_s = 60
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    raw.connect((address, 0))
    answers = [0] * count
    times = []

    def take(wait_s):
        """Counts the next answer, if one comes in time. Returns whether something came."""
        if not select.select([raw], [], [], wait_s)[0]:
            return False
        kind, _, _, who, number = struct.unpack("!BBHHH", raw.recv(2048)[20:28])
        if kind == 0 and who == 0x5356 and number < count:
            answers[number] += 1
        return True

    for number in range(count):
        body = struct.pack("!HH", 0x5356, number) + bytes(range(56))
        request = struct.pack("!BBH", 8, 0, checksum(b"\x08\0\0\0" + body)) + body
        begin = time.monotonic()
        raw.send(request)
        while answers[number] == 0 and take(limit_s):
            pass
        times.append(time.monotonic() - begin)
    while take(0.5):  # what is doubled comes soon after
        pass
    lost = answers.count(0)
    return f"answered {count - lost} lost {lost} doubled {sum(answers) - (count - lost)} " \
           f"median {statistics.median(times):.6f}"


def rarp(address):
    who = bytes.fromhex(address.replace(":", ""))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE_RARP)) as raw:
        print("listening", flush=True)
        while True:
            frame = raw.recv(2048)
            if frame[:12] == b"\xff" * 6 + who:
                print("announced", flush=True)


def sink(port):
    with socket.create_server(("", port)) as server:
        print("listening", flush=True)
        server.settimeout(LIMIT_S)
        connection, _ = server.accept()
    connection.settimeout(LIMIT_S)
    buffer = bytearray(PIECE)
    total = 0
    begin = time.monotonic()
    while count := connection.recv_into(buffer):
        total += count
    return f"took {total} {time.monotonic() - begin:.3f}"


def source(address, port, total):
    connection = connect(address, port)
    piece = bytes(PIECE)
    begin = time.monotonic()
    for start in range(0, total, PIECE):
        connection.sendall(piece[:total - start])
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(PIECE):
        pass
    return f"gave {total} {time.monotonic() - begin:.3f}"


def main():
    what, *words = sys.argv[1:]
    if what == "echo":
        said = echo(words[0], *map(int, words[1:]))
    elif what == "talk":
        said = talk(words[0], int(words[1]), int(words[2]), words[3])
    elif what == "ping":
        said = ping(words[0], int(words[1]))
    elif what == "rarp":
        said = rarp(words[0])  # until it is killed
    elif what == "sink":
        said = sink(int(words[0]))
    else:
        said = source(words[0], *map(int, words[1:]))
    print(said, flush=True)


if __name__ == "__main__":
    main()
