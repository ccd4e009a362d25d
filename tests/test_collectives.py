"""Collectives in the text of compiled programs, in all the forms that compilers write."""

import pytest

from realm_jax.training.collectives import Collective, find_collectives


def find(line, num_devices=8, parameters=()):
  return find_collectives(
    f"HloModule x\n{line}\n  ROOT %add = f32[] add(%a, %b)\n", num_devices, lambda s: s in parameters
  )


@pytest.mark.parametrize(
  ("line", "kind", "num_bytes", "group_size"),
  [
    ("f32[768,64]{1,0:T(8,128)} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8]", "all-reduce", 196_608, 4),
    ("(bf16[12,64]{1,0:T(8,128)S(1)}, /*index=1*/f32[]) all-reduce(%x, %y), replica_groups={{0,1,2,3}}",
     "all-reduce", 2 * 768 + 4, 4),
    ("f32[30]{0} all-reduce(%x), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, x=true", "all-reduce", 120, 4),
    ("f32[30]{0} all-reduce(%x), replica_groups=mesh['a'=4,'b'=2] {'a','b'}, metadata={}", "all-reduce", 120, 8),
    ("u16[8,3]{1,0} reduce-scatter(%x), replica_groups=[1,8]<=[8], dimensions={0}", "reduce-scatter", 384, 8),
    ("pred[9]{0} all-to-all(%x), replica_groups={{0,1},{2,3}}", "all-to-all", 9, 2),
    ("s8[9]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}", "collective-permute", 9, 8),
    ("(bf16[2,5]{1,0}, bf16[8,5]{1,0}) all-gather-start(%x), replica_groups=[2,4]<=[8]", "all-gather", 80, 4),
    ("(f32[7]{0}, f32[7]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=4", "collective-permute", 28, 8),
    ("f32[7]{0} all-reduce-start(%x), replica_groups=[1,8]<=[8]", "all-reduce", 28, 8),
  ],
)  # fmt: skip
def test_one_line(line, kind, num_bytes, group_size):
  expected = [Collective(kind, num_bytes, 0, group_size)]
  assert find(f"  %name.1 = {line}") == find(f"  ROOT %name = {line}") == expected


@pytest.mark.parametrize(
  "line",
  [
    "  %d = f32[7]{0} all-reduce-done(%s)",
    "  %x = f32[7]{0} get-tuple-element(%all-reduce.3), index=0",
    "  %f = f32[7]{0} fusion(%all-gather.1), kind=kLoop, calls=%all-reduce.fused",
    '  %c = f32[7]{0} add(%a, %b), metadata={op_name="jit(f)/all-reduce(x)"}',
  ],
)
def test_other_lines_are_none(line):
  assert find(line) == []


def test_parameters_and_gradients_are_told_by_their_shapes():
  """What the compiler puts into one operation with them is counted apart."""
  line = "  %a = (bf16[3,5]{1,0}, f32[], f32[7]{0}) all-reduce(%x, %y, %z), replica_groups=[1,8]<=[8], to_apply=%add"
  assert find(line, parameters={(3, 5), (7,)}) == [Collective("all-reduce", 30 + 4 + 28, 30 + 28, 8)]
  scattered = "  %s = f32[3,5]{1,0} reduce-scatter(%x), replica_groups=[2,4]<=[8], dimensions={0}"
  assert find(scattered, parameters={(3, 5)}) == [Collective("reduce-scatter", 240, 240, 4)]
  gathered = "  %s = f32[3,5]{1,0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}"
  assert find(gathered, parameters={(3, 5)}) == [Collective("all-gather", 60, 60, 4)]


def test_a_loop_sends_in_each_iteration():
  text = """HloModule x
%body.1 (arg: (s32[], f32[7])) -> (s32[], f32[7]) {
  %a = f32[7]{0} all-reduce(%x), replica_groups=[1,8]<=[8]
}

ENTRY %main (p: f32[7]) -> f32[7] {
  %w = (s32[], f32[7]{0}) while(%t), condition=%condition, body=%body.1
  ROOT %b = f32[9]{0} all-gather(%y), replica_groups=[1,8]<=[8]
}
"""
  inside, outside = Collective("all-reduce", 28, 0, 8), Collective("all-gather", 36, 0, 8)
  assert find_collectives(text, 8, lambda shape: False, 3) == [inside] * 3 + [outside]


@pytest.mark.parametrize(
  ("kind", "sent"), [("all-reduce", 150), ("all-gather", 75), ("reduce-scatter", 75), ("collective-permute", 100)]
)
def test_bytes_sent_in_a_ring_of_four(kind, sent):
  assert Collective(kind, 100, 0, 4).num_bytes_sent == sent
