#!/usr/bin/env python3
"""Free ports on 127.0.0.1: `ports.py SINGLES RANGE` prints SINGLES ports and, with a RANGE, so many
in a row as FIRST-LAST.

They lie below those that the system gives to outgoing connections, so that no client gets one in
between; another server still may, so who uses them tries again."""

import random
import socket
import sys


def is_free(port):
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def lowest_of_the_system():
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
            return int(file.read().split()[0])
    except OSError:
        return 32768


def main(singles, in_a_row=0):
    # By chance, so that two that start at the same time seldom choose the same.
    count = singles + in_a_row
    top = lowest_of_the_system() if lowest_of_the_system() > 12000 else 32768
    for _ in range(1000):
        first = random.randrange(10000, top - count)
        ports = range(first, first + count)
        if all(map(is_free, ports)):
            print(*ports[:singles], *([f"{ports[singles]}-{ports[-1]}"] if in_a_row else []))
            return
    raise SystemExit("no free ports on 127.0.0.1")


main(*map(int, sys.argv[1:]))
