"""Time and memory from small to very large images, without the contenders that exceed a limit."""

from dataclasses import replace
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from .memory import peak_memory
from .settings import Row, Setting
from .timing import measure

# 1024 to 375,000 tokens with patches of 8.
SIZES = (
    *((256, 256), (384, 384), (512, 512), (768, 768), (1024, 1024), (1536, 1536), (2048, 2048)),
    *((2048, 3072), (3072, 4096), (4000, 6000)),
)


def scaling(
    setting: Setting,
    sizes: Sequence[Tuple[int, int]],
    names: Sequence[str],
    rounds: int,
    memory_limit: int,
    time_limit: float,
    tell: Callable[[str], None] = lambda text: None,
) -> Iterator[List[Row]]:
    """Measure growing images.

    Memory comes first, in a process that is stopped at the limit, so that no contender exhausts the machine. Only
    those within the limit are timed.

    Args:
        setting (Setting): The work; its size is replaced.
        sizes (Sequence[tuple[int, int]]): Heights and widths.
        names, rounds, tell: See :func:`~xcit_mm.benchmark.timing.measure`.
        memory_limit (int): Bytes above the weights.
        time_limit (float): Seconds for one pass. A contender is left out if it is expected to take longer, by its
            time at the last size in proportion to the tokens.

    Yields:
        list[Row]: One size after the other.
    """
    last: Dict[str, Row] = {}
    gone: Dict[str, str] = {}
    for height, width in sorted(sizes, key=lambda size: size[0] * size[1]):
        here = replace(setting, height=height, width=width)
        memory: Dict[str, Tuple[Optional[int], str]] = {}
        for name in names:
            expected = _expected(last[name], here) if name in last else 0.0
            if name not in gone and expected > time_limit:
                gone[name] = f'left out: about {expected:.0f} s expected, more than {time_limit:g} s'
            if name not in gone:
                tell(f'memory of {name}')
                memory[name] = peak_memory(name, here, memory_limit, timeout=10 * time_limit + 300)
                if memory[name][1].startswith('out of memory'):
                    gone[name] = f'left out: {memory[name][1]}'
        present = [name for name in names if name not in gone]
        measured = {row.name: row for row in measure(here, present, rounds, tell)} if present else {}
        for name, row in measured.items():
            row.peak_memory, why = memory[name]
            row.note = row.note or why
            if row.seconds:
                last[name] = row
        yield [measured.get(name) or Row(name, here, note=gone[name]) for name in names]


def _expected(row: Row, setting: Setting) -> float:
    return row.seconds * setting.tokens / row.setting.tokens
