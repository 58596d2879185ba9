"""Write the accuracy cases beside this file: pairs of rows on which naive formulas fail, and their exact values.

``pairs-<type>.csv`` has a case per line: its name, p and q, each a list of bit patterns in hexadecimal.
``expected-<type>.csv`` has a line per case, metric and options: the correctly rounded value, as a bit pattern, and how
many ulps of it a result may be away. Of the contract's bound, that is the whole for normalised rows; a plain sum may
cancel, and its ulps are those of the scale that the contract names (see ``oracles.Exact``), expressed in ulps of the
value. So to loosen a case is to change its line here.

Run it as ``python tests/data/make_accuracy_cases.py``; the output does not depend on the machine.
"""

import csv
import math
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from oracles import VARIANTS, allowance, exact_row, nearest, ulp

HERE = Path(__file__).parent


def cases(dtype):
    """Named pairs of rows of a dtype."""
    info = np.finfo(dtype)
    eps, tiny, subnormal, largest = (
        float(x) for x in (info.eps, info.smallest_normal, info.smallest_subnormal, info.max)
    )
    small, big = (1e-300, 1e300) if dtype == np.float64 else (1e-37, 1e37)
    rng = np.random.default_rng(20240229)

    def pair(p, q):
        return np.array(p, dtype), np.array(q, dtype)

    thirds = np.array([0.1, 0.2, 0.3, 0.4], dtype)
    row = (rng.random(11) + 0.01).astype(dtype)
    long = (rng.random(40) + 0.01).astype(dtype)

    yield "one bin", pair([3.0], [7.0])
    yield "textbook", pair([0.36, 0.48, 0.16], [0.3, 0.5, 0.2])
    yield "nine bins", pair(row[:9], row[2:])
    yield "forty bins", pair(long, long[::-1])

    # Equal but for the last bit of one number, and for relative differences from there up.
    up = thirds.copy()
    up[2] = np.nextafter(up[2], 1, dtype=dtype)
    yield "last bit of a small share", pair(thirds, up)
    up = row.copy()
    up[row.argmax()] = np.nextafter(row.max(), 0, dtype=dtype)
    yield "last bit of the largest share", pair(row, up)
    yield "last bit, q equal to a power of two", pair([0.5, 0.5], [0.5, np.nextafter(dtype(0.5), dtype(0))])
    yield "last bits traded", pair([0.5, 0.25, 0.25], [0.5, 0.25 + eps / 4, 0.25 - eps / 4])
    for exponent in range(-16, -2, 2) if dtype == np.float64 else range(-7, -2):
        yield f"relative differences of 1e{exponent}", pair(row, row * (1 + 10.0**exponent * rng.standard_normal(11)))
    yield "one bin in forty 1e-6 apart", pair(long, np.where(np.arange(40) == 17, long * dtype(1 + 1e-6), long))

    # Rows that do not add up to 1, or to the same.
    yield "float32 softmax sums", pair(thirds * dtype(1 + 1e-7), thirds)
    yield "counts, five to one", pair([5, 10, 15, 70], [1, 2, 3, 14])
    yield "fractions, five to one", pair(5 * row, row)
    yield "fractions, one to ten", pair(row, 10 * row)
    yield "sums 1e20 apart, shapes 1e-6 apart", pair(row, 1e20 * (row * (1 + 1e-6 * rng.standard_normal(11))))

    # Zeros.
    yield "disjoint, two bins", pair([1, 0], [0, 1])
    yield "disjoint, interleaved", pair(np.where(np.arange(11) % 2, row, 0), np.where(np.arange(11) % 2, 0, row))
    yield "disjoint, uneven", pair([1e-5, 3, 0, 0, 0], [0, 0, 7, 1e-6, 2])
    yield "p empty where q is not", pair([0, 0.5, 0.5], [0.2, 0.4, 0.4])
    yield "q empty where p is not", pair([0.2, 0.4, 0.4], [0, 0.5, 0.5])
    yield "both empty in a bin", pair([0, 0.3, 0.7], [0, 0.4, 0.6])
    yield "negative zeros", pair([-0.0, 0.3, 0.7], [0.1, -0.0, 0.9])
    yield "almost disjoint", pair([1, 1e-20, 0], [1e-20, 1, 1])
    yield "one bin in common", pair([1, 1e-10, 0, 0], [0, 1e-12, 1, 1])

    # Nearly all mass in one cell: entropies near 0.
    for rest in (1e-5, 1e-17, 1e-30, small):
        yield f"all but {rest:g} in one bin", pair([1, rest], [1, rest * 3])
        yield f"all but {rest:g} in one bin, spread", pair([rest, rest / 2, 5, rest, rest], [rest, rest, 7, 0.1, rest])
    yield "one bin has it all", pair([0, 1, 0], [0, 1, 1e-30])

    # The range of the type.
    yield "q from largest to smallest", pair([0.5, 0.5], [big, subnormal])
    yield "p from largest to smallest", pair([big, subnormal], [0.5, 0.5])
    yield "opposite ends", pair([big, small, 1], [small, big, 1])
    yield "log-uniform", pair(*np.exp(rng.uniform(math.log(small), math.log(big), (2, 11))))
    yield "small rows", pair(row * 1e-305 if dtype == np.float64 else row * 1e-38, row[::-1] * tiny)
    yield "subnormal rows", pair(np.arange(1, 8) * subnormal, np.arange(9, 2, -1) * subnormal)
    yield "subnormal against ones", pair(np.arange(1, 8) * subnormal, np.ones(7))
    yield "sums that overflow", pair(row * (0.9 * largest), row[::-1] * (0.9 * largest))
    yield "largest floats, nearly equal", pair(np.full(5, largest), [largest] * 4 + [largest * (1 - eps)])
    yield "largest against smallest", pair(np.full(5, largest), np.full(5, subnormal))

    # Small distances.
    d = 1e-17 if dtype == np.float64 else 1e-9
    yield f"total variation of {d:g}", pair([1, d, d], [1, 2 * d, d])
    yield f"total variation of {d:g}, moved", pair([1, d, 0], [1, 0, d])
    yield "flows that cancel", pair([0.25, 0.25, 0.25, 0.25], [0.25 - eps, 0.25 + eps, 0.25 + 2 * eps, 0.25 - 2 * eps])


