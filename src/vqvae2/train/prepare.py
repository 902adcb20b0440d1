"""What a network becomes before it is trained: on its device, shared by the processes, with its optimiser."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vqvae2.autoencoder.layers import channels_first
from vqvae2.config.training import TrainConfig
from vqvae2.train.device import Choices, make_optimizer
from vqvae2.train.sharded import shard


def prepared(
    network: nn.Module, config: TrainConfig, accelerator: Accelerator, choices: Choices
) -> tuple[nn.Module, nn.Module, torch.optim.AdamW]:
    """The network on its device, what the loss is computed with, and the optimiser."""
    if choices.sharded:
        network = network.to(accelerator.device)
        shard(network, accelerator)
        return network, network, make_optimizer(network, config, choices)
    if choices.channels_last:
        network = network.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    else:
        network = network.to(accelerator.device)
        channels_first(network)
    optimizer = make_optimizer(network, config, choices)
    return network, _wrapped(network, accelerator, choices), optimizer


def _wrapped(network: nn.Module, accelerator: Accelerator, choices: Choices) -> nn.Module:
    """What the loss is computed with: the network, shared out to the processes and compiled where that is asked for."""
    model = network
    if accelerator.num_processes > 1:
        # DDP must not broadcast buffers: the quantiser already keeps its codebook equal on all processes, and its counts may differ.
        buffers = [name for name, _ in network.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, buffers)
        cards = [choices.device.index] if choices.device.type == "cuda" else None
        model = DistributedDataParallel(network, device_ids=cards, gradient_as_bucket_view=True)
    compiled = choices.compiled and getattr(network, "may_compile", True)
    return torch.compile(model) if compiled else model  # type: ignore[return-value]
