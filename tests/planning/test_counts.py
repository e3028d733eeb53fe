"""What is read off compiled programs, against hand counts and the compiler's own."""

import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmjax.errors import InputError
from fmjax.layers.attention import attention
from fmjax.layers.attention import blocks as attention_blocks
from fmjax.layers.attention import cpu as attention_cpu
from fmjax.models.gemma import Gemma3
from fmjax.models.gpt import GPT
from fmjax.models.llama import Llama
from fmjax.parallel.mesh import DEFAULT_RULES, MeshConfig, make_mesh
from fmjax.planning import counts, hlo

ONE = {"data": 1}


def counted(function, *shapes, mesh_shape=ONE, **jit):
    compiled = jax.jit(function, **jit).lower(*shapes).compile()
    return counts.count(hlo.parse(compiled.as_text()), mesh_shape), compiled


@pytest.mark.parametrize("family", [GPT, Llama])
def test_flops_of_a_scanned_stack_by_hand(family):
    """Six FLOPs a weight and token, and the pairs of attention: all of them, since the reference masks none away."""
    layers, width, mlp, vocabulary, length = 5, 128, 512, 512, 64
    module = family(
        num_layers=layers, hidden_size=width, intermediate_size=mlp, num_heads=2, vocab_size=vocabulary,
        max_length=length, attention="reference",
    )  # fmt: skip
    tokens = jax.ShapeDtypeStruct((3, length), jnp.int32)
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens))["params"]

    def loss(params, tokens):
        return jnp.sum(module.apply({"params": params}, tokens) ** 2)

    found, _ = counted(jax.grad(loss), params, tokens)
    weights = layers * (4 * width**2 + (3 if family is Llama else 2) * width * mlp) + width * vocabulary
    by_hand = 6 * 3 * length * weights + layers * 3 * 4 * 3 * length**2 * width
    assert found.flops == pytest.approx(by_hand, rel=0.02)


def test_flops_of_a_scanned_stack_of_several_kinds_are_those_of_its_layers():
    """Rows of 512, of which layers with a window of 32 need about a fifth of the pairs that the others need."""
    module = Gemma3(
        num_layers=5, hidden_size=32, intermediate_size=64, num_heads=2, num_kv_heads=1, head_dim=16, window=32,
        layer_pattern=("local", "global"), vocab_size=64, max_length=512, attention="cpu",
    )  # fmt: skip
    tokens = jax.ShapeDtypeStruct((1, 512), jnp.int32)

    def flops(module):
        params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens))["params"]
        return counted(jax.grad(lambda p, t: jnp.sum(module.apply({"params": p}, t) ** 2)), params, tokens)[0].flops

    assert flops(module) == pytest.approx(flops(module.clone(scan_layers=False)), rel=2e-3)


def test_loop_bodies_count_as_often_as_they_run():
    x, w = jax.ShapeDtypeStruct((8, 32), jnp.float32), jax.ShapeDtypeStruct((32, 32), jnp.float32)

    def nested(x, w):
        def outer(x, _):
            return jax.lax.fori_loop(0, 3, lambda i, y: y @ w, x), None

        return jax.lax.scan(outer, x, None, length=7)[0]

    found, _ = counted(nested, x, w)
    assert found.flops == 21 * 2 * 8 * 32 * 32


def test_the_costliest_branch_counts():
    x, w = jax.ShapeDtypeStruct((8, 32), jnp.float32), jax.ShapeDtypeStruct((32, 32), jnp.float32)
    branches = [lambda x, w: x, lambda x, w: x @ w, lambda x, w: x @ w @ w]
    found, _ = counted(lambda i, x, w: jax.lax.switch(i, branches, x, w), jax.ShapeDtypeStruct((), jnp.int32), x, w)
    assert found.flops == 2 * 2 * 8 * 32 * 32


