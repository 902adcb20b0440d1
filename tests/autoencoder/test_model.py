"""The autoencoder: sizes, wiring between the levels, and that codes are all that passes from encoder to decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparing import same_codes
from torch import Tensor, nn
from torch_versions import needs_torch

from vqvae2.autoencoder.base import Quantized
from vqvae2.autoencoder.layers import ResidualBlock, downsample, residual_stack, upsample
from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes, CodesError
from vqvae2.config.models import AutoencoderConfig, ConfigError

WIRINGS = [  # strides from the image, height and width, channels
    ((4,), (8, 12), 3),
    ((1,), (3, 5), 1),
    ((3,), (9, 6), 1),
    ((4, 2), (16, 8), 4),
    ((1, 2), (4, 2), 3),
    ((2, 3), (6, 12), 3),
    ((6, 5), (30, 60), 1),
    ((2, 2, 2), (8, 16), 3),
    ((3, 2, 3), (18, 36), 4),
    ((2, 2, 2, 2), (16, 32), 3),
]


def config(strides: tuple[int, ...] = (2, 2), **options: Any) -> AutoencoderConfig:
    """A small one."""
    small: dict[str, Any] = {
        "codes": tuple(range(5, 5 + len(strides))),
        "code_dim": 4,
        "hidden": 6,
        "residual": 3,
        "blocks": 1,
    }
    return AutoencoderConfig(strides=strides, **(small | options))


def model(strides: tuple[int, ...] = (2, 2), seed: int = 0, **options: Any) -> VQVAE:
    """A small one whose codebooks were drawn from data once, in eval mode."""
    torch.manual_seed(seed)
    net = VQVAE(config(strides, **options))
    total = 1
    for stride in strides:
        total *= stride
    net.train()(noise(8, net.config.channels, 2 * total, 2 * total))
    return net.eval()


def noise(n: int, channels: int, height: int, width: int, seed: int = 1) -> Tensor:
    """Images of noise in [-1, 1]."""
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def count(net: nn.Module) -> int:
    """Number of weights."""
    return sum(p.numel() for p in net.parameters())


def captured(net: VQVAE, images: Tensor) -> tuple[list[Tensor], list[Quantized], Tensor]:
    """What enters and leaves each level's quantizer in one forward pass (coarsest first), and the images."""
    before: list[Tensor] = []
    after: list[Quantized] = []
    hooks = []
    for quantizer in net.quantizers:
        hooks.append(quantizer.register_forward_pre_hook(lambda _, args: before.append(args[0])))
        hooks.append(quantizer.register_forward_hook(lambda _, args, out: after.append(out)))
    result = net(images).images
    for hook in hooks:
        hook.remove()
    return before, after, result


# --- layers ---


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 6, 7, 8, 12])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (5, 2)])
def test_sampling_divides_and_multiplies_exactly(factor: int, height: int, width: int) -> None:
    up, down = upsample(3, 2, 4, factor), downsample(2, 3, 4, factor)
    big = up(torch.randn(2, 3, height, width))
    assert big.shape == (2, 2, height * factor, width * factor)
    assert down(big).shape == (2, 3, height, width)


