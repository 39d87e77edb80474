"""What the four DINO configs share: the recipe of DINO's own ViT-S, which the XCiT paper follows (section 4.2)."""

_base_ = [
    './models/dino_xcit.py',
    './datasets/imagenet_multicrop.py',
    './schedules/dino_300e.py',
    './runtime_selfsup.py',
]
