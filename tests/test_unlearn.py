"""The methods that make unlearned models, on a ViT of two blocks and images small enough to check by hand."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, is_dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sod_core.build.vit import train_vit
from sod_core.machine import processes
from sod_core.machine.divergence import Diverged
from sod_core.models import vit as vits
from sod_core.unlearn import (
    TITLES,
    bad_teacher,
    boundary_shrink,
    cf_k,
    eu_k,
    fine_tune,
    gradient_ascent,
    method,
    neggrad_plus,
    random_labels,
    retrain,
    salun,
    scrub,
    ssd,
    unsir,
)
from sod_core.unlearn import task as tasks
from sod_core.unlearn.task import Accuracies, Look, Stop, Task, accuracies, descend, trainable_copy
from sod_core.worlds.drawn import UNKNOWN, ImageSet

SHAPE = vits.ViTShape(image_size=64, patch=8, dim=16, depth=2, heads=2, classes=10)
TARGET = 3
CPU = torch.device("cpu")
BRIEF = Stop(steps=3, forget_at_most=-1)  # never met: all steps are taken
RECIPE = train_vit.Recipe(steps=3, batch=8)
SETTINGS = {
    "retrain": retrain.Settings(recipe=RECIPE),
    "random_labels": random_labels.Settings(batch=4, stop=BRIEF),
    "neggrad_plus": neggrad_plus.Settings(batch=4, stop=BRIEF),
    "cf_k": cf_k.Settings(k=1, batch=4, stop=BRIEF),
    "salun": salun.Settings(batch=4, saliency_batches=2, stop=BRIEF),
    "fine_tune": fine_tune.Settings(batch=4, stop=BRIEF),
    "gradient_ascent": gradient_ascent.Settings(batch=4, stop=BRIEF),
    "eu_k": eu_k.Settings(k=1, batch=4, stop=BRIEF),
    "scrub": scrub.Settings(batch=4, opening=1, max_steps=1, min_steps=1, stop=BRIEF),
    "ssd": ssd.Settings(alpha=2.0, batch=4, batches=3),
    "unsir": unsir.Settings(batch=4, noise_steps=3, impair_steps=2, stop=BRIEF),
    "bad_teacher": bad_teacher.Settings(batch=4, forget_batch=2, stop=BRIEF),
    "boundary_shrink": boundary_shrink.Settings(batch=4, stop=BRIEF),
}


def image_set(seed: int, count: int) -> ImageSet:
    """Noise whose first pixel says the class: 20 times its number."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % SHAPE.classes
    pixels = rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    pixels[:, 0, 0] = labels[:, None] * 20
    coverage = rng.choice(np.array([0, 40, 255], np.uint8), (count, 64))
    return ImageSet(pixels, coverage, labels, np.zeros_like(labels))


def class_of(images: Tensor) -> Tensor:
    """The classes that the images' first pixels say."""
    return ((images[:, 0, 0, 0] * 0.5 + 0.5) * 255 / 20).round().long()


@pytest.fixture
def vit() -> nn.Module:
    torch.manual_seed(0)
    return vits.new(SHAPE).requires_grad_(False).eval()


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(image_set(1, 60), image_set(2, 40), TARGET, tmp_path / "run.ckpt", CPU)


def weights(vit: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in vit.state_dict().items()}


def changed(before: dict[str, Tensor], after: nn.Module) -> set[str]:
    return {name for name, value in after.state_dict().items() if not torch.equal(value, before[name])}


# ---------------------------------------------------------------- one signature


@pytest.mark.parametrize("name", TITLES)
def test_a_method_changes_a_copy(name, vit, task):
    before = weights(vit)
    found = method(name).unlearn(vit, task, SETTINGS[name])
    assert found is not vit and not found.training
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in vit.parameters())
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert not changed(before, vit) and all(block.attn.fused_attn for block in vit.blocks)
    assert changed(before, found)
    assert {key: value.shape for key, value in found.state_dict().items()} == {k: v.shape for k, v in before.items()}
    images, _ = task.retain_batch(0, 4)
    assert vits.logits(found, images).isfinite().all()


