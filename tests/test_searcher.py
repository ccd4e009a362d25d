"""Searchers against brute force in NumPy."""

import shutil

import numpy as np
import pytest
from etils import epath

from realm_jax.index.digest import file_digests
from realm_jax.index.searcher import ExactSearcher, ScannSearcher, _replace_padding, scann_settings

N, D = 20_000, 32


def brute_force(query_BD, emb_ND, k):
  """Best first, equal scores in the order of their ids."""
  score_BN = query_BD @ emb_ND.T
  id_BK = np.argsort(-score_BN, axis=1, kind="stable")[:, :k]
  return np.take_along_axis(score_BN, id_BK, 1), id_BK


def whole_numbers(rng, shape, most):
  """float32 whose inner products are exact, so that orders can be compared."""
  return rng.integers(-most, most + 1, shape).astype(np.float32)


@pytest.mark.parametrize("num_passages", [1, 2, 7, 63, 64, 65, 128, 1000])
def test_exact_equals_numpy_argsort(num_passages):
  rng = np.random.default_rng(num_passages)
  emb_ND, query_BD = whole_numbers(rng, (num_passages, 16), 100), whole_numbers(rng, (5, 16), 100)
  searcher = ExactSearcher(emb_ND)
  for k in sorted({1, min(3, num_passages), min(65, num_passages), num_passages}):
    score_BK, id_BK = searcher.search(query_BD, k)
    wanted_score_BK, wanted_id_BK = brute_force(query_BD, emb_ND, k)
    np.testing.assert_array_equal(score_BK, wanted_score_BK)
    np.testing.assert_array_equal(id_BK, wanted_id_BK)
    assert (score_BK.dtype, id_BK.dtype) == (np.float32, np.int32)


def test_exact_equals_numpy_argsort_over_two_blocks():
  rng = np.random.default_rng(0)
  emb_ND, query_BD = whole_numbers(rng, (70_000, 4), 1000), whole_numbers(rng, (3, 4), 1000)
  searcher = ExactSearcher(emb_ND)
  for k in (1, 50, 2000):
    score_BK, id_BK = searcher.search(query_BD, k)
    wanted_score_BK, wanted_id_BK = brute_force(query_BD, emb_ND, k)
    np.testing.assert_array_equal(score_BK, wanted_score_BK)
    np.testing.assert_array_equal(id_BK, wanted_id_BK)
  assert wanted_id_BK.max() >= 1 << 16 > wanted_id_BK.min()  # both blocks took part


@pytest.mark.parametrize("num_passages", [65, 1000, 70_000])
def test_equal_scores_come_in_the_order_of_their_ids(num_passages):
  rng = np.random.default_rng(1)
  emb_ND, query_BD = whole_numbers(rng, (num_passages, 2), 1), whole_numbers(rng, (4, 2), 1)
  query_BD[0] = 0  # all scores are equal
  score_BK, id_BK = ExactSearcher(emb_ND).search(query_BD, 40)
  np.testing.assert_array_equal(id_BK, brute_force(query_BD, emb_ND, 40)[1])
  np.testing.assert_array_equal(id_BK[0], np.arange(40))


def test_negative_scores_win_over_the_padding_of_the_last_group():
  emb_ND = -np.ones((65, 2), np.float32)
  score_BK, id_BK = ExactSearcher(emb_ND).search(np.ones((1, 2), np.float32), 65)
  np.testing.assert_array_equal(id_BK[0], np.arange(65))
  np.testing.assert_array_equal(score_BK[0], -2.0)


def clustered(num_passages=N, seed=0):
  rng = np.random.default_rng(seed)
  center_CD = rng.normal(size=(200, D))
  emb_ND = center_CD[rng.integers(0, 200, num_passages)] + 0.4 * rng.normal(size=(num_passages, D))
  query_BD = center_CD[rng.integers(0, 200, 64)] + 0.4 * rng.normal(size=(64, D))
  return emb_ND.astype(np.float32), query_BD.astype(np.float32)


