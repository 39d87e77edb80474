"""How fast is the backbone beside the peers, eager and compiled, and where does it win?"""

from dataclasses import asdict, replace
from typing import Dict, Iterator, List, Sequence

import torch

from ..contenders import OURS, Step, as_input, build, make_image, random_weights
from ..memory import rise
from ..settings import Row, Setting
from ..timing import measure
from .plan import Plan


def speed(plan: Plan, name: str, setting: Setting, modes: Sequence[str]) -> Iterator[dict]:
    """Rows of one piece of work in each mode, with the peak memory of eager training steps."""
    for mode in modes:
        if mode != 'eager':
            setting = replace(setting, compiled=True, compile_mode=mode)
        # Compilation takes most of the time; the best mode of timm is what a user would run instead.
        names = [OURS, *plan.peers] if mode == 'eager' else [OURS, *plan.peers[:1]]
        for row in measure(setting, names, plan.rounds):
            if plan.device == 'cuda' and row.seconds and not setting.compiled:
                row.peak_memory = peak_memory(row.name, setting)
            yield speed_record(name, row)
        torch._dynamo.reset()


def speed_record(name: str, row: Row) -> dict:
    record = asdict(row)
    setting = record.pop('setting')
    return dict(record, work=name, contender=record.pop('name'), setting=setting, mode=row.setting.execution)


def peak_memory(name: str, setting: Setting) -> int:
    """Peak memory in bytes of the second of two runs, above the weights and what the first one left."""
    step = Step(build(name, setting, random_weights(setting.arch, setting.patch_size)), setting)
    image = as_input(make_image(setting), setting)
    step(image)
    step.forget()
    return rise(lambda: step(image), setting.device)


def ratios(records: Sequence[dict]) -> List[dict]:
    """For each piece of work the best mode of ours beside the best mode of a peer.

    Args:
        records (Sequence[dict]): Those of the checks in the section 'Speed'.

    Returns:
        list[dict]: ``work``, ``setting``, ``seconds``, ``mode`` and ``peak_memory`` of ours; ``peer``,
        ``peer_seconds`` and ``peer_mode``; and how many times as fast ours is.
    """
    found = []
    key = ('arch', 'patch_size', 'height', 'width', 'batch', 'dtype', 'mode', 'features')
    groups: Dict[tuple, List[dict]] = {}
    for record in records:
        if record.get('seconds'):
            groups.setdefault(tuple(record['setting'][k] for k in key), []).append(record)
    for group in groups.values():
        ours = [record for record in group if record['contender'] == OURS]
        peers = [record for record in group if record['contender'] != OURS]
        if not ours or not peers:
            continue
        best, peer = (min(side, key=lambda record: record['seconds']) for side in (ours, peers))
        memory = [[r['peak_memory'] for r in side if r['peak_memory']] for side in (ours, peers)]
        found.append(
            dict(
                work=best['work'],
                setting=str(Setting(**dict(best['setting'], compiled=False))),
                seconds=best['seconds'],
                mode=best['mode'],
                peer=peer['contender'],
                peer_seconds=peer['seconds'],
                peer_mode=peer['mode'],
                times_as_fast=peer['seconds'] / best['seconds'],
                memory_of_peer=min(memory[0]) / min(memory[1]) if all(memory) else None,
            )
        )
    return found


def curve(plan: Plan) -> Iterator[dict]:
    """Time and memory of one image from 224 to 4096 pixels, beside a ViT with flash attention."""
    for side in (224, 512, 1024, 2048, 4096):
        setting = Setting(plan.arch, 8, side, side, 1, plan.dtypes[0], device=plan.device)
        for row in measure(setting, [OURS, *plan.peers[:1], 'ViT-S/8'], 3):
            if row.seconds:
                row.peak_memory = peak_memory(row.name, setting)
            yield speed_record('growing images', row)
