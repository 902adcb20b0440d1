"""A prior whose weights, gradients and optimiser state are cut up among the processes (torch's FSDP2, `fully_shard`).

    each process   rows of every weight, gradient, moment and averaged weight; a layer is put together while it computes
    the state      checkpoints/STEP/shard-RANK-of-WORLD.safetensors, named by checkpoints/last.safetensors

This is torch's own function and not accelerate's plugin for it, because the loop makes its optimiser and its state itself.
Nothing is pickled, unlike in torch's distributed checkpoints. A weight [n, ...] is cut along its first axis into pieces of
ceil(n / world) rows, so any number of processes finds the rows that it needs in the files of any other number.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, cast

import safetensors
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vqvae2.files import tensor_file
from vqvae2.files.atomic import FileError, reason
from vqvae2.files.seen import await_seen
from vqvae2.files.tensor_file import below
from vqvae2.processes import Group, joined

if TYPE_CHECKING:  # importing it takes seconds, which every command would pay
    from torch.distributed.tensor import DTensor

_MOMENTS = ("exp_avg", "exp_avg_sq")


def shard(network: nn.Module, accelerator: Accelerator) -> None:
    """Cut up the weights of a prior, in place: each layer for itself, and what is outside of the layers."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # torch warns of logits that are a view, for callers that change them in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in _layers(network):
        fully_shard(layer, mesh=mesh)
    fully_shard(
        network, mesh=mesh, reshard_after_forward=True
    )  # so that its rows can be read after an evaluation


def _layers(network: nn.Module) -> list[nn.Module]:
    """What is cut up, and put together, one after the other."""
    lists = (child for name, child in network.named_children() if name in ("layers", "attentions"))
    return [layer for several in lists for layer in several.children()]


def bytes_per_process(network: nn.Module, processes: int, average: bool) -> tuple[int, int]:
    """What one of several processes holds of a sharded network in float32.

    Args:
        network: not sharded; it may be on the meta device.
        average: whether there are averaged weights.

    Returns:
        The bytes of its rows of weights, gradients, AdamW's moments and averaged weights, of the process with the most; and
        the bytes that are put together at a time: weights and gradients of the largest layer and of what is outside of
        the layers.
    """

    def rows(weight: Tensor) -> int:
        return len(pieces(weight.shape[0], processes)[0]) * weight[0].numel()

    sizes = [sum(weight.numel() for weight in layer.parameters()) for layer in _layers(network)]
    outside = sum(weight.numel() for weight in network.parameters()) - sum(sizes)
    own_rows = sum(rows(weight) for weight in network.parameters())
    return 4 * own_rows * (5 if average else 4), 2 * 4 * (outside + max(sizes, default=0))


def own(weight: Tensor) -> Tensor:
    """This process's rows of a weight, or the weight itself where it is whole; shares its memory."""
    local: Tensor = weight.to_local() if _cut_up(weight) else weight
    return local.detach()


def _cut_up(tensor: object) -> TypeGuard[DTensor]:
    return hasattr(tensor, "full_tensor")


def put_together(tensor: Tensor) -> Tensor:
    """The tensor, of which each process may hold a part; then this is a collective call."""
    together: Tensor = tensor.full_tensor() if _cut_up(tensor) else tensor
    return together


def whole(network: nn.Module) -> dict[str, Tensor]:
    """The state dict with whole weights, on the CPU where they were cut up; a collective."""
    return {
        name: value.full_tensor().cpu() if _cut_up(value) else value
        for name, value in network.state_dict().items()
    }


class ShardedAverage:
    """As `train.step.WeightAverage`, of this process's rows.

    Args:
        model: a sharded network.
        decay: share of the old average that is kept in a step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.count = model, decay, 0
        self.module = model  # between `applied` and its end it has the averaged weights
        self.rows = {name: own(weight).clone() for name, weight in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present weights."""
        ours = list(self.rows.values())
        theirs = [own(weight) for weight in self.model.parameters()]
        if self.count == 0:
            torch._foreach_copy_(ours, theirs)
        else:
            torch._foreach_lerp_(ours, theirs, 1 - self.decay)
        self.count += 1

    def weights(self) -> dict[str, Tensor]:
        """This process's rows of the averaged weights; shares their memory."""
        return self.rows

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The model with the averaged weights; afterwards it has its own again."""
        kept = {name: own(weight).clone() for name, weight in self.model.named_parameters()}
        put(self.model, self.rows)
        try:
            yield self.model
        finally:
            put(self.model, kept)


@torch.no_grad()
def put(network: nn.Module, rows: Mapping[str, Tensor]) -> None:
    """Write this process's rows into the weights of a network."""
    for name, weight in network.named_parameters():
        own(weight).copy_(rows[name])