@pytest.fixture(scope="module")
def data():
  return clustered()


@pytest.fixture(scope="module")
def scann_searcher(data):
  return ScannSearcher.build(data[0], scann_settings(N))


def recall(found_BK, wanted_BK):
  return np.mean([len(set(f) & set(w)) / len(w) for f, w in zip(found_BK.tolist(), wanted_BK.tolist())])


@pytest.mark.parametrize("searcher_class", [ExactSearcher, ScannSearcher])
def test_a_planted_vector_is_found(data, searcher_class):
  emb_ND, query_BD = data[0].copy(), data[1]
  planted = np.arange(len(query_BD)) * 311 + 5
  length_B = np.linalg.norm(query_BD, axis=1)
  emb_ND[planted] = 30 * query_BD / length_B[:, None]  # five times as long as the others
  if searcher_class is ExactSearcher:
    searcher = ExactSearcher(emb_ND)
  else:
    searcher = ScannSearcher.build(emb_ND, scann_settings(N))
  score_BK, id_BK = searcher.search(query_BD, 2)
  np.testing.assert_array_equal(id_BK[:, 0], planted)
  np.testing.assert_allclose(score_BK[:, 0], 30 * length_B, rtol=1e-5)


def test_scann_finds_what_exact_search_finds(data, scann_searcher):
  emb_ND, query_BD = data
  score_BK, id_BK = scann_searcher.search(query_BD, 8)
  assert recall(id_BK, ExactSearcher(emb_ND).search(query_BD, 8)[1]) >= 0.95
  assert (score_BK.dtype, id_BK.dtype) == (np.float32, np.int32)
  np.testing.assert_allclose(score_BK, np.einsum("bd,bkd->bk", query_BD, emb_ND[id_BK]), rtol=1e-4, atol=1e-4)
  assert (np.diff(score_BK) <= 0).all()


@pytest.mark.parametrize("k", [200, 500, 5000, N])
def test_scann_finds_a_wide_beam(data, scann_searcher, k):
  emb_ND, query_BD = data[0], data[1][:16]
  score_BK, id_BK = scann_searcher.search(query_BD, k)
  assert np.isfinite(score_BK).all()
  assert all(len(set(row)) == k for row in id_BK.tolist())
  assert recall(id_BK, ExactSearcher(emb_ND).search(query_BD, k)[1]) >= 0.95


def test_scann_answers_the_same_after_a_move(data, scann_searcher, tmp_path):
  (tmp_path / "first").mkdir()
  scann_searcher.save(str(tmp_path / "first"))
  shutil.move(tmp_path / "first", tmp_path / "second")
  loaded = ScannSearcher.load(str(tmp_path / "second"), N, scann_settings(N))
  shutil.rmtree(tmp_path / "second")
  for k in (8, 500):
    assert_same_answers(loaded, scann_searcher, data[1], k)


def test_two_builds_of_scann_are_the_same_to_the_bit(data, scann_searcher, tmp_path):
  again = ScannSearcher.build(data[0], scann_settings(N))
  for name, searcher in (("first", scann_searcher), ("again", again)):
    (tmp_path / name).mkdir()
    searcher.save(str(tmp_path / name))
  files = file_digests(epath.Path(tmp_path / "first"))
  assert "ah_codebook.pb" in files and file_digests(epath.Path(tmp_path / "again")) == files
  assert_same_answers(again, scann_searcher, data[1], 100)


