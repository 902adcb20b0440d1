"""The configuration: every setting described, every mistake named in one line, YAML in and out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from vqvae2.config.models import AutoencoderConfig, Config, ConfigError, DataConfig, parse
from vqvae2.config.overrides import differences, merge, override, read_yaml, settings
from vqvae2.config.presets import preset, presets
from vqvae2.errors import UserError

TREES = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3) | st.lists(inner, max_size=3),
    max_leaves=12,
)
BRANCHES = st.dictionaries(st.sampled_from("abcd"), TREES, max_size=4)


def plain(config: Config | None = None) -> dict[str, Any]:
    """A configuration as nested dictionaries."""
    return (config or Config()).model_dump(mode="json")


def models(kind: type[BaseModel] = Config) -> Iterator[type[BaseModel]]:
    """The model and those inside it."""
    yield kind
    for field in kind.model_fields.values():
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from models(inner)


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of all settings in nested dictionaries; lists of dictionaries by number."""
    result: dict[str, Any] = {}
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        nested = isinstance(item, dict) or (isinstance(item, list) and item and isinstance(item[0], dict))
        result |= leaves(item, f"{prefix}{key}.") if nested else {f"{prefix}{key}": item}
    return result


def refused(call: Any, *texts: str) -> None:
    """Check that `call` raises `ConfigError` with a message of one line that holds all of `texts`."""
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert [text for text in texts if text not in str(caught.value)] == [], str(caught.value)


# --- descriptions ---


def test_every_setting_says_what_it_is() -> None:
    kinds = set(models())
    assert len(kinds) == 9
    texts: dict[tuple[str, str], str] = {
        (kind.__name__, name): field.description or ""
        for kind in kinds
        for name, field in kind.model_fields.items()
    }
    assert [key for key, text in texts.items() if len(text) < 5 or "\n" in text] == []


def test_settings_lists_each_setting_once() -> None:
    """The keys are the leaves of a whole configuration, one entry for all levels; defaults are `Config()`'s."""
    rows = settings()
    keys = [key for key, _, _ in rows]
    assert len(keys) == len(set(keys))
    result = leaves(plain())
    assert set(keys) == {re.sub(r"\.\d+\.", ".*.", key) for key in result}
    for key, default, description in rows:
        assert result[key.replace("*", "1")] == json.loads(json.dumps(default)), key
        assert description


def test_every_listed_setting_can_be_set() -> None:
    """Each key that `--help-config` lists is one that `--set` takes, with its default as the value."""
    for key, default, _ in settings():
        assert parse(override(plain(), [f"{key}={json.dumps(default)}"])) == Config(), key


# --- checks ---


@pytest.mark.parametrize(("assignment", "texts"), [
    ("data.size=0", ("data.size", "found 0")),
    ("data.size=big", ("data.size", "integer", "'big'")),
    ("data.size=[3, 4]", ("3x4 px", "multiples of 8")),
    ("data.size=[3, 4, 5]", ("data.size", "[3, 4, 5]")),
    ("data.channels=2", ("channels: expected 1, 3 or 4", "found 2")),
    ("data.holdout=1", ("data.holdout", "less than 1")),
    ("data.crop=left", ("data.crop", "'center' or 'random'", "'left'")),
    ("seed=-1", ("seed", "found -1")),
    ("seed=9223372036854775808", ("seed",)),
    ("precision=fp8", ("precision", "'fp8'")),
    ("train_autoencoder.lr=0", ("train_autoencoder.lr", "greater than 0")),
    ("train_autoencoder.lr=fast", ("train_autoencoder.lr", "number", "'fast'")),
    ("train_autoencoder.perceptual=-1", ("train_autoencoder.perceptual", "found -1")),
    ("train_autoencoder.perceptual=0.1", ("train_autoencoder", "needs perceptual_weights")),
    ("autoencoder.entropy_penalty=-2", ("autoencoder.entropy_penalty", "found -2")),
    ("train_prior.1.steps=-1", ("train_prior.1.steps", "found -1")),
    ("prior.levels.0.kernel=4", ("prior.levels.0", "odd kernel", "found 4")),
    ("sharpen={steps: 3, depth: 6}", ("sharpen.depth 6", "at least 128 px", "found 64")),
    ("sampling.top_p=0", ("sampling", "0 < top_p <= 1", "found top_p 0")),
    ("sampling.temperature=-1", ("sampling", "temperature >= 0", "found temperature -1")),
    ("sampling.top_k=1,2,3", ("one top_k", "2 levels", "found 3")),
    ("data=3", ("data", "found 3")),
    ("prior=null", ("prior", "found None")),
    ("prior.levels=3", ("prior.levels", "found 3")),
    ("autoencoder.strides=4,2,2", ("autoencoder", "1 to 4 levels", "(4, 2, 2)", "(512, 512)")),
    ("autoencoder.strides=4,x", ("autoencoder.strides.1", "'x'")),
    ("autoencoder.strides=4,1", ("autoencoder", "2 to 64 between levels", "(4, 1)")),
    ("autoencoder.codes=1,512", ("autoencoder", "2 to 65536 codes", "(1, 512)")),
    ("autoencoder.channels=1", ("data.channels is 3", "autoencoder.channels is 1")),
    ("data.size=20", ("20x20", "[4, 2]", "multiples of 8")),
])  # fmt: skip
def test_a_bad_value_is_named(assignment: str, texts: tuple[str, ...]) -> None:
    refused(lambda: parse(override(plain(), [assignment])), *texts)


