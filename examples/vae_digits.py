"""A small variational autoencoder of handwritten digits in PyTorch, its KL term and that term's gradient by fastkl.

    python examples/vae_digits.py [PICTURE] [--folder FOLDER]

The KL term of each image, from its posterior N(mean, exp(logvar)) to N(0, I), is one call of ``gaussian_kl``; its
gradient is closed: the mean, and (exp(logvar) - 1)/2. Both are put into PyTorch's graph as one function, which is first
checked against PyTorch's own derivative of the formula and against finite differences.
"""

import argparse
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import fastkl

LATENT = 8
HIDDEN = 256
EPOCHS = 60
BATCH = 64
HELD_OUT = 297  # of the 1,797 images
SHOWN = 16


class GaussianKL(torch.autograd.Function):
    """D(N(mean, exp(logvar)) ‖ N(0, I)) of each row."""

    @staticmethod
    def forward(ctx, mean, logvar):
        ctx.save_for_backward(mean, logvar)
        divergence = fastkl.gaussian_kl(mean.detach().numpy(), logvar.detach().numpy(), scale="logvar")
        return torch.from_numpy(divergence)

    @staticmethod
    def backward(ctx, upstream):
        mean, logvar = ctx.saved_tensors
        return upstream[:, None] * mean, upstream[:, None] * 0.5 * torch.expm1(logvar)


class Autoencoder(nn.Module):
    def __init__(self, pixels):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, pixels))

    def losses(self, images):
        """Of each image: what the reconstruction lost, and the KL term."""
        mean, logvar = self.encoder(images).chunk(2, dim=1)
        code = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        lost = nn.functional.binary_cross_entropy_with_logits(self.decoder(code), images, reduction="none").sum(1)
        return lost, GaussianKL.apply(mean, logvar)


def check_gradient():
    generator = torch.Generator().manual_seed(0)
    mean, logvar, weight = (torch.randn(50, LATENT, dtype=torch.float64, generator=generator) for _ in range(3))
    logvar[:10] *= 1e-3  # posteriors that are nearly the prior
    mean[:10] *= 1e-3
    weight = weight[:, 0]
    mean.requires_grad_()
    logvar.requires_grad_()
    formula = 0.5 * (mean**2 + torch.exp(logvar) - 1 - logvar).sum(1)
    torch.testing.assert_close(GaussianKL.apply(mean, logvar), formula, rtol=1e-12, atol=1e-14)
    expected = torch.autograd.grad((weight * formula).sum(), (mean, logvar))
    found = torch.autograd.grad((weight * GaussianKL.apply(mean, logvar)).sum(), (mean, logvar))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(GaussianKL.apply, (mean, logvar))
    print("the KL term and its gradient agree with autograd's and with finite differences")


def train(model, images, held_out):
    """Mean losses after each epoch: (reconstruction, KL) of the images, and of those held out."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    history = []
    for epoch in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            lost, divergence = model.losses(images[chosen])
            optimizer.zero_grad()
            (lost + divergence).mean().backward()
            optimizer.step()
        with torch.no_grad():
            history.append([[loss.mean().item() for loss in model.losses(x)] for x in (images, held_out)])
        if (epoch + 1) % 10 == 0:
            (lost, divergence), (lost_held_out, divergence_held_out) = history[-1]
            print(
                f"epoch {epoch + 1}: reconstruction {lost:.2f} + KL {divergence:.2f} nats an image;"
                f" held out {lost_held_out:.2f} + {divergence_held_out:.2f}"
            )
    return np.array(history)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", nargs="?", default="vae_digits.png", help="the picture's name or path")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(), help="where to put it (here)")
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # layers this small take less time than threads take to meet
    torch.manual_seed(0)
    check_gradient()
    images = torch.from_numpy(load_digits().data / 16).float()
    images = images[torch.randperm(len(images))]
    images, held_out = images[HELD_OUT:], images[:HELD_OUT]
    model = Autoencoder(images.shape[1])
    history = train(model, images, held_out)
    totals = history.sum(2)  # the negative evidence lower bound
    assert totals[-1, 1] < 0.9 * totals[0, 1]

    with torch.no_grad():
        mean, logvar = model.encoder(held_out).chunk(2, dim=1)
        restored = torch.sigmoid(model.decoder(mean[:SHOWN])).numpy()
        prior = np.zeros((SHOWN, LATENT), np.float32)
        code = fastkl.reparameterize(prior, 0.0, rng=0)
        sampled = torch.sigmoid(model.decoder(torch.from_numpy(code))).numpy()
    # Each number of the code on its own: which of them the model uses.
    used = fastkl.gaussian_kl(mean.numpy(), logvar.numpy(), scale="logvar", axis=None).mean(0)
    print("nats of each latent dimension:", " ".join(f"{x:.2f}" for x in sorted(used, reverse=True)))

    path = arguments.folder / arguments.picture
    draw(path, history, used, held_out[:SHOWN].numpy(), restored, sampled)
    print(f"picture: {path}")


def draw(path, history, used, originals, restored, sampled):
    figure = plt.figure(figsize=(14, 4.5), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=[5, 3, 5])
    axis = left.subplots()
    epochs = np.arange(1, len(history) + 1)
    for of, style in ((0, "-"), (1, ":")):
        note = ", held out" if of else ""
        axis.plot(epochs, history[:, of].sum(1), "k" + style, label=f"both{note}")
        axis.plot(epochs, history[:, of, 0], "C0" + style, label=f"reconstruction{note}")
        axis.plot(epochs, history[:, of, 1], "C3" + style, label=f"KL term{note}")
    axis.set(title="Loss", xlabel="epoch", ylabel="nats an image", ylim=(0, None))
    axis.legend(fontsize="small", ncols=2)
    axis = middle.subplots()
    axis.bar(range(len(used)), np.sort(used)[::-1], color="C3")
    axis.set(title="KL term, held out", xlabel="latent dimension, sorted", ylabel="nats")
    shown = (("held out", originals), ("restored", restored), ("sampled", sampled))
    for axis, (name, images) in zip(right.subplots(3, 1), shown, strict=True):
        # Two rows of images, each with a margin, as one.
        tiles = np.pad(images.reshape(2, -1, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)))
        axis.imshow(tiles.transpose(0, 2, 1, 3).reshape(20, -1), cmap="gray_r", vmin=0, vmax=1)
        axis.set(ylabel=name, xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
