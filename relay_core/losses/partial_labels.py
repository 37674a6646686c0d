"""Partial labels: pixels that are known to be of one of several classes (a group), because a site does not tell these apart.

Label K + i, K being the number of classes, stands for group i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relay_core.config import Groups

NEVER = 30.0
"""How far below its group's logit a class is put that the group stands for: a share of 1e-13."""


def marginal(logits: Tensor, labels: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """Return logits and labels without groups, on which any loss is that of the groups' whole probability.

    At a pixel of a group, the group's first class gets the probability of all its classes, and the others none (marginal
    loss, Shi 2021, arXiv 2007.03868); the label becomes the first class. So a wrong share within a group costs nothing.

    Shape: logits (N, K, H, W); labels (N, H, W), 0 to K + len(groups) - 1.
    """
    classes = logits.shape[1]
    for i, members in enumerate(groups):
        here = labels == classes + i
        whole = logits[:, members].logsumexp(dim=1)
        never = (whole - NEVER).detach()
        channels = list(logits.unbind(dim=1))
        for member in members:
            channels[member] = torch.where(here, whole if member == members[0] else never, channels[member])
        logits = torch.stack(channels, dim=1)
        labels = torch.where(here, members[0], labels)
    return logits, labels


def completed(labels: Tensor, logits: Tensor, groups: Groups) -> Tensor:
    """Return labels (N, H, W) in which each pixel of a group has that of the group's classes that the logits favour."""
    classes = logits.shape[1]
    for i, members in enumerate(groups):
        best = torch.tensor(members, device=labels.device)[logits[:, members].argmax(dim=1)]
        labels = torch.where(labels == classes + i, best, labels)
    return labels


def regrouped(labels: Tensor, untold: Groups, groups: Groups, classes: int) -> Tensor:
    """Return labels that say of the classes of each of the `untold` ones of the `groups` only that they are of it."""
    for group in untold:
        of_group = torch.isin(labels, torch.tensor(group, device=labels.device))
        labels = torch.where(of_group, classes + groups.index(group), labels)
    return labels


def collapsed(logits: Tensor, groups: Groups) -> Tensor:
    """Return logits (N, K', ...) of as many classes as are told apart where the classes of each group are one."""
    rest = [c for c in range(logits.shape[1]) if not any(c in members for members in groups)]
    return torch.cat([logits[:, rest], *(logits[:, list(m)].logsumexp(dim=1, keepdim=True) for m in groups)], dim=1)