@pytest.mark.parametrize("name", TITLES)
def test_a_method_is_deterministic(name, vit, task, tmp_path):
    one = method(name).unlearn(vit, task, SETTINGS[name])
    torch.manual_seed(99)
    again = replace(task, checkpoint=tmp_path / "again.ckpt")
    assert not changed(weights(one), method(name).unlearn(vit, again, SETTINGS[name]))
    if name == "retrain":
        other = task, retrain.Settings(recipe=replace(RECIPE, seed=5))
    else:
        other = replace(task, seed=5), SETTINGS[name]
    other = replace(other[0], checkpoint=tmp_path / "other.ckpt"), other[1]
    assert changed(weights(one), method(name).unlearn(vit, *other))


@pytest.mark.parametrize("name", TITLES)
def test_settings_have_defaults_that_can_be_recorded(name):
    settings = method(name).Settings()
    assert is_dataclass(settings) and json.loads(json.dumps(asdict(settings))) == asdict(settings)


def test_an_unknown_method():
    with pytest.raises(ValueError, match="unknown method 'prayer'; known: retrain"):
        method("prayer")


# ---------------------------------------------------------------- batches and accuracies


def test_batches_hold_what_they_say(task):
    for step in range(20):
        images, labels = task.forget_batch(step, 8)
        assert (labels == TARGET).all() and torch.equal(class_of(images), labels)
        images, labels = task.retain_batch(step, 8)
        assert (labels != TARGET).all() and torch.equal(class_of(images), labels)
        assert images.shape == (8, 3, 64, 64) and images.min() >= -1 and images.max() <= 1


def test_a_batch_depends_on_seed_and_step_alone(task):
    first = task.retain_batch(3, 8)[0]
    task.retain_batch(4, 8)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(task.retain_batch(3, 8)[0], first)
    assert not torch.equal(task.retain_batch(4, 8)[0], first)
    assert not torch.equal(replace(task, seed=1).retain_batch(3, 8)[0], first)


def answers(predicted: Tensor, margin: float = 60.0) -> Tensor:
    """Logits that are sure of these classes."""
    return F.one_hot(predicted, SHAPE.classes).float() * margin


def test_accuracies(monkeypatch, task):
    """Of 40 images, 4 of each class: class 3 is taken for 0 half of the time, class 7 always."""

    def predict(vit: object, images: Tensor) -> Tensor:
        labels = class_of(images)
        third = (labels == 3).cumsum(0) * (labels == 3)
        return answers(torch.where((third == 1) | (third == 2) | (labels == 7), 0, labels))

    monkeypatch.setattr(vits, "logits", predict)
    assert accuracies(nn.Identity(), task.check, TARGET, CPU) == Accuracies(forget=0.5, retain=32 / 36)


# ---------------------------------------------------------------- the shared loop and when it stops


class Steps:
    """A loss that counts how often it is asked for."""

    def __init__(self):
        self.taken = []

    def __call__(self, model: nn.Module, step: int) -> Tensor:
        self.taken.append(step)
        return model.head.weight.float().square().sum()


def script(monkeypatch, original: Accuracies, *later: Accuracies) -> None:
    """What the check images say of the original, and then at every look."""
    answers = iter([original, *later])
    monkeypatch.setattr(tasks, "accuracies", lambda *arguments: next(answers))


@pytest.mark.parametrize(
    ("looks", "steps"),
    [
        ([(0.02, 0.93)], 5),
        ([(0.5, 0.93), (0.0, 0.93)], 10),
        ([(0.0, 0.92), (0.021, 0.95), (0.02, 0.929), (0.0, 0.94)], 20),  # both must hold at once
        ([(0.5, 0.5)] * 4, 22),
    ],
)
def test_the_stop_rule(monkeypatch, vit, task, looks, steps):
    script(monkeypatch, Accuracies(1.0, 0.95), *(Accuracies(*look) for look in looks))
    stop = Stop(steps=22, forget_at_most=0.02, retain_loss_at_most=0.02, every=5)
    loss = Steps()
    descend(vit, task, loss, 1e-3, stop)
    assert loss.taken == list(range(steps))


def test_the_stop_rule_looks_at_the_check_images(monkeypatch, vit, task):
    seen = []

    def look(model: nn.Module, data: ImageSet, target: int, *more: object) -> Accuracies:
        seen.append((model is vit, data is task.check, target))
        return Accuracies(1.0, 1.0)

    monkeypatch.setattr(tasks, "accuracies", look)
    descend(vit, task, Steps(), 1e-3, Stop(steps=10, every=5))
    assert seen == [(True, True, TARGET), (False, True, TARGET), (False, True, TARGET)]


