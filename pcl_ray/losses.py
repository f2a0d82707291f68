"""InfoNCE and ProtoNCE (Li et al., ICLR 2021, equations 1 and 11) as pure functions of tensors.

Shape suffixes: B batch, C feature, R queue, K prototypes, M sampled negatives. All features and prototypes
are L2-normalised.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(
    query_BC: Tensor, key_BC: Tensor, queue_RC: Tensor, temperature: float, hidden_BR: Tensor | None = None
) -> Tensor:
    """The instance term, a scalar: batch mean of −log exp(q·k/τ) / (exp(q·k/τ) + Σ_r exp(q·n_r/τ)).

    hidden_BR: bool, the pairs of query and queue key that are left out of that sum, as the false negatives of
    Huynh et al. (WACV 2022) are; a row without any negative adds nothing. None: all are in it.
    """
    return first_is_right(instance_logits(query_BC, key_BC, queue_RC, temperature, hidden_BR))


def proto_nce(
    query_BC: Tensor,
    prototypes_KC: Tensor,
    concentration_K: Tensor,
    positives_B: Tensor,
    negatives_M: Tensor | None = None,
    *,
    mask_duplicates: bool = True,
    valid_K: Tensor | None = None,
) -> Tensor:
    """The prototype term of one clustering: mean over the batch of −log softmax of q·c_j/φ_j at the image's
    own prototype; a scalar.

    positives_B: [B] the prototype each image is assigned to. negatives_M: None for a softmax over all K
    prototypes, or [M] prototype ids; then the columns are the B in-batch positives, followed by the M
    negatives. mask_duplicates: hide from row b every other column that is b's own prototype. Two images of
    one batch often share a prototype and would be each other's false negatives; False keeps them in, as the
    published code does. valid_K: [K] bool, prototypes that stand for images. The others are nobody's
    negatives, and an image whose prototype is one of them, or −1, adds nothing to the sum (it still counts in
    the mean, so that workers with different batches weigh alike).
    """
    logits, target_B = prototype_logits(
        query_BC,
        prototypes_KC,
        concentration_K,
        positives_B,
        negatives_M,
        mask_duplicates=mask_duplicates,
        valid_K=valid_K,
    )
    return prototype_loss(logits, target_B, positives_B, valid_K)


def prototype_loss(
    logits: Tensor, target_B: Tensor, positives_B: Tensor, valid_K: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of `prototype_logits`, in which images without a valid prototype count as 0."""
    if valid_K is None:
        return F.cross_entropy(logits, target_B)
    counted_B = (positives_B >= 0) & valid_K[positives_B.clamp(min=0)]
    return torch.where(counted_B, F.cross_entropy(logits, target_B, reduction="none"), 0.0).mean()


def sample_negatives(
    num_prototypes: int,
    positives_B: Tensor,
    count: int,
    generator: torch.Generator | None = None,
    valid_K: Tensor | None = None,
    *,
    num_valid: int | None = None,
) -> Tensor:
    """[count] distinct prototype ids, valid and none of them in positives_B; fewer where fewer are left.

    num_valid: how many of valid_K are true, where known: counting would wait for the device.
    """
    device = positives_B.device if generator is None else generator.device
    # the last: for images without a prototype
    order_K1 = torch.rand(num_prototypes + 1, generator=generator, device=device).to(positives_B.device)
    if valid_K is not None:
        order_K1[:-1].masked_fill_(~valid_K, -1.0)
        positives_B = torch.where(positives_B < 0, num_prototypes, positives_B)
        num_valid = num_valid or 0
    # rand is in [0, 1): positives come last. index_fill_ takes no more than the ids, a number indexed by a
    # tensor would come from the host.
    order_K = order_K1.index_fill_(0, positives_B, -1.0)[:-1]
    # only then may too few be left
    if count > (num_prototypes if num_valid is None else num_valid) - len(positives_B):
        count = min(count, int((order_K >= 0).sum()))
    return order_K.topk(count).indices


def instance_logits(
    query_BC: Tensor, key_BC: Tensor, queue_RC: Tensor, temperature: float, hidden_BR: Tensor | None = None
) -> Tensor:
    """[B, 1 + R] logits, the positive in column 0, which is never hidden.

    hidden_BR: bool, queue keys that are no negatives of a row; they become −∞.
    """
    positive_B1 = (query_BC * key_BC).sum(dim=1, keepdim=True)
    negative_BR = query_BC @ queue_RC.T
    if hidden_BR is not None:
        negative_BR = negative_BR.masked_fill_(hidden_BR, float("-inf"))
    return torch.cat([positive_B1, negative_BR], dim=1) / temperature


