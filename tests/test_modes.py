"""What a computation sets for itself is put back afterwards, also after an error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vqvae2.modes import eval_mode, loading, seeded, without_autocast

CPU = torch.device("cpu")


def test_every_module_gets_its_own_mode_back() -> None:
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout().eval(), nn.Dropout())).train()
    modes = [module.training for module in net.modules()]
    with eval_mode(net):
        assert not any(module.training for module in net.modules())
    assert [module.training for module in net.modules()] == modes
    with pytest.raises(ZeroDivisionError), eval_mode(net):
        raise ZeroDivisionError
    assert [module.training for module in net.modules()] == modes


def test_autocast_is_off_where_it_is_said() -> None:
    x = torch.ones(2, 2)

    def product(always: bool = True) -> torch.dtype:
        with without_autocast(CPU, always):
            return (x @ x).dtype

    with torch.autocast("cpu", torch.bfloat16):
        assert product() == torch.float32
        assert product(always=False) == torch.bfloat16
        with torch.no_grad():
            assert product(always=False) == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def test_what_is_built_while_loading_can_be_trained_and_draws_no_number() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with torch.inference_mode():
        made = loading()(nn.Linear)(2, 2)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(torch.rand(3), expected)
    made(torch.ones(1, 2)).sum().backward()
    assert made.weight.grad is not None


def test_a_seed_is_for_the_block_and_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generators of cards, which nobody would put back, are left alone."""
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(5)
    expected = torch.rand(3)

    def numbers() -> Tensor:
        with seeded(5):
            return torch.rand(3)

    torch.manual_seed(7)
    after = torch.rand(3)
    torch.manual_seed(7)
    seeds.clear()
    assert torch.equal(numbers(), expected)
    assert torch.equal(torch.rand(3), after)
    assert seeds == []
