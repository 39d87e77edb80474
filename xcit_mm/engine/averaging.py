"""Exponential moving average (EMA) of the weights."""

from mmengine.hooks import EMAHook as MMEngineEMAHook

from ..compat import built_loop, is_resuming
from ..errors import UsageError
from ..registry import HOOKS

# In the meta of a checkpoint whose state_dict holds the raw weights; MMEngine's own holds the average.
RAW = 'state_dict_is_raw'


@HOOKS.register_module()
class EMAHook(MMEngineEMAHook):
    """MMEngine's EMA hook, which tests, selects and saves the raw weights unless ``evaluate`` is set.

    As in the original release, every checkpoint holds the average (``ema_state_dict``), while validation and
    ``state_dict`` use the raw weights. Checkpoints of either kind, and of MMEngine's hook, can be resumed.

    Args:
        evaluate (bool): Validate, test and save the average, as MMEngine's hook does. Tests take the average from
            checkpoints of either kind.
        **kwargs: As for :class:`mmengine.hooks.EMAHook`.

    Raises:
        UsageError: If the average is to be tested and the checkpoint has none.
    """

    def __init__(self, evaluate: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.evaluate = evaluate

    def _swap_ema_parameters(self) -> None:
        if self.evaluate:
            super()._swap_ema_parameters()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self.evaluate:
            return super().before_save_checkpoint(runner, checkpoint)
        checkpoint['ema_state_dict'] = self.ema_model.state_dict()
        checkpoint['meta'][RAW] = True

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        testing = self.evaluate and built_loop(runner, 'train') is None
        if testing and 'ema_state_dict' not in checkpoint:
            raise UsageError('the average of the weights is to be tested, and the checkpoint has none (ema_state_dict)')
        if 'ema_state_dict' in checkpoint and checkpoint.get('meta', {}).get(RAW) and (is_resuming(runner) or testing):
            # MMEngine's hook expects the average in state_dict, and gives it back when it resumes.
            self._swap_ema_state_dict(checkpoint)
        super().after_load_checkpoint(runner, checkpoint)