def test_upsampling_leaves_no_position_out() -> None:
    """Every output pixel depends on some input position, every input position reaches some output pixel."""
    for factor in (2, 3, 4, 5, 6):
        layer = upsample(1, 1, 4, factor).double()
        for p in layer.parameters():
            nn.init.constant_(p, 0.3)
        x = torch.ones(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
        y = layer(x)
        assert (y > layer[-1].bias.item() + 1e-6).all()
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert (grad > 0).all()


def test_residual_block_is_the_papers() -> None:
    """x + Conv1x1(ReLU(Conv3x3(ReLU(x)))); no norm, no bias before; one ReLU after a whole stack."""
    block = ResidualBlock(5, 3)
    x = torch.randn(2, 5, 4, 4)
    assert torch.allclose(block(x), x + block.conv1(block.conv3(x.relu()).relu()))
    with torch.no_grad():
        for p in block.parameters():
            p.zero_()
    assert torch.equal(block(x), x)
    stack = residual_stack(5, 3, 2)
    assert torch.equal(stack(x), stack[1](stack[0](x)).relu())
    assert torch.equal(residual_stack(5, 3, 0)(x), x.relu())


# --- sizes ---


@pytest.mark.parametrize(("residual", "weights"), [(64, 1_716_803), (32, 1_388_867)])
def test_parameter_counts_of_the_paper(residual: int, weights: int) -> None:
    """Counted by hand from the paper's architecture; the codebooks are buffers beside it."""
    net = VQVAE(AutoencoderConfig(residual=residual))
    assert count(net) == weights
    assert [tuple(q.embeddings.shape) for q in net.quantizers] == [(512, 64), (512, 64)]
    assert count(VQVAE(AutoencoderConfig(residual=residual, ema=False))) == weights + 2 * 512 * 64


@pytest.mark.parametrize(("size", "strides", "grids"), [
    (256, (4, 2), ((32, 32), (64, 64))),
    (1024, (8, 2, 2), ((32, 32), (64, 64), (128, 128))),
])  # fmt: skip
def test_grids_of_the_paper(size: int, strides: tuple[int, ...], grids: tuple[tuple[int, int], ...]) -> None:
    net = VQVAE(config(strides))
    assert net.geometry(size, size).grids == grids
    assert net.geometry(size, size).vocabulary == net.config.codes


@pytest.mark.parametrize(("strides", "size", "channels"), WIRINGS)
def test_grids_are_those_of_the_geometry(
    strides: tuple[int, ...], size: tuple[int, int], channels: int
) -> None:
    net = model(strides, channels=channels)
    images = noise(3, channels, *size)
    codes = net.encode(images)
    assert len(codes) == 3
    net.geometry(*size).check(codes)
    assert net.decode(codes).shape == images.shape
    assert net(images).images.shape == images.shape


@pytest.mark.parametrize(("strides", "size", "channels"), WIRINGS)
def test_decoding_the_codes_is_the_reconstruction(
    strides: tuple[int, ...], size: tuple[int, int], channels: int
) -> None:
    net = model(strides, channels=channels)
    images = noise(3, channels, *size)
    with torch.no_grad():
        out = net(images)
    codes = net.encode(images)
    assert same_codes(codes, out.codes)
    assert torch.allclose(net.decode(codes), out.images.clamp(-1, 1), atol=1e-5)


def test_images_do_not_see_each_other() -> None:
    net = model()
    images = noise(5, 3, 8, 8)
    whole = net.encode(images)
    for i in range(5):
        assert same_codes(net.encode(images[i : i + 1]), whole[i : i + 1])
    assert torch.allclose(net.decode(whole)[2:3], net.decode(whole[2:3]), atol=1e-6)


def test_decoded_images_are_clipped() -> None:
    net = model()
    with torch.no_grad():
        net.decoder[-1][-1].bias.fill_(9.0)
    codes = net.encode(noise(2, 3, 8, 8))
    assert net(noise(2, 3, 8, 8)).images.max() > 1
    assert net.decode(codes).max() == 1


@pytest.mark.parametrize(("height", "width"), [(8, 12), (12, 8), (7, 8), (1, 1), (0, 8)])
def test_sizes_that_do_not_fit(height: int, width: int) -> None:
    net = VQVAE(config((4, 2)))
    images = torch.zeros(1, 3, height, width)
    for call in (net, net.encode, lambda x: net.geometry(x.shape[2], x.shape[3])):
        with pytest.raises(ConfigError, match=f"{height}x{width} px.*multiples of 8") as caught:
            call(images)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 8, 8), (1, 4, 8, 8), (1, 8, 8, 3)])
def test_wrong_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"expected images \[B, 3, H, W\], found shape"):
        VQVAE(config((4, 2))).encode(torch.zeros(shape))


