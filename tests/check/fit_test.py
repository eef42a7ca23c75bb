"""The score of labels at all shifts, against a loop over the definition in float64."""

import numpy as np
import pytest
from check_support import tissue
from scipy import ndimage

from emseg_jax.check import fit
from emseg_jax.check import look as check_look


def correlation_ratio(image, label, shift, reach, ignored=None):
  """1 - sum_k N_k var_k / (N var) of the pixels inside, for the label moved by `shift`."""
  smooth = ndimage.gaussian_filter(image.astype(np.float64), 1.5)
  gradient = np.hypot(ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1))
  edge = np.zeros(label.shape, bool)
  for y, x in np.ndindex(*label.shape):
    around = label[max(0, y - 1) : y + 2, x].tolist() + label[y, max(0, x - 1) : x + 2].tolist()
    edge[y, x] = any(v != label[y, x] for v in around)
  groups = np.where(edge, -1, label.astype(int))
  unused = np.zeros(label.shape, bool) if ignored is None else ignored
  inside = slice(reach, -reach)
  moved = np.roll(groups, shift, (0, 1))[inside, inside]
  used = ~np.roll(unused, shift, (0, 1))[inside, inside]
  scores = []
  for feature in (smooth, gradient):
    f = feature[inside, inside]
    f = ((f - f.mean()) / f.std())[used]  # the variance is that of all pixels inside
    k = moved[used]
    between = sum((k == v).sum() * (f[k == v].mean() - f.mean()) ** 2 for v in np.unique(k))
    scores.append(between / len(f))
  return np.mean(scores)


@pytest.mark.parametrize('masked', [False, True])
def test_scores_are_those_of_the_definition(masked):
  images, labels = tissue(1)
  ignored = np.zeros(labels[0].shape, bool)
  ignored[20:50, 30:60] = masked
  scores = fit.score_shifts(images[0], labels[0], ignored=ignored)
  reach = 96 // 8
  assert scores.shape == (2 * reach + 1, 2 * reach + 1)
  for dy, dx in ((0, 0), (3, 0), (0, -5), (-12, 12)):
    expected = correlation_ratio(images[0], labels[0], (dy, dx), reach, ignored)
    assert scores[reach + dy, reach + dx] == pytest.approx(expected, abs=1e-4)


def test_best_shift_undoes_a_shift():
  images, labels = tissue(1)
  moved = np.roll(labels[0], (5, -7), (0, 1))
  scores = fit.score_shifts(images[0], moved)
  best = np.subtract(np.unravel_index(scores.argmax(), scores.shape), 12)
  assert np.abs(best - (-5, 7)).max() <= 1


def test_instance_ids_are_one_group_beside_the_outside():
  images, labels = tissue(1)
  ids = ndimage.label(labels[0] == 0)[0]
  assert ids.max() > fit.MOST_VALUES
  expected = correlation_ratio(images[0], np.where(ids > 0, 1, 0) + 0 * ids, (0, 0), 12)
  score = fit.score_shifts(images[0], ids)[12, 12]
  assert score == pytest.approx(expected, abs=1e-4)  # cells do not touch, so edges are the same


def test_nothing_is_concluded_from_too_little():
  images, labels = tissue(1)
  constant, tiny = np.zeros((96, 96), np.uint8), np.zeros((96, 96), np.uint8)
  tiny[4:8, 4:8] = 1  # 12 pixels on its inside and 16 outside are boundary
  assert fit.score_shifts(images[0], constant) is None
  assert fit.score_shifts(images[0], tiny) is None
  assert fit.score_shifts(np.full((96, 96), 7, np.uint8), labels[0]) is None
  assert fit.score_shifts(images[0][:40], labels[0][:40]) is None
  everywhere = np.ones((96, 96), bool)
  assert fit.score_shifts(images[0], labels[0], ignored=everywhere) is None


def test_window_lies_where_the_edges_are():
  label = np.zeros((300, 400), np.uint8)
  label[200:260:2, 320:390] = 1
  window = fit.busiest_window(label, size=96)
  assert fit.find_boundary(label[window]).sum() > 0.9 * fit.find_boundary(label).sum()
  assert label[window].shape == (96, 96)
  small = np.zeros((20, 30))
  assert fit.busiest_window(small, size=96) == (slice(0, 20), slice(0, 30))


def test_pool_takes_the_shifts_that_all_have():
  a, b = np.zeros((5, 5)), np.ones((3, 3))
  a[2, 2] = 3.0
  expected = np.full((3, 3), 0.5)
  expected[1, 1] = 2.0
  np.testing.assert_array_equal(fit.pool([a, b]), expected)
  assert fit.pool([]) is None


@pytest.mark.parametrize('size', [(200, 300), (201, 300), (199, 257), (64, 97), (10, 11)])
def test_looks_follow_flips_and_ignore_contrast(size):
  image = np.random.default_rng(0).integers(0, 255, size).astype(np.uint8)
  straight = check_look.detail(image)
  np.testing.assert_allclose(check_look.detail(image[::-1]), straight[::-1], atol=1e-5)
  np.testing.assert_allclose(check_look.detail(image.T), straight.T, atol=1e-5)
  for look in (check_look.detail, check_look.thumbnail):
    straight = look(image)
    assert np.linalg.norm(straight) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(look(image * 0.5 + 9), straight, atol=1e-4)  # contrast, brightness


def test_flat_section_has_no_look():
  flat = np.full((100, 120), 200, np.uint8)
  assert not check_look.detail(flat).any()
  assert not check_look.thumbnail(flat).any()
