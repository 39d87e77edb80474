"""The check between a file's tensors and a backbone: all of it or nothing."""

from typing import Dict

from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import CheckpointError, printable
from .layouts import describe, locate

# Parts that a backbone may lack, depending on what it is asked to return, while the file has them.
_OPTIONAL = ('cls_token', 'cls_attn_blocks.', 'norm.', 'pyramid.')


def match_state_dict(module: nn.Module, state_dict: Dict[str, Tensor], prefix: str, metadata: dict) -> None:
    """Bring ``state_dict`` under the names of an XCiT backbone, in place, and make sure that all of it is there.

    Called by the backbone before its tensors are copied, so that nothing is half-loaded when this raises.

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
    wanted = {key: value.shape for key, value in own.items()}
    ignored = sorted({_optional_part(key) for key in native if key not in wanted and key.startswith(_OPTIONAL)})
    # What somebody's own code gives in part is given on purpose, and PyTorch reports the rest.
    problems = _problems(native, wanted, whole=bool(source)) + _wrong_types(native, own)
    if problems:
        raise CheckpointError(
            f'{who}the checkpoint (layout: {source.get("layout") or layout.name}) does not fit the model, and '
            f'nothing was loaded. It holds {describe(native)}; the model has {describe(own)}. ' + '; '.join(problems)
        )
    if ignored:
        print_log(f'{who}not used by this model: {", ".join(ignored)}', 'current')
    if any(key.startswith('pyramid.') for key in wanted.keys() - native.keys()):
        print_log(f'{who}has no multi-scale adapter; the adapter keeps its start values', 'current')
    for key in list(state_dict):
        if key.startswith(prefix):
            del state_dict[key]
    state_dict.update({prefix + key: value for key, value in native.items() if key in wanted})


def _optional_part(key: str) -> str:
    """The part of the backbone that a file may have for nothing: of the pyramid one level, else the whole."""
    return '.'.join(key.split('.')[: 2 if key.startswith('pyramid.') else 1])


def _is_a_part(given: Dict[str, Tensor], own: Dict[str, Tensor]) -> bool:
    """Whether some of the model's tensors, by its own names, and nothing else are given."""
    missing = [key for key in own if key not in given and not key.endswith('num_batches_tracked')]
    return bool(given and missing) and given.keys() <= own.keys()


def _own_tensors(module: nn.Module) -> Dict[str, Tensor]:
    """All tensors of the backbone; of one that FSDP divides, in every process, not in the first alone."""
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
    """Weights that are no floating-point numbers; PyTorch would turn them into some without a word."""
    wrong = [
        f'{key} {str(native[key].dtype)[len("torch.") :]} instead of {str(value.dtype)[len("torch.") :]}'
        for key, value in own.items()
        if key in native and value.is_floating_point() and not native[key].is_floating_point()
    ]
    return [f'of another type ({len(wrong)}): {_shorten(wrong)}'] if wrong else []


def _shorten(keys: list, limit: int = 4) -> str:
    return ', '.join(map(printable, keys[:limit])) + (f' and {len(keys) - limit} more' if len(keys) > limit else '')
