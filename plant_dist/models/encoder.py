"""The text encoder behind one small interface: segments in, hidden states out.

`load_encoder` finds a `transformers` model by folder, by `package:NAME/folder`, or by hub name;
`SegmentEncoder` reads a document's segments and says which parameters lie at which depth. Knows
nothing of labels. Another kind of encoder need only be an `nn.Module` with the members of
`SegmentEncoder`.

B documents, S segments, T tokens, D encoder width.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from plant_dist.artifacts import file_digest, short
from plant_dist.config.schema import EncoderConfig
from plant_dist.data.tokens import locate_pretrained
from plant_dist.errors import ConfigError, RuntimeSetupError
from plant_dist.models import lstm
from plant_dist.models.adapters import quantization, weight_dtype
from plant_dist.models.cpu_attention import learn_in_float32

WEIGHTS = "model.safetensors"


class SegmentEncoder(nn.Module):
    """A `transformers` encoder that reads each segment of each document by itself.

    Only an AWD-LSTM reads a document's segments as one text, carrying its state.

    Args:
        backbone: any model that maps `input_ids, attention_mask` to `last_hidden_state`.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        # Longformer projects twice, once for tokens of global attention, of which there are none
        # here: like a pooler those weights would never get a gradient.
        if backbone.config.model_type == "longformer":
            for name, parameter in backbone.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and "_global." not in name)

    @property
    def width(self) -> int:
        """D, the width of a hidden state."""
        return int(self.backbone.config.hidden_size)

    @property
    def vocabulary_size(self) -> int:
        """V, the token ids that the encoder knows."""
        return len(self.input_embeddings())

    def forward(self, input_ids_BST: Tensor, attention_mask_BST: Tensor) -> Tensor:
        """Encode segments; padding segments of shorter documents are not computed.

        Args:
            input_ids_BST: (B, S, T) int64.
            attention_mask_BST: (B, S, T) bool, True where there is a token.

        Returns: (B, S, T, D) hidden states, 0 in padding segments.
        """
        if isinstance(self.backbone, lstm.AwdLstm):
            return self.backbone.read(input_ids_BST, attention_mask_BST)
        B, S, T = input_ids_BST.shape
        ids_NT, mask_NT = input_ids_BST.flatten(0, 1), attention_mask_BST.flatten(0, 1)
        # Every document has a first segment, so nothing need be picked out.
        if S == 1:
            return self._encode(ids_NT, mask_NT).view(B, S, T, -1)
        present_N = mask_NT.any(-1)
        some = self._encode(ids_NT[present_N], mask_NT[present_N])
        # masked_scatter fills in the order in which the boolean index has read.
        hidden = some.new_zeros(B * S, T, some.shape[-1])
        return hidden.masked_scatter(present_N[:, None, None], some).view(B, S, T, -1)

    def _encode(self, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        output = self.backbone(input_ids=ids_NT, attention_mask=mask_NT.to(torch.long))
        hidden: Tensor = output.last_hidden_state
        # Frozen weights may be held in half precision; labels are not.
        return hidden if self.input_embeddings().dtype == torch.float32 else hidden.float()

    def input_embeddings(self) -> Tensor:
        """Return the (V, D) input embedding table."""
        return input_embeddings(self.backbone)

    def depths(self) -> list[list[nn.Parameter]]:
        """Return what trains from the top block down, embeddings last: all, or the adapters.

        To be asked before anything is frozen for a while.
        """
        blocks = list(reversed(transformer_blocks(self.backbone)))
        groups = [_trainable(block) for block in blocks]
        inside = {id(parameter) for group in groups for parameter in group}
        # Whatever lies in no block, such as embeddings and a final norm, thaws last.
        rest = [p for p in _trainable(self.backbone) if id(p) not in inside]
        return [*groups, rest]


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def input_embeddings(backbone: PreTrainedModel) -> Tensor:
    """Return the (V, D) input embedding table of a model."""
    table = backbone.get_input_embeddings().weight
    assert isinstance(table, Tensor)  # every transformers text model has one
    return table


def transformer_blocks(backbone: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a model, bottom first; the whole model where it has none."""
    stacks = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    if not stacks:
        return []
    # A model may hold other module lists; the stack of blocks outweighs them.
    heaviest = max(stacks, key=lambda stack: sum(p.numel() for p in stack.parameters()))
    return list(heaviest)


def load_encoder(config: EncoderConfig) -> PreTrainedModel:
    """Load the encoder's architecture and weights.

    Raises:
        ConfigError: there is no such model, or it cannot be read.
        RuntimeSetupError: its package is absent, its weights are not those of `sha256`, or 4 bits
            are asked for where they cannot be.
    """
    lstm.register()
    place = locate_pretrained(config.name)
    # Before loading, so that no unknown file is parsed.
    if config.sha256:
        _check_weights(Path(place, WEIGHTS), config.sha256)
    try:
        settings = AutoConfig.from_pretrained(place, local_files_only=not config.allow_download)
        # Before the modules are made: they copy their rates from the config.
        set_dropout(settings, config)
        _settle(settings, config)
        if config.random_weights:
            model = encoder_from_config(settings)
        else:
            model = AutoModel.from_pretrained(
                place, config=settings, local_files_only=not config.allow_download,
                dtype=weight_dtype(config.load_in), **quantization(config.load_in),
                **_without_pooler(settings),
            )  # fmt: skip
    except (OSError, ValueError, SafetensorError) as error:
        # Errors here are one line; those of transformers run on.
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"encoder.name {config.name!r} cannot be loaded: {first} (a hub name is fetched only "
            "with encoder.allow_download=true)"
        ) from None
    learn_in_float32(model)
    if config.gradient_checkpointing:
        _recompute_activations(model)
    loaded: PreTrainedModel = model
    return loaded


def _settle(settings: PretrainedConfig, config: EncoderConfig) -> None:
    """Write into an architecture what its weights are held in, and what else must not vary."""
    # Weights may be stored in half precision, where AdamW's small steps round to nothing. Said
    # here as well, since a saved classifier makes its encoder anew from these settings.
    settings.dtype = weight_dtype(config.load_in)
    # Causal models would keep keys and values for a next token that nobody asks for.
    if hasattr(settings, "use_cache"):
        settings.use_cache = False
    # BigBird goes over to full attention for good at its first short batch, so that states would
    # hang on what was read before.
    if settings.model_type == "big_bird":
        settings.attention_type = "original_full"


def _recompute_activations(backbone: PreTrainedModel) -> None:
    """Let blocks keep only their inputs, and compute the rest again on the way back."""
    if not backbone.supports_gradient_checkpointing:
        raise ConfigError(
            f"encoder.gradient_checkpointing is set, but a {backbone.config.model_type} cannot "
            "compute its activations again; set it to false"
        )
    # Of these two calls, transformers 5.0 knows only the older; later ones warn of it, and 6 will
    # not have it. Not re-entrant, which frozen blocks and DDP's search for unused parameters need.
    how = {"use_reentrant": False}
    if hasattr(backbone, "activation_checkpointing_enable"):
        backbone.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


def check_reads(backbone: PreTrainedModel, vocabulary: int, segment_tokens: int) -> None:
    """Check that an encoder has an embedding for every token id and every position.

    Args:
        backbone: the encoder.
        vocabulary: token ids of the tokenizer.
        segment_tokens: longest segment, special tokens included.

    Raises:
        ConfigError: the tokenizer has more ids, or the segments more tokens, than it was made for.
    """
    # Here the fix can be named; inside the encoder it would be an index error.
    known = len(input_embeddings(backbone))
    if vocabulary > known:
        raise ConfigError(
            f"the tokenizer has {vocabulary} token ids, the encoder embeds {known}; unset "
            "tokens.tokenizer, or name the encoder's own"
        )
    check_positions(backbone, segment_tokens)


def check_positions(backbone: PreTrainedModel, segment_tokens: int) -> None:
    """Check that an encoder has a position for every token of a segment.

    Raises:
        ConfigError: segments are longer.
    """
    longest = position_count(backbone)
    if longest is not None and segment_tokens > longest:
        raise ConfigError(
            f"tokens.segment_tokens is {segment_tokens}, the encoder reads {longest} at most; "
            f"set tokens.segment_tokens={longest}"
        )


def position_count(backbone: PreTrainedModel) -> int | None:
    """Return the most tokens an encoder reads, or None where its config does not say."""
    longest = getattr(backbone.config, "max_position_embeddings", None)
    if longest is None:
        return None
    # RoBERTa's kin count positions from the padding id + 1, so their table is that much shorter.
    tables = [m for n, m in backbone.named_modules() if n.endswith("position_embeddings")]
    padding = getattr(tables[0], "padding_idx", None) if tables else None
    return int(longest) - (0 if padding is None else padding + 1)


def encoder_from_config(settings: PretrainedConfig) -> PreTrainedModel:
    """Return an encoder of an architecture, its weights to be filled from a checkpoint."""
    model: PreTrainedModel = AutoModel.from_config(settings, **_without_pooler(settings))
    return model


def _without_pooler(settings: PretrainedConfig) -> dict[str, Any]:
    # A pooler never gets a gradient here; DDP would wait for it.
    return {"add_pooling_layer": False} if settings.model_type in _POOLED else {}


_POOLED = {"bert", "roberta", "xlm-roberta", "camembert", "longformer", "big_bird", "mpnet"}


def set_dropout(settings: PretrainedConfig, config: EncoderConfig) -> None:
    """Set every dropout of an architecture, whatever its family calls them."""
    # Families name the same rate differently: attention_probs_dropout_prob, attn_pdrop, …
    for key in list(settings.to_dict()):
        if re.search(r"attention.*drop|attn_pdrop", key):
            setattr(settings, key, config.attention_dropout)
        elif config.dropout is not None and _is_hidden_dropout(settings, key):
            setattr(settings, key, config.dropout)


def _is_hidden_dropout(settings: PretrainedConfig, key: str) -> bool:
    # The chance of skipping a whole layer is no dropout of its values.
    named = "drop" in key and not re.search("class|layer_?drop|drop_path", key)
    return named and isinstance(getattr(settings, key), float)


def encoder_identity(config: EncoderConfig) -> str:
    """Return a hash of the encoder's weights where they lie on disk, else of its name."""
    place = Path(locate_pretrained(config.name))
    # By content, so that an encoder in another place is still the same encoder.
    weights = sorted(place.glob("*.safetensors")) if place.is_dir() else []
    identity = ",".join(file_digest(path) for path in weights) or config.name
    # Rounded weights give other states.
    return identity if config.load_in == "fp32" else f"{identity} in {config.load_in}"


def _check_weights(path: Path, expected: str) -> None:
    if not path.is_file():
        raise RuntimeSetupError(f"encoder.sha256 is set, but {path} does not exist")
    found = file_digest(path)
    if found != expected:
        raise RuntimeSetupError(
            f"{path} has sha256 {short(found)}…, encoder.sha256 says {short(expected)}…: "
            "install the right release, or set encoder.sha256 to the weights you trust"
        )
