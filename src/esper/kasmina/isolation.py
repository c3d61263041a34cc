"""Keeping a seed's path out of the host: the two autograd functions through which a seed meets it.

At alpha 0 the host must not notice the seed, forward or backward, even if the seed is full of NaN. A plain
`lerp`, `where` or `host + (seed - seed.detach())` lets NaN through in one direction or the other (0 * NaN is NaN),
so both directions select by alpha here. Alpha is a tensor: a scalar, or one that broadcasts against the activation
([N, 1, 1, 1] for one weight per item, [K*B, 1, 1, 1] for stacked configurations).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Blend(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(host: Tensor, candidate: Tensor, weight: Tensor, isolated: bool) -> Tensor:
        return torch.where(weight == 0, host, torch.lerp(host, candidate, weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
        host, candidate, weight, ctx.isolated = inputs
        if ctx.needs_input_grad[2]:
            ctx.save_for_backward(weight, host, candidate)
        else:
            ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        weight, *operands = ctx.saved_tensors
        silent = weight == 0
        to_host = to_candidate = to_weight = None
        if ctx.needs_input_grad[0]:
            # An isolated seed is a constant to the host, so the host keeps its whole gradient at any weight.
            to_host = grad if ctx.isolated else torch.where(silent, grad, grad * (1 - weight))
        if ctx.needs_input_grad[1]:
            # At weight 0 the seed learns as if it stood in the host's place (straight-through estimate).
            to_candidate = torch.where(silent, grad, grad * weight)
        if operands:
            host, candidate = operands
            pull = torch.where(silent, torch.zeros_like(grad), grad * (candidate - host))
            to_weight = pull.sum_to_size(weight.shape)
        return to_host, to_candidate, to_weight, None


class _Tap(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, alpha: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (alpha,) = ctx.saved_tensors
        return torch.where(alpha == 0, torch.zeros_like(grad), grad), None


class _Leash(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(candidate: Tensor, host: Tensor, reach: float) -> Tensor:
        return candidate.view_as(candidate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        candidate, host, reach = inputs
        ctx.save_for_backward(slack((candidate - host).norm(), host.norm(), reach))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slack,) = ctx.saved_tensors
        return grad * slack, None, None


def blend(host: Tensor, candidate: Tensor, weight: Tensor, isolated: bool, heard: bool = False) -> Tensor:
    """`lerp(host, candidate, weight)`; at weight 0 exactly `host`, with the whole gradient going to both.

    host, candidate: same shape. weight: broadcastable, in [0, 1]. isolated: the host takes the difference that the
    seed makes for a constant. heard: the caller knows that weight is nowhere 0, so that nothing has to be selected;
    the result is the same, and on a small host a selection costs as much as a convolution. Returns the shape of host.
    """
    if not heard:
        mixed: Tensor = _Blend.apply(host, candidate, weight, isolated)
        return mixed
    if not isolated:
        return torch.lerp(host, candidate, weight)
    fixed = host.detach()
    return torch.lerp(fixed, candidate, weight) + (host - fixed)  # the bracket is 0 and brings the host's gradient


def tap(x: Tensor, alpha: Tensor, isolated: bool, heard: bool = False) -> Tensor:
    """The seed's input: `x`, through which no gradient returns to the host at alpha 0 or where `isolated`.

    heard: the caller knows that alpha is not 0.
    """
    if isolated:
        return x.detach()
    if heard:
        return x.view_as(x)  # a node of its own, so that the seed's gradients are summed before they meet the host's
    tapped: Tensor = _Tap.apply(x, alpha)
    return tapped


def leash(candidate: Tensor, host: Tensor, reach: float) -> Tensor:
    """`candidate`, whose gradient fades to nothing as it strays from `host` by `reach` of its norm.

    An isolated seed never hears what its output does to the loss, so along a constant gradient it would go on for
    ever, and the host would be blown over as soon as alpha rises (dev/LOG.md, 2026-11-20). The direction of the
    gradient is kept; its length is scaled by 1 - |candidate - host| / (reach |host|), at least 0.
    """
    leashed: Tensor = _Leash.apply(candidate, host, reach)
    return leashed


def slack(strayed: Tensor, size: Tensor, reach: float) -> Tensor:
    """What a leash leaves of a seed's gradient, in [0, 1]. strayed: |candidate - host|. size: |host|."""
    return (1 - strayed / size.clamp(min=torch.finfo(size.dtype).tiny) / reach).clamp(0.0, 1.0)


def squares(candidate: Tensor, host: Tensor) -> Tensor:
    """[2]: the squares of |candidate - host| and |host|, which add up over the parts of a batch. No gradient."""
    candidate, host = candidate.detach(), host.detach()
    return torch.stack(((candidate - host).square().sum(), host.square().sum()))
