"""The script that profiles a step: kinds and arithmetic of operations, and time shared by what runs together."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

import profile_step
from traces.operations import (
    ELEMENTWISE,
    FORWARD,
    INPUT_GRADIENT,
    MOVE,
    PRODUCT,
    REDUCTION,
    WEIGHT_GRADIENT,
    kernel_kind,
    operations,
)
from traces.recording import Span, shared_time


def test_kinds_and_arithmetic_of_what_xla_compiled():
    def loss(kernel, weights, x):
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.square(x @ weights).sum()

    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((3, 3, 24, 24), (24, 40), (2, 16, 16, 24))]
    text = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile().as_text()
    entry = text[text.index("ENTRY") :]
    found = [operation for name, operation in operations(text).items() if f"%{name} = " in entry]
    flops = 2 * (2 * 16 * 16 * 24) * (3 * 3 * 24)
    counts = {
        kind: [op.flops for op in found if op.kind == kind] for kind in (FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT)
    }
    assert counts[FORWARD] == [flops, flops]
    assert counts[INPUT_GRADIENT] == [flops]
    assert counts[WEIGHT_GRADIENT] == [flops, flops]
    assert {op.flops for op in found if op.kind == PRODUCT} == {2 * (2 * 16 * 16) * 24 * 40}
    assert any("test_profile_step.py:" in op.source for op in found)


CUDA = """
ENTRY %main.1 (x.1: bf16[4,32,32,8], k.1: bf16[3,3,8,16]) -> bf16[3,3,8,16] {
  %x.1 = bf16[4,32,32,8]{3,2,1,0} parameter(0)
  %k.1 = bf16[16,3,3,8]{3,2,1,0} parameter(1)
  %dy = bf16[4,32,32,16]{3,2,1,0} parameter(2)
  %cudnn-conv.1 = (bf16[4,32,32,16]{3,2,1,0}, u8[0]{0}) custom-call(%x.1, %k.1), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %cudnn-conv-bw-input.1 = (bf16[4,32,32,8]{3,2,1,0}, u8[0]{0}) custom-call(%dy, %k.1), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %cudnn-conv-bw-filter.1 = (bf16[16,3,3,8]{3,2,1,0}, u8[0]{0}) custom-call(%x.1, %dy), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %copy.1 = bf16[4,32,32,8]{2,1,3,0} copy(%x.1)
  %reduce.1 = f32[8]{0} reduce(%x.1, %zero), dimensions={0,1,2}, to_apply=%add
}
"""


def test_kinds_and_arithmetic_of_cudnns_calls():
    found = operations(CUDA)
    flops = 2 * (4 * 32 * 32 * 16) * (3 * 3 * 8)
    kinds = {
        "cudnn-conv.1": FORWARD,
        "cudnn-conv-bw-input.1": INPUT_GRADIENT,
        "cudnn-conv-bw-filter.1": WEIGHT_GRADIENT,
    }
    for name, kind in kinds.items():
        assert (found[name].kind, found[name].flops) == (kind, flops)
    assert (found["copy.1"].kind, found["reduce.1"].kind) == (MOVE, REDUCTION)


def test_a_kernel_in_a_cuda_graph_is_known_by_its_own_name():
    """There the trace names the graph. Kernels of cuDNN have names of their own and stay the graph's."""
    known = operations(CUDA)
    traced = [
        Span(0, 3, "command_buffer_1", "reduce_1"),
        Span(3, 5, "command_buffer_1", "sm90_xmma_fprop_implicit_gemm"),
        Span(5, 6, "copy.1", "copy_1"),
    ]
    entries, kinds = profile_step.profile(traced, known, 1)
    assert [(e.name, e.kind) for e in entries] == [
        ("reduce.1", REDUCTION),
        ("command_buffer_1", kernel_kind("sm90_xmma_fprop_implicit_gemm")),
        ("copy.1", MOVE),
    ]
    assert kinds[REDUCTION] == pytest.approx(3e-6)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_warpgroupsize1", FORWARD),
        ("cudnn::cnn::wgrad2d_grouped_direct_kernel", WEIGHT_GRADIENT),
        ("sm90_xmma_dgrad_implicit_gemm_indexed_bf16", INPUT_GRADIENT),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT", PRODUCT),
        ("nchwToNhwcKernel", MOVE),
        ("input_reduce_fusion_3", REDUCTION),
        ("loop_add_fusion", ELEMENTWISE),
    ],
)
def test_kinds_of_kernels_by_name(kernel, kind):
    assert kernel_kind(kernel) == kind


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20), st.sampled_from("abc")), max_size=8))
def test_shared_time_adds_up_to_the_time_covered(found):
    intervals = [(start, start + length, what) for start, length, what in found]
    parts = shared_time(intervals)
    covered = {moment for start, end, _ in intervals for moment in range(start, end)}
    assert sum(parts.values()) == pytest.approx(len(covered))
    assert all(
        part <= sum(end - start for start, end, what in intervals if what == name) + 1e-9
        for name, part in parts.items()
    )


def test_what_runs_together_shares_the_time():
    assert shared_time([(0, 10, "a"), (5, 10, "b"), (20, 21, "b")]) == {"a": 7.5, "b": 3.5}


def test_a_profile_adds_up_and_leaves_loops_out():
    known = operations(
        CUDA
        + """
ENTRY %main.2 (x: f32[]) -> f32[] {
  %while.1 = f32[] while(%x), condition=%c, body=%b
}
"""
    )
    spans = [
        Span(0, 4e6, "cudnn-conv.1", "sm90_xmma_fprop"),
        Span(0, 9e6, "while.1", "while.1"),
        Span(4e6, 6e6, "cudnn-conv.1", "nchwToNhwcKernel"),  # what cuDNN does about it
        Span(9e6, 10e6, "", "sm90_xmma_wgrad"),
    ]
    entries, kinds = profile_step.profile(spans, known, 2)
    assert kinds == {FORWARD: 2.0, MOVE: 1.0, WEIGHT_GRADIENT: 0.5, profile_step.IDLE: 1.5}
    assert [(entry.name, entry.kind, entry.ms) for entry in entries] == [
        ("cudnn-conv.1", FORWARD, 2.0),
        ("cudnn-conv.1", MOVE, 1.0),
        ("sm90_xmma_wgrad", WEIGHT_GRADIENT, 0.5),
    ]
