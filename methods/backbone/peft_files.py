"""Adapters as PEFT keeps them in files: one person's is written for others to load, and any is read as a start.

PEFT stores lora_A.weight [r, d_in] and lora_B.weight [d_out, r], scaled by lora_alpha / r; ours are A [r, d_in] and
B [r, d_out], so that B is transposed. A person's core C is written as C A. Weights are safetensors only.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import MethodError, RequestError
from datasets_registry.text_models import TextModel
from methods.backbone.adapted_linear import linear_widths
from methods.backbone.layout import HEAD, LayerShape, Layout, sizes, unpacked
from methods.backbone.peft_readme import OURS, Base, readme
from methods.backbone.reward_model import RewardModel
from methods.interface import UserState

if TYPE_CHECKING:
    from methods.backbone.method import BackboneMethod
    from methods.backbone.training import Factors

CONFIG, WEIGHTS, HEAD_FILE = "adapter_config.json", "adapter_model.safetensors", "reward_head.safetensors"
ROOT = "base_model.model."
# Keys of an adapter's configuration under which its layers compute something else than W x + (lora_alpha / r) B A x.
OTHER_FORMS = {
    "use_rslora": "its scale is lora_alpha / sqrt(r)",
    "use_dora": "it also learns magnitudes",
    "use_qalora": "it pools its input",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "it has singular values of its own",
    "lora_bias": "it has a bias",
    "rank_pattern": "its layers differ in rank",
    "alpha_pattern": "its layers differ in scale",
    "layer_replication": "it repeats layers",
    "trainable_token_indices": "it trains embeddings",
    "target_parameters": "it adapts parameters that belong to no linear layer",
    "alora_invocation_tokens": "it acts on some tokens only",
    "arrow_config": "it routes among adapters",
}
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
_OUTPUT_LAYERS = ("score", "classifier", "lm_head", "v_head")


@dataclass(frozen=True, slots=True)
class Host:
    """The model of transformers that an adapter is loaded on: PEFT's task, and where the trunk lies in it.

    `prefix` stands before the trunk's names; `transposed` tells layers that keep [d_in, d_out], as GPT-2's.
    """

    task: Literal["SEQ_CLS", "FEATURE_EXTRACTION"]
    prefix: str
    targets: list[str]
    transposed: bool

    @classmethod
    def of(cls, text: TextModel, layers: tuple[LayerShape, ...], width: int) -> Host:
        """Return a classifier with one output where the reward is read from the last token, else the plain model.

        A causal family that transformers has no such classifier for gets the plain model, too.
        """
        from transformers import AutoModel

        config = copy.deepcopy(text.trunk.config)
        with torch.device("meta"):  # names and widths only
            found = _classifier(config, layers, width) if text.pooling == "last" else None
            plain: Any = AutoModel.from_config(config) if found is None else None
        if found is not None:
            prefix, model = f"{found.base_model_prefix}.", found
        else:
            prefix, model = "", plain
        modules = dict(model.named_modules())
        targets, transposed = [prefix + layer.name for layer in layers], False
        for name in targets:
            transposed |= not isinstance(modules[name], torch.nn.Linear)
        short = sorted({name.rpartition(".")[2] for name in targets})
        if {n for n in modules if n.rpartition(".")[2] in short} == set(targets):
            targets = short
        return cls("FEATURE_EXTRACTION" if found is None else "SEQ_CLS", prefix, targets, transposed)


def _classifier(config: Any, layers: tuple[LayerShape, ...], width: int) -> Any:
    """Return the family's classifier of one output, on the current device; None where it reads something else."""
    from transformers import AutoModelForSequenceClassification

    config.num_labels = 1
    try:
        model: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError:  # the family has none
        return None
    score = getattr(model, "score", None)
    named = dict(model.named_modules())
    there = all(linear_widths(named.get(f"{model.base_model_prefix}.{n.name}", model)) for n in layers)
    plain = isinstance(score, torch.nn.Linear) and score.bias is None and score.in_features == width
    return model if there and plain else None