def pieces(rows: int, count: int) -> list[range]:
    """The rows that each of `count` processes has of a weight of so many rows, as `fully_shard` cuts; some may have none."""
    size = -(-rows // count)
    return [range(min(at * size, rows), min((at + 1) * size, rows)) for at in range(count)]


def rows_of_state(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Any,
    best: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """This process's rows of everything that is saved, by "model.NAME", "exp_avg.NAME", "average.NAME", "best.NAME"."""
    tensors = {f"model.{name}": own(weight) for name, weight in network.named_parameters()}
    for name, weight in network.named_parameters():
        state = optimizer.state.get(weight, {})
        tensors |= {f"{moment}.{name}": own(state[moment]) for moment in _MOMENTS if moment in state}
    if average is not None:
        tensors |= {f"average.{name}": rows for name, rows in average.rows.items()}
    return tensors | {f"best.{name}": rows for name, rows in best.items()}


def save_shards(folder: Path, tensors: Mapping[str, Tensor], accelerator: Accelerator) -> None:
    """Write this process's rows.

    Raises:
        FileError: they cannot be written.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    tensor_file.save_tensors(folder / f"shard-{rank:04d}-of-{world:04d}.safetensors", tensors)


def load_shards(folder: Path, shapes: Mapping[str, torch.Size], group: Group) -> dict[str, Tensor]:
    """One process's rows of a state that any number of processes saved; a collective.

    Args:
        folder: where `save_shards` wrote.
        shapes: of the whole weights, by name.
        group: whose processes share the rows; that of one process has them all.

    Returns:
        The rows, on the CPU, by the names of `rows_of_state`.

    Raises:
        FileError: a file is missing or damaged.
        NotSeen: this process does not see a file that the main process sees.
    """
    names = sorted(file.name for file in folder.glob("shard-*-of-*.safetensors"))
    files = [folder / name for name in joined().agreed(names)]
    world = len(files)
    if not files or any(not file.stem.endswith(f"-of-{world:04d}") for file in files):
        raise FileError(f"the state in {folder} is incomplete: found {world} of its files")
    await_seen(files)
    found: dict[str, list[Tensor]] = {}
    for number, file in enumerate(files):
        tensor_file.load_tensors(file)  # raises if it is damaged
        try:
            with safetensors.safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - not a dict
                    shape = shapes[key.partition(".")[2]]
                    there = pieces(shape[0], world)[number]
                    here = pieces(shape[0], group.count)[group.rank]
                    first, last = max(there.start, here.start), min(there.stop, here.stop)
                    begin = first - there.start
                    stored = opened.get_slice(key)
                    if stored.get_shape() != [len(there), *shape[1:]]:
                        raise FileError(f"{file} does not fit the configuration: at {key}")
                    rows = stored[begin : begin + max(0, last - first)]
                    found.setdefault(key, []).append(cast(Tensor, rows))
        except (OSError, KeyError, safetensors.SafetensorError) as error:
            raise FileError(f"{file} is damaged: {reason(error)}") from error
    return {key: torch.cat(parts) for key, parts in found.items()}


class Restorable(Protocol):
    """What `restore` needs of a training step: `train.step.TrainingStep`, sharded or not."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: Any


@torch.no_grad()
def restore(step: Restorable, tensors: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
    """Put a loaded state into place.

    Args:
        step: whose weights are cut up as the tensors are, or whole as they are.
        tensors: of `load_shards`.
        steps: that AdamW has done.

    Returns:
        The rows of the best weights; {} if there are none yet.
    """
    put(step.network, below(tensors, "model."))
    moments = {moment: below(tensors, f"{moment}.") for moment in _MOMENTS}
    for name, weight in step.network.named_parameters():
        if name not in moments["exp_avg"]:
            continue
        there = own(weight).device if step.optimizer.defaults.get("fused") else None
        state: dict[str, Any] = {"step": torch.tensor(float(steps), device=there)}
        for moment, rows in moments.items():
            state[moment] = torch.zeros_like(weight, requires_grad=False)
            own(state[moment]).copy_(rows[name])
        step.optimizer.state[weight] = state
    averaged = below(tensors, "average.")
    if step.average is not None and averaged:
        for name, rows in step.average.weights().items():
            rows.copy_(averaged[name])
    return below(tensors, "best.")
