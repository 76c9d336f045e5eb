"""Ranks against the whole float64 matrix, and guards that neither the filter nor the refinement is idle."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from hf_vse.evaluation import ranks
from hf_vse.evaluation.metrics import fold_metrics, retrieval_metrics, retrieval_ranks
from tests.processes import in_processes

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def embeddings(images=50, captions=3, dim=24, noise=2.0, seed=0, dtype=torch.float32, unit=True):
    generator = torch.Generator().manual_seed(seed)
    owner = torch.arange(images).repeat_interleave(captions)[torch.randperm(images * captions, generator=generator)]
    image_embeds = torch.randn(images, dim, generator=generator, dtype=torch.float64)
    text_embeds = image_embeds[owner] + noise * torch.randn(len(owner), dim, generator=generator, dtype=torch.float64)
    if unit:
        image_embeds, text_embeds = (torch.nn.functional.normalize(each) for each in (image_embeds, text_embeds))
    return image_embeds.to(dtype), text_embeds.to(dtype), owner


def near_ties(dtype, seed=0):
    """Every image has a twin that differs in one small component, by about 1e-7: scores differ by 1e-12 to 1e-9."""
    image_embeds, text_embeds, owner = embeddings(images=30, dim=64, seed=seed, dtype=dtype)
    image_embeds[:, -1] *= 1e-3
    text_embeds[:, -1] *= 1e-3
    twins = image_embeds.clone()
    twins[:, -1] *= 1 + max(torch.finfo(dtype).eps, 2**-10)
    return torch.cat([image_embeds, twins]), torch.cat([text_embeds] * 2), torch.cat([owner, owner + 30])


def reference_ranks(image_embeds, text_embeds, owner, dtype=torch.float64, tolerance=ranks.TIE_TOLERANCE):
    """The definition, from the whole matrix: negatives that score at least as high as the best positive."""
    images, texts = torch.as_tensor(image_embeds).to(dtype), torch.as_tensor(text_embeds).to(dtype)
    owner = torch.as_tensor(owner)
    scores = texts @ images.T
    mine = owner[:, None] == torch.arange(len(images))
    tolerance = tolerance * images.norm(dim=1).max() * texts.norm(dim=1).max()
    image_ranks = [
        int((scores[~mine[:, image], image] >= scores[mine[:, image], image].max() - tolerance).sum())
        for image in range(len(images))
        if mine[:, image].any()
    ]
    text_ranks = [
        int((scores[text, ~mine[text]] >= scores[text, owner[text]] - tolerance).sum()) for text in range(len(texts))
    ]
    return image_ranks, text_ranks


def as_lists(found):
    return tuple(each.tolist() for each in found)


@pytest.fixture
def used(monkeypatch):
    """Names of the float64 computations that took place."""
    names = []
    for name in ("refine", "count_exactly"):
        original = getattr(ranks, name)
        monkeypatch.setattr(ranks, name, lambda *args, f=original, n=name: names.append(n) or f(*args))
    return names


@pytest.mark.parametrize("chunk_size", [3, 64, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_ranks_equal_the_whole_float64_matrix(seed, dtype, chunk_size):
    data = embeddings(seed=seed, dtype=dtype)
    found = retrieval_ranks(*data, chunk_size)
    assert as_lists(found) == reference_ranks(*data)
    assert all(0.1 < (each < 1).double().mean() < 0.9 for each in found)


@pytest.mark.parametrize("chunk_size", [16, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_below_the_resolution_of_float32_are_resolved(dtype, chunk_size, used):
    data = near_ties(dtype)
    expected = reference_ranks(*data)
    assert reference_ranks(*data, dtype=torch.float32, tolerance=0) != expected
    assert as_lists(retrieval_ranks(*data, chunk_size)) == expected
    assert used


def test_the_filter_decides_almost_everything(used):
    data = embeddings(images=400, dim=256, noise=3.0)
    assert as_lists(retrieval_ranks(*data)) == reference_ranks(*data)
    assert "count_exactly" not in used


def test_a_few_near_ties_are_resolved_pair_by_pair(used):
    image_embeds, text_embeds, owner = embeddings(images=400, dim=256, dtype=torch.float64)
    twin = image_embeds[:1] + 1e-9 * text_embeds[owner == 0][:1]
    data = torch.cat([image_embeds, twin]), torch.cat([text_embeds, twin]), torch.cat([owner, torch.tensor([400])])
    expected = reference_ranks(*data)
    assert reference_ranks(*data, dtype=torch.float32, tolerance=0) != expected
    assert as_lists(retrieval_ranks(*data)) == expected
    assert set(used) == {"refine"}


@pytest.mark.parametrize("chunk_size", [16, 1024])
@pytest.mark.parametrize("noise", [0, 1e-8, 1e-6])
def test_a_collapsed_model_is_computed_in_float64(noise, chunk_size, used):
    generator = torch.Generator().manual_seed(0)
    one = torch.nn.functional.normalize(torch.randn(24, generator=generator, dtype=torch.float64), dim=0)
    images, texts = (one + noise * torch.randn(n, 24, generator=generator, dtype=torch.float64) for n in (40, 120))
    data = images, texts, torch.arange(120) // 3
    found = retrieval_ranks(*data, chunk_size)
    assert as_lists(found) == reference_ranks(*data)
    assert "count_exactly" in used and "refine" not in used
    if not noise:
        assert (found[0] == 117).all() and (found[1] == 39).all()


@pytest.mark.parametrize("below, above", [(2, 2), (0, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_lies_between_low_and_high_is_counted_once(seed, below, above, used, monkeypatch):
    """Whole numbers, so that scores lie on the thresholds, below and above them, and on the bounds of both."""
    monkeypatch.setattr(ranks, "UNDECIDED_SHARE", 1)
    generator = torch.Generator().manual_seed(seed)
    texts, images = (torch.randint(-2, 3, (n, 4), generator=generator).float() for n in (50, 30))
    tile = ranks.Tile(texts, images, (torch.arange(30), torch.arange(30)))
    middles = [torch.randint(-3, 4, (n,), generator=generator) for n in (50, 30)]
    thresholds = [
        ranks.Thresholds(middle.double(), middle.float() - below, middle.float() + above) for middle in middles
    ]
    found, expected = ranks.count_filtered(tile, *thresholds), ranks.count_exactly(tile, *thresholds)
    assert used == ["refine", "refine", "count_exactly"]
    for one, other, threshold in zip(found, expected, thresholds, strict=True):
        assert torch.equal(one, other) and (other > 0).any() and len(threshold.exact) == len(one)


@pytest.mark.parametrize("dtype", DTYPES)
def test_duplicated_images_tie(dtype):
    image_embeds, text_embeds, owner = embeddings(images=20, dtype=dtype)
    data = torch.cat([image_embeds] * 2), torch.cat([text_embeds] * 2), torch.cat([owner, owner + 20])
    found = retrieval_ranks(*data, 16)
    assert as_lists(found) == reference_ranks(*data)
    assert (found[1] >= 1).all() and (found[0] >= 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_embeddings_need_not_be_unit_vectors(dtype):
    image_embeds, text_embeds, owner = embeddings(unit=False, dtype=dtype)
    data = image_embeds * torch.linspace(0.01, 30, len(image_embeds)).to(dtype)[:, None], text_embeds * 5, owner
    data[0][3] = 0
    assert as_lists(retrieval_ranks(*data, 16)) == reference_ranks(*data)


@pytest.mark.parametrize("make", [embeddings, near_ties])
@pytest.mark.parametrize("exponent", [-200, -70, -25, 25, 70, 200])
def test_neither_overflow_nor_underflow_of_float32_matters(exponent, make):
    image_embeds, text_embeds, owner = make(dtype=torch.float64)
    data = image_embeds * 2.0**exponent, text_embeds * 2.0**exponent, owner
    assert as_lists(retrieval_ranks(*data, 64)) == reference_ranks(image_embeds, text_embeds, owner)


@pytest.mark.parametrize("dim", [1, 16, 3000])
@pytest.mark.parametrize("sign", [True, False])
def test_the_bound_holds(dim, sign):
    """Vectors of positive components are the worst case: their product is as large as their lengths allow."""
    generator = torch.Generator().manual_seed(dim)
    texts, images = (torch.randn(100, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    texts, images = (texts.abs(), images.abs()) if sign else (texts, images)
    tile = ranks.Tile(texts, images, (torch.arange(0), torch.arange(0)))
    exact, rounded = tile.scores(torch.float64), tile.scores(torch.float32)
    assert (exact != rounded).any()
    for image in range(100):
        longest = images.norm(dim=1).max()
        thresholds = ranks.make_thresholds(exact[:, image], texts.norm(dim=1), longest, dim, torch.tensor(0.0))
        assert ((thresholds.low < rounded[:, image]) & (rounded[:, image] < thresholds.high)).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_memory_mapped_arrays_are_read_in_place(tmp_path, dtype):
    image_embeds, text_embeds, owner = (each.numpy() for each in embeddings())
    mapped = []
    for name, embeds in (("images", image_embeds), ("texts", text_embeds), ("owner", owner)):
        np.save(tmp_path / f"{name}.npy", embeds if name == "owner" else embeds.astype(dtype))
        mapped.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = retrieval_ranks(*mapped, 16)
    assert as_lists(found) == reference_ranks(image_embeds.astype(dtype), text_embeds.astype(dtype), owner)
    assert ranks.as_matrix("images", mapped[0]).data_ptr() == mapped[0].ctypes.data
    assert fold_metrics(*mapped, fold_size=10) == fold_metrics(*map(np.array, mapped), fold_size=10)


PEAK = """
import resource, sys, numpy as np
from hf_vse.evaluation.metrics import retrieval_ranks
gallery = np.load(sys.argv[1], mmap_mode="r")
texts = np.random.default_rng(0).normal(size=(64, 512)).astype(np.float16)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
retrieval_ranks(gallery[:2048], texts, np.arange(64), distractors=True)
before = peak()
retrieval_ranks(gallery, texts, np.arange(64), distractors=True)
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kilobytes on Linux")
def test_memory_does_not_grow_with_the_gallery(tmp_path):
    path = tmp_path / "gallery.npy"
    gallery = np.lib.format.open_memmap(path, "w+", np.float16, (60_000, 512))  # zeros, which take no place on disk
    gallery[:64] = 1
    gallery.flush()
    run = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True)
    megabytes = int(run.stdout) / 1024
    assert megabytes < gallery.nbytes / 2**20 + 40  # the mapped file itself counts; as float64 it would be 234 more


