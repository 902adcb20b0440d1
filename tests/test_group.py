"""What the processes of one command do together; several real ones are in tests/commands/test_together.py."""

from __future__ import annotations

import pytest

from vqvae2.processes import Group


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_of_the_main_process_lets_the_others_go_on(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for it once, and it waits for them once, whether or not the block fails."""
    waited: list[int] = []
    monkeypatch.setattr(Group, "wait", lambda group: waited.append(group.rank))
    group = Group(rank, 2)
    with group.main_first():
        assert waited == [1] * rank
    with pytest.raises(OSError, match="gone"), group.main_first():
        raise OSError("gone")
    assert waited == [rank, rank]
