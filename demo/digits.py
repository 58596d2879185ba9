"""The main job on real data: a million pairs of handwritten digits, and the same through NumPy and SciPy.

Each of scikit-learn's 1,797 bundled images is a histogram of ink over 64 cells, counts from 0 to 16; the pairs are
drawn at random. They are stored as float64, the type that NumPy and SciPy would compute in, so that all three read the
same files. Run by ``make demo``; needs 1.1 GB in build/demo.
"""

import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import scipy.spatial.distance
import scipy.stats
from flint import arb, ctx
from sklearn.datasets import load_digits

PAIRS = 1_000_000
NUMPY_PAIRS = 200_000  # the others are too slow for all of them: a share, and the time per pair
SCIPY_PAIRS = 50_000
EXACT_PAIRS = 300
CHUNK = 10_000

ctx.prec = 200

FOLDER = pathlib.Path(__file__).parent.parent / "build" / "demo"
COMMAND = ["score", "P.npy", "Q.npy", "-o", "OUT.npy", "--force", "--metric", "kl", "--metric", "js"]


def main():
    images = load_digits().data
    p, q = make_pairs(images)
    size = sum((FOLDER / name).stat().st_size for name in ("P.npy", "Q.npy"))
    print(f"{len(images):,} images, {PAIRS:,} random pairs, {size / 1e9:.2f} GB in {FOLDER}\n")

    print("$ fastkl " + " ".join(COMMAND))
    fastkl()
    measured = json.loads(fastkl("--json", stdout=subprocess.PIPE).stdout)  # once more, the files now in memory
    infinite = measured["metrics"]["kl"]["inf"] / PAIRS
    with_epsilon = [kl_with_epsilon(p[:CHUNK], q[:CHUNK], epsilon).mean() for epsilon in (1e-6, 1e-12)]
    print(
        f"\nThe KL divergence of {infinite:.1%} of the pairs is infinite, as it should be: the first digit has ink in\n"
        "a cell where the second has none. An epsilon inside the logarithm makes finite numbers of these that say\n"
        f"more about the epsilon than about the digits: their mean is {with_epsilon[0]:.2f} with 1e-6 and"
        f" {with_epsilon[1]:.2f} with 1e-12.\n"
        "The Jensen-Shannon divergence is always finite.\n"
    )
    compare(p, q, measured["seconds"] / PAIRS)
    check(p, q, np.load(FOLDER / "OUT.npy", mmap_mode="r"))


def make_pairs(images):
    """The first and the second image of each pair, in two files, mapped."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    chosen = np.random.default_rng(2024).integers(len(images), size=(2, PAIRS))
    mapped = []
    for name, indices in zip(("P.npy", "Q.npy"), chosen, strict=True):
        rows = np.lib.format.open_memmap(FOLDER / name, "w+", images.dtype, (PAIRS, images.shape[1]))
        np.take(images, indices, axis=0, out=rows)
        rows.flush()
        mapped.append(rows)
    return mapped


def fastkl(*options, stdout=None):
    """The command ``fastkl``, as a user would run it."""
    return subprocess.run([sys.executable, "-m", "fastkl", *COMMAND, *options], cwd=FOLDER, stdout=stdout, check=True)


def numpy_formulas(p, q):
    """The two divergences of normalised rows as two lines of NumPy each have them."""
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(p > 0, p * np.log(p / q), 0).sum(1)
        js = (np.where(p > 0, p * np.log(p / m), 0) + np.where(q > 0, q * np.log(q / m), 0)).sum(1) / 2
    return kl, js


def kl_with_epsilon(p, q, epsilon):
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return (p * np.log((p + epsilon) / (q + epsilon))).sum(1)


def scipy_functions(p, q):
    return scipy.stats.entropy(p, q, axis=1), scipy.spatial.distance.jensenshannon(p, q, axis=1) ** 2


def compare(p, q, fastkl_seconds):
    """Time per pair, for both divergences together."""
    print(f"{'both divergences':24}{'ns a pair':>12}{'fastkl is':>14}")
    print(f"{'fastkl score':24}{fastkl_seconds * 1e9:>12,.0f}{'':>14}   all {PAIRS:,} pairs, files read and written")
    for name, formulas, pairs in (
        ("NumPy, two lines each", numpy_formulas, NUMPY_PAIRS),
        ("SciPy", scipy_functions, SCIPY_PAIRS),
    ):
        started = time.perf_counter()
        for start in range(0, pairs, CHUNK):
            formulas(p[start : start + CHUNK], q[start : start + CHUNK])
        seconds = (time.perf_counter() - started) / pairs
        ratio = f"{seconds / fastkl_seconds:.0f} x faster"
        print(f"{name:24}{seconds * 1e9:>12,.0f}{ratio:>14}   the first {pairs:,} pairs, {CHUNK:,} at a time")


def exact(p, q):
    """KL (finite) and Jensen-Shannon divergence of two rows of counts, in ball arithmetic of 200 bits."""
    p, q = ([arb(count) / arb(row.sum()) for count in row] for row in (p, q))
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]

    def divergence(a_row, b_row):
        return sum((a * (a / b).log() for a, b in zip(a_row, b_row, strict=True) if a != 0), arb(0))

    return divergence(p, q), (divergence(p, m) + divergence(q, m)) / 2


def check(p, q, scores):
    """The largest difference from the exact value, in units in the last place, on pairs whose KL is finite."""
    sample = np.flatnonzero(np.isfinite(scores["kl"]))[:EXACT_PAIRS]
    p, q = p[sample], q[sample]
    truth = [exact(*pair) for pair in zip(p, q, strict=True)]
    heading = f"{'largest error in ulp':24}{'kl':>12}{'js':>12}"
    print(f"\n{heading}   of {len(sample)} pairs with a finite KL, against exact values")
    for name, (kl, js) in (
        ("fastkl", (scores["kl"][sample], scores["js"][sample])),
        ("NumPy", numpy_formulas(p, q)),
        ("SciPy", scipy_functions(p, q)),
    ):
        worst = [
            max(abs(float(arb(value) - true)) / np.spacing(float(true)) for value, true in pairs)
            for pairs in (
                zip(kl, (kl_true for kl_true, _ in truth), strict=True),
                zip(js, (js_true for _, js_true in truth), strict=True),
            )
        ]
        print(f"{name:24}{worst[0]:>12.1f}{worst[1]:>12.1f}")


if __name__ == "__main__":
    main()