def test_images_without_text_are_candidates_where_they_are_allowed():
    image_embeds, text_embeds, owner = embeddings(images=60, captions=2)
    kept = owner % 3 == 0
    data = image_embeds, text_embeds[kept], owner[kept]
    with pytest.raises(ValueError, match="image 1 and 39 more have no text; .* distractors=True"):
        retrieval_ranks(*data)
    for chunk_size in (1, 16, 1024):
        image_ranks, text_ranks = retrieval_ranks(*data, chunk_size, distractors=True)
        assert (image_ranks.tolist(), text_ranks.tolist()) == reference_ranks(*data)
    assert image_ranks.shape == (20,)
    without = retrieval_ranks(image_embeds[::3], text_embeds[kept], owner[kept] // 3)
    assert torch.equal(without[0], image_ranks) and (without[1] < text_ranks).any()
    metrics = retrieval_metrics(*data, distractors=True)
    assert metrics["t2i_meanr"] == text_ranks.double().mean() + 1


def test_order_of_candidates_does_not_matter():
    image_embeds, text_embeds, owner = near_ties(torch.float32)
    generator = torch.Generator().manual_seed(0)
    image_order, text_order = (torch.randperm(len(each), generator=generator) for each in (image_embeds, text_embeds))
    shuffled = retrieval_ranks(
        image_embeds[image_order], text_embeds[text_order], image_order.argsort()[owner[text_order]], 16
    )
    image_ranks, text_ranks = retrieval_ranks(image_embeds, text_embeds, owner)
    assert torch.equal(shuffled[0], image_ranks[image_order]) and torch.equal(shuffled[1], text_ranks[text_order])


def test_what_the_user_allows_matmuls_does_not_matter():
    data = embeddings(images=200, dim=128, noise=4.0)
    expected = reference_ranks(*data)
    precision, enabled = torch.get_float32_matmul_precision(), torch.backends.mkldnn.set_flags(None)[0]
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert as_lists(retrieval_ranks(*data)) == expected
            assert torch.backends.mkldnn.set_flags(None)[0] == enabled
            with ranks.true_float32():
                assert not torch.backends.mkldnn.set_flags(None)[0]
            assert (data[0] @ data[1].T).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)


