"""Selection, schedule and large losses, against brute force, the published formulas, and themselves on processes."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED
from raypaml.losses import schemes, selection
from raypaml.losses.large_loss import large_loss, scheduled_rate
from raypaml.losses.large_loss_records import BY_RATE
from raypaml.losses.selection import rejection_count, rejection_rate, select
from tests.conftest import run_distributed

SCHEMES = tuple(name for name, scheme in schemes.SCHEMES.items() if scheme.loss == BY_RATE)
REJECTING = ("ll_r", "ll_ct", "ll_cp")
PARTIAL = tuple(scheme for scheme in SCHEMES if scheme != "full")


def as_labels(*entries: int) -> Tensor:
    return torch.tensor([entries], dtype=torch.int8)


def all_unobserved(*shape: int) -> Tensor:
    return torch.full(shape, UNOBSERVED, dtype=torch.int8)


# --- Selection ------------------------------------------------------------------------------------------------------


def brute_select(logits: Tensor, candidates: Tensor, count: int) -> Tensor:
    chosen = sorted((-float(logits[row, k]), row, k) for row, k in candidates.nonzero().tolist())[:count]
    mask = torch.zeros_like(candidates)
    for _, row, k in chosen:
        mask[row, k] = True
    return mask


VALUES = (st.just(1.5), st.sampled_from([-1.0, -0.0, 0.0, 2.0]), st.floats(-(2.0**90), 2.0**90, width=32))
SHARES = (st.just(False), st.just(True), st.booleans())


@st.composite
def selections(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    shape = draw(st.integers(0, 6)), draw(st.integers(1, 7))
    size = shape[0] * shape[1]
    values = draw(st.sampled_from(VALUES))
    logits = torch.tensor(draw(st.lists(values, min_size=size, max_size=size)), dtype=torch.float64).view(shape)
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    logits = logits.bfloat16().float() if dtype == torch.bfloat16 else logits.to(dtype)
    share = draw(st.sampled_from(SHARES))
    candidates = torch.tensor(draw(st.lists(share, min_size=size, max_size=size)), dtype=torch.bool).view(shape)
    return logits, candidates, draw(st.integers(0, size + 3))


@given(selections(), st.sampled_from([2, 16384]))
@settings(deadline=None, max_examples=300)
def test_select_is_the_sorted_head_of_the_candidates(case: tuple[Tensor, Tensor, int], stretch: int) -> None:
    logits, candidates, count = case
    labels = torch.where(candidates, UNOBSERVED, NEGATIVE).to(torch.int8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "FIRST_STRETCH", stretch)
        found = select(logits, labels, count, first_row=11)
        patch.setattr(selection, "_best_streamed", selection._best_at_once)  # as on a GPU
        assert torch.equal(select(logits, labels, count, first_row=11), found)
    assert torch.equal(found, brute_select(logits, candidates, count))


def test_select_streams_over_many_stretches() -> None:
    logits = torch.randn(300, 500).round(decimals=1)  # many ties
    labels = torch.randint(UNOBSERVED, 1, (300, 500)).to(torch.int8)
    for order in (
        logits,
        logits.flatten().sort().values.view(300, 500),
        -logits.flatten().sort().values.view(300, 500),
    ):
        keys = selection._best_at_once(order.flatten(), labels.flatten(), 777, 5)
        streamed = selection._best_streamed(order.flatten(), labels.flatten(), 777, 5)
        assert torch.equal(keys.sort().values, streamed.sort().values)


CASES = tuple(product(range(50), PARTIAL))  # seed of a random batch, scheme
ROWS = 10


def draw_batch(seed: int) -> tuple[Tensor, Tensor, float]:
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(ROWS, 6, generator=rng)
    if seed % 2:
        logits = logits.round()  # many ties, over all ranks
    if seed % 10 == 9:
        logits = torch.full((ROWS, 6), 1.5)
    labels = torch.randint(-3, 2, (ROWS, 6), generator=rng).clamp(min=UNOBSERVED).to(torch.int8)
    return (
        logits.to((torch.float32, torch.float64, torch.bfloat16)[seed % 3]),
        labels,
        (0.0, 0.05, 0.3, 1.0)[seed // 2 % 4],
    )


def draw_split(seed: int, world_size: int) -> list[int]:
    """Where each rank's rows begin, and the end: uneven, often empty."""
    cuts = np.random.default_rng(seed).integers(0, ROWS + 1, world_size - 1)
    return [0, *sorted(cuts.tolist()), ROWS]