def assert_same_answers(searcher, other, query_BD, k):
  score_BK, id_BK = searcher.search(query_BD, k)
  other_score_BK, other_id_BK = other.search(query_BD, k)
  np.testing.assert_array_equal(id_BK, other_id_BK)
  # ScaNN adds in an order that depends on where its arrays lie in memory: the last bit of a score may differ.
  np.testing.assert_allclose(score_BK, other_score_BK, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_passages", [1, 2, 15, 16, 17, 20, 31, 32, 48, 100, 1000])
def test_scann_builds_for_any_number_of_passages(num_passages):
  emb_ND, query_BD = clustered(num_passages)
  searcher = ScannSearcher.build(emb_ND, scann_settings(num_passages))
  for k in sorted({1, min(8, num_passages), num_passages}):
    score_BK, id_BK = searcher.search(query_BD[:4], k)
    assert np.isfinite(score_BK).all()
    assert all(len(set(row)) == k for row in id_BK.tolist())
    np.testing.assert_allclose(score_BK, np.einsum("bd,bkd->bk", query_BD[:4], emb_ND[id_BK]), rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(np.sort(id_BK), np.tile(np.arange(num_passages), (4, 1)))


def test_scann_settings_are_within_their_bounds():
  for num_passages in [*range(1, 300), 10**3, 10**4, 10**5, 10**6, 13_353_718]:
    settings = scann_settings(num_passages)
    assert 1 <= settings["num_leaves_searched"] <= settings["num_leaves"] <= max(1, num_passages // 16)
    assert settings["training_sample_size"] <= num_passages and settings["rescored"] <= num_passages
    assert (settings["soar_lambda"] is None) == (settings["num_leaves"] <= 2)
  assert settings["num_leaves"] == 7309


def test_padding_becomes_other_passages():
  nan = np.nan
  score = np.array([[3.0, nan, nan], [2.0, 1.0, 0.5], [nan, nan, nan]], np.float32)
  passage_id = np.array([[1, 0, 0], [4, 0, 2], [0, 0, 0]], np.int32)
  passage_id, score = _replace_padding(passage_id, score, 5)
  np.testing.assert_array_equal(passage_id, [[1, 0, 2], [4, 0, 2], [0, 1, 2]])
  np.testing.assert_array_equal(score, [[3.0, -np.inf, -np.inf], [2.0, 1.0, 0.5], [-np.inf] * 3])


def test_a_query_whose_leaves_are_too_small_is_filled_up():
  emb_ND, query_BD = clustered(1000)
  settings = scann_settings(1000) | {"num_leaves_searched": 1, "soar_lambda": None, "overretrieve_factor": None}
  searcher = ScannSearcher.build(emb_ND, settings)
  # As an index with leaves of very different sizes would: one leaf is searched where k passages need several.
  searcher._settings = settings | {"num_leaves": 1}
  score_BK, id_BK = searcher.search(query_BD, 200)
  assert np.isneginf(score_BK).any() and not np.isnan(score_BK).any()
  assert all(len(set(row)) == 200 for row in id_BK.tolist())
  assert (id_BK >= 0).all() and (id_BK < 1000).all()


@pytest.mark.parametrize("k", [0, -1, N + 1])
def test_k_out_of_range_is_refused(data, scann_searcher, k):
  for searcher in (scann_searcher, ExactSearcher(data[0])):
    with pytest.raises(ValueError, match=rf"^asked for {k} of {N} passages; ask for 1 to {N}$"):
      searcher.search(data[1], k)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_query_that_is_not_finite_is_refused(data, scann_searcher, bad):
  query_BD = data[1].copy()
  query_BD[3, 5] = bad
  for searcher in (scann_searcher, ExactSearcher(data[0])):
    with pytest.raises(
      ValueError, match=r"^a query embedding is not finite; the retriever's parameters have diverged$"
    ):
      searcher.search(query_BD, 8)


def test_scann_settings_can_be_chosen():
  settings = scann_settings(100_000, {"num_leaves": 50, "rescored": 0, "soar_lambda": 2.0})
  assert (settings["num_leaves"], settings["rescored"], settings["soar_lambda"]) == (50, 200, 2.0)
  assert settings["num_leaves_searched"] == 5
  for name, value, most in [("num_leaves", 101, 100), ("num_leaves_searched", 11, 10), ("rescored", 200, 100)]:
    with pytest.raises(ValueError, match=rf"^index.scann.{name}={value}, expected 1 to {most}, or 0 to choose it"):
      scann_settings(100, {"num_leaves": 10} | {name: value})
