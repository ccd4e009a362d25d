"""Traffic of main memory: programs of known size, and what TPUs' compilers write of on-chip memory."""

import jax
import jax.numpy as jnp
import pytest

from realm_jax.training.traffic import memory_traffic

HEAD = """HloModule jit_f

%fused (p: f32[100]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  ROOT %n = f32[100]{0} negate(%p)
}

ENTRY %main (x: f32[100]) -> f32[100] {
  %x = f32[100]{0:T(128)} parameter(0)
"""


@pytest.mark.parametrize(
  ("lines", "expected"),
  [
    (["ROOT %y = f32[100]{0:T(128)} fusion(%x), kind=kLoop, calls=%fused"], 800),
    (["%y = f32[100]{0:T(128)S(1)} fusion(%x), kind=kLoop", "ROOT %z = bf16[100]{0:T(128)} convert(%y)"], 400 + 200),
    (["%y = f32[100]{0} copy(%x)", "%z = f32[100]{0} add(%x, %y), metadata={op_name=\"f(%x), %y\"}"], 800 + 1200),
    (["%b = f32[10,10]{1,0} bitcast(%x)", "%t = (f32[100]{0}, f32[10,10]{1,0}) tuple(%x, %b)"], 0),
    # A copy to the chip reads once, and is waited for at no cost; one within main memory reads and writes.
    (["%c = (f32[100]{0:T(128)S(1)}, f32[100]{0:T(128)}, u32[]{:S(2)}) copy-start(%x)",
      "%d = f32[100]{0:T(128)S(1)} copy-done(%c)"], 400),
    (["%c = (f32[100]{0:T(128)}, f32[100]{0:T(128)}, u32[]{:S(2)}) copy-start(%x)"], 800),
    # A slice to the chip: a quarter is read.
    (["%s = ((f32[100]{0:T(128)}), f32[25]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:25]}",
      "%e = f32[25]{0:T(128)S(1)} slice-done(%s)"], 100),
    (["%k = bf16[50]{0:T(128)} custom-call(%x), custom_call_target=\"tpu_custom_call\""], 400 + 100),
    (["%k = f32[100]{0:T(128)} custom-call(%x, %x), custom_call_target=\"ConcatBitcast\""], 0),
  ],
)  # fmt: skip
def test_instructions(lines, expected):
  assert memory_traffic(HEAD + "".join(f"  {line}\n" for line in lines) + "}\n") == expected


def test_a_loop_reads_and_writes_in_each_iteration():
  def run(x, y):
    return jax.lax.fori_loop(0, 5, lambda i, x: jnp.sin(x @ y), x)

  x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
  text = jax.jit(run).lower(x, x).compile().as_text()
  once, five = memory_traffic(text), memory_traffic(text, 5)
  # A product, then a sine, of matrices; the counter and copies are the rest.
  body = (five - once) / 4
  assert 5 * 4 * 64 * 64 <= body < 7 * 4 * 64 * 64


def test_a_product_reads_two_matrices_and_writes_one():
  a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 32), (32, 16)))
  text = jax.jit(lambda a, b: a @ b).lower(a, b).compile().as_text()
  assert memory_traffic(text) == 4 * (64 * 32 + 32 * 16 + 64 * 16)