def loss_rejected_gradient(seed: int, scheme: str, low: int, high: int, **where: object) -> tuple[object, ...]:
    logits, labels, rate = draw_batch(seed)
    logits = logits[low:high].requires_grad_()
    loss, rejected = large_loss(logits, labels[low:high], scheme, rate, global_rows=ROWS, first_row=low, **where)
    loss.backward()
    return loss.item(), rejected.numpy(), logits.grad.double().numpy()


def brute(seed: int, scheme: str) -> tuple[object, ...]:
    """Loss, rejected and gradient of the whole batch in float64, entry by entry."""
    logits, labels, rate = draw_batch(seed)
    values = logits.double().requires_grad_()
    count = math.floor(rate * values.numel() + 0.5) if scheme in REJECTING else 0
    rejected = brute_select(logits.detach().float(), labels == UNOBSERVED, count)
    positive = (labels == POSITIVE) | (rejected & (scheme != "ll_r"))
    used = {"ll_r": ~rejected, "ignore": labels != UNOBSERVED}.get(scheme, torch.ones_like(rejected))
    losses = torch.where(positive, (-values).exp().log1p(), values.exp().log1p())
    loss = losses[used].sum() / (int(used.sum()) if scheme == "ignore" else values.numel())
    loss.backward()
    return loss.item(), rejected.numpy(), values.grad.numpy()


CRAFTED = torch.tensor([[9.0, 8.0, 7.0, 6.0], [1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0]])  # one row a rank


def on_a_rank(rank: int, world_size: int) -> tuple[dict[tuple[int, int, str], object], dict[str, object]]:
    groups = {members: dist.new_group(list(range(members))) for members in range(1, world_size + 1)}
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for members, case in product(range(rank + 1, world_size + 1), CASES):
            patch.setattr(selection, "MOST_GATHERED", 0 if case[0] % 3 else 1 << 18)  # with histograms, or keys
            low, high = draw_split(case[0], members)[rank : rank + 2]
            found[members, *case] = loss_rejected_gradient(*case, low, high, group=groups[members])
    return found, on_one_of_four(rank, groups[4]) if rank < 4 else {}


def on_one_of_four(rank: int, group: dist.ProcessGroup) -> dict[str, object]:
    """What each scope rejects of CRAFTED, and the bytes that this rank sends for it."""
    found, sent, gather = {}, [0], dist.all_gather

    def counted(parts: list[Tensor], mine: Tensor, **where: object) -> object:
        sent[0] += mine.nbytes
        return gather(parts, mine, **where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_gather", counted)
        for scope in ("global", "rank"):
            part = {"global_rows": 4, "first_row": rank, "group": group, "scope": scope}
            rejected = large_loss(CRAFTED[rank : rank + 1], all_unobserved(1, 4), "ll_r", 1 / 8, **part)[1]
            found[scope], sent[0] = (rejected.numpy(), sent[0]), 0
    return found


def test_one_to_five_processes_select_lose_and_learn_as_one() -> None:
    ranks = run_distributed(on_a_rank, 5)
    for case in CASES:
        loss, alone, gradient = loss_rejected_gradient(*case, 0, ROWS)
        exact_loss, exact_rejected, exact_gradient = brute(*case)
        low = draw_batch(case[0])[0].dtype == torch.bfloat16
        assert loss == pytest.approx(exact_loss, rel=1e-6), case
        np.testing.assert_array_equal(alone, exact_rejected, err_msg=str(case))
        np.testing.assert_allclose(gradient, exact_gradient, rtol=1e-2 if low else 2e-6, atol=1e-9, err_msg=str(case))
        for members in range(1, 6):
            losses, rejected, gradients = zip(*(found[members, *case] for found, _ in ranks[:members]), strict=True)
            np.testing.assert_array_equal(np.concatenate(rejected), alone, err_msg=str(case))
            assert sum(losses) == pytest.approx(loss, rel=1e-6), case
            np.testing.assert_allclose(np.concatenate(gradients), gradient, rtol=1e-6, atol=0, err_msg=str(case))
    by_scope = {scope: np.concatenate([scopes[scope][0] for _, scopes in ranks[:4]]) for scope in ("global", "rank")}
    assert np.argwhere(by_scope["global"]).tolist() == [[0, 0], [0, 1]]
    assert np.argwhere(by_scope["rank"]).tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]
    assert [(scopes["global"][1], scopes["rank"][1]) for _, scopes in ranks[:4]] == [(2 * 8, 0)] * 4  # k = 2 keys