@pytest.mark.parametrize("channels", [2, 5])
def test_channels_that_no_perceptual_distance_compares(channels: int) -> None:
    """Found out when settings are read, not in the first step; without a distance they are fine."""
    other = (f"data.channels={channels}", f"autoencoder.channels={channels}", "data.range=[0, 1]")
    unused = override(plain(), [*other, "sharpen.perceptual_weights=vgg"])
    assert parse(unused).data.channels == channels
    for used in (["train_autoencoder.perceptual_weights=vgg"], ["sharpen.steps=1"]):
        refused(lambda used=used: parse(override(unused, used)), f"1, 3 or 4 channels, found {channels}")


def test_levels_must_agree() -> None:
    for key, counts in (("prior", "1 priors and 2"), ("train_prior", "2 priors and 1")):
        value = plain()
        if key == "prior":
            value["prior"]["levels"] = value["prior"]["levels"][:1]
        else:
            value["train_prior"] = value["train_prior"][:1]
        refused(lambda value=value: parse(value), "2 levels", counts)


def test_heads_must_divide_the_hidden_units_where_there_is_attention() -> None:
    level = "prior.levels.0"
    assert parse(override(plain(), [f"{level}.heads=3"])).prior.levels[0].heads == 3
    for attention in ("attention_every=1", "kind=transformer"):
        refused(
            lambda attention=attention: parse(
                override(plain(), [f"{level}.heads=3", f"{level}.{attention}"])
            ),
            level,
            "3 heads",
        )


def test_unknown_keys_are_named() -> None:
    refused(lambda: parse({"colour": 3}), "colour")
    refused(lambda: parse({"data": {"sice": 3}}), "data.sice")
    refused(lambda: parse({"train_prior": [{}, {"rate": 3}]}), "train_prior.1.rate")


def test_all_mistakes_are_named_at_once() -> None:
    refused(lambda: parse({"seed": -1, "data": {"size": "x", "shade": 1}}), "seed", "data.size", "data.shade")


def test_a_mistake_is_the_users() -> None:
    assert issubclass(ConfigError, UserError)
    assert issubclass(UserError, ValueError)


