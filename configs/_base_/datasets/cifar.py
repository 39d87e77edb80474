"""CIFAR's test images at 32x32, as RobustBench tests on them. To set: type and data_root (CIFAR-10 here)."""

test_dataloader = dict(
    batch_size=100,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='xcit_mm.CIFAR10',
        data_root='data/cifar10',
        split='test',
        # Other images than CIFAR's, as in inference, are brought to its size.
        pipeline=[dict(type='Resize', scale=(32, 32)), dict(type='PackInputs')],
    ),
)
test_evaluator = dict(type='Accuracy', topk=(1, 5))