# --- Schedule -------------------------------------------------------------------------------------------------------


def test_rejection_rate_converts_percent_to_an_exact_share_once() -> None:
    """Published defect: a flag in percent with no unit stated; 0.5 is 0.005, neither 0.5 nor 0.00005."""
    assert rejection_rate(1, 0.5) == Fraction(5, 1000)
    assert rejection_rate(Fraction(1, 3), 0.1) == Fraction(1, 3000)
    assert (rejection_rate(0, 25), rejection_rate(4, 25)) == (0, 1)


def test_rejection_count_rounds_up_once_and_earlier_half_up() -> None:
    cases = [(0.5, 5), (0.25, 2), (0.249, 2), (0, 9), (1, 9), (0.145, 100), (0.14, 100)]  # 0.145 * 100 is 14.4999...
    assert [rejection_count(rate, entries) for rate, entries in cases] == [3, 1, 1, 0, 9, 15, 14]
    assert [rejection_count(rate, entries, "half_up") for rate, entries in cases] == [3, 1, 0, 0, 9, 15, 14]


@given(st.integers(0, 999), st.integers(1, 9), st.integers(0, 40), st.integers(1, 400))
@settings(deadline=None, max_examples=300)
def test_the_count_is_the_smallest_that_reaches_the_percentage(mills: int, t: int, rows: int, classes: int) -> None:
    """In integers alone: k entries are k x 100,000 of the mills x t x entries that delta_rel = mills / 1,000 asks."""
    entries = rows * classes
    asked = min(mills * t, 100_000) * entries
    expected = next(k for k in range(entries + 1) if k * 100_000 >= asked)
    assert rejection_count(Fraction(min(mills * t, 100_000), 100_000), entries) == expected
    if mills * t <= 100_000:
        assert rejection_count(rejection_rate(t, mills / 1000), entries) == expected


PUBLISHED_COUNTS = {
    ("ll_ct", 16, 20, 0.2): [1, 2, 2, 3, 4, 4, 5, 6, 6],
    ("ll_r", 16, 20, 0.5): [2, 4, 5, 7, 9, 10, 12, 13, 15],
    ("ll_r", 16, 80, 0.5): [7, 13, 20, 26, 33, 39, 45, 52, 58],
    ("ll_r", 16, 312, 0.4): [20, 40, 60, 80, 100, 120, 140, 160, 180],
    ("ll_r", 256, 5000, 0.01): [128, 256, 384, 512, 640, 768, 896, 1024, 1152],
    ("ll_ct", 16, 5000, 0.2): [161, 321, 481, 641, 801, 961, 1121, 1281, 1441],
    ("ll_cp", 16, 20, 0.1): [1] * 9,
    ("ll_cp", 16, 80, 0.2): [3] * 9,
}
"""k of the epochs 2 to 10 as youngwk/BridgeGapExplanationPAMC computes it: scheme, batch, classes, delta_rel."""