def must_have_adapters(method: object) -> BackboneMethod:
    """Return the method as a backbone method; raises RequestError for one that has no adapter to write."""
    from methods.backbone.method import BackboneMethod
    from methods.registry import built_in

    made = {n: cls() for n, cls in built_in().items() if issubclass(cls, BackboneMethod)}
    can = sorted(n for n, each in made.items() if each.adapters and each.soft is None)
    then = f"methods with adapters: {', '.join(can)}"
    if not isinstance(method, BackboneMethod):
        name = getattr(getattr(method, "spec", None), "name", type(method).__name__)
        raise RequestError(f"{name} trains no adapter inside a text model, so it has none to write; {then}")
    if not method.adapters:
        raise RequestError(f"{method.spec.name} changes the weights of the trunk itself and has no adapter; {then}")
    if method.soft is not None:
        raise RequestError(
            f"{method.spec.name} puts a soft prompt before every text, which a LoRA adapter cannot hold; {then}"
        )
    return method


def write_adapter(method: BackboneMethod, state: UserState, folder: Path, *, user: str) -> list[Path]:
    """Write one person's adapter as a folder that `peft.PeftModel.from_pretrained(base, folder)` reads; return files.

    The base is a sequence classifier of one output for causal models; otherwise the plain model, and the head lies in
    reward_head.safetensors under "head" [d]. `state` is one of a fitted method, `user` what README.md calls the person.
    Raises RequestError for a method without adapters or a folder that holds something else, MethodError for factors
    that are not finite.
    """
    must_have_adapters(method)
    must_be_free(folder)
    model, factors = method.ready()
    own = _own_factors(method, factors, state)
    if strange := [name for name, value in own.items() if not bool(value.isfinite().all())]:
        raise MethodError(f"{method.spec.name}: {strange[0]} of {user!r:.60} is not finite; train with a lower lr")
    host = Host.of(model.text, model.layers, model.width)
    base = Base.of(model.text, method.dtype)
    weights: dict[str, Tensor] = {}
    for layer in model.layers:
        place = f"{ROOT}{host.prefix}{layer.name}"
        a, core = own[f"{layer.name}/a"], own.get(f"{layer.name}/core")
        if core is not None:
            a = core @ a if core.dim() == 2 else core[:, None] * a
        weights[f"{place}.lora_A.weight"] = a  # (r, d_in)
        weights[f"{place}.lora_B.weight"] = own[f"{layer.name}/b"].T  # (d_out, r)
    files: dict[str, bytes] = {}
    if host.task == "SEQ_CLS":
        weights[f"{ROOT}score.weight"] = own[HEAD][None]  # (1, d)
    else:
        files[HEAD_FILE] = _packed({"head": own[HEAD]})
    files[WEIGHTS] = _packed(weights)
    files["README.md"] = readme(base, method.spec.name, method.world.dataset, user, host.task, host.prefix).encode()
    files[CONFIG] = (json.dumps(_config(method, host, base), indent=2) + "\n").encode()
    (folder / CONFIG).unlink(missing_ok=True)  # it comes back last: half an adapter cannot be loaded
    (folder / HEAD_FILE).unlink(missing_ok=True)
    for name, raw in files.items():
        write_atomically(folder / name, raw)
    return [folder / name for name in files]


def _config(method: BackboneMethod, host: Host, base: Base) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": host.task,
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "r": method.rank,
        "lora_alpha": int(method.alpha) if float(method.alpha).is_integer() else method.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": host.transposed,
        "target_modules": host.targets,
        "modules_to_save": ["score"] if host.task == "SEQ_CLS" else None,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
    }


def _own_factors(method: BackboneMethod, factors: Factors, state: UserState) -> dict[str, Tensor]:
    """Return every factor that a person's rewards are made of, float32 on the CPU."""
    own = factors.layout.own
    named: dict[str, Tensor] = dict(factors.shared)
    if own:
        row, size = state.arrays.get("factors"), sum(sizes(own))
        if row is None or row.shape != (size,):
            told = "nothing" if row is None else f"shape {row.shape}"
            raise RequestError(
                f"{method.spec.name}: the state holds {told} under 'factors'; it must be [{size}], as `adapt` of this "
                "method gives it"
            )
        named |= unpacked(torch.from_numpy(np.array(row, np.float32)), own)
    return {name: value.detach().float().cpu() for name, value in named.items()}


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    # PEFT writes this note, and transformers asks for it
    return save({n: t.contiguous().clone() for n, t in tensors.items()}, metadata={"format": "pt"})


