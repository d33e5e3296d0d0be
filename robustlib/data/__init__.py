"""Data sets by name; whole splits on the device as uint8; batches and augmentation on the device."""

from robustlib.data.augmentation import VIEWS, Policy
from robustlib.data.dataset import DATASETS, Batch, Dataset, Source, Split, check_dataset, check_split, load_dataset
from robustlib.data.images import dataset_of, load_images, open_dataset, spelled
