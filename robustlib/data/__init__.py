"""Data sets by name; whole splits on the device as uint8; batches and augmentation on the device."""

from robustlib.data.augment import VIEWS, Policy
from robustlib.data.dataset import Dataset
from robustlib.data.datasets import DATASETS, Source, load_dataset
from robustlib.data.split import Batch, Split

__all__ = ["DATASETS", "VIEWS", "Batch", "Dataset", "Policy", "Source", "Split", "load_dataset"]
