"""The losses in their plain form, as the formulas say them.

Direct preference optimisation (DPO, arXiv 2305.18290, eq. 7): with the reward s(y) = beta * (log p(y) - log p_ref(y))
of a completion y, a pair of a chosen completion w and a rejected one l costs -log sigmoid(s(w) - s(l)). On the
augmented set Da of arXiv 2410.18890 the loss of a prompt is the mean over all pairs W x L. It depends on |W| + |L|
log-probabilities only, so each completion is passed through the model once, not once per pair. Knows nothing of tasks
or of what chains mean.
"""

from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from fcdpo_utils.tokens import Tokens


def token_log_probs(model: nn.Module, tokens: Tokens) -> Tensor:
    """log p of each of the policy's tokens after all before it, by one ordinary pass: (policy,), at least fp32."""
    ids = torch.tensor([tokens.ids], device=next(model.parameters()).device)
    logits = model(input_ids=ids).logits[0]  # (seq, vocabulary)
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    policy = [place for place, chosen in enumerate(tokens.policy) if chosen]
    before = [place - 1 for place in policy]  # a token is predicted from the one before it
    return log_probs[before, ids[0, policy]]


def sequence_log_prob(model: nn.Module, tokens: Tokens) -> Tensor:
    """log p(completion | prompt), a scalar: the sum over the policy's tokens."""
    return token_log_probs(model, tokens).sum()


def pair_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """The DPO loss of pairs of rewards, element by element. Equal rewards cost log 2 = 0.6931."""
    return -logsigmoid(chosen - rejected)


def expanded_dpo_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Mean loss over all pairs, one by one: chosen (k,), rejected (l,) -> a scalar. `grouped_dpo_loss` equals it."""
    return torch.stack([pair_loss(w, l) for w, l in product(chosen, rejected)]).mean()


def grouped_dpo_loss(chosen: Tensor, rejected: Tensor, all_pairs: bool = True, kind: str = "sigmoid") -> Tensor:
    """Mean loss over all pairs of one prompt (Da), or over the pairs of equal place (D*); a scalar.

    chosen: (k,), rejected: (l,), the rewards s = beta * (log p - log p_ref); with kind "sigmoid_norm" they are means
    over tokens, with "orpo" `log_odds`. "apo_zero" (arXiv 2408.06266, eq. 7) wants chosen ones above 0, others below.
    """
    if kind == "apo_zero":  # a sum over chains: each is in equally many pairs
        return 1 - chosen.sigmoid().mean() + rejected.sigmoid().mean()
    return pair_loss(chosen[:, None], rejected[None, :]).mean() if all_pairs else pair_loss(chosen, rejected).mean()


def log_odds(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """ORPO's rewards (arXiv 2403.07691, eq. 4): log p - log(1 - p) of the tokens' mean probability p; all are (k,)."""
    mean = (log_probs / tokens).clamp(max=-1e-6)  # of the logarithms; p = 1 has no odds
    return mean - (-mean.expm1()).log()


def sft_loss(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Mean negative log-likelihood of the chosen completions' tokens: both (k,), sums and numbers of tokens."""
    return -log_probs.sum() / tokens.sum()