@pytest.mark.parametrize(
    "options",
    [
        dict(window_strides=(1, 1), padding="SAME"),
        dict(window_strides=(2, 3), padding="VALID"),
        dict(window_strides=(1, 1), padding=[(3, 1), (0, 2)], lhs_dilation=(2, 1), rhs_dilation=(1, 2)),
        dict(window_strides=(1, 1), padding="SAME", feature_group_count=2),
    ],
)
def test_convolutions_as_the_compiler_counts_them(options):
    groups = options.get("feature_group_count", 1)
    image = jax.ShapeDtypeStruct((2, 9, 11, 6), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 6 // groups, 8), jnp.float32)

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    found, compiled = counted(convolve, image, kernel)
    assert found.flops == pytest.approx(compiled.cost_analysis()["flops"], rel=1e-6)


def test_link_bytes_by_mesh_axis():
    """A product of matrices that are split along what is summed: each device sends its share of a ring's all-reduce."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "tensor"))

    def spec(shape, *axes):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    x, w = spec((16, 64), "data", "tensor"), spec((64, 32), "tensor", None)
    whole = NamedSharding(mesh, PartitionSpec("data", None))
    found, _ = counted(lambda x, w: x @ w, x, w, mesh_shape=mesh.shape, out_shardings=whole)
    assert found.flops == 2 * 8 * 16 * 32
    assert dict(found.link_bytes) == {"tensor": 2 * 3 / 4 * 8 * 32 * 4}
    gathered, _ = counted(
        lambda x: x, spec((16, 64), "data", "tensor"), mesh_shape=mesh.shape,
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )  # fmt: skip
    assert sum(gathered.link_bytes.values()) == pytest.approx((8 - 1) * 2 * 16 * 64 * 4 / 16, rel=0.3)


COLLECTIVE = """HloModule one

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: f32[64]) -> f32[16] {
  %p = f32[64]{0} parameter(0)
  %zero = s32[] constant(0)
  %reduced = f32[64]{0} all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %part = f32[16]{0} dynamic-slice(%reduced, %zero), dynamic_slice_sizes={16}
}

ENTRY %main (x: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  ROOT %out = RESULT OPERATION
}
"""


@pytest.mark.parametrize(
    "result, operation, axes, sent",
    [
        ("f32[64]{0}", "all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add", "tensor", 2 * 3 / 4 * 256),
        ("f32[256]{0}", "all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}", "tensor", 3 * 256),
        ("f32[16]{0}", "reduce-scatter(%x), replica_groups=[2,4]<=[8], to_apply=%add", "tensor", 3 / 4 * 256),
        ("f32[16]{0}", "fusion(%x), kind=kCustom, calls=%fused", "tensor", 3 / 4 * 256),
        ("f32[64]{0}", "all-to-all(%x), replica_groups={{0,1,2,3,4,5,6,7}}", "data+tensor", 7 / 8 * 256 * 2),
        ("f32[64]{0}", "collective-permute(%x), source_target_pairs={{0,4},{4,0},{1,5},{5,1}}", "data", 256),
        ("f32[64]{0}", "all-reduce(%x), replica_groups={{0},{1}}, to_apply=%add", None, 0),
    ],
)
def test_what_each_collective_sends(result, operation, axes, sent):
    text = COLLECTIVE.replace("RESULT OPERATION", f"{result} {operation}")
    found = counts.count(hlo.parse(text), {"data": 2, "tensor": 4})
    assert dict(found.link_bytes) == ({axes: sent} if axes else {})


@pytest.mark.parametrize(
    "line, moved",
    [
        ("(f32[64]{0:S(1)}, f32[64]{0}, u32[]) copy-start(%x)", 256),  # from main memory
        ("(f32[64]{0}, f32[64]{0:S(1)}, u32[]) copy-start(%x)", 256),  # to it
        ("f32[64]{0} add(%x, %x)", 3 * 256),
        ("f32[16]{0} dynamic-slice(%x, %x), dynamic_slice_sizes={16}", 2 * 64),
    ],
)
def test_main_memory_that_is_moved(line, moved):
    found = counts.count(hlo.parse(COLLECTIVE.replace("RESULT OPERATION", line)), {"data": 2, "tensor": 4})
    assert found.memory_bytes == moved


LIBRARY = """HloModule one

