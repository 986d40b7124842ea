"""What rows start from that is not the ranker's: label texts and training texts, read by encoder or
bag. A part of the stage `train` in a file of its own.

L labels, N training documents, R width of the bag.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from plant_dist.data.csr import Csr, csr_from_lists
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import encode
from plant_dist.models.bag import NOISE, SCALE, TokenBag
from plant_dist.models.classifier import PlantForMultiLabelClassification
from plant_dist.models.fields import boosted_branches
from plant_dist.runtime.collectives import sum_across
from plant_dist.stages.pipeline import Job
from plant_dist.train.embed import TextEmbedder, name_directions, prototypes
from plant_dist.train.states import StatesCache

SAMPLED_TEXTS = 4096  # training texts read for the mean text of the named branch
TEXTS_AT_ONCE = 256


def text_vectors(
    embedder: TextEmbedder,
    dataset: PreparedDataset,
    job: Job,
    cache: StatesCache | None,
    own: range,
) -> dict[str, Any]:
    """Return what `Planting` takes of the label texts, as far as the settings use it.

    Args: own: the labels whose rows are on this rank.
    """
    config, device = job.config, job.context.device
    used = {config.model.query_init, *config.model.branches}
    if boosted_branches(config.model):
        used.add(config.model.boost_init)
    if config.train.labels == "shortlist" and config.shortlist.vectors == "learned":
        # What documents are compared with starts from the texts, too.
        used.add("label_text")
    # Embedding every label text is the dear part, so it is skipped where nothing reads it.
    if not used & {"label_text", "prototype", "named"}:
        return {}
    documents = None
    if used & {"prototype", "named"}:
        # First: where states are kept, labels whose text is a document's are then not read again.
        documents = _training_means(embedder, dataset, cache, every="prototype" in used)
    # Prototypes are counted over all labels.
    wanted = slice(None) if "prototype" in used else slice(own.start, own.stop)
    means = embedder.mean_states(dataset.label_space.texts[wanted], "label texts")
    # Directions for the rows; the lengths taken out set the scale of the boosts.
    vectors = normalize(means, dim=-1)
    lengths = means.norm(dim=-1)
    counted = torch.tensor([float(len(means)), float(means.any(dim=1).sum())])
    sums = torch.cat([means.sum(0), lengths.sum()[None], counted])
    if len(means) < len(dataset.label_space):
        # One unit and one centre on all ranks, as if one had read all texts.
        sums = sum_across(job.context, sums)
    common, (length, labels, named) = sums[:-3], sums[-3:]
    found = {"label_vectors": vectors.to(device), "hidden_norm": float(length / labels)}
    if documents is None:
        return found
    if "prototype" in used:
        directions = prototypes(vectors, normalize(documents, dim=-1), dataset.label_csr("train"))
        found["prototypes"] = directions.to(device)
    if "named" in used:
        found |= {
            "names": name_directions(means, common / named.clamp_min(1)).to(device),
            "center": documents.mean(0).to(device),
        }
    return found


def _training_means(
    embedder: TextEmbedder, dataset: PreparedDataset, cache: StatesCache | None, every: bool
) -> torch.Tensor:
    """Return the mean states of training texts, of all or of an even sample of them."""
    # Training texts alone: those of other splits would leak.
    tokens = dataset.token_csr("train")
    if cache is not None:
        # The classifier will read them too, so that the encoder runs once for both.
        return cache.open(tokens).first_means(tokens.lengths(), cache.segmentation)
    if not every:
        # Their common mean alone is wanted, which a few thousand texts tell as well as millions.
        tokens = tokens.take(np.arange(0, tokens.size, -(-tokens.size // SAMPLED_TEXTS) or 1))
    return embedder.mean_states_of(tokens, "training texts")


@torch.no_grad()
def start_bag(
    model: PlantForMultiLabelClassification,
    dataset: PreparedDataset,
    tokenizer: PreTrainedTokenizerBase,
    segmentation: Segmentation,
) -> None:
    """Start the bag's rows from the tokens of label texts, or of all texts of a label.

    u_l points where the bag puts those texts, less what all training texts share, and a document
    that is made of the same tokens has evidence of about `model.bag_scale`: token factors are
    random, so that inner products are nearly the cosines of TF-IDF vectors.
    """
    bag, config = model.decoder.bag, model.config.model_section()
    if bag is None or config.bag_init == "zero":
        return
    rows = model.labels.fields["bag"]
    tokens = dataset.token_csr("train")
    every = config.bag_init == "prototype"
    if not every:
        # Their common mean alone is wanted.
        tokens = tokens.take(np.arange(0, tokens.size, -(-tokens.size // SAMPLED_TEXTS) or 1))
    own = model.labels.own
    # Prototypes are counted over all labels.
    wanted = slice(None) if every else slice(own.start, own.stop)
    texts = dataset.label_space.texts[wanted]
    names = csr_from_lists(encode(tokenizer, texts, max_tokens=segmentation.content))
    label_vectors = normalize(_bag_vectors(bag, names), dim=-1)
    documents = normalize(_bag_vectors(bag, tokens), dim=-1)
    if every:
        found = prototypes(label_vectors, documents, dataset.label_csr("train"))
        found = found[own.start : own.stop]
    else:
        said = label_vectors.any(1, keepdim=True)
        found = normalize((label_vectors - documents.mean(0)) * said, dim=-1)
    length = SCALE * NOISE * rows.shape[1] ** 0.5  # of a document's vector, at the start
    rows.copy_((found * (config.bag_scale / length)).to(rows.device))


def _bag_vectors(bag: TokenBag, tokens: Csr) -> Tensor:
    """Return the bag's vectors of texts, (n, R) float32 on the CPU."""
    device, found = bag.idf.device, []
    for start in range(0, tokens.size, TEXTS_AT_ONCE):
        rows = range(start, min(start + TEXTS_AT_ONCE, tokens.size))
        ids = [torch.from_numpy(np.array(tokens.row(row), np.int64)) for row in rows]
        # Token 0 fills up; what is not kept has no weight.
        padded = pad_sequence(ids, batch_first=True)
        lengths = torch.tensor([len(one) for one in ids])
        keep = torch.arange(padded.shape[1])[None] < lengths[:, None]
        found.append(bag(padded.to(device), keep.to(device)).float().cpu())
    return torch.cat(found)
