"""From a run's work directory to a bundle."""

import contextlib
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emseg_jax import bundle as bundle_lib
from emseg_jax import config as config_lib
from emseg_jax import experiment, train_step, workdir
from emseg_jax.bundle import reduced as reduced_lib
from emseg_jax.bundle import write
from emseg_jax.checkpoint import Checkpoints
from emseg_jax.data import normalise
from emseg_jax.errors import ConfigError
from emseg_jax.export import bioimageio, describe, inference, onnx, reduced, sample, stablehlo

__all__ = ['NAMES', 'export_run', 'forms_named', 'read_run']

LOGGER = logging.getLogger(__name__)

NAMES = ('stablehlo', 'onnx', 'bioimageio', *reduced_lib.KINDS)


def forms_named(
  names: Sequence[str], *, authors: Sequence[str] = (), measure: bool = True
) -> dict[str, bundle_lib.Form]:
  """What writes forms that run without this package, or parameters in fewer bits.

  Args:
    names: of NAMES; `onnx` and `bioimageio` need the extra `onnx`.
    authors: for the BioImage.IO package.
    measure: score parameters in fewer bits, and those in float32, on the labelled images of the
      run.

  Raises:
    ConfigError: a name is unknown.
  """
  known: dict[str, bundle_lib.Form] = {
    'stablehlo': stablehlo.write,
    'onnx': onnx.write,
    'bioimageio': functools.partial(bioimageio.write, authors=tuple(authors)),
  }
  scorer = reduced.Scorer() if measure else None
  known |= {k: functools.partial(reduced.write, kind=k, scorer=scorer) for k in reduced_lib.KINDS}
  for name in names:
    if name not in known:
      raise ConfigError(f'--forms={name}: is not one of {", ".join(NAMES)}')
  return {name: known[name] for name in names}


def export_run(
  config: config_lib.Config,
  folder: Path,
  output: Path,
  *,
  title: str | None = None,
  licence: str | None = None,
  forms: Mapping[str, bundle_lib.Form] | None = None,
) -> bundle_lib.Bundle:
  """Writes the bundle of a run: the checkpoint that eval.checkpoint names, and what is known of it.

  Args:
    config: the run's configuration.
    folder: work directory.
    output: folder to write; must not exist, or be empty.
    title: a name for people; None: the architecture and the name of the work directory.
    licence: of the parameters, best an SPDX identifier; None: not stated.
    forms: see `forms_named`; None: StableHLO only.

  Raises:
    CheckpointError, ConfigError: the work directory holds no intact checkpoint of this network.
    OutputError: the output is there already, or cannot be written.
  """
  write.check_output(output)
  bundle = read_run(config, folder, title=title, licence=licence)
  forms = forms_named(NAMES[:1]) if forms is None else forms
  bundle = write.write_bundle(output, bundle, forms=forms)
  for name, form in bundle.record.forms.items():
    LOGGER.info('%s: %s', form.get('file', name), form.get('sizes', 'written'))
  LOGGER.info('-> %s', output)
  return bundle


def read_run(
  config: config_lib.Config,
  folder: Path,
  *,
  title: str | None = None,
  licence: str | None = None,
) -> bundle_lib.Bundle:
  """The bundle of a run in memory, without any form; arguments and errors as `export_run`."""
  if config.predict.ensemble:
    raise ConfigError('config.predict.ensemble: several networks cannot be exported as one')
  workdir.check_same_network(config, workdir.read_config(folder), folder)
  checkpoints = Checkpoints(folder / 'checkpoints', keep=config.train.keep, read_only=True)
  abstract = experiment.set_up(config).abstract_state()
  with contextlib.closing(checkpoints):
    state, meta = checkpoints.restore(abstract, which=config.eval.checkpoint)
  variables = jax.tree.map(np.asarray, train_step.predict_variables(state))
  normalisation = normalise.Normalisation.from_json(meta.normalisation)
  image, source = sample.input_of(config, normalisation)
  record = describe.describe(
    config,
    meta,
    variables,
    channels=image.shape[-1],
    sample=source,
    title=title or f'{config.model.name} of {folder.absolute().name}',
    licence=licence,
    scores=_scores(folder, meta.step),
  )
  bundle = bundle_lib.Bundle(record, config, normalisation, variables, (image, image))
  output = np.asarray(jax.jit(inference.of_bundle(bundle))(variables, image))
  return bundle_lib.Bundle(record, config, normalisation, variables, (image, output))


def _scores(folder: Path, step: int) -> dict[str, dict[str, Any]]:
  """What evaluations of this step found, by split."""
  found = {}
  for path in sorted((folder / 'evaluation').glob('*.json')):
    try:
      evaluation = json.loads(path.read_text(encoding='utf-8'))
      if evaluation['step'] == step:
        found[path.stem] = {
          key: evaluation[key] for key in ('scores', 'intervals', 'baselines', 'voxels')
        }
        continue
    except (OSError, ValueError, KeyError, TypeError) as error:
      LOGGER.warning('%s: cannot be read (%s); its scores are left out', path, error)
      continue
    LOGGER.warning(
      '%s: is of step %s, exported is step %d; its scores are left out',
      path,
      evaluation['step'],
      step,
    )
  return found
