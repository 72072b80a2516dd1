"""Several processes that train one network together: which rows each takes, and what they must agree on.

Every process (rank) makes the same random draws and takes its equal share of every batch, so that the mean of their gradients is the gradient of the
whole batch. The process group is set up by whoever starts the processes; nothing here is done for a single one.

Legend: N rows of a batch, B pairs (a row of each of two streams, N = 2B).
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ray_ltdd.errors import InputError
from ray_ltdd.seeding import derive_seed


@dataclass(frozen=True)
class Ranks:
    """One of the processes that train together.

    Attributes:
        rank: this process's number, from 0.
        count: how many there are.
    """

    rank: int
    count: int

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reports progress and writes checkpoints."""
        return self.rank == 0

    def require_equal_shares(self, n_rows: int) -> None:
        """Refuse a batch that the processes cannot share equally.

        Raises:
            InputError: `n_rows` is no multiple of `count`.
        """
        if n_rows % self.count:
            fitting = max(n_rows - n_rows % self.count, self.count)
            raise InputError(
                f"a batch of {n_rows} images (experts.batch_size) cannot be shared equally by cluster.expert_workers={self.count} processes: "
                f"set experts.batch_size to {fitting} or another multiple of {self.count}."
            )

    def rows(self, n_rows: int) -> slice:
        """The rows of a batch of `n_rows` that this process takes: neighbours, so that taking them copies nothing."""
        share = n_rows // self.count
        return slice(self.rank * share, (self.rank + 1) * share)

    def pairs(self, tensor_N: torch.Tensor) -> torch.Tensor:
        """Take this process's share of both halves of a batch, so that row i of the first and row i of the second half stay together.

        Args:
            tensor_N: [2B, ...], any type.

        Returns:
            [2B / count, ...], the first half's rows before the second's.
        """
        if self.count == 1:
            return tensor_N
        halves = tensor_N.unflatten(0, (2, -1))
        return halves[:, self.rows(halves.shape[1])].flatten(0, 1)

    def seed(self, seed: int) -> int:
        """A seed for draws that shall differ between processes, such as dropout's; the first process's is `seed` itself."""
        return seed if self.is_first else derive_seed(seed, "rank", self.rank)

    def wrap(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return `module` so that its backward pass averages gradients over the processes, and the first one's buffers count.

        Parameters that a forward pass leaves out keep having no gradient.
        """
        if self.count == 1:
            return module
        # Looking for unused parameters keeps the gradients' buckets as they are from the first step to the last. Otherwise they are rearranged after
        # the first step of a process, and with them the order of a sum over three or more processes: a continued training would round differently.
        return DistributedDataParallel(module, find_unused_parameters=True)

    def barrier(self, device: torch.device, n_done: int = 0) -> None:
        """Wait until all processes are here, and have done equally much.

        Args:
            device: where the training computes.
            n_done: what this process has done, such as epochs.

        Raises:
            RuntimeError: another process has done more or less; on all of them.
        """
        if self.count == 1:
            return
        extremes = torch.tensor([n_done, -n_done], device=device)
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        most, least = int(extremes[0]), -int(extremes[1])
        if most != least:
            raise RuntimeError(f"the processes that train together read different checkpoints: {least} and {most} epochs done")

    def all_true(self, flag: torch.Tensor) -> bool:
        """Whether `flag` (bool, one value, on the training's device) is true in every process; the answer is the same in all of them."""
        if self.count > 1:
            votes = flag.to(torch.int32)
            dist.all_reduce(votes, dist.ReduceOp.MIN)
            flag = votes
        return bool(flag)

    @torch.no_grad()
    def copy_buffers(self, module: torch.nn.Module) -> None:
        """Overwrite the module's buffers with the first process's; parameters are equal in all of them at any time."""
        if self.count > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


SOLO = Ranks(0, 1)
"""A single process, which needs no process group."""
