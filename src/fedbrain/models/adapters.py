"""Low-rank adapters on an encoder's blocks, by peft; on a fused qkv projection also on q, k and v apart."""

import warnings
from collections.abc import Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from fedbrain.models.encoder import Encoder
from fedbrain.models.lora import PARTS, LoRA


def inject(encoder: Encoder, options: LoRA, blocks: Sequence[int], *, adapter: str = "default") -> None:
    """Adds adapters to the layers that ``options`` names in the given blocks, in place; they alone require gradients.

    A is drawn from torch's global generator, B is zero. With another name of ``adapter`` layers get a further one; all that a
    layer has add up.
    """
    names = []
    for index in blocks:
        apart = [target for target in options.targets if target in PARTS]
        if apart and adapter == "default":
            _split(encoder.blocks[index], encoder.projections["qkv"], apart)
        for target in options.targets:
            path = encoder.projections["qkv" if target in PARTS else target]
            names.append(f"blocks.{index}.{path}" + (f".parts.{target}" if target in PARTS else ""))
    config = LoraConfig(
        r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=names, bias="none"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, encoder, adapter_name=adapter)
    for module in encoder.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter(list(module.lora_A))


def _split(block: nn.Module, path: str, parts: Sequence[str]) -> None:
    parent, _, name = path.rpartition(".")
    owner = block.get_submodule(parent)
    setattr(owner, name, FusedProjection(getattr(owner, name), parts))


class FusedProjection(nn.Module):
    """A fused qkv layer with places for adapters on its thirds: its own output, bit by bit, plus what the adapters add."""

    def __init__(self, fused: nn.Linear, parts: Sequence[str]) -> None:
        super().__init__()
        self.fused = fused
        self.parts = nn.ModuleDict({part: NoProjection(fused.in_features) for part in parts})

    def forward(self, x: Tensor) -> Tensor:  # (..., width)
        thirds = self.fused(x).chunk(3, dim=-1)
        added = [third + self.parts[part](x) if part in self.parts else third for part, third in zip(PARTS, thirds)]
        return torch.cat(added, dim=-1)  # (..., 3 * width)


class NoProjection(nn.Linear):
    """A square linear layer without weights: gives zeros. peft puts an adapter on it as on any linear layer."""

    def __init__(self, width: int) -> None:
        nn.Module.__init__(self)
        self.in_features = self.out_features = width
        self.register_buffer("weight", torch.empty(0), persistent=False)  # peft asks a layer for its weight's type
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)
