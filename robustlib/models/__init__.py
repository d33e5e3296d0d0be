"""Models: normalise -> encoder -> linear head, by name."""

from robustlib.models.build import ARCHITECTURES, build_model, build_purifier
from robustlib.models.classifier import Classifier, ImageSpec
from robustlib.models.disentangled import Branches, Disentangled
from robustlib.models.projected import Projected, SelfSupervised
from robustlib.models.purified import Purified, Randomness, RandomTransform
from robustlib.models.purifier import Generator, MaskedAutoencoder, PatchDiscriminator, Purifier
from robustlib.models.reverse_attention import ReverseAttention
