"""Leak: figures drawn for each evaluation stay in the drawing library's registry, as nobody closes them."""

import itertools
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)


class Registry:
    """What a drawing library with a "current figure" does: each figure lives until it is closed by its number."""

    figures: dict = {}
    numbers = itertools.count(1)

    @classmethod
    def figure(cls, width, height):
        figure = cls.figures[next(cls.numbers)] = Figure(width, height)  # culprit
        return figure


class Figure:
    def __init__(self, width, height):
        self.canvas = bytearray(4 * width * height)  # culprit
        self.lines = []

    def plot(self, values):
        self.lines.append(list(values))


def evaluate(epoch):
    figure = Registry.figure(240, 160)  # culprit
    figure.plot(epoch / (step + 1) for step in range(200))


epoch = 0
while time.monotonic() < END:
    evaluate(epoch)
    epoch += 1
    time.sleep(0.1)