ENTRY %main (a: bf16[3]) -> bf16[3] {
PARAMETERS
  ROOT %out = RESULT custom-call(OPERANDS), custom_call_target="TARGET", metadata={op_name="x"}, backend_config=CONFIG
}
"""


def library_call(target, operands, result, config, quoted=False):
    """Counts of a program that is one call of a library; `config` is what the compiler tells it, as JSON."""
    text = json.dumps(config)
    parameters = "\n".join(f"  %p{i} = {shape} parameter({i})" for i, shape in enumerate(operands))
    places = {
        "PARAMETERS": parameters, "RESULT": result, "TARGET": target, "CONFIG": json.dumps(text) if quoted else text,
        "OPERANDS": ", ".join(f"%p{i}" for i in range(len(operands))),
    }  # fmt: skip
    return counts.count(hlo.parse(re.sub("|".join(places), lambda found: places[found[0]], LIBRARY)), ONE)


def gemm(left, right, batch_left=(), batch_right=()):
    numbers = dict(lhs_contracting_dimensions=left, rhs_contracting_dimensions=right)
    numbers |= dict(lhs_batch_dimensions=batch_left, rhs_batch_dimensions=batch_right)
    numbers = {name: [str(place) for place in places] for name, places in numbers.items()}
    return {"operation_queue_id": "0", "gemm_backend_config": {"alpha_real": 1, "dot_dimension_numbers": numbers}}


@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize(
    "target, operands, result, config, flops",
    [
        ("__cublas$gemm", ["bf16[32,48]{1,0}", "bf16[48,16]{1,0}"], "(bf16[32,16]{1,0}, s8[4194304]{0})",
         gemm([1], [0]), 2 * 32 * 48 * 16),
        ("__cublas$lt$matmul", ["bf16[3,48,32]{2,1,0}", "bf16[3,48,16]{2,1,0}", "bf16[16]{0}"],
         "(bf16[3,32,16]{2,1,0}, s8[4194304]{0})", gemm([1], [1], [0], [0]), 2 * 3 * 32 * 48 * 16),
        # One right side for the whole batch, which the compiler then does not repeat.
        ("__cublas$gemm", ["bf16[3,32,48]{2,1,0}", "bf16[48,16]{1,0}"], "(bf16[3,32,16]{2,1,0}, s8[4194304]{0})",
         gemm([2], [0], [0], []), 2 * 3 * 32 * 48 * 16),
        ("__cublas$lt$matmul$f8", ["f8e4m3fn[32,48]{1,0}", "f8e4m3fn[16,48]{1,0}", "f32[]", "f32[]"],
         "(bf16[32,16]{1,0}, s8[4194304]{0})", gemm([1], [1]), 2 * 32 * 48 * 16),
        ("__onednn$matmul", ["f32[3,48,32]{2,1,0}", "f32[3,48,16]{2,1,0}"], "f32[3,32,16]{2,1,0}", {},
         2 * 3 * 32 * 48 * 16),
        ("__cub$DeviceRadixSort", ["s32[99]{0}"], "(s32[99]{0}, u8[767]{0})", {}, 0),
    ],
)  # fmt: skip
def test_products_of_libraries(target, operands, result, config, flops, quoted):
    found = library_call(target, operands, result, config, quoted)
    assert found.flops == flops and not found.uncounted


@pytest.mark.parametrize("target", ["__cublas$gemm", "__cudnn$fmhaSoftmaxF8", "__cudnn$convForward", "mosaic_gpu_v2"])
def test_calls_of_unknown_work_are_named(target):
    """A product that does not say what it sums over among them."""
    found = library_call(target, ["bf16[8,8]{1,0}"] * 3, "(bf16[8,8]{1,0}, u8[9]{0})", {"other": {}})
    assert found.flops == 0 and dict(found.uncounted) == {target: 1}


def test_scratch_memory_of_libraries_is_no_traffic():
    """What is read and what comes out; a program may hold hundreds of calls with megabytes of workspace each."""
    operands = ["bf16[32,48]{1,0}", "bf16[48,16]{1,0}"]
    found = library_call("__cublas$gemm", operands, "(bf16[32,16]{1,0}, s8[33554432]{0})", gemm([1], [0]))
    assert found.memory_bytes == 2 * (32 * 48 + 48 * 16 + 32 * 16)


B, T, S, N, K, H = 2, 64, 96, 4, 2, 32
QUERIES, KEYS = f"bf16[{B},{T},{N},{H}]{{3,2,1,0}}", f"bf16[{B},{S},{K},{H}]{{3,2,1,0}}"
SUMS, BIAS = f"f32[{B},{N},{T}]{{2,1,0}}", f"bf16[{B},1,{T},{S}]{{3,2,1,0}}"
OUT = [f"bf16[{B},{N},{T},{H}]{{3,1,2,0}}", SUMS, "u8[16]{0}"]
GRADIENTS = [f"bf16[{B},{heads},{rows},{H}]{{3,1,2,0}}" for heads, rows in ((N, T), (K, S), (K, S))] + ["u8[16]{0}"]


def attention_config(mask="NO_MASK", window=0, **more):
    """As `jax.nn.dot_product_attention` writes it for cuDNN, numbers of its algorithms left out."""
    shape = {"element_type": "BF16", "dimensions": [str(size) for size in (B, N, T, S)], "tuple_shapes": []}
    options = dict(fmha_scale=0.17677669529663687, intermediate_tensor_shape=shape, is_flash_attention=True)
    options |= dict(mask_type=mask, dropout_rate=0.0, seed=42, sliding_window_length=window, max_seg_per_batch=1)
    return {"operation_queue_id": "0", "cudnn_fmha_backend_config": options | {"is_paged_attention": False} | more}


def allowed(mask, window):
    """Pairs of a query and a key that it may attend, one by one."""
    causal, near = mask == "CAUSAL", lambda t, s: not window or t - s < window
    return sum((not causal or s <= t) and near(t, s) for t in range(T) for s in range(S))


@pytest.mark.parametrize("mask, window", [("NO_MASK", 0), ("CAUSAL", 0), ("CAUSAL", 9)])
@pytest.mark.parametrize(
    "target, operands, results, products",
    [
        ("__cudnn$fmhaSoftmax", [QUERIES, KEYS, KEYS], OUT, 2),
        ("__cudnn$fmhaSoftmax", [QUERIES, KEYS, KEYS], OUT[::2], 2),  # nothing kept for a backward pass
        ("__cudnn$fmhaScaleBiasSoftmax", [QUERIES, KEYS, KEYS, BIAS], OUT, 2),
        ("__cudnn$fmhaSoftmaxBackward", [QUERIES, KEYS, KEYS, SUMS, QUERIES, QUERIES], GRADIENTS, 5),
        ("__cudnn$fmhaScaleBiasSoftmaxBackward", [QUERIES, KEYS, KEYS, SUMS, QUERIES, BIAS, QUERIES],
         [*GRADIENTS[:3], BIAS, GRADIENTS[3]], 5),
    ],
)  # fmt: skip
def test_attention_of_cudnn(target, operands, results, products, mask, window):
    found = library_call(target, operands, f"({', '.join(results)})", attention_config(mask, window))
    assert found.flops == products * 2 * B * N * H * allowed(mask, window) and not found.uncounted


def test_attention_of_cudnn_with_values_of_another_size():
    """Forward, one product of each size; backward, three of queries and keys, two of values."""
    values = KEYS.replace(f",{H}]", ",16]")
    of_values = QUERIES.replace(f",{H}]", ",16]")
    pairs = 2 * B * N * T * S
    forward = library_call("__cudnn$fmhaSoftmax", [QUERIES, KEYS, values], f"({', '.join(OUT)})", attention_config())
    assert forward.flops == pairs * (H + 16)
    operands = [QUERIES, KEYS, values, SUMS, of_values, of_values]
    backward = library_call("__cudnn$fmhaSoftmaxBackward", operands, f"({', '.join(GRADIENTS)})", attention_config())
    assert backward.flops == pairs * (3 * H + 2 * 16)


@pytest.mark.parametrize("more", [{"mask": "PADDING"}, {"max_seg_per_batch": 3}, {"is_paged_attention": True}])
def test_attention_of_cudnn_over_lengths_that_are_data_is_named(more):
    found = library_call("__cudnn$fmhaSoftmax", [QUERIES, KEYS, KEYS], f"({', '.join(OUT)})", attention_config(**more))
    assert found.flops == 0 and dict(found.uncounted) == {"__cudnn$fmhaSoftmax": 1}


# Lengths of 64 on four devices in blocks of 8. Causal, block c of the queries needs c + 1 blocks of keys, and devices
# have blocks i and 7 - i; otherwise two neighbours. A window of 9 needs one more block on its side, where there is one.
@pytest.mark.parametrize(
    "causal, window, of_all",
    [(True, None, sum(range(1, 9))), (True, 9, 8 + 7), (False, 9, 8 + 7 + 7), (False, None, 8 * 8)],
)
def test_attention_by_queries_counts_the_blocks_it_needs(monkeypatch, programs_by_their_scopes, causal, window, of_all):
    """The mean of the devices: how many blocks one goes through, it only knows when it runs."""
    monkeypatch.setattr(attention_blocks, "BLOCK", (8, 8))
    rows, heads, features = 2, 4, 16
    mesh = make_mesh(MeshConfig(data=1, sequence=4), jax.devices()[:4])
    q = jax.ShapeDtypeStruct((rows, 64, heads, features), jnp.float32)
    k = jax.ShapeDtypeStruct((rows, 64, 2, features), jnp.float32)  # key-value heads that do not divide by four

    def total(q, k, v):
        return jnp.sum(attention(q, k, v, causal=causal, window=window, backend="cpu") ** 2)

    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(DEFAULT_RULES.items())):
        found, _ = counted(jax.grad(total, (0, 1, 2)), q, k, k, mesh_shape=mesh.shape)
    products = 2 + 5
    assert found.flops == products * 2 * 8 * 8 * features * rows * heads * of_all / 4 and not found.uncounted


def test_attention_of_long_rows_on_a_cpu_counts_the_blocks_it_needs(monkeypatch, programs_by_their_scopes):
    """Two rows one after the other, in each of which block c of the queries needs c + 1 blocks of keys."""
    monkeypatch.setattr(attention_cpu, "LONG", 64)
    monkeypatch.setattr(attention_cpu, "LONG_BLOCK", 8)
    monkeypatch.setattr(attention_cpu, "LONG_LOGITS_BYTES", 1)
    q = jax.ShapeDtypeStruct((2, 64, 4, 16), jnp.float32)

    def total(q, k, v):
        return jnp.sum(attention(q, k, v, causal=True, backend="cpu") ** 2)

    found, _ = counted(jax.grad(total, (0, 1, 2)), q, q, q)
    assert found.flops == (2 + 5) * 2 * 8 * 8 * 16 * 2 * 4 * sum(range(1, 9)) and not found.uncounted


@pytest.mark.parametrize(
    "text, groups",
    [
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=4] {'b','a'}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("mesh['a'=2,'b'=2,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
    ],
)
def test_groups_of_devices(text, groups):
    found = counts.replica_groups(f", channel_id=1, replica_groups={text}, use_global_device_ids=true", 8)
    assert [sorted(group) for group in found.tolist()] == groups


def test_groups_that_cannot_be_read_are_an_error():
    with pytest.raises(InputError, match="groups cannot be read"):
        counts.replica_groups("replica_groups=<something new>", 8)


def test_slices_count_as_slices():
    """A loop that reads one row of a stack at a time, and writes one, moves each row once, not the stack each time."""
    stack = jax.ShapeDtypeStruct((64, 256, 256), jnp.float32)
    found, _ = counted(lambda x: jax.lax.map(lambda row: row * 2.0 + 1.0, x), stack)
    assert 2 * 64 * 256**2 * 4 == pytest.approx(found.memory_bytes, rel=0.7)
    assert found.memory_bytes < 4 * 2 * 64 * 256**2 * 4


def test_what_a_fusion_reads_and_writes_counts_once():
    x = jax.ShapeDtypeStruct((512, 1024), jnp.float32)
    found, _ = counted(lambda x, y: jnp.tanh(x + y) * 2.0, x, x)
    assert found.memory_bytes == 3 * 512 * 1024 * 4


UNROLLED = """HloModule unrolled, is_scheduled=true