def test_embeddings_that_need_gradients_or_come_from_inference_mode_are_accepted():
    image_embeds, text_embeds, owner = embeddings()
    expected = reference_ranks(image_embeds, text_embeds, owner)
    assert as_lists(retrieval_ranks(image_embeds.clone().requires_grad_(), text_embeds, owner)) == expected
    with torch.inference_mode():
        inference = image_embeds * 1, text_embeds * 1, owner
    assert as_lists(retrieval_ranks(*inference)) == expected


def test_a_row_that_is_not_finite_is_named():
    image_embeds, text_embeds, owner = embeddings(images=40)
    image_embeds[33, 2] = torch.inf
    for broken in (retrieval_ranks, lambda *data: fold_metrics(*data, fold_size=20)):
        with pytest.raises(ValueError, match="image_embeds row 33 is not finite"):
            broken(image_embeds, text_embeds, owner)


@pytest.mark.parametrize("shares", [1, 2, 3, 50])
def test_ranks_add_up_over_shares(shares):
    data = near_ties(torch.float32)
    whole = retrieval_ranks(*data, 50)  # 4 by 2 tiles
    parts = [retrieval_ranks(*data, 50, share=(part, shares)) for part in range(shares)]
    for direction in (0, 1):
        assert torch.equal(sum(part[direction] for part in parts), whole[direction])
    done = sum(bool(image_ranks.any() or text_ranks.any()) for image_ranks, text_ranks in parts)
    assert done == min(shares, 8)