@pytest.mark.parametrize("case", PUBLISHED_COUNTS)
def test_counts_are_the_published_ones_but_for_whole_numbers_that_floats_miss(
    case: tuple[str, int, int, float],
) -> None:
    scheme, rows, classes, delta_rel = case
    for epoch, published in enumerate(PUBLISHED_COUNTS[case], 1):
        exact = scheduled_rate(scheme, delta_rel, epoch=epoch) * rows * classes
        found = rejection_count(scheduled_rate(scheme, delta_rel, epoch=epoch), rows * classes)
        assert published - found in ((0, 1) if exact.denominator == 1 else (0,))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_epoch_0_and_the_warmup_are_plain(scheme: str) -> None:
    rates = [scheduled_rate(scheme, 0.5, epoch=t, step=9, steps=10, warmup_epochs=3, continuous=True) for t in range(3)]
    assert rates == [0, 0, 0]
    assert scheduled_rate(scheme, 0.5, epoch=0) == 0
    assert bool(scheduled_rate(scheme, 0.5, epoch=3, warmup_epochs=3)) == (scheme in REJECTING)


def test_schedules_of_the_schemes() -> None:
    rates = {scheme: [scheduled_rate(scheme, 0.2, epoch=t) * 1000 for t in (0, 1, 2, 9)] for scheme in REJECTING}
    assert rates == {"ll_r": [0, 2, 4, 18], "ll_ct": [0, 2, 4, 18], "ll_cp": [0, 2, 2, 2]}
    assert scheduled_rate("ll_r", 0.2, epoch=4, warmup_epochs=3) * 1000 == 4


@pytest.mark.parametrize("scheme", REJECTING)
@pytest.mark.parametrize("epoch", range(1, 10))
def test_continuous_schedule_rises_and_meets_the_per_epoch_one_at_epoch_starts(scheme: str, epoch: int) -> None:
    inside = [scheduled_rate(scheme, 0.3, epoch=epoch, step=s, steps=7, continuous=True) for s in range(8)]
    assert inside[0] == scheduled_rate(scheme, 0.3, epoch=epoch)
    assert inside[7] == scheduled_rate(scheme, 0.3, epoch=epoch + 1)
    assert {b - a for a, b in pairwise(inside)} == {0 if scheme == "ll_cp" else Fraction(3, 7000)}


def test_a_rate_above_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"delta_rel=30 .* asks, after 4 epochs, to reject 120 % .* within 0\.\.100"):
        scheduled_rate("ll_r", 30, epoch=4)
    with pytest.raises(ValueError, match=r"delta_rel=-1 .* asks, after 2 epochs, to reject -2 %"):
        rejection_rate(2, -1)


# --- Losses and refusals ----------------------------------------------------------------------------------------------


def published(logits: Tensor, labels: Tensor, scheme: str, count: int) -> Tensor:
    """The papers' lambda * loss, literally; float64, no ties, no extremes."""
    f, unobserved = logits.sigmoid(), labels == UNOBSERVED
    losses = torch.where(labels == POSITIVE, -f.log(), -(1 - f).log())
    if scheme == "ignore":
        return losses[~unobserved].sum() / max(1, int((~unobserved).sum()))
    ranked = losses[unobserved].sort(descending=True).values
    threshold = ranked[count] if count < len(ranked) else -math.inf
    large = unobserved & (losses > threshold)
    swapped = f.log() / (1 - f).log()
    factor = {"ll_r": torch.zeros_like(f), "ll_ct": swapped, "ll_cp": swapped}.get(scheme, torch.ones_like(f))
    return (torch.where(large, factor, 1.0) * losses).mean()