def test_an_empty_batch() -> None:
    net = model()
    codes = net.encode(torch.zeros(0, 3, 8, 8))
    assert len(codes) == 0
    assert net.decode(codes).shape == (0, 3, 8, 8)


# --- what learns, and when ---


@pytest.mark.parametrize("ema", [True, False])
def test_encode_never_learns(ema: bool) -> None:
    net = model(ema=ema)
    net.train()
    net.quantizers[0].eval()  # a mixture of modes comes back as it was
    before = {name: value.clone() for name, value in net.state_dict().items()}
    usage = [q.usage.clone() for q in net.quantizers]
    codes = net.encode(noise(4, 3, 8, 8, seed=5))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(torch.equal(a, q.usage) for a, q in zip(usage, net.quantizers, strict=True))
    assert [q.training for q in net.quantizers] == [False, True]
    assert net.training
    assert same_codes(codes, net.eval().encode(noise(4, 3, 8, 8, seed=5)))


def test_encode_restores_the_mode_of_every_module() -> None:
    """Also of a part that is frozen in eval mode while the rest is trained."""
    net = model().train()
    net.quantizers[0].add_module("still", nn.Dropout().eval())
    modes = [module.training for module in net.modules()]
    net.encode(noise(2, 3, 8, 8))
    assert [module.training for module in net.modules()] == modes


def test_the_codes_of_an_image_do_not_depend_on_autocast() -> None:
    net, images = model(), noise(16, 3, 32, 32)
    expected = net(images).codes
    with torch.autocast("cpu", torch.bfloat16):
        assert same_codes(net.encode(images), expected)
        assert not same_codes(net(images).codes, expected)
    assert same_codes(net.encode(images), expected)