def must_be_free(folder: Path) -> None:
    """Raise RequestError for a folder that an adapter cannot be written to: it holds something else than our own."""
    if folder.is_dir() and any(folder.iterdir()):
        told = folder / "README.md"
        if not (folder / CONFIG).is_file() or not told.is_file() or OURS not in told.read_text("utf-8", "replace"):
            raise RequestError(f"{folder} holds files that hetpref did not export; give an empty or new folder")
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file; give an empty or new folder")


def read_adapter(folder: str | Path, layout: Layout, model: RewardModel, *, scale: float) -> dict[str, Tensor]:
    """Return the shared factors of a PEFT LoRA folder, float32 by the names of `layout`, which has every factor shared.

    `scale` is alpha / rank. The head is among them where the folder has one that fits: "score" of a causal model, or
    reward_head.safetensors. Raises RequestError that says what to change where rank, scale, layers or shapes differ, or
    the adapter is no plain LoRA.
    """
    where = Path(folder)
    if not layout.layers:
        raise RequestError(f"start={str(folder)!r} is an adapter, and this method has none; leave start out")
    config = _read_config(where)
    _must_be_plain(where, config)
    _must_agree(where, config, layout.rank, scale)
    factors, saved = _sorted_out(where, _read_tensors(where / WEIGHTS), layout)
    found: dict[str, Tensor] = {}
    for layer in layout.layers:
        for part, width in (("a", layer.d_in), ("b", layer.d_out)):
            value = factors[f"{layer.name}/{part}"]
            given, wanted = tuple(value.shape), (layout.rank, width) if part == "a" else (width, layout.rank)
            if given != wanted:
                raise RequestError(
                    f"{where}: lora_{part.upper()} of {layer.name} has shape {list(given)}, {model.text.id} needs "
                    f"{list(wanted)}; give an adapter of this model"
                )
            found[f"{layer.name}/{part}"] = value if part == "a" else value.T.contiguous()
    head = _read_head(where, saved, layout.width, model)
    if head is not None:
        found[HEAD] = head
    if strange := [name for name, value in found.items() if not bool(value.isfinite().all())]:
        raise RequestError(f"{where}: {strange[0]} is not finite; give an adapter whose training went well")
    return {name: value.to(model.device) for name, value in found.items()}


def _read_config(where: Path) -> dict[str, Any]:
    path = where / CONFIG
    if not path.is_file():
        raise RequestError(
            f"start={str(where)!r} holds no {CONFIG}; give a folder that PEFT's save_pretrained or hetpref export peft "
            "has written"
        )
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as why:
        raise RequestError(f"{path} is not JSON ({why}); write the adapter again") from why
    if not isinstance(told, dict) or told.get("peft_type") != "LORA":
        kind = told.get("peft_type") if isinstance(told, dict) else None
        raise RequestError(f"{path} has peft_type {kind!r}; allowed: 'LORA'")
    return told


def _must_be_plain(where: Path, config: Mapping[str, Any]) -> None:
    for key, why in OTHER_FORMS.items():
        if config.get(key):
            raise RequestError(f"{where}: the adapter has {key}, that is, {why}; give a plain LoRA adapter")
    if config.get("bias", "none") != "none":
        raise RequestError(f"{where}: the adapter has bias={config['bias']!r}; allowed: 'none'")
    begun = config.get("init_lora_weights")
    if begun not in _PLAIN_STARTS:
        raise RequestError(
            f"{where}: the adapter has init_lora_weights={begun!r}, which may change the weights of the trunk, too; "
            "convert it to a plain LoRA adapter with PEFT"
        )