def test_a_configuration_cannot_be_altered() -> None:
    config = Config()
    for model, name in ((config, "seed"), (config.data, "size"), (config.prior.levels[0], "hidden")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(model, name, 8)


# --- strides and geometry ---


@pytest.mark.parametrize("strides", ["4,2", "4, 2", [4, 2], (4, 2), ["4", "2"]])
def test_strides_may_be_written_in_one_word(strides: Any) -> None:
    assert AutoencoderConfig(strides=strides) == AutoencoderConfig(strides=(4, 2))


def test_one_level_may_be_written_as_a_number() -> None:
    config = AutoencoderConfig(strides=4, codes=512)
    assert (config.strides, config.codes, config.levels) == ((4,), (512,), 1)


def test_strides_by_assignment() -> None:
    value = override(plain(), ["autoencoder.strides=8,2", "autoencoder.codes=16,32", "data.size=32"])
    assert parse(value).geometry.grids == ((2, 2), (4, 4))
    assert parse(value).geometry.vocabulary == (16, 32)


@given(strides=st.lists(st.integers(2, 6), min_size=1, max_size=4), times=st.integers(1, 3))
def test_grids_are_the_image_divided_by_the_strides(strides: list[int], times: int) -> None:
    total = 1
    for stride in strides:
        total *= stride
    config = AutoencoderConfig(strides=tuple(strides), codes=(8,) * len(strides))
    geometry = config.geometry(total * times, 2 * total * times)
    assert geometry.grids[0] == (times, 2 * times)
    side = total * times
    for stride, grid in zip(strides, reversed(geometry.grids), strict=True):
        side //= stride
        assert grid == (side, 2 * side)
    refused(lambda: config.geometry(total * times + 1, total), f"multiples of {total}")


# --- assignments ---


@pytest.mark.parametrize("name", presets())
def test_a_star_is_every_level(name: str) -> None:
    value = plain(preset(name))
    result = override(value, ["train_prior.*.steps=7", "prior.levels.*.hidden=64"])
    assert {item["steps"] for item in result["train_prior"]} == {7}
    assert {item["hidden"] for item in result["prior"]["levels"]} == {64}
    assert {key for key, item in leaves(result).items() if leaves(value)[key] != item} <= {
        f"{levels}.{level}.{leaf}"
        for levels, leaf in (("train_prior", "steps"), ("prior.levels", "hidden"))
        for level in range(4)
    }


def test_a_number_is_one_level_and_the_last_assignment_counts() -> None:
    result = override(plain(), ["train_prior.*.steps=7", "train_prior.1.steps=8", " seed =3", "seed=4"])
    assert [item["steps"] for item in result["train_prior"]] == [7, 8]
    assert result["seed"] == 4


def test_values_are_yaml_and_may_hold_an_equals_sign() -> None:
    result = override(plain(), ["data.split=a=b", "data.limit=null", "data.flip=no", "train_prior.0.lr=1e-4"])
    config = parse(result)
    assert (config.data.split, config.data.limit, config.data.flip) == ("a=b", None, False)
    assert config.train_prior[0].lr == pytest.approx(1e-4)


def test_the_original_is_left_alone() -> None:
    value = plain()
    override(value, ["data.size=32", "prior.levels.0.hidden=64"])
    merge(value, {"data": {"size": 32}, "prior": {"levels": []}})
    assert value == plain()


@pytest.mark.parametrize(("assignment", "texts"), [
    ("data.size", ("KEY=VALUE", "'data.size'")),
    ("data.sice=3", ("'data.sice'", "at 'sice'", "shuffle_buffer, size, split")),
    ("=3", ("no such setting ''", "seed")),
    ("data.size.big=3", ("'data.size.big'", "at 'big'", "nothing below it")),
    ("prior.levels.2.hidden=3", ("'prior.levels.2.hidden'", "0..1", "'2'")),
    ("prior.levels.-1.hidden=3", ("0..1", "'-1'")),
    ("prior.levels.first.hidden=3", ("0..1 or *", "'first'")),
    ("prior.levels.*.hiden=3", ("'prior.levels.*.hiden'", "at 'hiden'")),
    ("data.*.size=3", ("at '*'",)),
    ("seed=[1", ("seed", "'[1'", "YAML")),
])  # fmt: skip
def test_a_bad_assignment_is_named(assignment: str, texts: tuple[str, ...]) -> None:
    refused(lambda: override(plain(), [assignment]), *texts)


# --- merge and differences ---


@given(base=BRANCHES, patch=BRANCHES)
def test_merging_puts_the_patch_on_top_and_keeps_the_rest(
    base: dict[str, Any], patch: dict[str, Any]
) -> None:
    result = merge(base, patch)
    assert list(result)[: len(base)] == list(base)
    assert merge(result, patch) == result
    assert merge(base, {}) == base
    assert merge({}, patch) == patch
    for key in {*base, *patch}:
        if key not in patch:
            assert result[key] == base[key]
        elif not (isinstance(base.get(key), dict) and isinstance(patch[key], dict)):
            assert result[key] == patch[key]
        else:
            assert result[key] == merge(base[key], patch[key])


@given(old=BRANCHES, new=BRANCHES)
def test_there_are_differences_exactly_between_different_ones(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    assert differences(old, old) == []
    assert (differences(old, new) == []) == (old == new)


def test_differences_name_the_setting_and_both_values() -> None:
    new = override(plain(), ["data.size=32", "prior.levels.1.hidden=64", "autoencoder.codes=[16, 32]"])
    assert differences(plain(), new) == [
        "data.size: 64 -> 32",
        "autoencoder.codes: [512, 512] -> [16, 32]",
        "prior.levels.1.hidden: 128 -> 64",
    ]


def test_lists_of_another_length_differ_whole() -> None:
    lines = differences({"a": [{"b": 1}], "c": 3}, {"a": [{"b": 1}, {"b": 2}]})
    assert lines == ["a: [{'b': 1}] -> [{'b': 1}, {'b': 2}]", "c: 3 -> None"]


# --- YAML ---


@pytest.mark.parametrize("name", presets())
def test_yaml_gives_the_same_configuration_back(name: str, tmp_path: Path) -> None:
    config = preset(name)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(plain(config)), encoding="utf-8")
    assert parse(read_yaml(path)) == config
    assert parse(plain(config)) == config


def test_a_name_with_any_letters_survives_yaml(tmp_path: Path) -> None:
    config = Config(data=DataConfig(split="Größe: \n#'\"☃", label_column="no"))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(plain(config)), encoding="utf-8")
    assert parse(read_yaml(path)) == config