def test_looks_are_written_down(monkeypatch, vit, task):
    script(monkeypatch, Accuracies(1.0, 0.95), Accuracies(0.5, 0.9), Accuracies(0.0, 0.94))
    descend(vit, task, Steps(), 1e-3, Stop(steps=22, every=5))
    assert task.looks == [Look(0, 1.0, 0.95), Look(5, 0.5, 0.9), Look(10, 0.0, 0.94)]


@pytest.mark.parametrize("name", sorted(set(TITLES) - {"retrain", "ssd"}))
def test_every_method_with_a_stop_rule_keeps_it(monkeypatch, vit, task, name):
    """Met at once, it ends a run at the first look; UNSIR's at the first after impairing."""
    monkeypatch.setattr(tasks, "accuracies", lambda *arguments: Accuracies(0.0, 1.0))
    settings = replace(SETTINGS[name], stop=Stop(steps=12, every=2))
    if name == "unsir":
        settings = replace(settings, impair_steps=3)
    method(name).unlearn(vit, task, settings)
    assert [look.step for look in task.looks] == [0, 4 if name == "unsir" else 2]


@pytest.mark.parametrize("changes", [{"steps": 0}, {"every": 0}, {"steps": -3}])
def test_a_stop_rule_without_steps_is_refused(changes):
    with pytest.raises(ValueError, match="above 0"):
        Stop(**({"steps": 5} | changes))


@pytest.mark.parametrize("k", [0, -1, SHAPE.depth + 1])
@pytest.mark.parametrize("module", [cf_k, eu_k])
def test_blocks_that_the_model_does_not_have_are_refused(vit, task, module, k):
    with pytest.raises(ValueError, match=f"k is {k}"):
        module.unlearn(vit, task, module.Settings(k=k, batch=4, stop=BRIEF))


def test_descend_trains_only_what_it_is_asked_to(vit, task):
    before = weights(vit)
    found = descend(vit, task, Steps(), 1e-3, BRIEF, trained=lambda model: [model.head.weight])
    assert changed(before, found) == {"head.weight"}
    assert found.head.weight.norm() < vit.head.weight.norm()


# ---------------------------------------------------------------- random labels


@pytest.fixture
def sure(monkeypatch) -> None:
    """The model names every image rightly, with logits of 60 and 0."""
    monkeypatch.setattr(vits, "logits", lambda vit, images: answers(class_of(images)))


def test_random_labels_never_are_the_true_one(sure, vit, task):
    """CE is 60 where the label differs from what a sure model says and 0 where it is the same."""
    for step in range(50):
        assert random_labels.loss(vit, task, step, 16).item() == pytest.approx(60, abs=1e-3)


def test_random_labels_are_any_other_class(monkeypatch, vit, task):
    """With log-probabilities that differ from class to class, the loss tells which label was drawn."""
    scale = torch.linspace(0, 2, SHAPE.classes).log_softmax(0)

    def predict(model: object, images: Tensor) -> Tensor:
        return torch.stack([scale if c == TARGET else answers(c[None])[0] for c in class_of(images)])

    monkeypatch.setattr(vits, "logits", predict)
    losses = torch.tensor([random_labels.loss(vit, task, step, 1).item() for step in range(300)])
    drawn = (losses[:, None] + scale).abs().argmin(1).tolist()
    counts = Counter(drawn)
    assert set(counts) == set(range(SHAPE.classes)) - {TARGET}
    assert min(counts.values()) > 15  # of 33 expected


def test_random_labels_loss_by_hand(vit, task):
    """Forget and retain part count alike; a step's loss is the same when it is asked for again."""
    step, batch = 2, 6
    images, labels = task.forget_batch(step, batch)
    kept, kept_labels = task.retain_batch(step, batch)
    retain = -vits.logits(vit, kept).log_softmax(1)[range(batch), kept_labels].mean()
    forget = -vits.logits(vit, images).log_softmax(1)
    value = random_labels.loss(vit, task, step, batch)
    assert torch.equal(value, random_labels.loss(vit, task, step, batch))
    wrong = forget.scatter(1, labels[:, None], torch.nan)
    least, most = (retain + bound.values.mean() for bound in (_nan(wrong).min(1), _nan(wrong, -1).max(1)))
    assert least <= value <= most


def _nan(values: Tensor, sign: int = 1) -> Tensor:
    """The masked value out of the way of a minimum (sign 1) or of a maximum (-1)."""
    return values.nan_to_num(nan=sign * 1e6)


# ---------------------------------------------------------------- NegGrad+ and CF-k


