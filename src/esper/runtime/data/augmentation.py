"""Random crops and mirror images of a batch, for tasks whose classes survive both (CIFAR-10; not digits)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, generator: torch.Generator, pad: int = 4, flip: bool = True) -> Tensor:
    """Each image shifted by up to `pad` pixels each way, zeros moving in, and mirrored left-right half the time.

    images: [B, C, H, W] of any dtype; the result is a fresh tensor of the same shape, dtype and device. Draws
    3 x B numbers from `generator` whatever the options, so switching one off leaves the other as it was.
    """
    n, _, height, width = images.shape
    top, left = torch.randint(2 * pad + 1, (2, n), generator=generator, device=generator.device).to(images.device)
    mirrored = torch.randint(2, (n, 1, 1, 1), generator=generator, device=generator.device).to(images.device)

    # Every crop is a view; one gather then copies the chosen crop of each image.
    crops = F.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    cropped = crops[torch.arange(n, device=images.device), :, top, left]
    return torch.where(mirrored.bool(), cropped.flip(3), cropped) if flip else cropped
