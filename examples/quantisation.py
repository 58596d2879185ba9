"""What storing a classifier's weights as int8 does to its output distributions: KL divergence per example, from logits.

    python examples/quantisation.py [PICTURE] [--folder FOLDER]

A small network learns scikit-learn's digits; its weights are rounded to int8, with one scale for each layer or one for
each neuron. Accuracy hardly sees the difference. D(softmax(logits) ‖ softmax(logits of the rounded network)) of each
held-out image does: its percentiles say how far the outputs have moved, and how much a finer scale is worth. For half
of the images it is so small that the formula written down in float32, the logits' type, gives noise, or less than 0.
"""

import argparse
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import fastkl

PERCENTILES = (1, 10, 50, 90, 99, 100)


def trained(images, labels):
    """The weights and biases of a network of one hidden layer, in float32."""
    network = MLPClassifier((64,), learning_rate_init=3e-3, max_iter=1000, random_state=0).fit(images, labels)
    layers = zip(network.coefs_, network.intercepts_, strict=True)
    return [(weights.astype(np.float32), biases.astype(np.float32)) for weights, biases in layers]


def logits(layers, images):
    (w1, b1), (w2, b2) = layers
    return np.maximum(images @ w1 + b1, 0) @ w2 + b2


def rounded_to_int8(weights, axis):
    """The nearest multiples -127 to 127 of a scale, one for all weights, or, with axis=0, one for each column."""
    scale = np.abs(weights).max(axis=axis, keepdims=True) / np.float32(127)
    return np.rint(weights / scale).astype(np.int8), scale


def quantised(layers, axis):
    """The network that is left when its weights have been stored as int8."""
    stored = [(*rounded_to_int8(weights, axis), bias) for weights, bias in layers]
    return [(integers.astype(np.float32) * scale, bias) for integers, scale, bias in stored]


def kl_in_float32(p_logits, q_logits):
    """The formula as one would write it down."""

    def log_softmax(x):
        x = x - x.max(axis=-1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", nargs="?", default="quantisation.png", help="the picture's name or path")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(), help="where to put it (here)")
    arguments = parser.parse_args()

    digits = load_digits()
    images = (digits.data / 16).astype(np.float32)
    images, held_out, labels, truth = train_test_split(images, digits.target, test_size=0.5, random_state=0)
    layers = trained(images, labels)
    before = logits(layers, held_out)
    print(f"{len(held_out)} held-out images, accuracy {np.mean(before.argmax(1) == truth):.2%}")

    divergences = {}
    print(f"{'KL in nats':24}{'mean':>10}" + "".join(f"{f'{p} %':>10}" for p in PERCENTILES))
    for name, axis in (("one scale a layer", None), ("one scale a neuron", 0)):
        after = logits(quantised(layers, axis), held_out)
        kl = divergences[name] = fastkl.kl_divergence_from_logits(before, after)
        assert kl.shape == truth.shape
        assert (kl >= 0).all()
        naive = kl_in_float32(before, after)
        wrong, negative = np.mean(np.abs(naive - kl) > 0.1 * kl), np.mean(naive < 0)
        kept, right = np.mean(after.argmax(1) == before.argmax(1)), np.mean(after.argmax(1) == truth)
        print(f"{name:24}{kl.mean():10.2e}" + "".join(f"{x:10.2e}" for x in np.percentile(kl, PERCENTILES)))
        print(f"  accuracy {right:.2%}; the same answer as before for {kept:.2%} of the images")
        print(f"  the formula in float32 is off by more than a tenth for {wrong:.0%}, and negative for {negative:.0%}")
    coarse, fine = divergences.values()
    assert np.median(fine) < np.median(coarse)

    path = arguments.folder / arguments.picture
    draw(path, divergences)
    print(f"picture: {path}")


def draw(path, divergences):
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    positive = np.concatenate(list(divergences.values()))
    positive = positive[positive > 0]
    bins = np.geomspace(positive.min(), positive.max(), 60)
    for i, (name, kl) in enumerate(divergences.items()):
        left.hist(kl, bins, histtype="step", linewidth=1.5, label=name, color=f"C{i}")
        left.axvline(np.median(kl), color=f"C{i}", linestyle="--")
        right.plot(np.sort(kl), 100 * (np.arange(len(kl)) + 0.5) / len(kl), color=f"C{i}", label=name)
        right.plot(np.percentile(kl, PERCENTILES), PERCENTILES, "o", color=f"C{i}")
    left.set(title="KL of each image, medians dashed", xlabel="nats", ylabel="images", xscale="log")
    right.set(title="Percentiles", xlabel="nats", ylabel="% of the images at or below", xscale="log")
    left.legend()
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
