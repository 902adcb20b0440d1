"""Compressed images: what comes back, how large files are, and what happens to bad ones."""

from __future__ import annotations

import copy
import itertools
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codec import codec as codec_module
from vqvae2.codec import container, frequencies, prior_coding
from vqvae2.codec.codec import Codec
from vqvae2.codec.container import CODES_PER_BYTE, read_header
from vqvae2.codec.errors import CodecError
from vqvae2.codec.halo import decode_large, decoder_halo, encode_large, encoder_halo
from vqvae2.codec.layout import Layout
from vqvae2.codes import Codes, Geometry
from vqvae2.commands.compress import Coding, compress
from vqvae2.commands.decompress import decompress
from vqvae2.commands.images import batches_of
from vqvae2.config.models import AutoencoderConfig, LevelPriorConfig, PriorConfig
from vqvae2.errors import UserError
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.run import Run, load


@pytest.fixture(scope="module")
def loaded(trained: Path) -> Run:
    """The trained run of the session, on the CPU."""
    return load(trained, "cpu")


@pytest.fixture(scope="module")
def images(loaded: Run, pictures: Path) -> Tensor:
    """24 images as the run sees them."""
    return loaded.load_images(sorted(pictures.rglob("*.png")))


def noise(height: int, width: int, seed: int = 0, channels: int = 3) -> Tensor:
    """A smooth random image [C, H, W]."""
    coarse = torch.rand(1, channels, 3, 3, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return 2 * smooth - 1


@pytest.mark.parametrize("mode", ["prior", "packed"])
def test_images_come_back_as_their_reconstructions(loaded: Run, images: Tensor, mode: Any) -> None:
    labels = [None if n % 2 else n % 3 for n in range(24)]
    files = loaded.codec.compress(list(images), labels, mode)
    assert torch.equal(
        torch.stack(loaded.codec.decode(loaded.codec.decompress(files))), loaded.reconstruct(images)
    )
    one = loaded.compress(images[4], labels[4] if mode == "prior" else None, mode)
    assert one == files[4]  # whatever the batch
    assert torch.equal(loaded.decompress(one), loaded.reconstruct(images[4:5])[0])


def test_packed_codes_have_no_label(loaded: Run, images: Tensor) -> None:
    """The label was dropped without a word; the command refuses it."""
    with pytest.raises(UserError, match='a label needs the mode "prior"'):
        loaded.compress(images[0], 1, "packed")


def test_a_file_is_as_small_as_the_prior_says(loaded: Run, images: Tensor) -> None:
    bits = -loaded.log_prob(images, "disc").double().sum(1) / math.log(2)
    for file, expected in zip(loaded.codec.compress(list(images), [1] * 24), bits.tolist(), strict=True):
        assert len(file) <= 1.005 * expected / 8 + 24
    packed = loaded.codec.compress(list(images[:3]), mode="packed")
    assert {len(file) for file in packed} == {math.ceil(16 * 4 / 8) + math.ceil(4 * 4 / 8) + 15}


SIZES = [(16, 16), (5, 40), (33, 17), (8, 8), (1, 1), (50, 47)]


@pytest.mark.parametrize("mode", ["prior", "packed"])
def test_any_size_comes_back(loaded: Run, mode: Any) -> None:
    originals = [noise(*size, seed) for seed, size in enumerate(SIZES)]
    files = loaded.codec.compress(originals, mode=mode)
    back = loaded.codec.decode(loaded.codec.decompress(files))
    for original, image in zip(originals, back, strict=True):
        assert image.shape == original.shape
    padded = torch.nn.functional.pad(originals[2][None], (0, 7, 0, 7), mode="replicate")
    whole = loaded.autoencoder.decode(loaded.autoencoder.encode(padded))[0, :, :33, :17]
    assert torch.allclose(back[2], whole, atol=1e-5)


def test_what_lies_outside_the_image_costs_nothing(loaded: Run) -> None:
    """An image that ends 8 px into the next tile does not pay for that tile's other codes."""
    sizes = [len(loaded.compress(noise(16, width))) for width in (16, 24, 32)]
    assert sizes[1] - sizes[0] < 0.8 * (sizes[2] - sizes[0])


def test_tiles_are_split_and_joined() -> None:
    layout = Layout(33, 17, (16, 16), Geometry(((2, 2), (4, 4)), (16, 16)))
    assert (layout.padded, layout.tiles, layout.count) == ((40, 24), (3, 2), 6)
    for level in (0, 1):
        codes = np.arange(layout.stored(level)).reshape(layout.grid(level))
        tiles = layout.split(codes, level)
        assert np.array_equal(layout.join(tiles, level), codes)
        assert np.array_equal(tiles >= 0, layout.wanted(level))
        assert (tiles >= 0).sum() == layout.stored(level)


@pytest.mark.parametrize(("strides", "blocks"), [((4, 2), 2), ((3,), 1), ((2, 2, 3), 1), ((8,), 0)])
def test_blocks_with_their_border_are_the_whole_image(strides: tuple[int, ...], blocks: int) -> None:
    """No seam: codes are equal, and pixels within 1e-5. A narrower border would be seen."""
    torch.manual_seed(0)
    config = AutoencoderConfig(
        strides=strides, codes=(8,) * len(strides), code_dim=4, hidden=8, residual=4, blocks=blocks
    )
    model = VQVAE(config)
    total = math.prod(strides)
    side = total * 30
    image = noise(side, side, 1)[None] + 0.1 * torch.randn(1, 3, side, side)
    model.train()(image)  # takes the codebook from the image
    model.eval()
    codes = model.encode(image)
    for block in (total * 4, total * 11):
        found = encode_large(model, image, block)
        same = [(a == b).double().mean().item() for a, b in zip(codes.levels, found.levels, strict=True)]
        assert min(same) > 0.99, same  # a vector half-way between two codes may go either way
        assert (decode_large(model, codes, block=block) - model.decode(codes)).abs().max() < 1e-5
    for halo, name in ((encoder_halo, "encoder_halo"), (decoder_halo, "decoder_halo")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                f"vqvae2.codec.halo.{name}", lambda model, halo=halo: halo(model) // 4 // total * total
            )
            if name == "encoder_halo":
                found = encode_large(model, image, total * 4)
                assert (codes.levels[0] == found.levels[0]).double().mean() < 0.98
            if name == "decoder_halo":
                worst = (decode_large(model, codes, block=total * 4) - model.decode(codes)).abs().max()
                assert worst > 1e-5 or halo(model) // 4 < total


@pytest.mark.parametrize("mode", ["prior", "packed"])
def test_a_file_that_is_cut_off_shows_its_coarse_levels(
    loaded: Run, images: Tensor, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = loaded.compress(images[2], "stripes" if mode == "prior" else None, mode)
    coarse = loaded.reconstruct(images[2:3], levels=1)[0]
    whole = loaded.reconstruct(images[2:3])[0]
    outcomes = []
    for end in range(len(data) + 1):
        try:
            image = loaded.decompress(data[:end])
        except CodecError:
            outcomes.append(0)
            continue
        assert torch.equal(image, coarse if end < len(data) else whole)
        outcomes.append(2 if end == len(data) else 1)
    assert outcomes == sorted(outcomes)
    assert outcomes.count(1) > 3
    filled = loaded.decompress(data[:-1], fill=True)
    assert filled.shape == coarse.shape
    assert torch.equal(filled, loaded.decompress(data[:-1], fill=True))
    assert not torch.equal(filled, coarse)
    sampling = loaded.sampling.replace(temperature=0)  # as the command, it draws with the settings of the run
    expected = loaded.codec.fill(loaded.codec.decompress([data[:-1]])[0], sampling=sampling)
    with monkeypatch.context() as patch:
        patch.setattr(loaded, "sampling", sampling)
        likeliest = loaded.decompress(data[:-1], fill=True)
    assert torch.equal(likeliest, loaded.codec.decode([expected], loaded.decoder())[0])
    assert not torch.equal(likeliest, filled)


def test_a_tiled_file_that_is_cut_off_is_filled(loaded: Run) -> None:
    data = loaded.compress(noise(20, 40))
    [found] = loaded.codec.decompress([data[:-1]])
    filled = loaded.codec.fill(found)
    assert [grid.shape for grid in filled.grids] == [(3, 5), (6, 10)]
    assert np.array_equal(filled.grids[0], found.grids[0])
    assert loaded.codec.decode([filled])[0].shape == (3, 20, 40)


def test_positions_near_an_edge_are_listed_and_not_left_to_the_prior(
    loaded: Run, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoder and decoder whose logits differ by less than the width of an edge agree on every code."""
    monkeypatch.setattr(frequencies, "EDGE", 5e-4)
    prior = copy.deepcopy(loaded.prior)
    torch.manual_seed(0)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    codec = Codec(loaded.autoencoder, (16, 16), prior)
    originals = [*images, noise(20, 40)]
    files = codec.compress(originals)
    assert sum(bool(file[2] & 8) for file in files) > 5
    exact = prior_coding.on_grid

    def elsewhere(logits: Tensor) -> Any:
        """Another machine, whose logits differ by up to nine tenths of the width."""
        return exact(logits + 4.5e-4 * (2 * torch.rand_like(logits) - 1))

    monkeypatch.setattr(prior_coding, "on_grid", elsewhere)
    found = codec.decompress(files)
    for one, (_, grids) in zip(found, codec.encode(originals), strict=True):
        assert all(map(np.array_equal, one.grids, grids))


def test_a_machine_that_computes_differently_gets_an_error_and_no_wrong_image(
    loaded: Run, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = loaded.codec.compress(list(images))
    exact = prior_coding.on_grid
    monkeypatch.setattr(prior_coding, "on_grid", lambda x: exact(x + 0.05 * torch.randn_like(x)))
    for file in files:
        with pytest.raises(CodecError, match=r"do not match their check|encode nothing"):
            loaded.codec.decompress([file])


def test_a_larger_image_of_many_tiles(loaded: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tiles than lanes: several batches, in the order that the file has."""
    monkeypatch.setattr(prior_coding, "LANES", 4)
    image = noise(40, 70)
    alone = loaded.codec.compress([image])[0]
    assert loaded.codec.compress([noise(16, 16), image, noise(20, 20)])[1] == alone
    assert loaded.codec.decode(loaded.codec.decompress([alone]))[0].shape == (3, 40, 70)


def test_a_file_of_a_model_with_another_number_of_levels() -> None:
    """Its header has other parts, so it cannot be read; that it is of another model can."""
    codecs = []
    for levels in (2, 3):
        config = AutoencoderConfig(
            strides=(2,) * levels, codes=(8,) * levels, code_dim=4, hidden=8, residual=4
        )
        codecs.append(Codec(VQVAE(config).eval(), (16, 16)))
    for codec, other in (codecs, reversed(codecs)):
        [data] = codec.compress([noise(16, 16)], mode="packed")
        with pytest.raises(CodecError, match="compressed with another model"):
            other.decompress([data])


def test_modes_and_labels_of_callers_in_python(loaded: Run, images: Tensor) -> None:
    """The number of classes is "no label", as in the priors."""
    codec, two = loaded.codec, list(images[:2])
    with pytest.raises(CodecError, match="expected the mode packed or prior, found 'zip'"):
        codec.compress(two, mode="zip")  # type: ignore[arg-type]
    with pytest.raises(CodecError, match="expected a label for each of 2 images, found 1"):
        codec.compress(two, [0])
    assert codec.compress(two, [0, 3]) == codec.compress(two, [0, None])


@pytest.mark.parametrize("kind", ["pixelcnn", "transformer"])
@pytest.mark.parametrize("levels", [1, 3])
def test_every_kind_of_model(kind: Any, levels: int) -> None:
    """One and three levels, codebooks that are no power of two, grey images, no classes."""
    torch.manual_seed(0)
    config = AutoencoderConfig(
        channels=1, strides=(2,) * levels, codes=(10, 20, 30)[:levels], code_dim=4, hidden=8, residual=4
    )
    model = VQVAE(config).eval()
    level = LevelPriorConfig(kind=kind, hidden=8, residual=8, layers=2, heads=1, attention_every=1)
    prior = HierarchicalPrior(PriorConfig(levels=(level,) * levels), config.geometry(16, 16)).eval()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    codec = Codec(model, (16, 16), prior)
    originals = [noise(16, 16, channels=1), noise(21, 9, channels=1)]
    for mode in ("prior", "packed"):
        files = codec.compress(originals, mode=mode)  # type: ignore[arg-type]
        assert [image.shape for image in codec.decode(codec.decompress(files))] == [(1, 16, 16), (1, 21, 9)]
    codes = Codes(tuple(torch.from_numpy(grid)[None] for grid in codec.encode(originals[:1])[0][1]))
    bits = -float(prior.double().log_prob(codes).detach().sum()) / math.log(2)
    assert len(codec.compress(originals[:1])[0]) <= 1.005 * bits / 8 + 24 + 4 * (levels > 2)


def test_the_papers_packed_rate() -> None:
    """256 px, 32x32 + 64x64 codes of 9 bits: 34 times smaller than the pixels."""
    config = AutoencoderConfig(strides=(4, 2), codes=(512, 512), code_dim=4, hidden=8, residual=4, blocks=0)
    data = Codec(VQVAE(config).eval(), (256, 256)).compress([noise(256, 256)], mode="packed")[0]
    assert len(data) == (32 * 32 + 64 * 64) * 9 / 8 + 15
    assert round(3 * 256 * 256 / len(data)) == 34


def test_bad_files_are_one_clear_error(loaded: Run, images: Tensor) -> None:
    data = loaded.compress(images[0])
    other = load("emoji64", "cpu")
    for bad, message in (
        (b"", "it is empty"),
        (b"PNG", "no compressed image of vqvae2"),
        (data[:9], "cut off within its header"),
        (data[:2] + bytes([0x21]) + data[3:], "it is of format 2"),
        (data[:3] + b"abcd" + data[7:], "compressed with another model"),
        (data[:7] + bytes([data[7] ^ 1]) + data[8:], "header is damaged"),
        (data + b"\0", "bytes after its end"),
        (data[:-1] + bytes([data[-1] ^ 1]), "do not match their check|encode nothing"),
    ):
        with pytest.raises(CodecError, match=message):
            loaded.decompress(bad)
    with pytest.raises(CodecError, match="compressed with another model"):
        other.decompress(data)
    with pytest.raises(CodecError, match="more than the 100 that are allowed"):
        loaded.codec.decompress([data], max_pixels=100)
    with pytest.raises(CodecError, match=r"expected images \[3, H, W\]"):
        loaded.compress(images[0][:1])
    with pytest.raises(UserError, match="no class 'cat'"):
        loaded.compress(images[0], "cat")


def test_a_short_file_cannot_stand_for_a_huge_image(loaded: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "CODES_PER_BYTE", 10**9)
    data = loaded.compress(torch.zeros(3, 400, 400))
    monkeypatch.undo()
    if len(data) < 400 * 400 / 16 / 512:  # the prior is sure of a grey image
        with pytest.raises(CodecError, match="too short for its size"):
            loaded.decompress(data)
    assert len(loaded.compress(torch.zeros(3, 400, 400), mode="prior")) > 400 * 400 / 16 / 512


@pytest.mark.parametrize("size", [(1, 2**25), (2**25, 1)])
def test_a_thin_image_cannot_stand_for_many_tiles(
    size: tuple[int, int], loaded: Run, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header whose check is right, and streams as long as they have to be: 40 KB, for two million tiles of 256 pixels."""
    codec = loaded.codec
    header, _ = read_header(codec.compress([images[0]])[0], 2, codec.digest)
    layout = Layout(*size, codec.shape, codec.geometry)
    lengths = tuple(-(-layout.stored(level) // CODES_PER_BYTE) for level in range(2))
    forged = replace(header, size=size, lengths=lengths).pack() + bytes(sum(lengths))
    assert (layout.count, len(forged) < 50_000) == (2**21, True)
    for name in ("Reader", "code_level"):
        monkeypatch.setattr(codec_module, name, lambda *_: pytest.fail("something is allocated"))
    with pytest.raises(CodecError, match="need 2097152 tiles"):
        codec.decompress([forged])
    assert codec.layout((1, 10**6)).count == 62_500


def test_without_priors_codes_can_be_packed(half: Path, images: Tensor) -> None:
    loaded = load(half, "cpu")
    data = loaded.compress(images[0], mode="packed")
    assert torch.equal(loaded.decompress(data), loaded.reconstruct(images[:1])[0])
    with pytest.raises(CodecError, match="priors are not trained yet"):
        loaded.compress(images[0])
    with pytest.raises(CodecError, match="nothing can be drawn"):
        loaded.decompress(data[:-1], fill=True)


def test_the_verbs(loaded: Run, pictures: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    files, images = tmp_path / "files", tmp_path / "images"
    said = command("compress", loaded.folder, pictures / "disc", "--out", files, "--label", "disc")
    assert said.code == 0
    assert said.out.count(" bytes, ") == 8
    assert command("decompress", loaded.folder, files, "--out", images).code == 0
    shown = sorted(images.glob("*.png"))
    assert [file.name for file in shown] == [f"{number:02d}.png" for number in range(1, 24, 3)]
    assert _pixels(shown[0]).shape == (20, 24, 3)
    items = compress(loaded, [pictures / "disc"], files, Coding.packed, resize=True)
    assert [item["width"] for item in items] == [16] * 8
    back = decompress(loaded, [Path(item["file"]) for item in items], images)
    first = _pixels(Path(back[0]["file"]))
    expected = loaded.reconstruct(loaded.load_images([Path(items[0]["source"])]))
    assert np.abs(first - (expected[0].permute(1, 2, 0).numpy() + 1) * 127.5).max() <= 0.51
    broken = files / "broken.vq"
    broken.write_bytes(b"VQ")
    said = command("decompress", loaded.folder, broken, "--out", images)
    assert (said.code, said.err) == (2, f"vqvae2: {broken}: it is cut off within its header\n")
    said = command("decompress", loaded.folder, tmp_path / "none", "--out", images)
    assert (said.code, said.err) == (2, f"vqvae2: no such file: {tmp_path / 'none'}\n")


def test_a_folder_with_files_that_cannot_be_used(
    loaded: Run, pictures: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    """They are counted and named, and the others are done; if none can be used, that is an error."""
    photos, files, images = (tmp_path / name for name in ("photos", "files", "images"))
    shutil.copytree(pictures / "disc", photos)
    (photos / "torn.png").write_bytes((photos / "01.png").read_bytes()[:60])
    said = command("compress", loaded.folder, photos, "--out", files)
    assert said.code == 0
    assert "skipped 1 file that cannot be used:\n" in said.err
    assert f"  {photos / 'torn.png'}: " in said.err
    assert len(list(files.glob("*.vq"))) == said.out.count(" bytes, ") == 8
    said = command("compress", loaded.folder, photos / "torn.png", "--out", tmp_path / "none")
    assert said.code == 2
    assert said.err.startswith(f"vqvae2: {photos / 'torn.png'}: ")

    (files / "broken.vq").write_bytes(b"VQ")
    damaged = bytearray((files / "01.vq").read_bytes())
    damaged[-1] ^= 64
    (files / "damaged.vq").write_bytes(damaged)
    said = command("decompress", loaded.folder, files, "--out", images)
    assert said.code == 0
    assert "skipped 2 files that cannot be used:\n" in said.err
    assert f"  {files / 'broken.vq'}: it is cut off within its header\n" in said.err
    assert len(list(images.glob("*.png"))) == 8

    for folder, verb in ((photos, "compress"), (files, "decompress")):
        for file in folder.iterdir():
            if file.stem not in ("torn", "broken", "damaged"):
                file.unlink()
        said = command(verb, loaded.folder, folder, "--out", tmp_path / "none")
        assert said.code == 2
        assert "vqvae2: no usable " in said.err
    assert not (tmp_path / "none").exists()


def test_files_of_others_are_not_overwritten(
    loaded: Run, pictures: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    """In the folder of the originals, above all; what the verb has written itself may be replaced, after a kill too."""
    photos, files = tmp_path / "photos", tmp_path / "files"
    shutil.copytree(pictures / "disc", photos)
    compress(loaded, [photos], files, Coding.packed)
    before = {file.name: file.read_bytes() for file in photos.iterdir()}
    (photos / "01.png").unlink()
    said = command("decompress", loaded.folder, files, "--out", photos)
    assert (said.code, "04.png exists, and would be overwritten" in said.err) == (2, True)
    assert {file.name: file.read_bytes() for file in photos.iterdir()} == {
        name: data for name, data in before.items() if name != "01.png"
    }
    decompress(loaded, [files / "01.vq"], photos)
    decompress(loaded, [files / "01.vq"], photos)
    with pytest.raises(UserError, match=r"04\.png exists"):
        decompress(loaded, [files / "01.vq", files / "04.vq"], photos)
    assert (photos / "04.png").read_bytes() == before["04.png"]


def test_large_images_are_not_in_memory_together(
    loaded: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verbs take fewer of them at a time, and so does the autoencoder; the files and the images are the same."""
    assert [*batches_of([3, 3, 2**25, 2**26, *[1] * 65])] == [
        slice(begin, end) for begin, end in itertools.pairwise([0, 2, 3, 4, 68, 69])
    ]
    assert not [*batches_of([])]
    whole = compress(loaded, [pictures / "disc"], tmp_path / "whole")
    decompress(loaded, [tmp_path / "whole"], tmp_path / "images")
    seen: list[int] = []
    monkeypatch.setattr("vqvae2.commands.images.MAX_PIXELS", 3 * 20 * 24)
    monkeypatch.setattr(codec_module, "_PIXELS", 2 * 20 * 24)
    for name in ("encode_large", "decode_large"):
        own = getattr(codec_module, name)
        monkeypatch.setattr(
            codec_module, name, lambda *given, own=own: seen.append(len(given[1])) or own(*given)
        )
    parts = compress(loaded, [pictures / "disc"], tmp_path / "parts")
    decompress(loaded, [tmp_path / "parts"], tmp_path / "again")
    assert seen == 2 * [2, 1, 2, 1, 2]
    for one, other in zip(whole, parts, strict=True):
        assert Path(one["file"]).read_bytes() == Path(other["file"]).read_bytes()
    for file in (tmp_path / "images").glob("*.png"):
        assert np.abs(_pixels(file) - _pixels(tmp_path / "again" / file.name)).max() <= 1


def _pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image, np.int16)
