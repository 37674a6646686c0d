"""The losses once more in plain numpy, class by class, as their papers write them: logits (N, K, P), ids (N, P)."""

import numpy as np


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def pixel_entropies(logits, ids):
    p = softmax(logits)
    return np.array([[-np.log(p[n, ids[n, i], i]) for i in range(ids.shape[1])] for n in range(len(ids))])


def cross_entropy(logits, ids, weight=None):
    weight = np.ones(logits.shape[1]) if weight is None else np.asarray(weight)
    return np.sum(weight[ids] * pixel_entropies(logits, ids)) / np.sum(weight[ids])


def mse(logits, ids):
    p = softmax(logits)
    return np.mean([(p[:, k] - (ids == k)) ** 2 for k in range(logits.shape[1])])


def bce(logits, ids):
    s = 1 / (1 + np.exp(-logits))
    classes = range(logits.shape[1])
    return -np.mean([np.where(ids == k, np.log(s[:, k]), np.log(1 - s[:, k])) for k in classes])


def mean_of_regions(score, logits, ids, background, per_sample=False):
    """The mean over classes (and samples) of score(TP, FP, FN)."""
    p, found = softmax(logits), []
    first = 0 if background or ids.shape[1] == 1 else 1  # one pixel: a classification
    for part in [[n] for n in range(len(ids))] if per_sample else [slice(None)]:
        for k in range(first, logits.shape[1]):
            q, y = p[part, k], ids[part] == k
            found.append(score(q[y].sum(), q[~y].sum(), (1 - q[y]).sum()))
    return np.mean(found)


def dice(logits, ids, background=False, smooth=1.0, per_sample=False):
    def score(tp, fp, fn):
        return (2 * tp + smooth) / (2 * tp + fp + fn + smooth)

    return 1 - mean_of_regions(score, logits, ids, background, per_sample)


def iou(logits, ids, background=False, smooth=1.0, per_sample=False):
    def score(tp, fp, fn):
        return (tp + smooth) / (tp + fp + fn + smooth)

    return 1 - mean_of_regions(score, logits, ids, background, per_sample)


def generalised_dice(logits, ids, smooth=1.0):
    p, classes = softmax(logits), range(logits.shape[1])
    volumes = [np.sum(ids == k) for k in classes]
    rarest = min(v for v in volumes if v)
    weights = [1 / (v or rarest) ** 2 for v in volumes]
    overlap = sum(w * np.sum(p[:, k][ids == k]) for k, w in enumerate(weights))
    total = sum(w * (np.sum(p[:, k]) + volumes[k]) for k, w in enumerate(weights))
    smooth = smooth / rarest**2
    return 1 - (2 * overlap + smooth) / (total + smooth)


def tversky(logits, ids, alpha=0.3, beta=0.7, background=False, smooth=1.0):
    def score(tp, fp, fn):
        return (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)

    return 1 - mean_of_regions(score, logits, ids, background)


def focal_tversky(logits, ids, alpha=0.3, beta=0.7, gamma=0.75, background=False, smooth=1.0):
    def score(tp, fp, fn):
        return (1 - (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)) ** gamma

    return mean_of_regions(score, logits, ids, background)


def asymmetric(logits, ids, beta=1.5, background=False, smooth=1.0):
    def score(tp, fp, fn):
        return ((1 + beta**2) * tp + smooth) / ((1 + beta**2) * tp + beta**2 * fn + fp + smooth)

    return 1 - mean_of_regions(score, logits, ids, background)


def dice_ce(logits, ids, weight=None, background=False):
    return dice(logits, ids, background) + cross_entropy(logits, ids, weight)


def dice_topk(logits, ids, k=0.1, background=False):
    entropies = np.sort(pixel_entropies(logits, ids), axis=None)[::-1]
    return dice(logits, ids, background) + np.mean(entropies[: max(1, round(k * entropies.size))])


def explog(logits, ids, gamma=0.3, weight=None, dice_weight=0.8, ce_weight=0.2, ceiling=1 - 1e-4):
    d = min(1 - dice(logits, ids), ceiling)
    return dice_weight * (-np.log(d)) ** gamma + ce_weight * cross_entropy(logits, ids, weight)
