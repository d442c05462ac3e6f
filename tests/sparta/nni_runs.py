"""NNI 3.0's pruners and quantizers run for real on one small model. Needs NNI; see record_nni.py and
test_nni_real.py.

Each run returns what NNI returned, untouched: masks `{module: {target: tensor}}` or a quantizer config, with
the state of the model after it (fine-tuning pruners change weights) and, for quantizers, the output of the
simulated model.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

warnings.filterwarnings("ignore")


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x))).mean((2, 3))
        return self.fc2(torch.relu(self.fc1(x)))


def small():
    torch.manual_seed(0)
    return Small()


def batch(n=8):
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def _evaluator(model):
    import nni
    from nni.compression import TorchEvaluator

    def training_step(batch, model, *args, **kwargs):
        x, y = batch
        return nn.functional.cross_entropy(model(x), y)

    def training_func(
        model, optimizers, training_step, lr_schedulers=None, max_steps=None, max_epochs=None, *a, **k
    ):
        model.train()
        for step in range(max_steps or 20):
            x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(100 + step))
            optimizers.zero_grad()
            loss = training_step((x, (x.sum((1, 2, 3)) > 0).long()), model)
            loss = loss if isinstance(loss, torch.Tensor) else loss[0]
            loss.backward()
            optimizers.step()

    def evaluating_func(model):
        with torch.no_grad():
            for i in range(4):
                model(torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(200 + i)))
        return 0.0

    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=0.05)
    return TorchEvaluator(training_func, optimizer, training_step, evaluating_func=evaluating_func)


def _config():
    return [{"op_types": ["Linear", "Conv2d"], "sparse_ratio": 0.5, "exclude_op_names": ["fc2"]}]


def _prune(make):
    model = small()
    pruner = make(model)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return {"masks": {m: dict(t) for m, t in masks.items()}, "state": model.state_dict()}


def pruners():
    """name -> thunk."""
    from nni.compression import pruning as p

    def norm(cls):
        return lambda: _prune(lambda m: cls(m, _config()))

    def slim():
        model = small()
        config = [{"op_types": ["BatchNorm2d"], "sparse_ratio": 0.5}]
        pruner = p.SlimPruner(model, config, _evaluator(model), training_steps=10)
        _, masks = pruner.compress(None, None)
        pruner.unwrap_model()
        return {"masks": {m: dict(t) for m, t in masks.items()}, "state": model.state_dict()}

    def taylor():
        model = small()
        pruner = p.TaylorPruner(model, _config(), _evaluator(model), training_steps=5)
        _, masks = pruner.compress()
        pruner.unwrap_model()
        return {"masks": {m: dict(t) for m, t in masks.items()}, "state": model.state_dict()}

    def movement():
        model = small()
        pruner = p.MovementPruner(model, _config(), _evaluator(model), warmup_step=2, cooldown_begin_step=16)
        _, masks = pruner.compress(20, None)
        pruner.unwrap_model()
        return {"masks": {m: dict(t) for m, t in masks.items()}, "state": model.state_dict()}

    def agp():
        model = small()
        inner = p.L1NormPruner(model, _config(), _evaluator(model))
        pruner = p.AGPPruner(inner, interval_steps=2, total_times=4)
        _, masks = pruner.compress(10, None)
        pruner.unwrap_model()
        return {"masks": {m: dict(t) for m, t in masks.items()}, "state": model.state_dict()}

    def linear():
        model = small()
        inner = p.TaylorPruner(model, _config(), _evaluator(model), training_steps=2)
        pruner = p.LinearPruner(inner, interval_steps=4, total_times=3)
        _, masks = pruner.compress(16, None)
        pruner.unwrap_model()
        return {"masks": {m: dict(t) for m, t in masks.items()}, "state": model.state_dict()}

    def block():
        return _prune(
            lambda m: p.LevelPruner(m, [{"op_names": ["fc1"], "sparse_ratio": 0.5, "granularity": [4, 4]}])
        )

    return {
        "level": norm(p.LevelPruner),
        "l1": norm(p.L1NormPruner),
        "l2": norm(p.L2NormPruner),
        "fpgm": norm(p.FPGMPruner),
        "slim": slim,
        "taylor": taylor,
        "movement": movement,
        "agp": agp,
        "linear": linear,
        "block": block,
    }


def _weights(dtype="int8", scheme="symmetric", granularity="default"):
    setting = {"weight": {"granularity": granularity, "quant_scheme": scheme, "quant_dtype": dtype}}
    return [{"op_types": ["Linear", "Conv2d"], "target_names": ["weight"], "quant_dtype": dtype,
             "target_settings": setting}]  # fmt: skip


def _activations(dtype="int8"):
    settings = {t: {"quant_scheme": "affine" if t != "weight" else "symmetric", "quant_dtype": dtype}
                for t in ("_input_", "weight", "_output_")}  # fmt: skip
    return [{"op_names": ["fc1", "fc2"], "target_names": ["_input_", "weight", "_output_"],
    "quant_dtype": dtype,
             "target_settings": settings}]  # fmt: skip


def _quantize(name, config, evaluator=True, arguments=(None, 1), model=None, previous=None):
    from nni.compression import quantization as q

    model = model or small()
    cls = getattr(q, name)
    quantizer = cls(model, config, _evaluator(model)) if evaluator else cls(model, config)
    _, found = quantizer.compress(*arguments)
    model.eval()
    with torch.no_grad():
        output = model(batch()).clone()
    quantizer.unwrap_model()
    return {"config": {m: dict(t) for m, t in found.items()}, "state": model.state_dict(), "output": output}


def quantizers():
    """name -> thunk."""

    def pruned_and_quantized():
        from nni.compression import pruning as p
        from nni.compression import quantization as q

        model = small()
        evaluator = _evaluator(model)
        pruner = p.L1NormPruner(model, _config(), evaluator)
        _, masks = pruner.compress()
        quantizer = q.PtqQuantizer.from_compressor(pruner, _weights(), evaluator=evaluator)
        _, found = quantizer.compress(None, 1)
        model.eval()
        with torch.no_grad():
            output = model(batch()).clone()
        quantizer.unwrap_model()
        return {
            "masks": {m: dict(t) for m, t in masks.items()},
            "config": {m: dict(t) for m, t in found.items()},
            "state": model.state_dict(),
            "output": output,
        }

    return {
        "qat": lambda: _quantize("QATQuantizer", _weights(), arguments=(20, None)),
        "qat_int4": lambda: _quantize("QATQuantizer", _weights("int4"), arguments=(20, None)),
        "qat_activations": lambda: _quantize("QATQuantizer", _activations(), arguments=(20, None)),
        "ptq": lambda: _quantize("PtqQuantizer", _weights(), arguments=(None, 1)),
        "ptq_channel": lambda: _quantize(
            "PtqQuantizer", _weights(granularity="out_channel"), arguments=(None, 1)
        ),
        "ptq_activations": lambda: _quantize("PtqQuantizer", _activations(), arguments=(None, 1)),
        "lsq": lambda: _quantize("LsqQuantizer", _weights(), arguments=(20, None)),
        "lsq_plus": lambda: _quantize("LsqPlusQuantizer", _weights(scheme="affine"), arguments=(20, None)),
        "dorefa": lambda: _quantize("DoReFaQuantizer", _weights(scheme="affine"), arguments=(20, None)),
        "bnn": lambda: _quantize("BNNQuantizer", _weights(), arguments=(20, None)),
        "pruned_ptq": pruned_and_quantized,
    }
