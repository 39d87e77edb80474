"""Training in which several processes share every batch, and what came of it."""

import os

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import METRICS, TASK_UTILS
from processes import ROOT
from small_runs import small_cfg

from xcit_mm.engine.setup import adapt_to_device, build_runner

BATCH = 4
ITERATIONS = 3  # of all kinds: an epoch of 12 images


class WatchHook(Hook):
    """The loss of every iteration, over all processes; gradients and weights of the first update; metrics."""

    priority = 'VERY_LOW'  # after the average of the weights

    def __init__(self):
        self.losses, self.metrics = [], {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = torch.as_tensor(outputs['loss']).detach().clone()
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        self.losses.append(loss)
        if len(self.losses) == 1:
            state = runner.optim_wrapper.optimizer.state
            # SGD's momentum is the gradient at first.
            self.gradients = clones(values['momentum_buffer'] for values in state.values())
            self.weights = clones(state)

    def after_val_epoch(self, runner, metrics=None):
        self.metrics.update(metrics)


def clones(tensors):
    return {i: tensor.detach().clone() for i, tensor in enumerate(tensors)}


@METRICS.register_module(force=True)
class NamesOfImages(BaseMetric):
    """Which images were tested."""

    def process(self, data_batch, data_samples):
        self.results += [sample['img_path'] for sample in data_samples]

    def compute_metrics(self, results):
        return dict(images=len(results), different=len(set(results)))


def register_sampler():
    """A sampler of proposals that takes the first ones, since those that draw depend on the process."""
    from mmdet.models.task_modules import RandomSampler

    @TASK_UTILS.register_module(force=True)
    class FirstSampler(RandomSampler):
        def random_choice(self, gallery, num):
            return gallery[:num]


def deterministic_detector(cfg):
    """Losses of Mask R-CNN are means over proposals: equally many in every image, and none of them drawn."""
    register_sampler()
    first = dict(type='FirstSampler', _scope_='mmengine', neg_pos_ub=-1)
    cfg.model.train_cfg.rpn.sampler.update(first)
    cfg.model.train_cfg.rcnn.sampler.update(dict(first, num=16, pos_fraction=1 / 16))


def make_cfg(kind, small_models, data, folder, seed):
    """The published losses and parts in small, without what each process draws for itself."""
    base = dict(distilled='classifier', dino='classifier').get(kind, kind)
    options = {'randomness': dict(seed=seed), 'default_hooks.checkpoint.save_best': None}
    cfg = small_cfg(small_models, base, data, folder, **options)
    if kind == 'dino':
        arch = dict(embed_dims=32, depth=2, num_heads=4)
        dino = Config.fromfile(ROOT / 'configs' / 'dino_xcit_digits.py')
        loader = {**dino.train_dataloader, **dict(num_workers=0, persistent_workers=False)}
        loader['dataset'] = {**loader['dataset'], 'indices': 12}
        loader['dataset']['pipeline'] = dino.train_dataloader.dataset.pipeline
        dino.merge_from_dict(
            {
                'train_dataloader': loader,
                'model.backbone.arch': arch,
                'model.neck.in_channels': 32,
                'model.head.out_channels': 64,
                'model.neck.out_channels': 64,
                'model.neck.batch_norm': False,  # as published; it multiplies what little the views differ at first
            }
        )
        dino.model.backbone.arch = arch
        dino.merge_from_dict({key: cfg[key] for key in ('work_dir', 'launcher', 'log_level', 'experiment_name')})
        cfg = dino
    if kind == 'distilled':
        teacher, checkpoint = Config.fromfile(small_models['classifier'][0]).model, small_models['classifier'][1]
        cfg.model = dict(
            cfg.model, type='xcit_mm.DistilledClassifier', teacher=teacher, teacher_checkpoint=checkpoint, alpha=0.5
        )
    if kind == 'detector':
        deterministic_detector(cfg)
    if kind == 'semantic_fpn':
        cfg.model.decode_head.loss_decode = dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)
        cfg.train_cfg.update(max_iters=ITERATIONS, val_interval=ITERATIONS)
        cfg.default_hooks.checkpoint.interval = ITERATIONS
    else:
        cfg.train_cfg.update(max_epochs=1)
        cfg.default_hooks.checkpoint.interval = 1
    cfg.model.backbone.update(bn_norm_cfg=dict(type='xcit_mm.SyncBN'), drop_path_rate=0.0)
    # Linear in the gradients, so that their differences are seen as they are.
    # Small steps for the detector: its proposals are the best of many whose scores are almost equal at first, and those
    # that differ by rounding grow apart with every step.
    rate = 0.002 if kind == 'detector' else 0.02
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=rate, momentum=0.9, weight_decay=0.01))
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=3)]
    if kind != 'dino':
        cfg.val_dataloader.update(batch_size=2)
        cfg.val_dataloader.dataset.indices = 3
        evaluators = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
        cfg.val_evaluator = [*evaluators, dict(type='NamesOfImages', _scope_='mmengine')]
        cfg.train_cfg.val_interval = ITERATIONS if kind == 'semantic_fpn' else 1
    return cfg


def train_and_test(cfg, world, path):
    """Train with a share of the batch, and save what came of it."""
    cfg.train_dataloader.batch_size = BATCH // world
    if world > 1:
        cfg.launcher = 'pytorch'
        adapt_to_device(cfg)
    runner = build_runner(cfg)
    watch = WatchHook()
    runner.register_hook(watch)
    runner.train()
    if runner.rank == 0:
        checkpoint = torch.load(os.path.join(runner.work_dir, open_pointer(runner.work_dir)), weights_only=False)
        torch.save(
            dict(
                losses=torch.stack(watch.losses),
                gradients=watch.gradients,
                weights=watch.weights,
                last_weights=checkpoint['state_dict'],
                last_average=checkpoint.get('ema_state_dict', {}),
                metrics=watch.metrics,
            ),
            path,
        )


def open_pointer(work_dir):
    with open(os.path.join(work_dir, 'last_checkpoint')) as file:
        return os.path.basename(file.read())


def deviations(ours, theirs):
    """Of all tensors together, and the largest of any tensor: |ours - theirs| / |theirs|, in Euclidean norms.

    Tensors of less than a hundredth of the whole are compared with that: there are gradients that are zero but for
    rounding, as those of a bias before a norm.
    """
    assert ours.keys() == theirs.keys()
    pairs = [(ours[k].double(), theirs[k].double()) for k in ours if torch.is_tensor(ours[k])]
    whole = sum(theirs.square().sum() for _, theirs in pairs) ** 0.5
    apart = torch.stack([(ours - theirs).norm() for ours, theirs in pairs])
    sizes = torch.stack([theirs.norm() for _, theirs in pairs]).clamp_min(1e-2 * whole)
    return (apart.norm() / whole).item(), (apart / sizes).max().item()
