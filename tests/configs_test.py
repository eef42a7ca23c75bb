"""Every shipped configuration and each of its arguments builds, is complete and has the network of
its paper; what is not an argument is refused.
"""

import ast
import json
import re
from pathlib import Path

import model_support
import pytest
import recipe_support

from emseg_jax import config_io, errors, experiment, metrics
from emseg_jax.config import Config

# auto.py describes a folder, so it needs one; tests/auto_test.py has it.
NAMES = sorted(set(config_io.shipped()) - {'auto'})
SPECS, COUNTS = recipe_support.SPECS, recipe_support.COUNTS


def _network(spec):
  """What decides on the number of parameters."""
  config = config_io.load(spec)
  options = json.dumps(config.model.options, sort_keys=True)
  return config.model.name, options, config.task.num_logits, config.data.channels


def _sections(sources, count):
  """Indices of the sections that sources take from a stack of `count`."""
  slices = [slice(*(int(n) if n else None for n in s.slices.split(':'))) for s in sources]
  return sorted(i for s in slices for i in range(count)[s])


def test_there_is_a_configuration_for_every_file():
  folder = Path(__file__).parent.parent / 'configs'
  files = {path.stem for path in folder.glob('*.py')} - {'__init__'}
  assert files == set(config_io.shipped())
  assert len(NAMES) >= 8


def _allowed(spec):
  """What the message lists when the last word of a spec is wrong; '' if any word is right."""
  try:
    config_io.load(spec)
  except errors.ConfigError as error:
    return str(error).partition(' is not one of: ')[2]
  return ''


@pytest.mark.parametrize('name', sorted(set(NAMES) - {'tiny', 'phantom'}))
def test_the_specs_of_these_tests_hold_every_argument(name):
  parts = [s.partition(':')[2].split(',') for s in SPECS if s.startswith(f'{name}:')]
  arguments = {argument for part in parts for argument in part}
  words, _, keys = _allowed(f'{name}:?').rpartition('; then ')
  assert set(words.removeprefix('first one of ').split(', ')) - {''} <= arguments
  assert 'root=...' in keys.split(', ')
  for key in set(keys.split(', ')) - {'root=...'}:
    key, equals, _ = key.partition('=')
    assert key in {argument.partition('=')[0] for argument in arguments}
    allowed = _allowed(f'{name}:{key}=?').split(', ') if equals else ()
    for word in set(allowed) - {''}:
      default = config_io.load(f'{name}:{key}={word}') == config_io.load(name)
      assert default or f'{key}={word}' in arguments


@pytest.mark.parametrize('spec', SPECS)
def test_a_shipped_configuration_builds_and_round_trips_through_json(spec, tmp_path):
  config = config_io.load(spec)
  assert isinstance(config, Config)
  # Validated once more as a whole: what was put together from valid sections may still clash.
  assert Config.model_validate(config.model_dump()) == config
  path = tmp_path / 'config.json'
  config_io.write_text(path, config_io.to_json(config))
  assert config_io.from_json(path) == config
  assert config_io.differences(config, config_io.from_json(path)) == []


def _once_per_network_and_loss():
  """Every spec; those that are slow to check and like an earlier one for `make test-long`."""
  seen, specs = set(), []
  for spec in SPECS:
    config = config_io.load(spec)
    traced = config.model.name, tuple(config.loss.terms)
    specs.append(pytest.param(spec, marks=[pytest.mark.long] if traced in seen else []))
    seen.add(traced)
  return specs


@pytest.mark.parametrize('spec', _once_per_network_and_loss())
def test_a_shipped_configuration_has_a_network_a_loss_and_options_that_fit(spec):
  experiment.validate(config_io.load(spec))


@pytest.mark.parametrize('spec', SPECS)
def test_a_shipped_configuration_reaches_its_evaluations_and_checkpoints(spec):
  train = config_io.load(spec).train
  assert train.steps % train.eval_every == 0
  assert train.eval_every % train.checkpoint_every == 0


@pytest.mark.parametrize('spec', SPECS)
def test_published_scores_have_the_names_of_scores(spec):
  config = config_io.load(spec)
  known = metrics.known_scores(config.task.classes, config.eval.metrics)
  assert set(config.run.published) <= set(known)
  assert all(0 < score < 1 for score in config.run.published.values())


