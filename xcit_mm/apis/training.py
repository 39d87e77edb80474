"""Training from a checked config: what ``tools/train.py`` and ``xcit-mm finetune`` share."""

from mmengine.config import Config
from mmengine.runner import Runner

from ..checks.data import check_data
from ..checks.settings import check_loops
from ..engine.setup import adapt_to_device, build_runner, check_model, check_work_dir
from ..resilience.bad_images import check_images


def train(cfg: Config, bad_images: str = 'skip') -> Runner:
    """Check the config, its data and its model, and train.

    Args:
        cfg (Config): Of :func:`xcit_mm.engine.setup.load_config`, with all options applied.
        bad_images (str): 'skip' or 'refuse' images that cannot be read.

    Raises:
        UsageError: If the config, the data or the options are wrong.
        CheckpointError: If the weights do not fit the model.
    """
    check_loops(cfg, 'train')
    check_data(cfg, ('train', 'val'))
    check_model(cfg, cfg.get('load_from'), 'resume' if cfg.get('resume') else 'train')
    check_work_dir(cfg)
    if bad_images == 'refuse':
        check_images(cfg, ('train', 'val'))
    adapt_to_device(cfg)
    runner = build_runner(cfg)
    runner.train()
    runner.logger.info(f'Training is done. Logs and checkpoints are in {cfg.work_dir}')
    return runner
