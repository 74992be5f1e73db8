r"""
The neural tangent kernel of an MLP
===================================

A network without recurrence has no trajectories, but it has layers, and kpops linearises it about
their outputs. A change of the weights moves the activations of all layers by :math:`P K P^{*}`, and
the block of the last layer is the neural tangent kernel (NTK) of the outputs. This example trains
an MLP on the handwritten digits that come with scikit-learn, and compares the kernel before and
after: its spectrum, its dimensions layer by layer, and how well it fits the labels.
"""

import copy
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import kpops
from kpops.plot.style import COLOURS

# %%
# A network and its sites
# -----------------------
#
# Three hidden layers of 128 units, trained on a thousand images of 8 x 8 pixels by full-batch
# gradient descent with momentum. The rest of the images are for the test.

torch.manual_seed(0)
digits = load_digits()
images = torch.from_numpy(digits.data / 16).float()
labels = torch.from_numpy(digits.target).long()
widths = [64, 128, 128, 128]
layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
trained = nn.Sequential(*layers, nn.Linear(128, 10))
networks = {"before": copy.deepcopy(trained), "after": trained}

optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
for _ in range(200):
    optimizer.zero_grad()
    nn.functional.cross_entropy(trained(images[:1000]), labels[:1000]).backward()
    optimizer.step()
for name, net in networks.items():
    correct = (net(images[1000:]).argmax(1) == labels[1000:]).float().mean()
    print(f"{name + ' training:':17} {float(correct):.1%} of the test images are right")

# %%
# :func:`kpops.linearize` takes a network of any kind. Its *sites* are the outputs of the parts that
# have parameters, here of the four linear layers. We take ten images of each digit, sorted.

chosen = np.concatenate([np.flatnonzero(labels[:1000] == digit)[:10] for digit in range(10)])
x, y = images[chosen], labels[chosen]
lins = {name: kpops.linearize(net, x) for name, net in networks.items()}
print(lins["after"])

# %%
# The spectrum and the labels
# ---------------------------
#
# ``lin.output_ntk`` acts on functions of image and output, here of 1,000 numbers. For more images,
# :func:`kpops.eigsh` iterates, and needs neither the kernel as a matrix nor the Jacobian.
#
# Gradient descent learns along a mode at a rate proportional to its eigenvalue. So the kernel fits
# the labels if these lie in its leading modes. As a function of image and output, the labels are
# one-hot vectors less their mean, of length one. The dashed line is what modes at random would
# hold.

target = nn.functional.one_hot(y, 10).numpy() - np.float32(0.1)
target /= np.linalg.norm(target)
fig, (spectra, fitted) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for (name, lin), colour in zip(lins.items(), COLOURS, strict=False):
    modes = kpops.eigsh(lin.output_ntk, k=300, rng=0)
    share = (modes.eigenvalue / modes.eigenvalue[0]).assign_attrs(long_name="eigenvalue / largest")
    kpops.plot.spectrum(share, spectra, color=colour, marker="", label=f"{name} training")
    overlap = (modes.eigenfunction.values.reshape(300, -1) @ target.ravel()) ** 2
    fitted.plot(modes.mode, overlap.cumsum(), color=colour)
    aligned = (target * (lin.output_ntk @ target)).sum() / modes.eigenvalue.pipe(np.linalg.norm)
    print(f"{name:6}: 30 modes hold {overlap[:30].sum():.0%} of the labels", end=", ")
    print(f"alignment with them {float(aligned):.4f}")
fitted.plot(modes.mode, modes.mode / 1000, "--", color="0.6")
spectra.set(title="NTK of the outputs")
fitted.set(xscale="log", xlabel="number of leading modes", ylim=(0, 1))
fitted.set_title("share of the labels in them")
fitted.spines[["top", "right"]].set_visible(False)

# %%
# Before training, ten modes stand out, one for each output: they change an output by nearly the
# same amount for all images. The labels less their mean are orthogonal to such changes, so these
# modes hold none of them. The modes after them hold many more than random ones, since images of a
# digit are alike. Training closes the gap in the spectrum and moves the labels forward: thirty
# modes hold more of them, and the alignment, the cosine between the kernel and that of the labels,
# is several times as large. Beyond two hundred modes the order is the other way round.
#
# Layer by layer
# --------------
#
# The blocks of :math:`P K P^{*}` are the tangent kernels of the layers, and ``select``
# restricts to them by the label ``site``. Those of :math:`K` are what a layer can do by its own
# weights alone. The table has their participation ratios.

sites = list(dict.fromkeys(lins["after"].space.coords["site"].values))
print(f"{'':8}" + "".join(f"{f'layer {i + 1}':>18}" for i in range(len(sites))))
print(f"{'':8}" + f"{'K':>10}{'P K P*':>8}" * len(sites))
for name, lin in lins.items():
    blocks = [op.select(site=site) for site in sites for op in (lin.K, lin.flow)]
    ranks = [float(kpops.effective_rank(op, rng=0).estimate) for op in blocks]
    print(f"{name:8}" + ("{:10.0f}{:8.0f}" * len(sites)).format(*ranks))

# %%
# The first layer reads the images, which do not change. From layer to layer :math:`K` has fewer
# dimensions: at first the activations of different images become more and more alike, and the last
# layer can do little more than move each output for all of them. Training separates the
# activations, so that :math:`K` of the two upper layers has more dimensions than before. The kernel
# :math:`P K P^{*}` of the same layers has fewer: by all weights together, a few changes become much
# larger than the rest.
