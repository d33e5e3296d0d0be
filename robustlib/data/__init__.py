"""Data sets by name; whole splits on the device as uint8; batches and augmentation on the device."""

from robustlib.data.augmentation import VIEWS, Policy
from robustlib.data.dataset import DATASETS, Dataset, Source, load_dataset
from robustlib.data.splits import Batch, Split