@pytest.mark.parametrize('spec', [s for s in SPECS if recipe_support.layout(s)])
def test_all_files_are_under_root(spec):
  data = recipe_support.load(spec, Path('/x'))[1].data
  for source in (*data.train, *data.validation, *data.test):
    assert source.images.startswith('/x/')
    assert source.labels.startswith('/x/')
  assert {s.labels for s in data.train} == {s.labels for s in data.train[:1]}


def test_the_hand_counts_are_those_of_the_papers():
  assert recipe_support.unet(64, 2, norm=False) == 31_030_658
  cases = [recipe_support.rescrnet(*case) for case in ((1, 3), (3, 3), (3, 4))]
  assert cases == [58_662, 59_020, 59_165]
  assert recipe_support.unet3d(1, 2) == 19_073_730


def test_every_network_of_full_size_is_counted_once():
  counted = [_network(spec) for spec in COUNTS]
  assert len(set(counted)) == len(counted)
  assert set(counted) == {_network(spec) for spec in SPECS if not spec.endswith(',cpu')}


ABLATIONS = re.compile('(attention|fusion|pool|pyramid)=')  # tests/models/pmcanet_test.py has them


@pytest.mark.parametrize(
  'spec',
  [pytest.param(s, marks=[pytest.mark.long] if ABLATIONS.search(s) else []) for s in COUNTS],
)
def test_the_network_has_the_stated_number_of_parameters(spec):
  config = config_io.load(spec)
  model = experiment.validate_network(config)
  size = tuple(max(2, d) for d in model.divisor)  # the number does not depend on it
  assert model_support.count(model, (2, *size, config.data.channels)) == COUNTS[spec]


@pytest.mark.parametrize(
  ('spec', 'said'),
  [
    ('pmcanet:isbi', "'isbi' is not one of: first one of isbi2012, cardiac, sem_material"),
    ('pmcanet:root', "'root' is not one of:.* root=..., network=..."),
    ('pmcanet:cpu=1', "'cpu=1' is not one of:.* dice=..., cpu"),
    ('pmcanet:network=unet', "'unet' is not one of: pmcanet, deeplabv3plus, emnet_khadangi"),
    ('pmcanet:attention=cbam', "'cbam' is not one of: laca, none, se, eca"),
    ('pmcanet:fusion=sum', "'sum' is not one of: maf, add, multiply"),
    ('pmcanet:pool=min', "'min' is not one of: avg, max"),
    ('pmcanet:pyramid=no', "'no' is not one of: on, off"),
    ('pmcanet:dice=much', 'much'),
    ('pmcanet:network=pidnet,attention=se', 'attention=se is for network=pmcanet only'),
    ('pmcanet:fold=5/5', 'fold=5/5: must be i/k with 0 <= i < k <= 30'),
    ('pmcanet:fold=first', 'fold=first: must be i/k'),
    ('pmcanet:cardiac,fold=0/5', 'sections and fold are for isbi2012 only'),
    ('vgg_unet:kasthuri', "'kasthuri' is not one of: first one of epfl, lucchipp"),
    ('vgg_unet:variant=sgd', "'sgd' is not one of: adam, adagrad, dice, l2"),
    ('vgg_unet:train=most', "slices = 'most'"),
    ('seget:nucleus', "'nucleus' is not one of: first one of synapse, mts, centriole, granules"),
    ('seget:network=pmcanet', "'pmcanet' is not one of: seget, deeplabv3plus_vgg, unet, fcn8s"),
    ('emnet:single=1', "'single=1' is not one of: .* single, cpu"),
    ('emnet:network=unet2d', "'unet2d' is not one of: emnet_hvec, unet3d, cheng3d, xiao3d"),
    ('emnet:network=unet,single', 'single is for network=emnet_hvec only'),
    ('emnet:fraction=0', 'fraction = 0.0: should be greater than 0'),
    ('rescrnet:network=unet', "'unet' is not one of: rescrnet, resunet"),
    ('rescrnet:network=resunet,filters=8', 'filters, blocks, lstm are for network=rescrnet only'),
    ('unet:DIR', "'DIR' is not one of: root=..."),
  ],
)
def test_a_wrong_word_is_refused_with_those_that_are_right(spec, said):
  with pytest.raises(errors.ConfigError, match=said):
    config_io.load(spec)


