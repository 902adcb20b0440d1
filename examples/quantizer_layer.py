"""Train the quantiser layer alone inside another network: here an autoencoder of short waves, which are no images.

python examples/quantizer_layer.py [STEPS]

The layer takes vectors on the last axis and adds one term to the loss. Everything around it is ordinary PyTorch.
"""

import sys

import torch
from torch import nn
from torch.nn import functional

import vqvae2


class WaveCodes(nn.Module):
    """Waves [B, 1, 64] to 16 codes each and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(1, 32, 4, 4), nn.GELU(), nn.Conv1d(32, 8, 3, padding=1))
        self.quantizer = vqvae2.VectorQuantizer(num_embeddings=64, embedding_dim=8)
        self.decoder = nn.Sequential(
            nn.Conv1d(8, 32, 3, padding=1), nn.GELU(), nn.ConvTranspose1d(32, 1, 4, 4)
        )

    def forward(self, waves: torch.Tensor) -> tuple[torch.Tensor, vqvae2.Quantized]:
        z = self.encoder(waves).transpose(
            1, 2
        )  # [B, 16, 8]: the quantiser wants the vectors on the last axis
        quantized = self.quantizer(z)
        return self.decoder(quantized.quantize.transpose(1, 2)), quantized


def waves(count: int, random: torch.Generator) -> torch.Tensor:
    """Sums of two sine waves with random frequencies and phases, [B, 1, 64]."""
    frequency, phase = torch.rand(2, count, 2, 1, generator=random)
    time = torch.arange(64) / 64
    return (2 * torch.pi * (4 * frequency * time + phase)).sin().sum(1, keepdim=True)


steps = int((sys.argv[1:] or [1000])[0])
torch.manual_seed(0)
random = torch.Generator().manual_seed(0)
net, heldout = WaveCodes(), waves(256, torch.Generator().manual_seed(1))
optimizer = torch.optim.Adam(net.parameters(), 2e-3)
for _ in range(steps):
    batch = waves(64, random)
    decoded, quantized = net(batch)
    loss = functional.mse_loss(decoded, batch) + quantized.loss  # the codes themselves follow moving averages
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
net.eval()
decoded, quantized = net(heldout)
error = functional.mse_loss(decoded, heldout) / heldout.square().mean()
print(f"held-out error after {steps} steps: {100 * error:.1f} % of the waves' power")
print(f"perplexity {quantized.perplexity:.0f} of {net.quantizer.num_embeddings} codes")
