"""Training equals PEFT's own LoRA, step for step: one adapter for everybody, and everybody's own in mixed batches."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

from peft_fixtures import OLD_NAME, PEOPLE, TEXTS, TINY, base_for, loaded, peft_scores, said, state_of, world  # noqa: E402

from datasets_registry.records import Comparisons  # noqa: E402
from datasets_registry.text_models import load_text_model  # noqa: E402
from methods.backbone import training  # noqa: E402
from methods.backbone.layout import unpacked  # noqa: E402
from methods.backbone.peft_files import HEAD_FILE, write_adapter  # noqa: E402
from methods.interface import Budget  # noqa: E402
from methods.registry import create  # noqa: E402

pytestmark = pytest.mark.filterwarnings(OLD_NAME)

STEPS = {"rank": 3, "alpha": 5.0, "epochs": 2, "batch": 6, "lr": 0.003, "weight_decay": 0.01, "select": "last"}


@dataclass
class Step:
    """A step of our training: its batch (`user` is a position among the people), loss, and the factors after it."""

    batch: Comparisons
    loss: float
    shared: dict[str, torch.Tensor]
    table: torch.Tensor


@pytest.fixture
def steps(monkeypatch):
    """Return a list that every training step is noted in."""
    taken, step = [], training.train_step

    def noted(model, factors, table, *rest):
        loss = step(model, factors, table, *rest)
        shared = {n: v.detach().clone() for n, v in factors.shared.items()}
        taken.append(Step(table, loss, shared, factors.table.clone()))
        return loss

    monkeypatch.setattr(training, "train_step", noted)
    return taken


def loss_of(model, tokenizer, head, table, total):
    """Return the weighted mean NLL of a batch of whole weight `total`, or one person's part of it."""
    first, second = (peft_scores(model, tokenizer, head, [TEXTS[i] for i in at]) for at in (table.first, table.second))
    label, weight = torch.from_numpy(table.label), torch.from_numpy(table.weight)
    each = torch.nn.functional.binary_cross_entropy_with_logits(first - second, label, reduction="none")
    return (each * weight).sum() / total


def by_our_names(model, head, layers):
    """Return the factors of a PEFT model by our names and shapes."""
    found = {}
    for name, value in peft.get_peft_model_state_dict(model, save_embedding_layers=False).items():
        place = name.removeprefix("base_model.model.").removeprefix("model.")
        if place == "score.weight":
            found["head"] = value[0]
        else:
            layer, _, kind = place.partition(".lora_")
            found[f"{layer}/{kind[0].lower()}"] = value if kind[0] == "A" else value.T
    if head is not None:
        found["head"] = head
    assert set(found) == {"head", *(f"{x.name}/{part}" for x in layers for part in "ab")}
    return {name: value.detach().clone() for name, value in found.items()}


def near(name, got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, msg=lambda why: f"{name}: {why}")


def trained_of(model, head):
    return [p for p in model.parameters() if p.requires_grad] + ([] if head is None else [head])


@pytest.mark.parametrize("encoder", TINY)
def test_a_global_adapter_trains_as_pefts_own_does(encoder, tmp_path, steps):
    torch.manual_seed(11)
    tokenizer, base = base_for(encoder)
    causal = encoder == "tiny-llama@1"
    lora = peft.LoraConfig(
        task_type="SEQ_CLS" if causal else "FEATURE_EXTRACTION",
        r=STEPS["rank"],
        lora_alpha=int(STEPS["alpha"]),
        target_modules=list(load_text_model(encoder).targets),
    )
    model = peft.get_peft_model(base, lora)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    head = None if causal else (0.1 * torch.randn(32)).requires_grad_()
    if head is not None:
        save_file({"head": head.detach()}, tmp_path / HEAD_FILE)

    method = create("lora-global", **STEPS, start=str(tmp_path))
    method.fit(said(), Comparisons.empty(), world(encoder), Budget())

    assert len(steps) >= 12
    optimiser = torch.optim.AdamW(trained_of(model, head), weight_decay=STEPS["weight_decay"])
    for done, step in enumerate(steps):
        optimiser.param_groups[0]["lr"] = STEPS["lr"] * (1 - done / len(steps))
        theirs = loss_of(model.train(), tokenizer, head, step.batch, float(step.batch.weight.sum()))
        optimiser.zero_grad()
        theirs.backward()
        optimiser.step()
        assert theirs.item() == pytest.approx(step.loss, rel=1e-5)
        for name, value in by_our_names(model, head, method.ready()[0].layers).items():
            near(name, step.shared[name], value)
    moved = {n: (v - steps[0].shared[n]).abs().max() for n, v in steps[-1].shared.items()}
    assert all(v > 1e-3 for v in moved.values())


@pytest.mark.parametrize("encoder", TINY)
def test_everybodys_adapter_in_mixed_batches_trains_as_alone_in_peft(encoder, tmp_path, steps):
    begun = create("lora-local", **{**STEPS, "epochs": 0})
    begun.fit(said(), Comparisons.empty(), world(encoder), Budget())
    people = []
    for person in range(PEOPLE):
        write_adapter(begun, state_of(begun, person), tmp_path / str(person), user=str(person))
        model, tokenizer, head = loaded(encoder, tmp_path / str(person), is_trainable=True)
        head = None if head is None else head.requires_grad_()
        optimiser = torch.optim.AdamW(trained_of(model, head), weight_decay=STEPS["weight_decay"])
        people.append((model, tokenizer, head, optimiser))
    assert not steps

    method = create("lora-local", **STEPS)
    method.fit(said(), Comparisons.empty(), world(encoder), Budget())

    layout = method._factors.layout
    assert len(steps) >= 12
    assert any(1 < len(np.unique(step.batch.user)) < PEOPLE for step in steps)
    for done, step in enumerate(steps):
        together = 0.0
        for person in np.unique(step.batch.user):
            model, tokenizer, head, optimiser = people[person]
            optimiser.param_groups[0]["lr"] = STEPS["lr"] * (1 - done / len(steps))
            part = step.batch.take(step.batch.user == person)
            theirs = loss_of(model.train(), tokenizer, head, part, float(step.batch.weight.sum()))
            optimiser.zero_grad()
            theirs.backward()
            optimiser.step()
            together += theirs.item()
        assert together == pytest.approx(step.loss, rel=1e-5)
        for person, (model, _, head, _) in enumerate(people):
            own = unpacked(step.table[person], layout.own)
            for name, value in by_our_names(model, head, layout.layers).items():
                near(name, own[name], value)