@pytest.mark.parametrize('name', NAMES)
def test_the_docstring_of_a_configuration_gives_its_command(name):
  text = config_io.shipped()[name].read_text(encoding='utf-8')
  docstring = ast.get_docstring(ast.parse(text))
  assert f'python -m emseg_jax.main --config={name}' in docstring
  assert '--workdir=runs/' in docstring


@pytest.mark.parametrize(
  ('spec', 'count', 'train', 'validation', 'test'),
  [
    # 30 labelled sections of which 24 may be given: 0-17 train, 18-23 validate.
    ('pmcanet', 30, range(18), range(18, 24), range(24, 30)),
    ('pmcanet:sections=24', 24, range(18), range(18, 24), ()),
    ('unet', 24, range(18), range(18, 24), ()),
    # The last tenth of the EPFL training stack of 165 sections.
    ('emnet', 165, range(149), range(149, 165), None),
    ('vgg_unet', 165, range(149), range(149, 165), None),
    # The phase of every fifth of 76 slices that leaves 60 for training.
    ('seget', 76, [i for i in range(76) if i % 5], range(0, 76, 5), ()),
  ],
)
def test_a_recipe_does_not_train_on_what_it_validates(spec, count, train, validation, test):
  data = config_io.load(spec).data
  assert _sections(data.train, count) == list(train)
  assert _sections(data.validation, count) == list(validation)
  if test is not None:  # None: another stack, all of it
    assert _sections(data.test, count) == list(test)
  else:
    assert {s.images for s in data.test}.isdisjoint(s.images for s in data.train)


@pytest.mark.parametrize(('sections', 'k'), [(30, 5), (24, 5), (30, 30)])
def test_each_section_is_validated_in_one_fold_and_trains_in_the_others(sections, k):
  scored = []
  for i in range(k):
    data = config_io.load(f'pmcanet:sections={sections},fold={i}/{k}').data
    train, validation = (_sections(s, sections) for s in (data.train, data.validation))
    assert sorted(train + validation) == list(range(sections))
    assert not data.test
    scored += validation
  assert scored == list(range(sections))


def test_pmcanet_trains_as_its_paper_says():
  # The paper, section 4: SGD 0.9, decay 5e-4, poly 0.9 from 0.01 over 40k steps, batch 16,
  # resize 0.5-2.0, horizontal flip, ImageNet statistics, CE + 3 Dice, auxiliary head x 0.4.
  config = config_io.load('pmcanet')
  optim = config.optim
  assert (optim.optimizer, optim.momentum, optim.weight_decay) == ('sgd', 0.9, 5e-4)
  assert (optim.schedule, optim.power, optim.learning_rate) == ('poly', 0.9, 0.01)
  assert (config.train.steps, config.train.batch_size) == (40_000, 16)
  assert (config.augment.resize, config.augment.flip) == ((0.5, 2.0), 'x')
  assert (config.data.normalisation, config.data.channels) == ('imagenet', 3)
  assert {name: term.weight for name, term in config.loss.terms.items()} == {'ce': 1, 'dice': 3}
  assert config.loss.aux_weight == 0.4


@pytest.mark.parametrize(
  ('spec', 'expected'),
  [
    # Tables 1 to 5 of PmcaNet; table 5 has the mean IoU only.
    ('pmcanet', {'accuracy': 0.8785, 'miou': 0.7311}),
    ('pmcanet:sem_material,attention=none', {'accuracy': 0.9962, 'miou': 0.6549}),
    ('pmcanet:sem_material,pool=max,pyramid=off', {'accuracy': 0.9948, 'miou': 0.5332}),
    ('pmcanet:sem_material,dice=5', {'miou': 0.3495}),
    ('pmcanet:isbi2012,attention=none', {}),
    # EM-Net's table, and its figure of limited annotation.
    ('emnet:epfl,single', {'dice/mitochondrion': 0.941, 'iou/mitochondrion': 0.888}),
    ('emnet:epfl,fraction=0.3', {'iou/mitochondrion': 0.867}),
    ('emnet:epfl,fraction=0.5', {}),
    ('rescrnet:rat_liver,filters=8', {}),
  ],
)
def test_scores_are_compared_with_those_of_the_same_experiment(spec, expected):
  assert config_io.load(spec).run.published == expected
