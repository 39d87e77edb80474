"""The plan of a check: the sizes of the work, and its parts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterator, List

from ..contenders import installed

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Plan:
    """The sizes and the amount of work on a device.

    Attributes:
        device (str): 'cuda', or 'cpu' to try the check itself, at sizes without meaning.
        arch (str): Arch of the XCiT that is compared and profiled.
        small, large (tuple[int, int]): Height and width of a classifier's and of a detector's image.
        batch (int): Batch size of a classifier.
        dtypes (tuple[str, ...]): Half-precision types that are timed.
        modes (tuple[str, ...]): Modes of torch.compile.
        rounds (int): How often each contender is timed.
        peers (list[str]): Contenders that are installed.
    """

    device: str
    arch: str = 's12'
    small: tuple = (224, 224)
    large: tuple = (800, 1216)
    batch: int = 256
    dtypes: tuple = ('bf16', 'fp16')
    modes: tuple = ('default', 'reduce-overhead', 'max-autotune')
    rounds: int = 5
    peers: List[str] = field(default_factory=list)

    @classmethod
    def of(cls, device: str) -> 'Plan':
        """The plan for a device; on a CPU the smallest sizes."""
        peers, _ = installed(['timm', 'mmpretrain'])
        if device == 'cuda':
            return cls(device, peers=peers)
        return cls('cpu', 'n12', (64, 64), (96, 128), 2, ('bf16',), (), 2, peers)


@dataclass
class Check:
    """One check.

    Attributes:
        section (str): Heading that its records belong under.
        name (str): What it is about.
        seconds (float): Estimate for an H100; the check is skipped if less than that is left of the budget.
        run (Callable): Gives records, dicts of plain values.
    """

    section: str
    name: str
    seconds: float
    run: Callable[[], Iterator[dict]]


def record(name: str, value: float, limit: float) -> dict:
    return dict(name=name, value=value, limit=limit, passed=bool(value <= limit))  # a NaN does not pass