def loss_of(module, monkeypatch, vit: nn.Module, task: Task, settings: object):
    """The loss that a method hands to the shared loop."""
    found = []
    monkeypatch.setattr(module, "descend", lambda vit, task, loss, *rest, **more: found.append(loss) or vit)
    module.unlearn(vit, task, settings)
    return found[0]


def cross_entropy(vit: nn.Module, images: Tensor, labels: Tensor) -> float:
    logits = vits.logits(vit, images).double().numpy()
    logits -= logits.max(1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return float(-logs[np.arange(len(labels)), labels.numpy()].mean())


@pytest.mark.parametrize("beta", [0.9, 0.5, 1.0])
def test_neggrad_plus_loss_by_hand(monkeypatch, vit, task, beta):
    settings = neggrad_plus.Settings(batch=6, retain_weight=beta)
    value = loss_of(neggrad_plus, monkeypatch, vit, task, settings)(vit, 4)
    retain = cross_entropy(vit, *task.retain_batch(4, 6))
    forget = cross_entropy(vit, *task.forget_batch(4, 6))
    assert value.item() == pytest.approx(beta * retain - (1 - beta) * forget, abs=1e-5)


def test_neggrad_plus_goes_up_on_the_forgotten_class(vit, task):
    settings = neggrad_plus.Settings(lr=3e-3, batch=8, retain_weight=0.5, stop=Stop(steps=15, forget_at_most=-1))
    found = neggrad_plus.unlearn(vit, task, settings)
    images, labels = task.forget_batch(100, 16)
    assert cross_entropy(found, images, labels) > cross_entropy(vit, images, labels) + 0.5


def test_cf_k_loss_is_the_retain_sets_alone(vit, task):
    """So are those of fine-tuning and of EU-k."""
    value = fine_tune.loss(vit, task, 4, 6)
    assert value.item() == pytest.approx(cross_entropy(vit, *task.retain_batch(4, 6)), abs=1e-5)


@pytest.mark.parametrize("k", [1, 2])
def test_cf_k_changes_the_last_k_blocks_norm_and_head(vit, task, k):
    found = cf_k.unlearn(vit, task, replace(SETTINGS["cf_k"], k=k))
    names = changed(weights(vit), found)
    parts = {".".join(name.split(".")[: 2 if name.startswith("blocks") else 1]) for name in names}
    assert parts == {f"blocks.{i}" for i in range(SHAPE.depth - k, SHAPE.depth)} | {"norm", "head"}


# ---------------------------------------------------------------- SalUn


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_the_saliency_mask_has_the_asked_share(vit, task, share):
    masks = salun.saliency_masks(vit, task, replace(SETTINGS["salun"], salient_share=share))
    assert {name: mask.shape for name, mask in masks.items()} == {n: p.shape for n, p in vit.named_parameters()}
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    assert set(flat.tolist()) == {0.0, 1.0}
    assert flat.mean().item() == pytest.approx(share, abs=0.01)


def test_the_saliency_mask_marks_the_largest_gradients(vit, task):
    settings = SETTINGS["salun"]
    masks = salun.saliency_masks(vit, task, settings)
    model = trainable_copy(vit).requires_grad_(True)
    batches = [task.forget_batch(10_000 + step, settings.batch) for step in range(settings.saliency_batches)]
    images, labels = (torch.cat(parts) for parts in zip(*batches))
    F.cross_entropy(vits.logits(model, images), labels).backward()
    marked = torch.cat([p.grad[masks[name] == 1].abs() for name, p in model.named_parameters()])
    others = torch.cat([p.grad[masks[name] == 0].abs() for name, p in model.named_parameters()])
    assert marked.min() > others.max() - 1e-6


def test_salun_moves_only_masked_weights(vit, task):
    settings = replace(SETTINGS["salun"], salient_share=0.3)
    masks = salun.saliency_masks(vit, task, settings)
    found = dict(salun.unlearn(vit, task, settings).named_parameters())
    moved = 0
    for name, parameter in vit.named_parameters():
        assert torch.equal(found[name][masks[name] == 0], parameter[masks[name] == 0])
        moved += int((found[name] != parameter).sum())
    assert moved > 0.9 * sum(mask.sum() for mask in masks.values())


# ---------------------------------------------------------------- retrain


def test_retrain_never_sees_the_class(monkeypatch, vit, task):
    """Its images are white, so that one is known when it is seen."""
    task.data.pixels[task.data.labels == TARGET] = 255
    seen = []
    normalise, token_targets = train_vit.normalise, train_vit.token_targets

    def spy_on_images(pixels: np.ndarray, *normalisation: object) -> Tensor:
        seen.extend(bool((one == 255).all()) for one in pixels)
        return normalise(pixels, *normalisation)

    def spy_on_labels(coverage: Tensor, labels: Tensor, background: int) -> Tensor:
        assert (labels != TARGET).all() and background == SHAPE.classes
        return token_targets(coverage, labels, background)

    monkeypatch.setattr(train_vit, "normalise", spy_on_images)
    monkeypatch.setattr(train_vit, "token_targets", spy_on_labels)
    retrain.unlearn(vit, task, retrain.Settings(recipe=train_vit.Recipe(steps=8, batch=16)))
    assert len(seen) == 8 * 16 and not any(seen)


def test_retrain_uses_no_weight_of_the_original(vit, task, tmp_path):
    one = retrain.unlearn(vit, task, SETTINGS["retrain"])
    for parameter in vit.parameters():
        parameter.fill_(torch.nan)
    two = retrain.unlearn(vit, replace(task, checkpoint=tmp_path / "two.ckpt"), SETTINGS["retrain"])
    assert not changed(weights(one), two)
    assert all(value.isfinite().all() for value in two.state_dict().values())


def test_retrain_takes_the_originals_shape(task, tmp_path):
    shape = vits.ViTShape(image_size=64, patch=16, dim=24, depth=3, heads=3, classes=10)
    data = task.data._replace(coverage=task.data.coverage[:, :16])
    found = retrain.unlearn(vits.new(shape), replace(task, data=data), SETTINGS["retrain"])
    expected = vits.new(shape)
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in expected.state_dict().items()}
    assert found.blocks[0].attn.num_heads == 3 and found.norm.eps == expected.norm.eps


