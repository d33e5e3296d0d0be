"""What papers and their released code publish, as literals: the defaults of a method are these, whatever presets say."""

import pytest
import torch

from robustlib.methods import METHODS, make_method, parse_overrides

# method (of another's values, but for its own): where it is published, values, @epoch (from 0):learning rate
TABLE = """
standard: Pang et al. 2021, Bag of Tricks for AT
    batch_size=128 momentum=0.9 weight_decay=0.0005 lr=0.1 epochs=110 @99.9:0.1 @100:0.01 @105:0.001
pgd_at: Pang et al. 2021, Bag of Tricks for AT: 110 epochs, a tenth at 100 and 105, eval mode; Madry et al. 2018: PGD
    batch_size=128 momentum=0.9 weight_decay=0.0005 lr=0.1 epochs=110 attack_steps=10 attack_batchnorm=eval
    @99.9:0.1 @100:0.01 @104.9:0.01 @105:0.001
trades: Zhang et al. 2019, section 5, CIFAR-10
    beta=6.0 attack_steps=10 attack_batchnorm=eval
mart: mart.py and train_resnet.py: 120 epochs counted from 1, a tenth from 75, 90, 100 on
    epochs=120 lr=0.01 weight_decay=0.0035 attack_step_size=0.007 attack_steps=10 beta=5.0
    @73.9:0.01 @74:0.001 @88.9:0.001 @89:0.0001 @98.9:0.0001 @99:1e-05
fgsm_rs: train_fgsm.py: alpha 10/255 at 8/255, a cycle to 0.2
    epochs=30 step_factor=1.25 attack_batchnorm=train weight_decay=0.0005 @0:0.0 @7.5:0.1 @15:0.2 @30:0.0
n_fgsm: N-FGSM's train.py: k is 2, alpha is eps
    epochs=30 step_factor=1.0 noise=2.0 weight_decay=0.0005 @0:0.0 @15:0.2 @30:0.0
vaft: AFD's tl+sl.py
    epochs=20 batch_size=128 momentum=0.9 weight_decay=0.0005 attack_steps=10 attack_step_size=0.007 ema=0.999
    pretrain_epochs=100 @0.5:0.025 @9.9:0.025 @10:0.02 @12:0.01 @14:0.005 @16:0.0025 @18:0.00125 @19.9:0.00125
afkd(vaft): AFD's ARREST.py, without replay
    weight=50.0
arrest(vaft): AFD's ARREST.py: 50, 30 degrees, epochs 1 to 10 of 20
    weight=50.0 angle=30.0 replay=0.5
afd(vaft): tl+sl.py and README, CIFAR-10, ResNet-18
    alpha=0.05 beta=0.25 gamma=25.0 mode=repo
ancra: train_CIFAR10_ResNet.py: 120 epochs counted from 1, x 0.1 from 75, 90, 100 on
    epochs=120 batch_size=128 weight_decay=0.0002 attack_steps=10 attack_step_size=0.007 base=trades beta=6.0 zeta=3.0
    alpha=1.0 ra_weight=2.0 negatives=random mining_from=10 @73.9:0.01 @74:0.001 @89:0.0001 @99:1e-05
atop: configs/train.yaml and FT/cifar-miss-gau-adv
    sigma=0.25 missing=0.25 grid=8 cls_weight=0.05 gan_weight=1.0 lr=0.0001 purifier_lr=0.0001 attack_steps=1
    attack_through=classifier recon_target=adversarial transform=rt2 purifier=gan augment=flip @0:0.0001 @29.9:0.0001
supcon: SupContrast's README: batch 1024, t 0.1, 1000 epochs, the cosine from epoch 10 on (its rate: see below)
    batch_size=1024 epochs=1000 temperature=0.1 projection=(512,128) momentum=0.9 @0:0.0 @500:0.357 @1000:0.0
simclr: SupContrast's README, t 0.5
    batch_size=1024 epochs=1000 temperature=0.5 momentum=0.9 @0:0.0 @500:1.785 @1000:0.0
rocl: RoCL's src: 7 steps of 0.007, t 0.5, lambda 256, projector 2048-128
    attack_steps=7 attack_step_size=0.007 temperature=0.5 regulariser=256.0 projection=(2048,128) batch_size=512
    epochs=1000 lr=0.1 weight_decay=1e-06 @0:0.0 @500:0.05
acl: train_simCLR.py: 5 steps, t 0.5, batch 512, 1000 epochs; fine-tuning 25 epochs of TRADES
    tuning_epochs=25 tuning_lr=0.1 beta=6.0 attack_steps=5 temperature=0.5 batch_size=512 epochs=1000
    weight_decay=1e-06 @0:0.0 @500:0.25
claf: main.py: 60 + 140 epochs, 5 refreshes by Adam at 1e-3, PGD-5, t 0.07, a last head for 100 epochs
    epochs=200 aug_epochs=60 refresh_passes=5 refresh_lr=0.001 attack_steps=5 temperature=0.07 batch_size=256 lr=0.05
    weight_decay=0.0001 @0:0.05 @200:5e-05 head_epochs=100 head_lr=0.001 adv_views=1 projection=(512,128) refresh=full new_head=True
rep_spectral: README and job_train_resnet: constant 0.01, 160 of 200 epochs of burn-in, lambda 0.01 every 24 updates
    epochs=200 burn_in=0.8 strength=0.01 cadence=24 operator=exact batch_size=1024 momentum=0.9 weight_decay=0.0001
    @0:0.01 @199:0.01
ll_spectral(rep_spectral): as rep-spectral
cross_lipschitz: as rep-spectral
    epochs=200 burn_in=0.8 cadence=24 @0:0.01 @199:0.01
barlow_spectral: job_train_barlow_batch.sh: projector [256], weight 0.005, 900 of 1000 epochs of burn-in
    epochs=1000 burn_in=0.9 strength=0.01 cadence=24 arch=resnet18 off_diagonal=0.005 projection=(256,)
    batch_size=1024 @0:0.01 @999:0.01
simclr_spectral: job_train_simclr_batch.sh: t 0.07, batch 512
    epochs=1000 burn_in=0.9 strength=0.01 cadence=24 arch=resnet18 temperature=0.07 batch_size=512 projection=(512,10)
    @0:0.01 @999:0.01
transfer: train_transfer_batch_reg.sh and train_finetune_batch_reg.sh
    epochs=50 lr=0.01 schedule=cosine weight_decay=0.0 burn_in=0.6 strength=0.0 cadence=15 pretrain_epochs=200
    pretrain_burn_in=0.8 pretrain_cadence=20 pretrain_lr=0.1 pretrain_weight_decay=0.0005 pretrain_strength=0.01
    @0:0.01 @25:0.005
l2_sp: regularizer/transfer.py: alpha 0.1, beta 0.01, no lambda
    epochs=50 lr=0.01 schedule=cosine weight_decay=0.0 alpha=0.1 beta=0.01 strength=1.0 burn_in=0.0 cadence=1
    @0:0.01 @25:0.005
bss: train_finetune_batch_reg.sh: k is 1
    epochs=50 lr=0.01 schedule=cosine weight_decay=0.0 k=1 strength=0.001 burn_in=0.0 cadence=1 @0:0.01 @25:0.005
"""