def mate_logits(
    logits: Tensor, query_BC: Tensor, mate_BC: Tensor, temperature: float, hidden_BR: Tensor | None = None
) -> Tensor:
    """`instance_logits` [B, 1 + R] with another positive, a mate's key, and more of the negatives hidden."""
    positive_B1 = (query_BC * mate_BC).sum(dim=1, keepdim=True) / temperature
    negative_BR = logits[:, 1:]
    if hidden_BR is not None:
        negative_BR = negative_BR.masked_fill(hidden_BR, float("-inf"))
    return torch.cat([positive_B1, negative_BR], dim=1)


def draw_mates(
    groups_B: Tensor,
    indices_B: Tensor,
    groups_R: Tensor,
    indices_R: Tensor,
    uniform_B: Tensor,
    num_images: int,
) -> Tensor:
    """[B] int64, for each image a row of the queue that holds a key of another image of its group, all such
    rows alike likely; −1 where there is none, and for an image without a group.

    groups and indices: int64, a group below 0 is none. uniform_B: [B] float64 in [0, 1), which decides.
    """
    # Sorted by group and image, what may be drawn is a group's stretch without that of the image itself.
    sorted_R, order_R = torch.where(groups_R < 0, -1, groups_R * num_images + indices_R).sort(stable=True)
    first_B, own_B = groups_B * num_images, groups_B * num_images + indices_B
    start_B, end_B = (torch.searchsorted(sorted_R, edge_B) for edge_B in (first_B, first_B + num_images))
    own_start_B, own_end_B = (torch.searchsorted(sorted_R, edge_B) for edge_B in (own_B, own_B + 1))
    skipped_B = own_end_B - own_start_B
    count_B = end_B - start_B - skipped_B
    row_B = start_B + torch.minimum((uniform_B * count_B).long(), count_B - 1)
    row_B = torch.where(row_B >= own_start_B, row_B + skipped_B, row_B)
    found_B = (groups_B >= 0) & (count_B > 0)
    return torch.where(found_B, order_R[torch.where(found_B, row_B, 0)], -1)


def first_is_right(logits: Tensor, counted_B: Tensor | None = None) -> Tensor:
    """Mean cross-entropy where column 0 is every row's target. counted_B: [B] bool, where false a row
    counts as 0.
    """
    target_B = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    if counted_B is None:
        return F.cross_entropy(logits, target_B)
    return torch.where(counted_B, F.cross_entropy(logits, target_B, reduction="none"), 0.0).mean()


def prototype_logits(
    query_BC: Tensor,
    prototypes_KC: Tensor,
    concentration_K: Tensor,
    positives_B: Tensor,
    negatives_M: Tensor | None = None,
    *,
    mask_duplicates: bool = True,
    valid_K: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits q·c_j/φ_j [B, K] or [B, B + M], and each row's target column [B]; arguments as in `proto_nce`.

    Hidden columns are −∞. The target of a row never is, so that gradients stay finite: `prototype_loss`
    leaves out rows that have none.
    """
    if negatives_M is None:
        target_B = positives_B if valid_K is None else positives_B.clamp(min=0)
        logits = query_BC @ prototypes_KC.T / concentration_K
        hidden = None if valid_K is None else (~valid_K).expand_as(logits).clone()
    else:
        columns = torch.cat([positives_B, negatives_M])
        target_B = torch.arange(len(positives_B), device=positives_B.device)
        hidden = columns == positives_B[:, None] if mask_duplicates else None
        if valid_K is not None:
            unknown, columns = columns < 0, columns.clamp(min=0)
            gone = (unknown | ~valid_K[columns]).expand(len(positives_B), -1)
            hidden = gone.clone() if hidden is None else hidden | gone
        logits = query_BC @ prototypes_KC[columns].T / concentration_K[columns]
    if hidden is not None:
        # the target itself stays
        hidden[torch.arange(len(target_B), device=target_B.device), target_B] = False
        logits = logits.masked_fill(hidden, float("-inf"))
    return logits, target_B
