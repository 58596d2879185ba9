"""Write the accuracy cases of the functions of logits beside this file, as ``make_accuracy_cases.py`` does the others.

``logits-<type>.csv`` has a case per line: its name and the logits of p and q, as bit patterns.
``expected-logits-<type>.csv`` has a line per case, temperature and metric: the correctly rounded value, and how many
ulps of it a result may be away, which is the contract's bound with its slack.
"""

import csv
import math
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from logits_oracle import METRICS, allowance, exact
from make_accuracy_cases import bits
from oracles import nearest, ulp

HERE = Path(__file__).parent
TEMPERATURES = (1.0, 0.1, 30.0)


def cases(dtype):
    """Named pairs of rows of logits of a dtype."""
    inf = math.inf
    rng = np.random.default_rng(20240302)

    def pair(p, q):
        return np.array(p, dtype), np.array(q, dtype)

    row = (rng.standard_normal(11) * 3).astype(dtype)
    other = (rng.standard_normal(11) * 3).astype(dtype)
    long = (rng.standard_normal(40) * 3).astype(dtype)

    yield "one logit", pair([3.0], [7.0])
    yield "textbook", pair([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])
    yield "eleven logits", pair(row, other)
    yield "forty logits", pair(long, long[::-1])
    yield "all equal", pair([2.0] * 5, [-1.0] * 5)

    for offset in (0, 5, 1000):
        name = f", {offset} apart" if offset else ""
        up = row + dtype(offset)
        up[4] = np.nextafter(up[4], dtype(inf))
        yield f"last bit{name}", pair(row, up)
        up = row + dtype(offset)
        up[row.argmax()] = np.nextafter(up.max(), dtype(-inf))
        yield f"last bit of the largest{name}", pair(row, up)
        for exponent in range(-15, 0, 2) if dtype == np.float64 else range(-6, 0):
            near = row + offset + 10.0**exponent * rng.standard_normal(11)
            yield f"differences of 1e{exponent}{name}", pair(row, near)
    yield "one logit in forty 1e-6 apart", pair(long, np.where(np.arange(40) == 17, long + dtype(1e-6), long))
    yield "a constant that takes the last bits", pair(row, row + dtype(12345.678))
    yield "proportional", pair(row, row * dtype(1 + 2.0**-20))

    yield "masked in p", pair([0.3, -inf, 1.0], [0.3, 2.0, 1.0])
    yield "masked in q", pair([0.3, 2.0, 1.0], [0.3, -inf, 1.0])
    yield "masked in q where p is next to nothing", pair([0, -1e4, 0], [0.0, -inf, 0])
    yield "masked in both", pair([0.3, -inf, 1.0, -inf], [0.5, -inf, 0.9, -inf])
    yield "nearly equal, a little masked in p", pair([*row, -inf], [*(row + dtype(1e-4)), -40])
    yield "disjoint", pair([1.0, -inf, 0.5, -inf], [-inf, 1.0, -inf, 0])
    yield "one left in p", pair([-inf, 3.0, -inf], [1.0, 2.0, 3.0])

    for gap in (5, 40, 70, 200, 740):
        yield f"one label, {gap} above the others", pair([0, gap, 0.5, -0.5], [0.1, gap, 0, -1])
        yield f"two labels, {gap} above the others", pair([0, gap, gap, -0.5], [0, gap, gap + 0.25, -1])
        yield f"another label, {gap} above the others", pair([0, gap, 0.5], [gap, 0, 0.5])
    yield "from -1e4 to 1e4", pair(*(rng.uniform(-1e4, 1e4, (2, 11))))
    yield "from -1e4 to 1e4, 1e-3 apart", pair(row * 1e3, row * 1e3 + 1e-3 * rng.standard_normal(11))
    yield "a tail that q lifts", pair([0, -60, -61], [0, -1, -90])
    yield "subnormal", pair(np.arange(5) * np.finfo(dtype).smallest_subnormal, np.zeros(5))
    yield "far from 0", pair(np.arange(5) + 2.0**20, np.arange(5)[::-1] / 2 - 2.0**20)


def allowed(name, value, expected, dtype):
    """The ulps of `expected` that the contract leaves to a result, `value` being the exact one behind it."""
    if not isinstance(value, Fraction) or math.isinf(expected) or name == "top1_agreement":
        return 0
    rounding = abs(Fraction(float(expected)) - value)
    ulps = math.floor((allowance(name, value, dtype) + rounding) / ulp(Fraction(float(expected)), dtype))
    return ulps if ulps < 10**6 else f"{float(ulps):.3e}" if ulps < 10**300 else "inf"


def main():
    for dtype in (np.float64, np.float32):
        type_name = np.dtype(dtype).name
        with (
            open(HERE / f"logits-{type_name}.csv", "w", newline="") as pairs_file,
            open(HERE / f"expected-logits-{type_name}.csv", "w", newline="") as expected_file,
        ):
            pairs, expected = (csv.writer(file, lineterminator="\n") for file in (pairs_file, expected_file))
            pairs.writerow(["case", "p", "q"])
            expected.writerow(["case", "metric", "temperature", "value", "ulp"])
            for case, (p, q) in cases(dtype):
                pairs.writerow([case, *(" ".join(bits(x, dtype) for x in row) for row in (p, q))])
                for temperature in TEMPERATURES:
                    for name in METRICS:
                        value = exact(name, p, q, temperature=temperature)[()]
                        rounded = nearest(value, dtype)
                        ulps = allowed(name, value, rounded, dtype)
                        expected.writerow([case, name, temperature, bits(rounded, dtype), ulps])


if __name__ == "__main__":
    main()
