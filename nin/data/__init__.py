"""Image sets in memory, their preprocessing and augmentation, as a LightningDataModule."""

from nin.data.module import Batches, Images
from nin.data.preprocess import Normalise, Whiten
from nin.data.sets import DataError, ImageSet, load_cifar10, load_digits

__all__ = ["Batches", "DataError", "ImageSet", "Images", "Normalise", "Whiten", "load_cifar10", "load_digits"]
