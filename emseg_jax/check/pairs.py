"""Do labels lie where the objects of their images are?

The score of `fit` is compared with what it would be if the labels were shifted, flipped,
turned, or those of the neighbouring section. On eleven real data sets, from membranes to synapses,
the best place of a correct label was within 2 pixels of where it is (6 for the smallest synapses),
and flipped labels scored less than half of it.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from emseg_jax.check import fit as check_fit
from emseg_jax.check.measure import Measured, read_label
from emseg_jax.check.poses import AS_IS, POSES
from emseg_jax.check.problem import Problem
from emseg_jax.check.read import spread
from emseg_jax.data.labels import Rules
from emseg_jax.data.pairs import Section
from emseg_jax.errors import DataError

__all__ = ['judge_alignment']

# Image volumes are tried in another order: number of a section, sections -> number.
OTHER_IMAGES: dict[str, Callable[[int, int], int]] = {
  'the next image': lambda i, n: i + 1,
  'the previous image': lambda i, n: i - 1,
  'the image as far from the other end of the volume': lambda i, n: n - 1 - i,
}
MOST_POSED = 8  # sections of a split that are read again to try other poses
FEWEST = 3  # sections, to tell what is usual
MOST = 0.75  # of the sections must fit another image better
NEAR = 4  # pixels: labels may be drawn a little beside the edge
WORSE = 0.8  # of the best score: what the score at no shift must fall below
CLEAR = 2.0  # ratio of the best pose to every other
UNRELATED = 0.95  # quantile of the scores in other poses that labels in place exceed
STRANGE = 0.2  # of the median of the split: a label that does not belong to its image
BELONGS = 0.5  # of the median of the split: one that does, if shifted
NEXT_DOOR = 1.15  # ratio of the scores with the neighbouring and with its own image


@dataclasses.dataclass(frozen=True)
class _Tried:
  """Scores of one label: over shifts, by pose; and, where it is, with other images."""

  poses: dict[str, np.ndarray]
  others: dict[str, float]


def judge_alignment(
  name: str, read: Sequence[Measured], rules: Rules, *, threads: int
) -> list[Problem]:
  """Problems of the labels of one split: first of all of them, else of single ones."""
  fitted = [i for i, m in enumerate(read) if m.label and m.label.fit is not None]
  if not fitted:
    return []
  chosen = [fitted[i] for i in spread(len(fitted), MOST_POSED)]
  with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
    tried = list(pool.map(lambda i: _try_poses(read[i], rules), chosen))
  pooled = {
    pose: check_fit.pool([t.poses[pose] for t in tried if pose in t.poses])
    for pose in dict.fromkeys(pose for t in tried for pose in t.poses)
  }
  fits = check_fit.pool([read[i].label.fit for i in fitted])
  places = [(name, i) for i in fitted]
  first = read[fitted[0]].label.at
  found = (
    _judge_pose(name, pooled, first)
    or _judge_order(name, tried, pooled, first)
    or _judge_shift(name, fits, pooled, first)
    or _judge_relation(name, fits, pooled, first)
  )
  if found:
    return [dataclasses.replace(found, places=tuple(places[:2]))]
  return list(_judge_single(name, fitted, read))


def _try_poses(m: Measured, rules: Rules) -> _Tried:
  """Reads a section again and scores its label in all poses, and with other images."""
  section = m.section
  try:
    image = section.image_volume.section(section.image_index)
    _, label, unused = read_label(section, rules)
  except DataError:  # it could be read before: what was measured then is left
    return _Tried({AS_IS: m.label.fit}, {})
  window = check_fit.busiest_window(label)
  poses = {}
  for pose, turn in POSES.items():
    if pose != AS_IS and turn(label).shape == image.shape[:2]:
      ignored = None if unused is None else turn(unused)[window]
      score = check_fit.score_shifts(image[window], turn(label)[window], ignored=ignored)
      poses |= {} if score is None else {pose: score}
  others = {}
  for words, number in OTHER_IMAGES.items():
    other = _read(section, number(section.image_index, len(section.image_volume)))
    if other is not None:
      ignored = None if unused is None else unused[window]
      score = check_fit.score_shifts(other[window], label[window], ignored=ignored)
      others |= {} if score is None else {words: _centre(score)}
  return _Tried({AS_IS: m.label.fit} | poses, others)


def _read(section: Section, index: int) -> np.ndarray | None:
  """Another section of the same volume, if it has one of this size that can be read."""
  volume = section.image_volume
  if not 0 <= index < len(volume) or volume.section_shape(index) != section.shape:
    return None
  try:
    return volume.section(index)
  except DataError:  # reported where that section is checked
    return None


def _centre(score: np.ndarray) -> float:
  return float(score[len(score) // 2, len(score) // 2])


def _find_shift(score: np.ndarray) -> tuple[int, int]:
  y, x = np.unravel_index(score.argmax(), score.shape)
  return int(y) - len(score) // 2, int(x) - len(score) // 2


def _best_of_others(poses: Mapping[str, np.ndarray]) -> float:
  """What labels that do not belong to the images score: the best in any other pose."""
  return max((float(score.max()) for pose, score in poses.items() if pose != AS_IS), default=0.0)


def _judge_pose(name: str, poses: Mapping[str, np.ndarray], where: str) -> Problem | None:
  """Labels that fit once they are flipped or turned."""
  ranked = sorted(poses, key=lambda pose: float(poses[pose].max()), reverse=True)
  best, second = (float(poses[pose].max()) for pose in (ranked * 2)[:2])
  if ranked[0] == AS_IS or best <= CLEAR * second:
    return None
  message = (
    f'{where}: the labels of {name} fit the images much better when {ranked[0]} (score {best:.3f}) '
    f'than {AS_IS} ({_centre(poses[AS_IS]):.3f})'
  )
  return Problem('error', name, 'misaligned', message)


def _judge_order(
  name: str, tried: Sequence[_Tried], poses: Mapping[str, np.ndarray], where: str
) -> Problem | None:
  """Labels that fit the next image, the previous one, or the volume in reverse order."""
  best, found = NEXT_DOOR, None
  for words in OTHER_IMAGES:
    both = [(t.others[words], _centre(t.poses[AS_IS])) for t in tried if words in t.others]
    other, own = (sum(scores) for scores in zip(*both, strict=True)) if both else (0.0, 0.0)
    clear = other > CLEAR * _best_of_others(poses) * len(both)
    often = sum(a > b for a, b in both) >= MOST * len(both)
    if len(both) >= FEWEST and often and clear and other > best * own:
      best = other / max(own, 1e-30)
      message = (
        f'{where}: the labels of {name} fit {words} better (score {other / len(both):.3f}) than '
        f'their own ({own / len(both):.3f}); are images and labels in the same order, and does '
        'none lack its first section?'
      )
      found = Problem('warning', name, 'misaligned', message)
  return found


def _judge_shift(
  name: str, fits: np.ndarray, poses: Mapping[str, np.ndarray], where: str
) -> Problem | None:
  """Labels that fit better once they are all moved by the same way."""
  shift, best, now = _find_shift(fits), float(fits.max()), _centre(fits)
  others = _best_of_others(poses)
  if max(map(abs, shift)) < NEAR or now >= WORSE * best or best <= CLEAR * others:
    return None
  message = (
    f'{where}: the labels of {name} fit the images better when moved by {_describe(shift)} (score '
    f'{best:.3f}) than where they are ({now:.3f})'
  )
  return Problem('warning', name, 'misaligned', message)


def _judge_relation(
  name: str, fits: np.ndarray, poses: Mapping[str, np.ndarray], where: str
) -> Problem | None:
  """Labels that fit no better than any others would."""
  turned = [score.ravel() for pose, score in poses.items() if pose != AS_IS]
  now = _centre(fits)
  if not turned or now > float(np.quantile(np.concatenate(turned), UNRELATED)):
    return None
  message = (
    f'{where}: the labels of {name} fit the images no better (score {now:.3f}) than flipped or '
    f'turned ones (up to {_best_of_others(poses):.3f}); do they belong to these images?'
  )
  return Problem('warning', name, 'misaligned', message)


def _describe(shift: tuple[int, int]) -> str:
  (y, x) = shift
  parts = [f'{abs(y)} px {"down" if y > 0 else "up"}'] * (y != 0)
  parts += [f'{abs(x)} px {"right" if x > 0 else "left"}'] * (x != 0)
  return ' and '.join(parts)


def _judge_single(name: str, fitted: Sequence[int], read: Sequence[Measured]) -> Iterator[Problem]:
  """Single labels that are shifted or belong elsewhere, where most are in their place."""
  fits = {i: read[i].label.fit for i in fitted}
  usual = float(np.median([_centre(fit) for fit in fits.values()]))
  fine = sum(max(map(abs, _find_shift(fit))) < NEAR for fit in fits.values())
  if len(fits) < FEWEST or fine < len(fits) / 2:
    return
  for i, fit in fits.items():
    shift, best, now = _find_shift(fit), float(fit.max()), _centre(fit)
    if max(map(abs, shift)) < NEAR or now >= WORSE * best:
      continue
    where = read[i].label.at
    if best > BELONGS * usual:
      message = (
        f'{where}: fits its image better when moved by {_describe(shift)} (score {best:.3f}) than '
        f'where it is ({now:.3f}), unlike the other labels of {name}'
      )
      yield Problem('warning', name, 'misaligned', message, ((name, i),))
    elif now < STRANGE * usual:
      message = (
        f'{where}: does not fit its image (score {now:.3f}, usual in {name}: {usual:.3f}); is it '
        'the label of another image?'
      )
      yield Problem('warning', name, 'misaligned', message, ((name, i),))
