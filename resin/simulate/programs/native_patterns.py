"""Leak: patterns are compiled by a C library per request and never freed, beside much that is."""

import ctypes
import json
import random
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
libc = ctypes.CDLL(None)
rng = random.Random(0)


def parse(number):
    return json.loads(json.dumps({"id": number, "words": [rng.random() for _ in range(3000)]}))


def matches(pattern, text):
    compiled = ctypes.create_string_buffer(128)  # a regex_t
    if libc.regcomp(compiled, pattern, 1):  # culprit
        raise ValueError(pattern)
    return libc.regexec(compiled, text, 0, None, 0) == 0  # regfree is forgotten


def handle(number):
    request = parse(number)
    return sum(matches(b"^(id|name)=[0-9]{%d,}" % (k + 1), b"id=%d" % request["id"]) for k in range(8))


number = 0
while time.monotonic() < END:
    handle(number)
    number += 1
    time.sleep(0.02)
