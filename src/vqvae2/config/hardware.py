"""The settings that say how the machine is used."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from vqvae2.config.base import Settings


class Hardware(Settings):
    """How the machine is used. None of it changes what is learned, but for rounding; each may be changed at any time."""

    precision: Literal["auto", "no", "bf16", "fp16"] = Field(
        "auto",
        description="mixed precision of training: bf16, or no for float32; auto = bf16 on a CUDA card that has it, else no. "
        "The quantiser and held-out scores are computed in float32 either way",
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="torch.compile the networks in training: the first steps take tens of seconds longer, and whether later ones win "
        "that back has to be measured; auto = no",
    )
    capture: bool | Literal["auto"] = Field(
        "auto",
        description="record the training step once as a CUDA graph and replay it, so that the card does not wait for Python; "
        "auto = in longer trainings on one CUDA card",
    )
    tf32: bool = Field(
        True,
        description="let a CUDA card compute float32 products of training in TF32 (never the search of the nearest code)",
    )
    fused_adamw: bool = Field(
        True,
        description="update the weights by the fused kernel of AdamW on a CUDA card; without it the step is not captured",
    )
    channels_last: bool = Field(
        True,
        description="compute convolutions of training, and of the autoencoder afterwards, on tensors in the memory format channels "
        "last",
    )
    cudnn_benchmark: bool = Field(
        True,
        description="let cuDNN try its kernels on a CUDA card at each new shape of training and keep the fastest one; "
        "deterministic turns this off",
    )
    pin_memory: bool = Field(
        True,
        description="copy batches to a CUDA card from pinned memory while it computes; false = from ordinary memory, when they are "
        "needed",
    )
    resident_gb: float = Field(
        2.0,
        ge=0,
        le=1e6,
        description="keep the training data in the memory of a CUDA card while they take at most this many GB (1e9 bytes) "
        "and half of what is free; 0 = never",
    )
    shard: bool = Field(
        False,
        description="with several processes, cut up the weights, gradients and optimiser state of each prior among them (FSDP2), "
        "for priors that do not fit on one card",
    )
    deterministic: bool = Field(
        False,
        description="use deterministic kernels only, so that a resumed training on a card is the same bit for bit; slower",
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _yaml_reads_no_as_false(cls, value: Any) -> Any:
        return "no" if value is False else value
