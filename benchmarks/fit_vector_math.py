"""Fits the polynomials of torchroller/triton_cpu/vector_math/coefficients.py and prints that file's table.

    python benchmarks/fit_vector_math.py > torchroller/triton_cpu/vector_math/coefficients.py

Each row is a weighted minimax problem, solved by Remez exchange in 60-digit arithmetic (mpmath): find p of
the given number of coefficients with max |weight(x) (f(x) - p(u(x)))| least. Coefficients are then rounded
one by one, the rest fitted again (least squares) to what each rounding left.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import mpmath as mp

mp.mp.dps = 60
SQRT_HALF = mp.sqrt(mp.mpf(1) / 2)


@dataclass(frozen=True)
class Fit:
    name: str
    comment: str
    function: Callable
    low: object
    high: object
    count: int
    weight: Callable = lambda x: 1
    element: str = "f32"


def _sqrt(function: Callable) -> Callable:
    """A function of s = x² from one of x."""
    return lambda s: function(mp.sqrt(s))


LN2 = mp.log(2)
QUARTER_PI_SQUARED = (mp.pi / 4) ** 2 * mp.mpf("1.0002")
Z = (mp.sqrt(2) - 1) / (mp.sqrt(2) + 1) * mp.mpf("1.0001")

FITS = [
    Fit("EXP", "(exp(r) - 1 - r) / r², |r| ≤ ln2/2", lambda r: (mp.expm1(r) - r) / r**2, -LN2 / 2, LN2 / 2, 5,
        lambda r: r**2),
    Fit("EXP2", "(exp2(r) - 1) / r, |r| ≤ 1/2", lambda r: mp.expm1(r * LN2) / r, -0.5, 0.5, 6, lambda r: r),
    Fit("EXPM1", "(exp(r) - 1 - r) / r², |r| ≤ ln2/2, relative to exp(r) - 1",
        lambda r: (mp.expm1(r) - r) / r**2, -LN2 / 2, LN2 / 2, 6, lambda r: r**2 / mp.expm1(r)),
    Fit("LOG", "(log(1 + f) - f + f²/2) / f³, 1 + f from √½ to √2",
        lambda f: (mp.log1p(f) - f + f**2 / 2) / f**3, SQRT_HALF - 1, mp.sqrt(2) - 1, 9,
        lambda f: f**3 / mp.log1p(f)),
    Fit("SIN", "(sin(r)/r - 1) / s, s = r², |r| ≤ π/4", _sqrt(lambda r: (mp.sin(r) / r - 1) / r**2), 0,
        QUARTER_PI_SQUARED, 4, lambda s: s),
    Fit("COS", "(cos(r) - 1 + s/2) / s²", _sqrt(lambda r: (mp.cos(r) - 1 + r**2 / 2) / r**4), 0,
        QUARTER_PI_SQUARED, 3, lambda s: s**2),
    Fit("TAN", "(tan(r)/r - 1) / s", _sqrt(lambda r: (mp.tan(r) / r - 1) / r**2), 0, QUARTER_PI_SQUARED, 7,
        lambda s: s),
    Fit("ATAN", "(atan(x)/x - 1) / s, s = x², |x| ≤ 1", _sqrt(lambda x: (mp.atan(x) / x - 1) / x**2), 0, 1,
        10, lambda s: s),
    Fit("ASIN", "(asin(x)/x - 1) / s, |x| ≤ 1/2", _sqrt(lambda x: (mp.asin(x) / x - 1) / x**2), 0,
        mp.mpf("0.25"), 6, lambda s: s),
    Fit("TANH", "(tanh(x)/x - 1) / s, |x| ≤ 0.65", _sqrt(lambda x: (mp.tanh(x) / x - 1) / x**2), 0,
        mp.mpf("0.4225"), 6, lambda s: s),
    Fit("ERF_SMALL", "erf(x)/x - 1 as a polynomial in x², |x| ≤ 0.95", _sqrt(lambda x: mp.erf(x) / x - 1), 0,
        mp.mpf("0.9025"), 7),
    Fit("ERF_LARGE", "-log(1 - erf(t)) / t, 0.93 ≤ t ≤ 4", lambda t: -mp.log(mp.erfc(t)) / t, mp.mpf("0.93"),
        4, 8, lambda t: t * mp.erfc(t)),
    Fit("LOG2_F64", "log2((1 + z) / (1 - z)) / z as a polynomial in z² (for pow in f32)",
        _sqrt(lambda z: mp.log((1 + z) / (1 - z), 2) / z), 0, Z**2, 6, element="f64"),
    Fit("EXP2_F64", "(exp2(r) - 1) / r, |r| ≤ 1/2 (for pow in f32)", lambda r: mp.expm1(r * LN2) / r, -0.5,
        0.5, 9, lambda r: r, element="f64"),
    Fit("EXP_F64", "(exp(r) - 1 - r) / r², |r| ≤ ln2/2", lambda r: (mp.expm1(r) - r) / r**2, -LN2 / 2,
        LN2 / 2, 11, lambda r: r**2, element="f64"),
    Fit("EXPM1_F64", "the same, relative to exp(r) - 1", lambda r: (mp.expm1(r) - r) / r**2, -LN2 / 2,
        LN2 / 2, 11, lambda r: r**2 / mp.expm1(r), element="f64"),
    Fit("LOG_F64", "(log((1 + z)/(1 - z)) - 2z) / z³ as a polynomial in z²",
        _sqrt(lambda z: (mp.log((1 + z) / (1 - z)) - 2 * z) / z**3), 0, Z**2, 8, lambda s: s, element="f64"),
    Fit("SIN_F64", "(sin(r)/r - 1) / s", _sqrt(lambda r: (mp.sin(r) / r - 1) / r**2), 0, QUARTER_PI_SQUARED,
        7, lambda s: s, element="f64"),
    Fit("COS_F64", "(cos(r) - 1 + s/2) / s²", _sqrt(lambda r: (mp.cos(r) - 1 + r**2 / 2) / r**4), 0,
        QUARTER_PI_SQUARED, 7, lambda s: s**2, element="f64"),
]  # fmt: skip


ERF_STEP = 0.2666666805744171  # 4 / 15 as f32: piece n is centred on n times this
ERF_COUNT = 7


def erf_pieces() -> list[list[float]]:
    """Coefficients of erf(n ERF_STEP + u) in u, |u| ≤ ERF_STEP / 2, for n from 0 to 15: [power][piece].

    Piece 0 is erf(u) - u, so that it is as exact next to 0 as elsewhere; piece 15 gives 1 at its centre.
    """
    pieces, half = [], mp.mpf(ERF_STEP) / 2
    for n in range(16):
        centre = n * mp.mpf(ERF_STEP)
        if n:
            fit = Fit("", "", lambda u, c=centre: mp.erf(c + u), -half, half, ERF_COUNT,
                      lambda u, c=centre: 1 / mp.erf(c + u))  # fmt: skip
            pieces.append(solve(fit)[0])
        else:
            fit = Fit("", "", lambda u: mp.erf(u) / u - 1, 0, half, ERF_COUNT - 1, lambda u: u / mp.erf(u))
            pieces.append([0.0, *solve(fit)[0]])
    return [list(row) for row in zip(*pieces)]


def sample(fit: Fit) -> tuple[list, list, list]:
    """Chebyshev points of the interval, the function and the weight there."""
    middle, half = (mp.mpf(fit.high) + fit.low) / 2, (mp.mpf(fit.high) - fit.low) / 2
    grid = [middle - half * mp.cos(mp.pi * (2 * i + 1) / 802) for i in range(401)]
    grid = [x if abs(x) > mp.mpf(10) ** -9 else mp.mpf(10) ** -9 for x in grid]
    return grid, [fit.function(x) for x in grid], [abs(fit.weight(x)) for x in grid]


def minimax(grid: list, targets: list, weights: list, count: int) -> tuple[list, object]:
    """(coefficients, largest weighted error) of the best polynomial: Remez exchange from Chebyshev points."""
    size = len(grid)
    nodes = [
        round((size - 1) * (1 - mp.cos(mp.pi * (2 * i + 1) / (2 * count + 2))) / 2) for i in range(count + 1)
    ]
    nodes = [i + 1 if weights[i] < mp.mpf(10) ** -8 else i for i in nodes]
    best: tuple[list, object] = ([], mp.inf)
    for _ in range(15):
        matrix, right = mp.matrix(count + 1, count + 1), mp.matrix(count + 1, 1)
        for row, i in enumerate(nodes):
            for column in range(count):
                matrix[row, column] = grid[i] ** column
            matrix[row, count] = (-1) ** row / weights[i]
            right[row] = targets[i]
        solution = list(mp.lu_solve(matrix, right))[:count]
        errors = [w * (t - mp.polyval(solution[::-1], x)) for x, t, w in zip(grid, targets, weights)]
        worst = max(map(abs, errors))
        if worst < best[1]:
            best = solution, worst
        peaks: list[int] = []  # the largest error of each run of one sign
        for i, error in enumerate(errors):
            if peaks and (errors[peaks[-1]] < 0) == (error < 0):
                if abs(error) > abs(errors[peaks[-1]]):
                    peaks[-1] = i
            else:
                peaks.append(i)
        while len(peaks) > count + 1:
            peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
        if len(peaks) < count + 1:
            break
        nodes = peaks
    return best


def refit(grid: list, rest: list, weights: list, skip: int, count: int) -> list:
    """Weighted least squares for Σ cᵢ x^(skip + i): what rounding the lower coefficients left."""
    basis = [[w * x ** (skip + i) for i in range(count)] for x, w in zip(grid, weights)]
    rows = mp.matrix(basis)
    return list(mp.lu_solve(rows.T * rows, rows.T * mp.matrix([w * r for w, r in zip(weights, rest)])))


def rounded(value: object, element: str) -> float:
    return struct.unpack("<f", struct.pack("<f", float(value)))[0] if element == "f32" else float(value)


def solve(fit: Fit) -> tuple[list[float], object]:
    """(coefficients, each rounded before those above it are fitted again; the error before rounding)."""
    grid, targets, weights = sample(fit)
    solution, first_error = minimax(grid, targets, weights, fit.count)
    coefficients = [rounded(solution[0], fit.element)]
    while len(coefficients) < fit.count:
        rest = [t - mp.polyval(coefficients[::-1], x) for x, t in zip(grid, targets)]
        left = refit(grid, rest, weights, len(coefficients), fit.count - len(coefficients))
        coefficients.append(rounded(left[0], fit.element))
    return coefficients, first_error


def main() -> None:
    print('"""Polynomial coefficients, lowest power first. benchmarks/fit_vector_math.py writes this file.')
    print(
        '\nThe error behind each is the largest weighted error of the polynomial before its rounding.\n"""\n'
    )
    for fit in FITS:
        coefficients, first_error = solve(fit)
        print(f"# {fit.comment}; error {mp.nstr(first_error, 3)}")
        print(f"{fit.name} = (")
        for c in coefficients:
            print(f"    {c!r},")
        print(")")
    print("# erf(n ERF_STEP + u), |u| ≤ ERF_STEP / 2, less u where n is 0: rows: powers of u, columns: n")
    print(f"ERF_STEP = {ERF_STEP!r}")
    print("ERF_PIECES = (")
    for row in erf_pieces():
        print("    (" + ", ".join(map(repr, row)) + "),")
    print(")")


if __name__ == "__main__":
    main()
