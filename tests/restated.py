"""Losses and spectral norms restated by their definitions, example by example in float64, for several test modules."""

import math

import numpy as np
import torch

from robustlib.methods.layer_norms import input_sizes


def supcon(z, labels, temperature):
    """Supervised contrastive loss by its formula, anchor by anchor and pair by pair in float64."""
    views, size = z.shape[:2]
    rows = z.detach().reshape(views * size, -1).double().numpy()
    rows = [row / math.sqrt(sum(v * v for v in row)) for row in rows]
    kind = [(i % size) if labels is None else int(labels[i % size]) for i in range(len(rows))]
    total = 0.0
    for i, anchor in enumerate(rows):
        others = [a for a in range(len(rows)) if a != i]
        below = sum(math.exp(float(anchor @ rows[a]) / temperature) for a in others)
        positives = [p for p in others if kind[p] == kind[i]]
        for p in positives:
            total -= math.log(math.exp(float(anchor @ rows[p]) / temperature) / below) / len(positives)
    return total / len(rows)


def barlow_twins(a, b, off_diagonal, eps=0.0):
    """Barlow Twins, correlation by correlation in float64."""
    a, b = (z.detach().double().numpy() for z in (a, b))
    n, d = a.shape
    total = 0.0
    for i in range(d):
        for j in range(d):
            x, y = a[:, i] - a[:, i].mean(), b[:, j] - b[:, j].mean()
            below = math.sqrt(sum(v * v for v in x) + n * eps) * math.sqrt(sum(v * v for v in y) + n * eps)
            c = sum(x[k] * y[k] for k in range(n)) / below
            total += (1 - c) ** 2 if i == j else off_diagonal * c**2
    return total


def dense_operator(layer, size):
    """The matrix of a convolution, entry by entry: output (o, i, j) sees input (c, a, b) through tap (p, q)."""
    w = layer.weight.detach().double().numpy()
    (outs, ins, kh, kw), (h, b) = w.shape, size
    (sh, sw), (ph, pw) = layer.stride, layer.padding
    rows, columns = (h + 2 * ph - kh) // sh + 1, (b + 2 * pw - kw) // sw + 1
    matrix = np.zeros((outs, rows, columns, ins, h, b))
    for i, j, p, q in np.ndindex(rows, columns, kh, kw):
        y, x = i * sh + p - ph, j * sw + q - pw
        if layer.padding_mode == "circular":
            matrix[:, i, j, :, y % h, x % b] += w[:, :, p, q]
        elif 0 <= y < h and 0 <= x < b:
            matrix[:, i, j, :, y, x] += w[:, :, p, q]
    return matrix.reshape(outs * rows * columns, ins * h * b)


def squared_norm(matrix):
    return np.linalg.svd(matrix, compute_uv=False)[0] ** 2


def class_jacobians(model, x):
    """(B, K, D), image by image."""
    slope = torch.func.jacrev(lambda one: model(one[None])[0])
    return np.stack([slope(image).flatten(1).detach().numpy() for image in x])


def true_norms(model, shape):
    """{layer: sigma_max^2} by SVD of explicit matrices; of an MLP or a SmallCNN."""
    return {
        name: squared_norm(layer.weight.detach().double().numpy() if size is None else dense_operator(layer, size))
        for name, size in input_sizes(model, shape).items()
        for layer in [model.get_submodule(name)]
    }