@pytest.mark.parametrize("scheme", SCHEMES)
@given(rows=st.integers(1, 6), classes=st.integers(1, 8), percent=st.integers(0, 100), seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=40)
def test_loss_is_the_published_formula(scheme: str, rows: int, classes: int, percent: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    spread = torch.linspace(-6, 6, rows * classes, dtype=torch.float64) + 0.01  # all different
    values = spread[torch.randperm(rows * classes, generator=rng)].view(rows, classes).float()
    least = NEGATIVE if scheme == "full" else UNOBSERVED
    labels = torch.randint(least, 2, (rows, classes), generator=rng).to(torch.int8)
    logits, reference = values.clone().requires_grad_(), values.double().requires_grad_()
    loss, rejected = large_loss(logits, labels, scheme, percent / 100)
    expected = published(reference, labels, scheme, -(-percent * rows * classes // 100))
    torch.autograd.backward([loss, expected])
    for found, exact in ((loss, expected), (logits.grad, reference.grad)):
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-7)
    assert rejected.any() <= (scheme in REJECTING)


@pytest.mark.parametrize(
    ("scheme", "loss", "gradient"),
    [("an", 3e4, [0, -1, 0, 1, 1, 0]), ("ll_r", 2e4, [0, -1, 0, 1, 0, 0]), ("ll_ct", 2e4, [0, -1, 0, 1, 0, 0])],
)
def test_extreme_logits_keep_loss_and_gradient(scheme: str, loss: float, gradient: list[int]) -> None:
    logits = torch.tensor([[1e4, -1e4, -1e4, 1e4, 1e4, -1e4]], requires_grad=True)
    labels = as_labels(1, 1, 0, 0, -1, -1)
    found, _ = large_loss(logits, labels, scheme, 1 / 6)
    found.backward()
    assert found.item() * 6 == pytest.approx(loss)
    torch.testing.assert_close(logits.grad * 6, torch.tensor([gradient], dtype=torch.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scheme", PARTIAL)
def test_low_precision_logits_are_computed_in_float32(dtype: torch.dtype, scheme: str) -> None:
    low = torch.linspace(-9, 9, 60).view(6, 10).to(dtype).requires_grad_()
    labels = torch.arange(60).remainder(5).sub(3).clamp(min=UNOBSERVED).view(6, 10).to(torch.int8)
    loss, rejected = large_loss(low, labels, scheme, 0.1)
    expected, same = large_loss(low.detach().float(), labels, scheme, 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == expected.item()
    assert torch.equal(rejected, same)
    assert torch.autograd.grad(loss, low)[0].dtype == dtype


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused_by_row(bad: float) -> None:
    logits = torch.zeros(5, 3)
    logits[1, 2] = logits[4, 0] = bad
    with pytest.raises(FloatingPointError, match=r"not finite in rows \[1, 4\] of 5"):
        large_loss(logits, all_unobserved(5, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "ll-cp"}, r"scheme='ll-cp': no such scheme; known: full, an, ignore, ll_r, ll_ct, ll_cp"),
        ({"labels": as_labels(2, 0)}, r"labels from 0 to 2: use 1 positive, 0 negative, -1 unobserved"),
        ({"labels": as_labels(-2, 1)}, r"labels from -2 to 1"),
        ({"labels": all_unobserved(2, 1)}, r"logits \[1, 2\] and labels \[2, 1\]: give both as \[B, K\]"),
        ({"logits": torch.zeros(2), "labels": all_unobserved(2)}, r"logits \[2\] and labels \[2\]"),
        ({"rejection_rate": 1.5}, r"rejection_rate=1\.5: a share of all entries, 0\.\.1"),
        ({"rejection_rate": -0.1}, r"rejection_rate=-0\.1"),
        ({"rejection_rate": math.nan}, r"rejection_rate=nan"),
        ({"scheme": "full"}, r"scheme='full' needs every entry observed"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, object], message: str) -> None:
    arguments = {"logits": torch.zeros(1, 2), "labels": all_unobserved(1, 2), "scheme": "ll_r"} | change
    with pytest.raises(ValueError, match=message):
        large_loss(**arguments)


# --- Defects of the published code; LL-Cp's are in test_corrections, BoostLU's in test_model ----------------------


def test_ties_are_not_over_selected() -> None:
    """`loss >= k-th value` took every tie: of 40 equal logits and k=2, 36 were rejected."""
    labels = torch.cat([torch.full((4, 1), POSITIVE, dtype=torch.int8), all_unobserved(4, 9)], 1)
    _, rejected = large_loss(torch.ones(4, 10), labels, "ll_r", 2 / 40)
    assert rejected.nonzero().tolist() == [[0, 1], [0, 2]]


@pytest.mark.parametrize("scheme", REJECTING)
def test_a_budget_beyond_the_candidates_touches_no_observed_entry(scheme: str) -> None:
    """The threshold became 0 and every entry qualified: LL-R's loss was 0, LL-Ct and LL-Cp flipped all labels."""
    logits, labels = torch.tensor([[-100.0, 100, -1, 100]]), as_labels(1, 0, -1, -1)
    found, rejected = large_loss(logits, labels, scheme, 1.0)
    assert rejected.tolist() == [[False, False, True, True]]
    assert found.item() * 4 == pytest.approx(200 if scheme == "ll_r" else 200 + math.log1p(math.e))


def test_losses_that_underflow_still_rank() -> None:
    """In float32 a target of 0 costs exactly 0 from a logit of about -15 down: false ties, whole batches rejected."""
    logits = -torch.arange(30.0, 70.0).flip(0).view(4, 10)
    _, rejected = large_loss(logits, all_unobserved(4, 10), "ll_r", 3 / 40)
    assert rejected.nonzero().tolist() == [[3, 7], [3, 8], [3, 9]]


def test_count_is_exact_and_then_ceiled() -> None:
    """ceil(entries x (1 - clean_rate)), clean_rate by subtraction, gave 161 for 160; but 1 where 0.32 are asked."""
    assert math.ceil(16 * 5000 * (1 - (1 - 0.2 / 100))) == 161
    assert rejection_count(scheduled_rate("ll_ct", 0.2, epoch=1), 16 * 5000) == 160
    assert rejection_count(scheduled_rate("ll_ct", 0.2, epoch=1), 8 * 20) == 1


@pytest.mark.parametrize(("rounding", "count"), [("up", 1), ("half_up", 0)])
def test_ll_cp_corrects_at_its_published_setting_for_voc(rounding: selection.Rounding, count: int) -> None:
    """16 images x 20 classes x 0.1 % are 0.32 entries: one in published code, none in earlier versions."""
    logits = torch.randn(16, 20)
    rate = scheduled_rate("ll_cp", 0.1, epoch=1)
    _, rejected = large_loss(logits, all_unobserved(16, 20), "ll_cp", rate, rounding=rounding)
    assert rejected.sum() == count


def test_budget_counts_all_entries_and_is_filled_from_unobserved_ones() -> None:
    """10 % of 100 entries are 10 (as published), here half of the unobserved; and never a verified negative.

    One published code's label alphabet made OpenImages' verified negatives the candidates, its unobserved never.
    """
    labels = all_unobserved(10, 10)
    labels[2:] = NEGATIVE  # with the largest losses
    logits = torch.arange(100.0).view(10, 10)
    _, rejected = large_loss(logits, labels, "ll_r", 0.1)
    assert rejected.flatten().nonzero().flatten().tolist() == list(range(10, 20))


def test_rejected_entries_stay_in_the_denominator() -> None:
    """The paper's example, losses 0.1 1.8 1.5 0.1 0.2: 0.74 becomes 0.08 = 0.4 / 5, not 0.4 / 3."""
    logits = torch.tensor([[0.1, 1.8, 1.5, 0.1, 0.2]]).expm1().log() * torch.tensor([-1, 1, 1, 1, 1])
    labels = as_labels(1, -1, -1, -1, -1)
    assert large_loss(logits, labels, "an")[0].item() == pytest.approx(0.74)
    assert large_loss(logits, labels, "ll_r", 2 / 5)[0].item() == pytest.approx(0.08)


def test_other_logits_may_rank_the_entries() -> None:
    draws = torch.Generator().manual_seed(0)
    logits, ranking = torch.randn(2, 6, 5, generator=draws, dtype=torch.float64)
    labels = torch.randint(-1, 2, (6, 5), generator=draws, dtype=torch.int8)
    loss, rejected = large_loss(logits, labels, "ll_r", Fraction(7, 30), ranking=ranking)
    unobserved = [(float(ranking[cell]), cell) for cell in np.ndindex(6, 5) if labels[cell] == -1]
    taken = {cell for _, cell in sorted(unobserved, reverse=True)[:7]}
    assert {tuple(cell) for cell in rejected.nonzero().tolist()} == taken
    costs = [math.log1p(math.exp(-v if labels[cell] == 1 else v)) for cell in np.ndindex(6, 5) for v in [logits[cell]]]
    kept = [cost for cost, cell in zip(costs, np.ndindex(6, 5), strict=True) if cell not in taken]
    assert loss.item() == pytest.approx(sum(kept) / 30, rel=1e-12)
