"""Leak of descriptors: connections are opened per request and kept."""

import resource
import socket
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
connections = []


def connect():
    pair = socket.socketpair()  # culprit
    connections.append(pair)  # culprit


while time.monotonic() < END:
    connect()
    time.sleep(0.1)