def bits(value, dtype):
    unsigned = np.uint64 if dtype == np.float64 else np.uint32
    return f"0x{int(np.asarray(value, dtype).view(unsigned)):x}"


def allowed(name, value, expected, dtype):
    """The ulps of `expected` that the contract leaves to a result, `value` being the `Exact` behind it."""
    if not isinstance(value.value, Fraction) or math.isinf(expected):
        return 0
    bound = allowance(name, value, dtype)
    rounding = abs(Fraction(float(expected)) - value.value)
    # Result and expected value are both multiples of the ulp, so a fraction of one is none.
    ulps = math.floor((bound + rounding) / ulp(Fraction(float(expected)), dtype))
    return ulps if ulps < 10**6 else f"{Decimal(ulps):.3e}"


def main():
    for dtype in (np.float64, np.float32):
        type_name = np.dtype(dtype).name
        with (
            open(HERE / f"pairs-{type_name}.csv", "w", newline="") as pairs_file,
            open(HERE / f"expected-{type_name}.csv", "w", newline="") as expected_file,
        ):
            pairs, expected = (csv.writer(file, lineterminator="\n") for file in (pairs_file, expected_file))
            pairs.writerow(["case", "p", "q"])
            expected.writerow(["case", "metric", "normalize", "option", "value", "ulp"])
            for case, (p, q) in cases(dtype):
                pairs.writerow([case, *(" ".join(bits(x, dtype) for x in row) for row in (p, q))])
                for name, options in VARIANTS:
                    for normalize in (True, False):
                        value = exact_row(
                            name, p.astype(np.float64), q.astype(np.float64), normalize=normalize, **options
                        )
                        rounded = nearest(value.value, dtype)
                        option = "".join(f"{key}={option}" for key, option in options.items())
                        ulps = allowed(name, value, rounded, dtype)
                        expected.writerow([case, name, normalize, option, bits(rounded, dtype), ulps])


if __name__ == "__main__":
    main()
