"""Run by test_sharding.py in a process with 8 CPU devices: how far steps on meshes are from one device's, and what
comes back of a checkpoint on each of them.

Arguments: stages, with commas between; and names of the meshes, if not all.
"""

import json
import sys
import tempfile

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from realm_jax.config import paper_config
from realm_jax.index.digest import tree_digest
from realm_jax.index.host_arrays import HostRows
from realm_jax.index.run_dir import RunDir
from realm_jax.training.abstract_step import CorpusSize, abstract_batch
from realm_jax.training.checkpoint import Checkpoints
from realm_jax.training.optimizer import configured_optimizer
from realm_jax.training.sharding import ROWS, placed, state_sharding, step_mesh
from realm_jax.training.stages import make_objective
from realm_jax.training.start import abstract_params, random_params
from realm_jax.training.step import init_state, train_step

OPTIMIZER = optax.sgd(1.0, momentum=0.9)
SCALE = 20
CORPUS = CorpusSize(num_passages=100, passage_length=24, vocab_size=211)


def small_config(stage, **fields):
  config = paper_config(stage)
  config.update(batch_size=16, num_passages=3, beam_size=6, query_length=12, joint_length=32, max_masks=3)
  config.num_hard_negatives = 2  # in ict
  config.model.update(hidden_size=32, num_layers=1, num_heads=4, mlp_size=64, max_length=32, retrieval_size=16)
  config.update(fields)
  return config


def random_batch(config, seed):
  """Token sequences of random lengths, and masks and answers at random places in them."""
  rng = np.random.default_rng(seed)

  def fill(name, x):
    if x.dtype == np.bool_ and x.ndim == 1:
      return np.ones(x.shape, bool)
    if x.dtype == np.bool_:
      return np.arange(x.shape[-1]) < rng.integers(4, x.shape[-1] + 1, (*x.shape[:-1], 1))
    if x.dtype == np.float32:
      return (
        rng.normal(size=x.shape).astype(np.float32) if "emb" in name else (rng.random(x.shape) < 0.6).astype(np.float32)
      )
    most = {"token_id": CORPUS.vocab_size, "segment_id": 2, "mask_target_BM": CORPUS.vocab_size}
    return rng.integers(0, next((most[key] for key in most if key in name), 4), x.shape).astype(np.int32)

  return jax.tree_util.tree_map_with_path(
    lambda path, x: fill(jax.tree_util.keystr(path), x), abstract_batch(config, CORPUS)
  )


def run(config, devices):
  """Losses of the steps, and the parameters after them, on the host; and how the state was split."""
  mesh = step_mesh(config, devices)
  # As they begin, all passages explain a word alike, and the retriever's gradient is a difference of equal numbers.
  params = jax.jit(lambda: random_params(config, CORPUS.vocab_size))()
  params = jax.tree.map(lambda x: x * SCALE if x.ndim > 1 else x, params)
  state = init_state(params, OPTIMIZER)
  state = jax.device_put(state, state_sharding(mesh, state))
  key = jax.device_put(jax.random.key(1), NamedSharding(mesh, PartitionSpec()))
  batch = HostRows(NamedSharding(mesh, ROWS), config.batch_size).put(random_batch(config, seed=2))
  with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
    state, metrics = train_step(
      state, batch, key, objective=make_objective(config, CORPUS.vocab_size), optimizer=OPTIMIZER
    )
  grads = jax.device_get(state.opt_state[0].trace)  # the momentum after one step
  return float(metrics["loss"]), grads, split_of_a_kernel(named_leaves(state))


def named_leaves(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def split_of_a_kernel(leaves):
  """The shapes of what one device has of kernels of 32 x 64, and of their moments."""
  kernels = [x for path, x in leaves.items() if path.endswith("mlp_in/kernel")]
  return sorted({str(x.addressable_shards[0].data.shape) for x in kernels})


def compared(config, meshes):
  """Relative differences of the loss and of the gradient, as vectors."""
  loss, grads, _ = run(config, jax.devices()[:1])
  result = {}
  for name, (num_devices, changes) in meshes.items():
    other = config.copy_and_resolve_references()
    other.update(changes)
    other_loss, other_grads, split = run(other, jax.devices()[:num_devices])
    difference = jax.tree.map(lambda a, b: a - b, other_grads, grads)
    error = optax.global_norm(difference) / optax.global_norm(grads)
    result[name] = {"loss": abs(other_loss / loss - 1), "gradient": float(error), "split": split}
  return result


def restored():
  """Of a state that is saved on a mesh and restored on others, one after the other: its digest, what of it is placed
  otherwise than the table says, and how a kernel is split.
  """
  config, lines = small_config("ict"), []
  optimizer = configured_optimizer(config, ())
  params = abstract_params(config, CORPUS.vocab_size)
  abstract = jax.eval_shape(lambda params: init_state(params, optimizer), params)
  rng = np.random.default_rng(0)  # also for the moments, which begin as zeros
  saved = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype) if x.ndim else np.array(7, x.dtype), abstract)
  result = {"saved": tree_digest(saved)}

  def on_mesh(data, fsdp, tensor):
    config.mesh.update(fsdp=fsdp, tensor=tensor)
    return state_sharding(step_mesh(config, jax.devices()[: data * fsdp * tensor]), abstract)

  def save(state):
    checkpoints = Checkpoints(RunDir(tempfile.mkdtemp(dir=directory)), keep=1, log=lines.append)
    checkpoints.save(7, state, None)
    checkpoints.wait()
    return checkpoints

  def restore(checkpoints, shape):
    sharding = on_mesh(*shape)
    state, _ = checkpoints.restore(placed(abstract, sharding))
    leaves = named_leaves(state)
    result[" x ".join(map(str, shape))] = {
      "digest": tree_digest(state),
      "misplaced": [path for path, place in named_leaves(sharding).items() if leaves[path].sharding != place],
      "split": split_of_a_kernel(leaves),
    }
    return state

  with tempfile.TemporaryDirectory() as directory:
    checkpoints = save(jax.device_put(saved, on_mesh(2, 2, 2)))
    for shape in ((1, 2, 1), (2, 1, 2), (1, 2, 2), (8, 1, 1), (1, 8, 1)):
      restore(checkpoints, shape)
    alone = save(restore(checkpoints, (1, 1, 1)))
    restore(alone, (2, 2, 2))
  return result | {"lines": lines}


def main(stages, names):
  cube = {"mesh": {"fsdp": 2, "tensor": 2}}
  layouts = {f"{n} devices": (n, {}) for n in (2, 4, 8)} | {"2 x 2 x 2": (8, cube)}
  parts = {
    "4 parts": (1, {"num_microbatches": 4}),
    "2 parts on 4 devices": (4, {"num_microbatches": 2}),
    "2 parts on 2 x 2 x 2": (8, {"num_microbatches": 2} | cube),
  }
  still = {"model": {"dropout_rate": 0.0, "embedding_dropout_rate": 0.0}}  # each part has masks of its own
  layouts, parts = ({name: some[name] for name in some if name in names or not names} for some in (layouts, parts))
  steps = {
    stage: compared(small_config(stage), layouts) | compared(small_config(stage, **still), parts) for stage in stages
  }
  return {"steps": steps, "restored": restored()}


if __name__ == "__main__":
  assert jax.device_count() == 8
  print(json.dumps(main(sys.argv[1].split(","), sys.argv[2:])))