@pytest.mark.parametrize("written", ["no", "No", "off", "false", "'no'"])
def test_a_precision_of_no_that_yaml_reads_as_false(written: str, tmp_path: Path) -> None:
    """In a file and in an assignment; True is still refused."""
    (tmp_path / "config.yaml").write_text(f"precision: {written}\n")
    assert parse(read_yaml(tmp_path / "config.yaml")).precision == "no"
    assert parse(override(plain(Config()), [f"precision={written}"])).precision == "no"
    refused(lambda: parse({"precision": True}), "precision", "found True")


def test_files_that_hold_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    refused(lambda: read_yaml(path), str(path), "No such file")
    refused(lambda: read_yaml(tmp_path), str(tmp_path))
    for data, text in (
        (b"a: [", "cannot read"),
        (b"\xff\xfe\x00", "cannot read"),
        (b"- 1", "list"),
        (b"", "None"),
        (b"hello", "str"),
        (b"!!python/object/apply:os.getcwd []", "cannot read"),
    ):
        path.write_bytes(data)
        refused(lambda: read_yaml(path), str(path), text)


def test_a_price_on_bits_needs_moving_averages() -> None:
    value = override(
        preset("tiny").model_dump(mode="json"), ["autoencoder.entropy_penalty=0.1", "autoencoder.ema=false"]
    )
    with pytest.raises(ConfigError, match="expected entropy_penalty 0 without codebooks of moving averages"):
        parse(value)


def test_settings_that_cannot_work_are_one_line_that_names_them() -> None:
    """Made by hand or in a nested dictionary; the path is whole in both."""
    for call, named in (
        (lambda: AutoencoderConfig(strides=(4,)), "expected 1 to 4 levels"),
        (lambda: AutoencoderConfig(hidden=-1), "hidden: "),
        (lambda: AutoencoderConfig(colour=1), "colour: "),
        (lambda: parse({"autoencoder": {"hidden": -1}}), "autoencoder.hidden: "),
        (lambda: Config(autoencoder={"hidden": -1}), "autoencoder.hidden: "),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value).startswith(named)
        assert "\n" not in str(caught.value)
