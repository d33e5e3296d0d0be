"""Models: normalise -> encoder -> linear head, by name."""

from robustlib.models.branches import Branches, Disentangled, Projected, SelfSupervised
from robustlib.models.build import ARCHITECTURES, build_model, build_purifier
from robustlib.models.classifier import Classifier, ImageSpec
from robustlib.models.purified import Purified, Randomness, RandomTransform
from robustlib.models.purifier import Generator, MaskedAutoencoder, PatchDiscriminator, Purifier
from robustlib.models.reverse_attention import ReverseAttention
