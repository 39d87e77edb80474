"""Match a file's tensors with a backbone: all or nothing."""

from typing import Dict

from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import CheckpointError, printable
from .layouts import describe, locate

# Parts that a backbone lacks for some out_types, while the file may have them.
_OPTIONAL = ('cls_token', 'cls_attn_blocks.', 'norm.', 'pyramid.')


def match_state_dict(module: nn.Module, state_dict: Dict[str, Tensor], prefix: str, metadata: dict) -> None:
    """Rename ``state_dict`` to the names of an XCiT backbone, in place, and check that it is complete.

    Called by the backbone before its tensors are copied, so nothing is half-loaded if this raises.

    Args:
        module (nn.Module): The backbone.
        state_dict (dict): Tensors by name; those that begin with ``prefix`` are meant for the backbone.
        prefix (str): The backbone's place in the model that is being loaded, such as 'backbone.'; '' for itself.
        metadata (dict): The entry of :class:`~xcit_mm.checkpoint.loading.SourceMetadata` if there is one.

    Raises:
        CheckpointError: If the tensors fit no layout, or fit one with missing, additional or misshapen tensors.
    """
    source = metadata.get('source', {})
    given = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    if not given and not source:
        return  # an empty or unrelated dict: PyTorch reports missing names itself
    own = _own_tensors(module)
    found = locate({'state_dict': given})
    layout, tensors = found.layout, found.tensors
    who = f'{source["path"]}: ' if source.get('path') else ''
    if _is_a_part(given, own) and (layout is None or not source):
        # Such as LoRA's adapters alone, under the model's own names.
        if source:
            print_log(f'{who}holds {len(given)} of the {len(own)} tensors of the backbone; the others stay', 'current')
        return
    several = (found.elsewhere or locate(given).elsewhere) if layout is None else []
    if several:
        names = ', '.join(title.replace("'state_dict.", "'").replace("'state_dict' ", '') for title in several)
        raise CheckpointError(
            f'{who}it holds several models ({names}), and which of them is meant cannot be told. Save the one '
            f"you mean alone: torch.save({{'state_dict': ...}}, path)"
        )
    if found.beside:
        print_log(f'{who}it holds several models; {", ".join(found.beside)} not taken', 'current')
    if layout is None:
        names = ', '.join(map(printable, list(given)[:3])) or 'none'
        raise CheckpointError(
            f'{who}no XCiT weights were found for {prefix or "the backbone"!r}; the file fits none of the known '
            f'layouts. Its first tensors there: {names}. Expected: a checkpoint of XCiT, by any of its implementations'
        )
    native = {key[len('backbone.') :]: v for key, v in layout.to_native(tensors).items() if key.startswith('backbone.')}
    wanted: Dict[str, tuple] = {key: value.shape for key, value in own.items()}
    ignored = sorted({_optional_part(key) for key in native if key not in wanted and key.startswith(_OPTIONAL)})
    # A partial state dict from user code is intended, and PyTorch reports the rest.
    problems = _problems(native, wanted, whole=bool(source)) + _wrong_types(native, own)
    if problems:
        raise CheckpointError(
            f'{who}the checkpoint (layout: {source.get("layout") or layout.name}) does not fit the model, and '
            f'nothing was loaded. It holds {describe(native)}; the model has {describe(own)}. ' + '; '.join(problems)
        )
    if ignored:
        print_log(f'{who}not used by this model: {", ".join(ignored)}', 'current')
    if any(key.startswith('pyramid.') for key in wanted.keys() - native.keys()):
        print_log(f'{who}has no multi-scale adapter; the adapter keeps its initial values', 'current')
    for key in list(state_dict):
        if key.startswith(prefix):
            del state_dict[key]
    state_dict.update({prefix + key: value for key, value in native.items() if key in wanted})


def _optional_part(key: str) -> str:
    """The part of the backbone that a file may hold unused: a level of the pyramid, else the whole part."""
    return '.'.join(key.split('.')[: 2 if key.startswith('pyramid.') else 1])


def _is_a_part(given: Dict[str, Tensor], own: Dict[str, Tensor]) -> bool:
    """True if only tensors of the model are given, by its own names, and not all of them."""
    missing = [key for key in own if key not in given and not key.endswith('num_batches_tracked')]
    return bool(given and missing) and given.keys() <= own.keys()


def _own_tensors(module: nn.Module) -> Dict[str, Tensor]:
    """All tensors of the backbone; with FSDP gathered in every process, not only in the first."""
    if not any(name.endswith('_fsdp_wrapped_module') for name, _ in module.named_modules()):
        return module.state_dict()
    from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType

    with FullyShardedDataParallel.state_dict_type(module, StateDictType.FULL_STATE_DICT, FullStateDictConfig()):
        return module.state_dict()


def _problems(native: Dict[str, Tensor], wanted: Dict[str, tuple], whole: bool) -> list:
    has_adapter = any(key.startswith('pyramid.') for key in native)
    missing = [
        key
        for key in wanted
        if whole
        and key not in native
        and not key.endswith('num_batches_tracked')
        and (has_adapter or not key.startswith('pyramid.'))
    ]
    misshapen = [
        f'{key} {tuple(native[key].shape)} instead of {tuple(shape)}'
        for key, shape in wanted.items()
        if key in native and native[key].shape != shape
    ]
    additional = [key for key in native if key not in wanted and not key.startswith(_OPTIONAL)]
    groups = (('misshapen', misshapen), ('missing', missing), ('not in the model', additional))
    return [f'{label} ({len(keys)}): {_shorten(keys)}' for label, keys in groups if keys]


def _wrong_types(native: Dict[str, Tensor], own: Dict[str, Tensor]) -> list:
    """Weights of an integer type; PyTorch would cast them silently."""
    wrong = [
        f'{key} {str(native[key].dtype)[len("torch.") :]} instead of {str(value.dtype)[len("torch.") :]}'
        for key, value in own.items()
        if key in native and value.is_floating_point() and not native[key].is_floating_point()
    ]
    return [f'of another type ({len(wrong)}): {_shorten(wrong)}'] if wrong else []


def _shorten(keys: list, limit: int = 4) -> str:
    return ', '.join(map(printable, keys[:limit])) + (f' and {len(keys) - limit} more' if len(keys) > limit else '')
