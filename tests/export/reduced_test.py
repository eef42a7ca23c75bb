"""What parameters in fewer bits cost is measured, and said only where it was."""

import json

import bundle_support
import jax
import pytest

from emseg_jax import bundle as bundle_lib
from emseg_jax.bundle import reduced as reduced_lib
from emseg_jax.export import reduced
from emseg_jax.export import run as export_lib


def labelled():
  """A bundle whose validation image is a synthetic one, the third class taken for the first."""
  return bundle_support.make_bundle(bundle_support.make_config(label_mapping={0: 0, 1: 1, 2: 0}))


def test_the_loss_is_measured_by_one_evaluation_and_written_down(tmp_path, monkeypatch):
  scored, real = [], reduced.evaluation.evaluate_split

  def count(*args, **kwargs):
    scored.append(real(*args, **kwargs))
    return scored[-1]

  monkeypatch.setattr(reduced.evaluation, 'evaluate_split', count)
  forms = export_lib.forms_named(['bf16', 'int8'])
  bundle_lib.write_bundle(tmp_path / 'model', labelled(), forms=forms)
  record = json.loads((tmp_path / 'model' / 'model.json').read_text())
  full, *others = (found.scores for found in scored)  # float32 once for both
  card = (tmp_path / 'model' / 'README.md').read_text()
  for name, scores in zip(('bf16', 'int8'), others, strict=True):
    form = record['forms'][name]
    assert form['loss']['split'] == 'validation'
    assert form['loss']['images'] == 1
    assert form['loss']['miou'] == [scores['miou'], full['miou']]
    cell = [scores['per_class']['cell']['iou'], full['per_class']['cell']['iou']]
    assert form['loss']['iou']['cell'] == cell
    assert form['bytes'] == (tmp_path / 'model' / form['file']).stat().st_size
    assert f'| {name} | `{form["file"]}` | {form["bytes"]:,} | validation' in card
    assert f'| {scores["miou"]:.4f} | {full["miou"]:.4f} |' in card
  assert scored[1].confusion.tolist() != scored[2].confusion.tolist()


def test_a_loss_is_that_of_the_parameters_that_are_scored():
  bundle, scorer = labelled(), reduced.Scorer()
  assert len(set(scorer.loss(bundle, bundle.variables)['miou'])) == 1
  nothing = jax.tree.map(lambda x: 0 * x, bundle.variables)
  found, full = scorer.loss(bundle, nothing)['miou']
  assert found != full


@pytest.mark.parametrize('validation', [(), ({'images': '/nowhere', 'labels': '/nowhere'},)])
def test_without_labelled_images_it_says_not_measured(tmp_path, caplog, validation):
  config = bundle_support.make_config(validation=validation)
  bundle = bundle_support.make_bundle(config)
  form = reduced.write(tmp_path, bundle, kind='int8', scorer=reduced.Scorer())
  assert form['loss'] is None
  assert 'not measured' in form['sizes']
  assert 'The loss is not measured' in caplog.text
  assert ('/nowhere' in caplog.text) == bool(validation)


def test_measuring_can_be_left_out(tmp_path):
  path, bundle = tmp_path / 'model', bundle_support.make_bundle()
  forms = export_lib.forms_named(reduced_lib.KINDS, measure=False)
  assert bundle_lib.write_bundle(path, bundle, forms=forms).record.forms['bf16']['loss'] is None
  assert '| - | not measured | - |' in (path / 'README.md').read_text()