def _must_agree(where: Path, config: Mapping[str, Any], rank: int, scale: float) -> None:
    r, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(r, int) or isinstance(r, bool) or r < 1 or not isinstance(alpha, int | float):
        raise RequestError(f"{where}: {CONFIG} has r={r!r} and lora_alpha={alpha!r}; both must be numbers above 0")
    if r != rank:
        raise RequestError(f"{where}: the adapter has r={r}, this method rank={rank}; give rank={r} and alpha={alpha}")
    if abs(alpha / r - scale) > 1e-6 * abs(scale):
        raise RequestError(
            f"{where}: the adapter is scaled by lora_alpha / r = {alpha / r:g}, this method by alpha / rank = "
            f"{scale:g}; give alpha={alpha}"
        )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        pickled = path.with_suffix(".bin")
        also = f"; {pickled.name} is a pickle, which is never opened: save it anew as safetensors" * pickled.is_file()
        raise RequestError(f"{path.parent} holds no {path.name}{also or '; give a whole adapter folder'}")
    try:
        return {name: value.float() for name, value in load_file(path).items()}
    except (SafetensorError, ValueError, KeyError) as why:
        raise RequestError(f"{path} is not a whole safetensors file ({why}); write the adapter again") from why


def _sorted_out(
    where: Path, tensors: Mapping[str, Tensor], layout: Layout
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the factors by our names ("LAYER/a", PEFT's shapes), and the tensors of output layers by theirs."""
    factors: dict[str, Tensor] = {}
    saved: dict[str, Tensor] = {}
    strange: list[str] = []
    for key, value in tensors.items():
        name = key.removeprefix(ROOT)
        module, found, kind = name.rpartition(".lora_")
        if not found and name.partition(".")[0] in _OUTPUT_LAYERS:
            saved[name] = value
            continue
        layer = next((x.name for x in layout.layers if module == x.name or module.endswith(f".{x.name}")), None)
        if found and layer is not None and kind in ("A.weight", "B.weight") and value.dim() == 2:
            factors[f"{layer}/{kind[0].lower()}"] = value
        else:
            strange.append(name)
    ours = ", ".join(sorted({x.name.rpartition(".")[2] for x in layout.layers}))
    advice = "give targets and adapt_layers as the adapter has them, or another adapter"
    if strange:
        raise RequestError(
            f"{where}: {len(strange)} tensors belong to no layer that this method adapts ({ours} of "
            f"{len(layout.layers)} layers), the first is {strange[0]!r}; {advice}"
        )
    wanted = [f"{x.name}/{part}" for x in layout.layers for part in "ab"]
    if lacking := [name for name in wanted if name not in factors]:
        layer, part = lacking[0].rsplit("/", 1)
        raise RequestError(
            f"{where}: it lacks {len(lacking)} of {len(wanted)} factors of the layers that this method adapts ({ours} "
            f"of {len(layout.layers)} layers), the first is lora_{part.upper()} of {layer!r}; {advice}"
        )
    return factors, saved


def _read_head(where: Path, saved: Mapping[str, Tensor], width: int, model: RewardModel) -> Tensor | None:
    """Return the head [width], None where the folder has none that reads what ours reads."""
    if (where / HEAD_FILE).is_file():
        head = _read_tensors(where / HEAD_FILE).get("head")
        if head is None or head.shape != (width,):
            told = "no tensor 'head'" if head is None else f"a head of shape {list(head.shape)}"
            raise RequestError(f"{where / HEAD_FILE} holds {told}; {model.text.id} needs [{width}]")
        return head
    score = saved.get("score.weight")
    others = sorted(name for name in saved if name != "score.weight")
    if score is not None and model.text.pooling == "last":
        if score.shape != (1, width):
            raise RequestError(
                f"{where}: score.weight has shape {list(score.shape)}; a reward is one number, which needs [1, {width}]"
            )
    elif score is not None:
        others, score = ["score.weight", *others], None
    if others:
        print(f"{where}: {', '.join(others)} is no head of {model.text.id} and is left out", file=sys.stderr)
    return None if score is None else score[0]