def test_a_share_that_is_none_is_refused():
    for share in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="share must be .i, n. with i from 0 to n - 1, got"):
            retrieval_ranks(*embeddings(), share=share)


def test_one_process_has_all_ranks():
    data = embeddings()
    assert as_lists(ranks.distributed_ranks(*data, 16)) == reference_ranks(*data)
    kept = data[2] % 3 == 0
    some = data[0], data[1][kept], data[2][kept]
    assert as_lists(ranks.distributed_ranks(*some, 16, distractors=True)) == reference_ranks(*some)


def count_shared(rank: int, path: str) -> None:
    tiles, count = [], ranks.count_filtered
    ranks.count_filtered = lambda *args: tiles.append(1) or count(*args)
    with np.load(path) as data:
        found = ranks.distributed_ranks(data["images"], data["texts"], data["owner"], 32)
    np.savez(f"{path}.{rank}.npz", images=found[0], texts=found[1], tiles=len(tiles))


def test_two_processes_count_half_the_tiles_each_and_get_all_ranks(tmp_path):
    image_embeds, text_embeds, owner = data = embeddings(noise=3.0)
    path = tmp_path / "data.npz"
    np.savez(path, images=image_embeds, texts=text_embeds, owner=owner)
    in_processes(2, count_shared, str(path))
    for process in (0, 1):
        with np.load(f"{path}.{process}.npz") as found:
            assert (found["images"].tolist(), found["texts"].tolist()) == reference_ranks(*data)
            assert found["tiles"] == 5  # of 2 by 5