PUBLISHED = {}  # method -> (where, values, {epoch: learning rate})
for entry in TABLE.strip().replace("\n    ", " ").split("\n"):
    name, _, rest = entry.partition(": ")
    name, _, other = name.rstrip(")").partition("(")
    words = rest.split()
    rates = dict(map(float, word[1:].split(":")) for word in words if word[0] == "@")
    _, same, steps = PUBLISHED.get(other, (None, {}, {}))
    PUBLISHED[name] = rest, same | parse_overrides([word for word in words if "=" in word]), steps | rates


@pytest.mark.parametrize("name", METHODS)
def test_values_and_learning_rates_are_the_published_ones(name):
    source, values, rates = PUBLISHED[name]
    method = make_method(name)
    factor = method.lr_schedule()
    assert {key: getattr(method, key) for key in values} == values, source
    assert {epoch: method.lr * factor(epoch) for epoch in rates} == pytest.approx(rates), source


@pytest.mark.parametrize("name", ["supcon", "simclr"])
def test_sgd_steps_as_on_supcontrasts_multiple_of_the_loss(name):
    method = make_method(name)
    ours, theirs = (torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    recipe = method.optim([ours])
    optimisers = {
        ours: torch.optim.SGD([ours], recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay),
        theirs: torch.optim.SGD([theirs], 0.5, 0.9, weight_decay=1e-4),
    }
    for factor, (weight, optimiser) in zip((1.0, method.temperature / 0.07), optimisers.items(), strict=True):
        for _ in range(4):
            optimiser.zero_grad()
            (factor * 1e-3 * weight**2).sum().backward()  # decay matters beside it
            optimiser.step()
    torch.testing.assert_close(ours - 1, theirs - 1, rtol=1e-3, atol=0.0)  # the rates are rounded


@pytest.mark.parametrize("name", METHODS)
def test_the_paper_preset_has_the_methods_own_values(name):
    own, preset = make_method(name), make_method(name, "cifar10-paper")
    assert {**own.hyperparameters(), "preset": "cifar10-paper"} == preset.hyperparameters()


@pytest.mark.parametrize("name", ["vaft", "afkd", "arrest", "afd"])
def test_afd_is_tuned_anew_for_more_classes(name):
    presets = (None, "cifar100-paper", "tiny-imagenet-paper")
    own, cifar100, tiny = (make_method(name, preset).hyperparameters() for preset in presets)
    weights = {"alpha": 0.1, "beta": 1.0, "gamma": 50.0} if name == "afd" else {}
    assert cifar100 == {**own, **weights, "preset": "cifar100-paper"}
    assert tiny == {**cifar100, "eps": 8 / 255, "preset": "tiny-imagenet-paper"}


def test_atop_is_released_for_imagenette():
    own, cifar100 = (make_method("atop", preset).hyperparameters() for preset in (None, "cifar100-paper"))
    assert cifar100 == {**own, "preset": "cifar100-paper"}
    imagenette = make_method("atop", "imagenette-paper")
    assert (imagenette.arch, imagenette.eps, imagenette.cls_weight) == ("resnet34", 8 / 255, 0.1)