def test_retrain_differs_from_the_original_in_its_seed():
    """From the same seed both would start with the same class head, see the method's docstring."""
    recipe = retrain.Settings().recipe
    assert recipe.seed != train_vit.Recipe().seed and replace(recipe, seed=0) == train_vit.Recipe()


# ---------------------------------------------------------------- the formulas, implemented a second time


def plainly(
    vit: nn.Module,
    losses: list[Callable[[nn.Module], Tensor]],
    lr: float,
    names: Callable[[str], bool] = lambda name: True,
    start: nn.Module | None = None,
) -> dict[str, Tensor]:
    """AdamW by hand: one loss a step, gradients clipped to norm 1, learning rate falling to a tenth, decay 0.01."""
    model = copy.deepcopy(vit if start is None else start).requires_grad_(False)
    trained = [parameter.requires_grad_(True) for name, parameter in model.named_parameters() if names(name)]
    first, second = ([torch.zeros_like(p) for p in trained] for _ in range(2))
    for step, loss in enumerate(losses):
        gradients = torch.autograd.grad(loss(model), trained)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        rate = lr * (1 - 0.9 * step / len(losses))
        with torch.no_grad():
            for p, g, m, v in zip(trained, gradients, first, second):
                g = g * min(1.0, 1 / (norm + 1e-6))
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.999).add_(g * g, alpha=0.001)
                size = (v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                p.mul_(1 - rate * 0.01).sub_(rate * m / (1 - 0.9 ** (step + 1)) / size)
    return {name: value.detach() for name, value in model.state_dict().items()}


def ce(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    logits = model(images)
    return (logits.exp().sum(1).log() - logits[range(len(labels)), labels]).mean()


def kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Of logits, a value an image."""
    p, q = (torch.softmax(logits / temperature, 1) for logits in (teacher, student))
    return (p * (p / q).log()).sum(1)


def of_the_paper(name: str, vit: nn.Module, task: Task, settings) -> dict[str, Tensor]:
    """The weights after the three steps of BRIEF."""
    size = settings.batch
    forget = [task.forget_batch(step, size) for step in range(3)]
    retain = [task.retain_batch(step, size) for step in range(3)]
    if name == "fine_tune":
        return plainly(vit, [partial(ce, batch=batch) for batch in retain], settings.lr)
    if name == "gradient_ascent":
        return plainly(vit, [lambda model, batch=batch: -ce(model, batch) for batch in forget], settings.lr)
    if name == "eu_k":
        torch.manual_seed(task.seed + 1)
        start, fresh = copy.deepcopy(vit), vits.new(SHAPE).state_dict()
        last = {key: value for key, value in fresh.items() if key.startswith(("blocks.1.", "norm.", "head."))}
        start.load_state_dict(last, strict=False)
        return plainly(vit, [partial(ce, batch=batch) for batch in retain], settings.lr, last.__contains__, start)
    if name == "scrub":
        square = settings.temperature**2

        def away(model: nn.Module, images: Tensor) -> Tensor:
            return kl(vit(images), model(images), settings.temperature).mean() * square

        def stay(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return settings.alpha * away(model, batch[0]) + settings.gamma * ce(model, batch)

        min_steps = [partial(stay, batch=batch) for batch in retain]
        return plainly(vit, [min_steps[0], lambda model: -away(model, forget[1][0]), min_steps[2]], settings.lr)
    if name == "bad_teacher":
        torch.manual_seed(task.seed + 1)
        ignorant = vits.new(SHAPE)
        pairs = [(task.forget_batch(step, settings.forget_batch)[0], retain[step][0]) for step in range(3)]

        def learn(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
            from_bad, from_good = kl(ignorant(pair[0]), model(pair[0])), kl(vit(pair[1]), model(pair[1]))
            return (from_bad.sum() + from_good.sum()) / (size + settings.forget_batch)

        return plainly(vit, [partial(learn, pair=pair) for pair in pairs], settings.lr)
    if name == "boundary_shrink":
        moved = [(images, nearest(vit, images, labels, settings.bound)) for images, labels in forget]
        return plainly(vit, [partial(ce, batch=batch) for batch in moved], settings.lr)
    assert name == "unsir"
    noise = error_maximising(vit, task, settings), torch.full((size,), TARGET)
    losses = [lambda model, batch=batch: ce(model, batch) + ce(model, noise) for batch in retain[:2]]
    return plainly(vit, [*losses, partial(ce, batch=retain[2])], settings.lr)


def nearest(vit: nn.Module, images: Tensor, labels: Tensor, bound: float) -> Tensor:
    """FGSM in pixels from 0 to 1, and the best wrong class there, image by image."""
    found = []
    for image, label in zip(images, labels):
        pixels = (image * 0.5 + 0.5).requires_grad_(True)
        logits = vit((pixels[None] - 0.5) / 0.5)[0]
        (slope,) = torch.autograd.grad(logits.exp().sum().log() - logits[label], pixels)
        there = vit(((pixels + bound * slope.sign()).clip(0, 1)[None] - 0.5) / 0.5)[0].tolist()
        found.append(max((value, c) for c, value in enumerate(there) if c != label)[1])
    return torch.tensor(found)


def error_maximising(vit: nn.Module, task: Task, settings: unsir.Settings) -> Tensor:
    """Adam by hand on the noise."""
    torch.manual_seed(task.seed)
    noise = torch.randn(settings.batch, 3, 64, 64)
    labels = torch.full((settings.batch,), TARGET)
    m = v = torch.zeros_like(noise)
    for step in range(1, settings.noise_steps + 1):
        leaf = noise.clone().requires_grad_(True)
        loss = settings.noise_penalty * leaf.pow(2).flatten(1).sum(1).mean() - ce(vit, (leaf, labels))
        (g,) = torch.autograd.grad(loss, leaf)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        noise = noise - settings.noise_lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    return noise


SECOND = ["fine_tune", "gradient_ascent", "eu_k", "scrub", "bad_teacher", "boundary_shrink", "unsir"]


@pytest.mark.parametrize("name", SECOND)
def test_a_method_is_its_papers_formula(vit, task, name):
    """Three steps in float32, against a plain implementation of the formula and of AdamW."""
    task = replace(task, precision=torch.float32)
    found = method(name).unlearn(vit, task, SETTINGS[name])
    expected = of_the_paper(name, vit, task, SETTINGS[name])
    for key, value in found.state_dict().items():
        # AdamW takes gradients that are zero but for rounding for full ones, such as those of the keys' biases.
        apart = (value - expected[key]).abs()
        assert apart.mean() < 2e-7 and (apart > 1e-6).float().mean() <= 0.34, key
        if "qkv.bias" not in key:
            assert apart.max() < SETTINGS[name].lr / 20, key


def test_the_noise_raises_the_error(vit, task):
    settings = unsir.Settings(batch=4, noise_penalty=0.0)
    noise = unsir.error_maximising_noise(vit, task, settings)
    labels = torch.full((4,), TARGET)
    start = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert cross_entropy(vit, noise, labels) > cross_entropy(vit, start, labels) + 0.1
    small = unsir.error_maximising_noise(vit, task, unsir.Settings(batch=4))
    assert small.square().mean() < noise.square().mean() / 10


@pytest.mark.parametrize("bound", [0.0, 0.1])
def test_the_nearest_class_is_never_the_images_own(vit, task, bound):
    images, labels = task.any_batch(0, 40)
    found = boundary_shrink.nearest_wrong_class(vit, images, labels, task, bound)
    assert (found != labels).all()
    assert torch.equal(found, nearest(vit, images, labels, bound))


def test_turns_of_scrub():
    """Two rounds with max steps, then none."""
    settings = scrub.Settings(rounds_with_max=2, opening=1, max_steps=2, min_steps=3)
    kinds = "".join("M" if scrub.is_max_step(step, settings) else "m" for step in range(18))
    assert kinds == "mMMmmm" + "mMMmmm" + "mmmmmm"


# ---------------------------------------------------------------- SSD


def test_dampening_by_hand():
    """Importances to the whole and to the forget set: below, at, above ten times; both 0; never up."""
    weight = torch.tensor([2.0, 2.0, 2.0, -2.0, 2.0, 2.0])
    whole = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.0, 0.0])
    forget = torch.tensor([9.0, 10.0, 20.0, 50.0, 0.0, 3.0])
    found = ssd.dampened(weight, whole, forget, ssd.Settings(alpha=10, dampening=1))
    assert found.tolist() == pytest.approx([2.0, 2.0, 2 / 20, -2 * 0.5 / 50, 2.0, 0.0])
    found = ssd.dampened(weight, whole, forget, ssd.Settings(alpha=1, dampening=15))
    assert found.tolist() == pytest.approx([2.0, 2.0, 2 * 15 / 20, -2 * 15 * 0.5 / 50, 2.0, 0.0])


def test_importances_are_mean_squared_gradients(vit, task):
    settings = ssd.Settings(batch=4, batches=3)
    model, total = trainable_copy(vit).requires_grad_(True), 0
    for step in range(3):
        model.zero_grad()
        ce(model, task.forget_batch(step, 4)).backward()
        total = total + model.head.weight.grad**2
    found = ssd.importances(vit, task.forget_batch, settings)
    assert found.keys() == dict(vit.named_parameters()).keys()
    assert torch.allclose(found["head.weight"], total / 3, atol=1e-7)


def test_ssd_dampens_by_both_importances(vit, task):
    settings = SETTINGS["ssd"]
    found = dict(ssd.unlearn(vit, task, settings).named_parameters())
    whole, forget = (ssd.importances(vit, batch, settings) for batch in (task.any_batch, task.forget_batch))
    for name, old in vit.named_parameters():
        chosen = forget[name] > settings.alpha * whole[name]
        assert torch.equal(found[name][~chosen], old[~chosen])
        assert (found[name][chosen].abs() <= old[chosen].abs() / settings.alpha + 1e-7).all()
    assert [look.step for look in task.looks] == [0, 1]


# ---------------------------------------------------------------- several processes


def as_process(monkeypatch, index: int | None) -> None:
    """Makes this one of two processes, without the other; None: alone."""
    state = SimpleNamespace(num_processes=2, process_index=index, is_main_process=index == 0)
    monkeypatch.setattr(processes, "_state", None if index is None else state)
    monkeypatch.setattr(processes, "average", lambda tensors: None)


def slopes(loss: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("name", sorted(set(TITLES) - {"retrain", "ssd"}))
def test_two_processes_average_to_the_slope_of_one(monkeypatch, vit, task, name):
    """The losses at a model that has moved a little, and at step 1 (SCRUB's goes up there)."""
    model = trainable_copy(vit).requires_grad_(True)
    with torch.no_grad():
        model.head.weight.mul_(1.5)
    found = {}
    for index in (None, 0, 1):
        as_process(monkeypatch, index)
        loss = loss_of(method(name), monkeypatch, vit, task, SETTINGS[name])
        found[index] = slopes(loss(model, 1), model)
    assert torch.allclose((found[0] + found[1]) / 2, found[None], atol=1e-6)
    assert not torch.allclose(found[0], found[1], atol=1e-4)


@pytest.mark.parametrize("masks", [True, False])
def test_two_processes_retrain_with_the_slope_of_one(monkeypatch, vit, task, masks):
    """Token labels are a mean over the patches that have one, of which the halves of a batch hold different numbers."""
    if not masks:
        task = replace(task, data=task.data._replace(coverage=np.full_like(task.data.coverage, UNKNOWN)))
    model = nn.ModuleDict({"vit": trainable_copy(vit), "background": nn.Linear(SHAPE.dim, 1)}).requires_grad_(True)
    found = {}
    for index in (None, 0, 1):
        as_process(monkeypatch, index)
        arguments = model, task.data, np.arange(60), RECIPE, 1, CPU
        loss, _ = train_vit._step(*arguments, precision=torch.float32)
        found[index] = slopes(loss, model["vit"])
    assert torch.allclose((found[0] + found[1]) / 2, found[None], atol=1e-6) and found[None].isfinite().all()


def test_a_batch_that_cannot_be_halved_is_refused(monkeypatch, task):
    as_process(monkeypatch, 1)
    assert len(task.retain_batch(0, 6)[1]) == 3
    with pytest.raises(ValueError, match="a batch of 5 cannot be divided among 2 processes"):
        task.retain_batch(0, 5)


# ---------------------------------------------------------------- a training that diverges


@pytest.mark.parametrize("name", sorted(set(TITLES) - {"retrain", "ssd"}))
def test_a_training_that_diverges_stops(vit, task, name):
    settings = replace(SETTINGS[name], lr=1e37, stop=Stop(steps=6, forget_at_most=-1, every=1))
    with pytest.raises(Diverged, match="diverged at step .*smaller learning rate|no finite numbers.*--set"):
        method(name).unlearn(vit, task, settings)
    assert all(weight.isfinite().all() for weight in vit.parameters())


def test_the_model_of_the_last_look_is_kept(monkeypatch, vit, task):
    script(monkeypatch, Accuracies(1, 1), *[Accuracies(1, 1)] * 9)
    breaks = []

    def loss(model: nn.Module, step: int) -> Tensor:
        breaks.append(step)
        value = F.cross_entropy(vits.logits(model, task.retain_batch(step, 4)[0]), task.retain_batch(step, 4)[1])
        return value * (torch.nan if step == 5 else 1)

    with pytest.raises(Diverged, match="step 6: its loss is no finite number.*step 4.*kept in"):
        descend(vit, task, loss, 1e-3, Stop(steps=9, forget_at_most=-1, every=2))
    assert breaks[-1] == 5
    (kept,) = task.checkpoint.parent.glob("*step4*")
    weights_kept = torch.load(kept, weights_only=True)
    assert weights_kept.keys() == vit.state_dict().keys()
    assert all(weight.isfinite().all() for weight in weights_kept.values())
    assert not torch.equal(weights_kept["head.weight"], vit.head.weight)


def test_retraining_that_diverges_keeps_its_last_checkpoint(monkeypatch, vit, task):
    monkeypatch.setattr(train_vit.time, "monotonic", iter(range(0, 10**6, 61)).__next__)  # a checkpoint each step
    steps = train_vit._step

    def breaks(model, data, allowed, recipe, step, *rest):
        loss, accuracy = steps(model, data, allowed, recipe, step, *rest)
        return loss * (torch.nan if step == 2 else 1), accuracy

    monkeypatch.setattr(train_vit, "_step", breaks)
    with pytest.raises(Diverged, match="step 3: its loss.*muon_lr"):
        retrain.unlearn(vit, task, SETTINGS["retrain"])
    kept = torch.load(task.checkpoint, weights_only=True)
    assert kept["step"] == 2 and all(weight.isfinite().all() for weight in kept["model"].values())


def test_noise_that_diverges_names_its_own_rate(vit, task):
    with pytest.raises(Diverged, match="noise_lr"):
        unsir.unlearn(vit, task, replace(SETTINGS["unsir"], noise_lr=1e30))


def test_one_process_without_numbers_stops_all(monkeypatch, vit, task):
    """What was averaged is looked at, and the mean of a NaN is NaN everywhere."""

    def average(tensors) -> None:
        for tensor in tensors:
            tensor.mul_(torch.nan)  # the other process's share

    monkeypatch.setattr(processes, "average", average)
    with pytest.raises(Diverged, match="step 1"):
        descend(vit, task, lambda model, step: vits.logits(model, task.any_batch(0, 4)[0]).mean(), 1e-3, BRIEF)
