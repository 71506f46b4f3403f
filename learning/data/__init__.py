"""Data: settings, datasets with three disjoint splits, and batches as a function of the step."""

from learning.data.batches import Batches
from learning.data.cache import cache_directory
from learning.data.datasets import Dataset, arrays_dataset, load_dataset
from learning.data.images import decode_image
from learning.data.parquet import read_parquet
from learning.data.preprocessing import Preprocessing
from learning.data.settings import (
    ArraysSettings,
    AugmentSettings,
    DataSettings,
    DigitsSettings,
    ParquetSettings,
    ReversalSettings,
    TextSettings,
)
from learning.data.splits import Split

__all__ = [
    "ArraysSettings",
    "AugmentSettings",
    "Batches",
    "DataSettings",
    "Dataset",
    "DigitsSettings",
    "ParquetSettings",
    "Preprocessing",
    "ReversalSettings",
    "Split",
    "TextSettings",
    "arrays_dataset",
    "cache_directory",
    "decode_image",
    "load_dataset",
    "read_parquet",
]
