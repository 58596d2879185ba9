"""A Gaussian fitted to a distribution of two humps, by the forward and by the reverse Kullback-Leibler divergence.

    python examples/forward_reverse.py [PICTURE] [--folder FOLDER]

Forward, D(p‖q), pays for every place where p has mass and q has little: the best q covers both humps. Reverse, D(q‖p),
pays for every place where q has mass and p has little: the best q sits on one hump. A descent may also end on the other
hump or on a wide cover, the best of their neighbourhoods. Both divergences of nearly 10,000 candidates are two calls,
one row against all; the best candidates of each neighbourhood are where a local search starts.
"""

import argparse
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize

import fastkl

X = np.linspace(-16, 16, 640)  # the cells that every distribution is a histogram over
MEANS = np.linspace(-5, 5, 121)
DEVIATIONS = np.geomspace(0.3, 5, 80)

HUMPS = [(0.6, -3.0, 0.8), (0.4, 3.0, 1.0)]  # weight, mean, deviation


def gaussian(mean, deviation):
    """The density over the cells, along a last axis of its own; it need not be normalised."""
    z = (X - np.asarray(mean)[..., np.newaxis]) / np.asarray(deviation)[..., np.newaxis]
    return np.exp(-0.5 * z * z) / np.asarray(deviation)[..., np.newaxis]


def forward(p, q):
    return fastkl.kl_divergence(p, q)


def reverse(p, q):
    return fastkl.kl_divergence(q, p)


def local_minima(table):
    """The places that are lower than their eight neighbours, the lowest first."""
    padded = np.pad(table, 1, constant_values=np.inf)
    rows, columns = table.shape
    around = [padded[1 + i :, 1 + j :][:rows, :columns] for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    found = np.argwhere((table < np.minimum.reduce(around)) & np.isfinite(table))
    return sorted(map(tuple, found), key=lambda place: table[place])


def refined(divergence, p, mean, deviation):
    """The optimum near a candidate: mean, deviation and divergence."""
    best = minimize(
        lambda x: divergence(p, gaussian(x[0], np.exp(x[1]))),
        [mean, np.log(deviation)],
        method="Nelder-Mead",
        options={"xatol": 1e-7, "fatol": 1e-12},
    )
    return best.x[0], np.exp(best.x[1]), best.fun


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", nargs="?", default="forward_reverse.png", help="the picture's name or path")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(), help="where to put it (here)")
    arguments = parser.parse_args()

    p = sum(weight * gaussian(mean, deviation) for weight, mean, deviation in HUMPS)
    candidates = gaussian(MEANS[:, np.newaxis], DEVIATIONS)  # (means, deviations, cells)
    tables, optima = {}, {}
    for name, divergence in (("forward", forward), ("reverse", reverse)):
        table = tables[name] = divergence(p, candidates)
        optima[name] = [refined(divergence, p, MEANS[i], DEVIATIONS[j]) for i, j in local_minima(table)]
        # A narrow candidate is 0, as floats go, where p is not: no epsilon hides that it rules p out.
        print(f"{name}: {table.size:,} candidates, {np.isinf(table).sum():,} of them infinitely far from p")
        for mean, deviation, value in optima[name]:
            print(f"  N({mean:.4f}, {deviation:.4f}²) at {value:.4f} nats")

    # The forward optimum has the mean and the variance of p; the best reverse ones are near the humps.
    share = p / p.sum()
    mean = (share * X).sum()
    deviation = np.sqrt((share * (X - mean) ** 2).sum())
    (wide,) = optima["forward"]
    np.testing.assert_allclose(wide[:2], (mean, deviation), rtol=1e-4)
    for (_, hump_mean, hump_deviation), (mean, deviation, _) in zip(HUMPS, optima["reverse"], strict=False):
        assert abs(mean - hump_mean) < 0.1
        assert abs(deviation - hump_deviation) < 0.1

    path = arguments.folder / arguments.picture
    draw(path, p, tables, optima)
    print(f"picture: {path}")


def draw(path, p, tables, optima):
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    step = X[1] - X[0]
    axes[0].fill_between(X, p / p.sum() / step, color="0.85", label="p, two humps")
    for name, colour in (("forward", "tab:blue"), ("reverse", "tab:red")):
        for i, (mean, deviation, value) in enumerate(optima[name]):  # the best first
            q = gaussian(mean, deviation)
            label = f"{name}: {value:.3f} nats" + (", of its neighbourhood" if i else "")
            axes[0].plot(X, q / q.sum() / step, color=colour, linestyle=":" if i else "-", label=label)
    axes[0].set(title="The fitted Gaussians", xlabel="x", ylabel="density", xlim=(-8, 8), ylim=(0, 0.72))
    axes[0].legend(loc="upper right")
    for axis, name, formula in ((axes[1], "forward", "D(p‖q)"), (axes[2], "reverse", "D(q‖p)")):
        levels = np.geomspace(0.4, 100, 25)
        shown = axis.contourf(MEANS, DEVIATIONS, tables[name].T, levels, norm="log", cmap="viridis_r", extend="both")
        for i, (mean, deviation, _) in enumerate(optima[name]):
            axis.plot(mean, deviation, "r*", markersize=12, fillstyle="none" if i else "full")
        infinite = ", infinite where white" if np.isinf(tables[name]).any() else ""
        axis.set(title=f"{name.capitalize()}, {formula} in nats{infinite}", xlabel="mean of q", ylabel="deviation of q")
        axis.set_yscale("log")
        axis.set_yticks([0.3, 0.5, 1, 2, 3, 5], ["0.3", "0.5", "1", "2", "3", "5"])
        axis.minorticks_off()
        figure.colorbar(shown, ax=axis, ticks=[0.5, 1, 2, 5, 10, 20, 50, 100], format="%g")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
