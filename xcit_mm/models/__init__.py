from .adapter import MultiScaleAdapter
from .attention import XCA, ClassAttention
from .sync_bn import SyncBN
from .xcit import LPI, ClassAttentionBlock, PatchEmbed, PositionEncoding, XCABlock, XCiT

__all__ = [
    'LPI',
    'XCA',
    'ClassAttention',
    'ClassAttentionBlock',
    'MultiScaleAdapter',
    'PatchEmbed',
    'PositionEncoding',
    'SyncBN',
    'XCABlock',
    'XCiT',
]
