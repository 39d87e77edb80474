"""Top-level keys of a config that something reads; all others are variables of the file."""

import inspect

from mmengine.runner import Runner

# What the runner takes, and reads from the whole config.
RUNNER_KEYS = (set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}) | {
    'activation_checkpointing',
    'auto_scale_lr',
    'compile',
    'custom_imports',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'gpu_ids',
    'model_wrapper_cfg',
    'runner_type',
    'strategy',
    'sync_bn',
    'sync_buffers',
    'tta_model',
    'tta_pipeline',
}
# What tools read: tools/knn.py.
BUILT = RUNNER_KEYS | {'knn'}