def test_decoded_images_have_the_dtype_of_the_weights() -> None:
    """Under autocast they had a narrower one, which NumPy does not know."""
    net = model().eval()
    codes = net.encode(noise(2, 3, 32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        images = net.decode(codes)
    assert images.dtype == torch.float32
    assert torch.allclose(images, net.decode(codes), atol=0.05)


def test_encode_restores_the_mode_after_an_error() -> None:
    net = model().train()
    with pytest.raises(ConfigError):
        net.encode(torch.zeros(1, 3, 7, 7))
    assert all(q.training for q in net.quantizers)


def test_encode_before_any_training_draws_no_codebook() -> None:
    net = VQVAE(config()).train()
    net.encode(noise(4, 3, 8, 8))
    assert [int(q.counter) for q in net.quantizers] == [0, 0]


def test_forward_learns_every_codebook_in_training_mode_only() -> None:
    net = model((2, 2, 2))
    images = noise(4, 3, 16, 16, seed=3)
    before = [q.embeddings.clone() for q in net.quantizers]
    net(images)
    assert all(torch.equal(a, q.embeddings) for a, q in zip(before, net.quantizers, strict=True))
    net.train()(images)
    assert not any(torch.equal(a, q.embeddings) for a, q in zip(before, net.quantizers, strict=True))


def test_every_weight_learns_from_the_two_losses() -> None:
    """All weights get a gradient from reconstruction + commitment, and none from the commitment alone in the decoder."""
    net = model((2, 2, 2)).train()
    images = noise(4, 3, 16, 16)
    out = net(images)
    ((out.images - images).square().mean() + out.commitment).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    net.zero_grad()
    net(images).commitment.backward()
    assert all(p.grad is None for p in net.decoder.parameters())


def test_the_commitment_is_the_sum_over_levels() -> None:
    out = model((2, 2, 2))(noise(2, 3, 16, 16))
    assert torch.allclose(out.commitment, sum(level.loss for level in out.levels))  # type: ignore[arg-type]


def test_a_few_steps_learn() -> None:
    """The paper's loss falls on a fixed batch: gradients pass both quantizers in the right direction."""
    torch.manual_seed(0)
    net = VQVAE(config((2, 2), codes=(16, 16), code_dim=8, hidden=16, residual=8))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    images = torch.nn.functional.interpolate(noise(8, 3, 2, 2), size=8)
    losses = []
    for _ in range(60):
        out = net(images)
        loss = (out.images - images).square().mean()
        optimizer.zero_grad()
        (loss + out.commitment).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


# --- wiring ---


@pytest.mark.parametrize("strides", [(2,), (2, 2), (2, 2, 2), (2, 2, 2, 2)])
def test_every_level_reaches_the_image(strides: tuple[int, ...]) -> None:
    """The decoder gets all levels directly (paper section 3.1), so each gets a gradient from the image alone."""
    net = model(strides)
    size = 2 ** len(strides) * 2
    codes = net.encode(noise(2, 3, size, size))
    parts = [
        q.lookup(level).permute(0, 3, 1, 2).requires_grad_()
        for q, level in zip(net.quantizers, codes.levels, strict=True)
    ]
    grads = torch.autograd.grad(net._decode(parts).square().sum(), parts)
    for grad in grads:
        assert (grad.abs().sum(1) > 0).all(), "a position of the grid has no influence on the image"


@pytest.mark.parametrize("strides", [(2, 2), (2, 2, 2), (2, 2, 2, 2)])
def test_coarser_codes_steer_finer_quantisation(strides: tuple[int, ...]) -> None:
    """E_bottom(x, e_top): every finer level sees every coarser one, and no coarser level a finer one."""
    net = model(strides)
    size = 2 ** len(strides) * 2
    before, after, _ = captured(net, noise(2, 3, size, size))
    for fine, z in enumerate(before):
        for coarse, out in enumerate(after):
            (grad,) = torch.autograd.grad(
                z.square().sum(), out.quantize, retain_graph=True, allow_unused=True
            )
            assert (grad is not None and bool(grad.abs().sum() > 0)) == (coarse < fine)


def test_every_level_sees_the_pixels() -> None:
    """Each level's encoder gets the image itself, not only what the coarser codes say of it (paper section 3.1)."""
    net = model((2, 2, 2))
    images = noise(2, 3, 16, 16).requires_grad_()
    features: list[Tensor] = []
    hooks = [
        level.encoder.register_forward_hook(lambda _, args, out: features.append(out)) for level in net.levels
    ]
    net(images)
    for hook in hooks:
        hook.remove()
    assert len(features) == 3
    for feature in features:
        (grad,) = torch.autograd.grad(feature.square().sum(), images, retain_graph=True)
        assert grad.abs().sum() > 0


def test_the_straight_through_gradient_reaches_the_image_from_every_level() -> None:
    net = model((2, 2))
    images = noise(2, 3, 8, 8).requires_grad_()
    _, after, result = captured(net, images)
    for out in after:
        (grad,) = torch.autograd.grad(result.square().sum(), out.quantize, retain_graph=True)
        assert grad.abs().sum() > 0
    (grad,) = torch.autograd.grad(result.square().sum(), images)
    assert grad.isfinite().all()
    assert grad.abs().sum() > 0


# --- decode ---


def test_decoding_some_levels_ignores_the_finer_ones() -> None:
    net = model((2, 2, 2))
    a, b = net.encode(noise(2, 3, 16, 16, seed=1)), net.encode(noise(2, 3, 16, 16, seed=2))
    for k in (1, 2, 3):
        mixed = Codes((*a.levels[:k], *b.levels[k:]))
        assert torch.equal(net.decode(mixed, levels=k), net.decode(a, levels=k))
        if k < 3:
            assert not torch.equal(net.decode(mixed), net.decode(a))
    assert torch.equal(net.decode(a, levels=3), net.decode(a))
    assert not torch.equal(net.decode(a, levels=1), net.decode(b, levels=1))
    assert not torch.equal(net.decode(a, levels=1), net.decode(a, levels=2))


def test_levels_left_out_are_replaced_by_their_mean_code() -> None:
    net = model((2, 2))
    net.quantizers[1].embeddings.copy_(net.quantizers[1].mean_code().expand_as(net.quantizers[1].embeddings))
    codes = net.encode(noise(2, 3, 8, 8))
    assert torch.allclose(net.decode(codes, levels=1), net.decode(codes), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_codes_of_any_integer_type_decode_alike(dtype: torch.dtype) -> None:
    net = model()
    codes = net.encode(noise(2, 3, 8, 8))
    small = Codes(tuple(level.to(dtype) for level in codes.levels))
    assert torch.equal(net.decode(small), net.decode(codes))


def test_codes_that_do_not_fit_the_model() -> None:
    net = model((2, 2))
    codes = net.encode(noise(2, 3, 8, 8))
    coarse, fine = codes.levels
    cases: list[tuple[Codes, int | None, str]] = [
        (Codes((coarse,)), None, "codes of 2 levels, found 1"),
        (Codes((coarse, fine, fine)), None, "codes of 2 levels, found 3"),
        (Codes((fine, fine)), None, "expected grids"),
        (Codes((coarse, coarse)), None, "expected grids"),
        (Codes((coarse + 5, fine)), None, r"level 0: expected codes in 0\.\.4"),
        (Codes((coarse, fine - 6)), None, r"level 1: expected codes in 0\.\.5"),
        (codes, 0, "levels between 1 and 2, found 0"),
        (codes, 3, "levels between 1 and 2, found 3"),
    ]
    for bad, levels, message in cases:
        with pytest.raises(CodesError, match=message):
            net.decode(bad, levels)


def test_a_state_dict_carries_the_codebooks() -> None:
    a, b = model(seed=0), model(seed=1)
    images = noise(2, 3, 8, 8)
    assert not same_codes(a.encode(images), b.encode(images))
    b.load_state_dict(a.state_dict())
    assert same_codes(a.encode(images), b.encode(images))
    assert torch.equal(a.decode(a.encode(images)), b.decode(b.encode(images)))


def test_bfloat16_autocast_keeps_codes_and_losses_finite() -> None:
    net = model().train()
    images = noise(4, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(images)
        loss = (out.images.float() - images).square().mean() + out.commitment
    loss.backward()
    assert loss.isfinite()
    assert all(q.embeddings.dtype == torch.float32 and q.embeddings.isfinite().all() for q in net.quantizers)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


# --- decoding some training images from the coarser levels alone ---


def test_an_image_decoded_without_its_finer_levels_is_what_decode_makes_of_them() -> None:
    net = model((2, 2, 2), nested_dropout=0.5).train()
    for quantizer in net.quantizers:  # else the codebooks move on between the two calls
        quantizer.eval()
    images = noise(64, 3, 16, 16)
    with torch.no_grad():
        out = net(images)
    assert set(out.used.tolist()) == {1, 2, 3}
    assert 0.25 < (out.used < 3).double().mean().item() < 0.75
    for count in (1, 2, 3):
        expected = net.decode(out.codes, count)
        chosen = out.used == count
        assert torch.allclose(out.images.clamp(-1, 1)[chosen], expected[chosen], atol=1e-5)


def test_every_level_is_used_outside_training_and_by_default() -> None:
    images = noise(16, 3, 8, 8)
    assert model((2, 2), nested_dropout=0.9)(images).used.eq(2).all()
    assert model((2, 2)).train()(images).used.eq(2).all()
    assert model((2,), nested_dropout=0.9).train()(images).used.eq(1).all()


def test_the_finer_levels_get_no_gradient_from_images_decoded_without_them() -> None:
    net = model((2, 2), nested_dropout=0.5).train()
    images = noise(32, 3, 8, 8).requires_grad_()
    out = net(images)
    dropped = out.used < 2
    (gradient,) = torch.autograd.grad(
        out.images[dropped].sum(), out.levels[1].quantize, retain_graph=True, allow_unused=True
    )
    assert gradient.eq(0).all()
    (gradient,) = torch.autograd.grad(out.images[~dropped].sum(), out.levels[1].quantize)
    assert gradient[~dropped].ne(0).any()
    assert gradient[dropped].eq(0).all()


def test_sonnets_first_weights() -> None:
    torch.manual_seed(0)
    net = VQVAE(config(hidden=64, residual=32, weights="sonnet"))
    for part in net.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            sigma = (part.in_channels * part.kernel_size[0] * part.kernel_size[1]) ** -0.5
            assert part.weight.abs().max() <= 2 * sigma * 1.0001
            if (
                part.weight.numel() > 5000
            ):  # truncation at two standard deviations leaves .8796 of the standard deviation
                assert part.weight.std().item() == pytest.approx(0.8796 * sigma, rel=0.05)
            assert part.bias is not None
            assert (part.bias == 0).all()


def test_the_stems_relu_is_the_only_difference() -> None:
    plain, other = model(), model(stem_relu=True)
    other.load_state_dict(plain.state_dict())  # no weights of its own: old files fit
    x = noise(2, 3, 8, 8)
    for ours, theirs in zip(reversed(plain.levels), reversed(other.levels), strict=True):  # finest first
        assert not (ours.encoder[0](x) >= 0).all()
        assert theirs.encoder[0](x).equal(ours.encoder[0](x).relu())
        x = ours.encoder(x)


# --- memory format and compilation ---


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"nested_dropout": 0.5}, {"quantizer": "fsq", "codes": (8, 6, 5)}], ids=str
)
def test_every_convolution_is_channels_last(options: dict[str, Any], autocast: bool) -> None:
    """In training, encoding and decoding, from ordinary images, after loading; the codes alone decide what is decoded."""
    net = VQVAE(config((2, 2, 2), **options))
    net.load_state_dict({name: value.contiguous() for name, value in net.state_dict().items()})
    others: list[str] = []
    expected = [torch.bfloat16 if autocast else torch.float32]

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            others.extend(
                f"{name}: {tuple(tensor.shape)} {tensor.stride()}"
                for tensor in (*inputs, output, *module.parameters())
                if tensor.ndim == 4 and not tensor.is_contiguous(memory_format=torch.channels_last)
            )
            if output.dtype != expected[0]:
                others.append(f"{name}: {output.dtype}")

        return hook

    convolutions = 0
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(note(name))
            convolutions += 1
    images = noise(2, 3, 16, 24)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = net(images)
        net.decode(out.codes)
        net.decode(out.codes, 1)
    expected[0] = torch.float32  # of encoding, whatever autocast says
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        net.encode(images)
    assert convolutions > 20
    assert others == []
    assert out.images.dtype == (torch.bfloat16 if autocast else torch.float32)
    assert all(level.loss.dtype == torch.float32 for level in out.levels)


@needs_torch(2, 7)  # an older one cannot compile our context managers; it compiles what is between them
@pytest.mark.parametrize("options", [
    {}, {"entropy_penalty": 0.2, "nested_dropout": 0.5}, {"ema": False}, {"quantizer": "fsq", "codes": (8, 6)},
], ids=str)  # fmt: skip
def test_compiled_it_is_one_graph(options: dict[str, Any]) -> None:
    """Training, evaluation, encoding and decoding; without random choices the results are those of the eager model."""
    torch.compiler.reset()
    net, other = model((2, 2), **options), model((2, 2), **options)
    images = noise(2, 3, 8, 8)
    for training in (True, False):
        net.train(training), other.train(training)
        a, b = net(images), torch.compile(other, fullgraph=True, backend="eager")(images)
        if not options.get("nested_dropout") or not training:
            assert same_codes(a.codes, b.codes)
            torch.testing.assert_close(a.images, b.images)
        torch.testing.assert_close(a.commitment, b.commitment)
        (b.images.sum() + b.commitment).backward()
    codes = torch.compile(other.encode, fullgraph=True, backend="eager")(images)
    assert same_codes(codes, net.encode(images))
    for levels in (None, 1):
        decoded = torch.compile(other.decode, fullgraph=True, backend="eager")(codes, levels)
        torch.testing.assert_close(decoded, net.decode(codes, levels))