%fused (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %two = s32[] constant(2)
  ROOT %add = s32[] add(%p, %two)
}

%body (state: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %state = (s32[]{:T(128)}, f32[4,4]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[4,4]{1,0} get-tuple-element(%state), index=1
  %y = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %next = s32[] fusion(%i), kind=kLoop, calls=%fused, frontend_attributes={kernel_metadata={
"note":"a line of its own (with a parenthesis"
}}, metadata={op_name="x"}
  ROOT %out = (s32[], f32[4,4]{1,0}) tuple(%next, %y)
}, execution_thread="main"

%condition (state: (s32[], f32[4,4])) -> pred[] {
  %state = (s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %bound = s32[] constant(9)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (x: f32[4,4]) -> f32[4,4] {
  %x = f32[4,4]{1,0} parameter(0)
  %one = s32[] constant(1)
  %begin = (s32[], f32[4,4]{1,0}) tuple(%one, %x)
  %loop = (s32[], /*index=1*/f32[4,4]{1,0}) while(%begin), condition=%condition, body=%body
  ROOT %result = f32[4,4]{1,0} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize("newer", [False, True])
def test_a_loop_that_the_compiler_unrolled(newer):
    """From 1 by 2 while below 9: four times. Newer compilers have no instruction for an element of a tuple."""
    text = UNROLLED
    if newer:
        text = re.sub(r"  %[ix] = \S+ get-tuple-element.*\n", "", text).replace("%i", "%state#0")
        text = text.replace("(%x, %x)", "(%state#1, %state#1)")
        assert text != UNROLLED
    found = counts.count(hlo.parse(text), ONE)
    assert found.flops == 4 * 2 * 4 * 4 * 4


@pytest.mark.parametrize(
    "what, replacement",
    [
        ("add(%p, %two)", "multiply(%p, %two)"), ("constant(9)", "parameter(1)"), ("direction=LT", "direction=NE"),
        ("%one = s32[] constant(1)", "%one = s32[] parameter(1)"), ("constant(2)", "constant(-2)"),
    ],
)  # fmt: skip
def test_a_loop_of_unknown_length_is_named(what, replacement):
    found = counts.count(hlo.parse(UNROLLED.replace(what, replacement)), ONE)
    assert found.flops == 2 * 4 * 4 * 4 and dict(found.uncounted) == {"loop whose length depends on data": 1}


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(InputError, match="no entry"):
        hlo.parse(UNROLLED.replace("ENTRY ", ""))


def test_a_type_of_unknown_size_is_named():
    with pytest.raises(InputError, match="q17"):
        hlo.Array("q17", (3,)).num_bytes
