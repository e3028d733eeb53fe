"""Host memory while published weights are read and written: python experiments/load_memory/measure.py [--megabytes=400]

Makes a random LLaMA in a temporary folder, then loads and saves it in fresh processes and prints, a line a case, by how
much the peak of the process's memory exceeds that of the model's own shards, beside the largest published tensor.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from runs import memory, reset_peak  # noqa: E402

CASES = {
    # name: (simulated devices, mesh, dtype in the file, dtype asked for)
    "one device, float32": (1, None, "float32", "float32"),
    "one device, bfloat16 to float32": (1, None, "bfloat16", "float32"),
    "4 devices, fsdp 4": (4, {"fsdp": 4}, "float32", "float32"),
    "4 devices, fsdp 2 x tensor 2": (4, {"fsdp": 2, "tensor": 2}, "float32", "float32"),
}


def make(folder: pathlib.Path, megabytes: int, dtype: str) -> None:
    """A LLaMA of about so many megabytes in float32, with layers of 12 * 768**2 weights."""
    import ml_dtypes
    import numpy as np

    from fmjax.interop.safetensors_files import Outgoing, write_folder

    width, vocab = 768, 16000
    layers = max(1, round((megabytes * 1e6 / 4 - 2 * vocab * width) / (12 * width * width)))
    mlp = 8 * width // 3
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", num_hidden_layers=layers, hidden_size=width,
        intermediate_size=mlp, num_attention_heads=12, vocab_size=vocab, max_position_embeddings=1024,
        rms_norm_eps=1e-5,
    )  # fmt: skip
    shapes = {
        "model.embed_tokens.weight": (vocab, width),
        "lm_head.weight": (vocab, width),
        "model.norm.weight": (width,),
    }
    for i in range(layers):
        block = f"model.layers.{i}"
        shapes |= {f"{block}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{block}.mlp.{name}_proj.weight": (mlp, width) for name in ("gate", "up")}
        shapes[f"{block}.mlp.down_proj.weight"] = (width, mlp)
        shapes |= {f"{block}.{n}.weight": (width,) for n in ("input_layernorm", "post_attention_layernorm")}
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    rng = np.random.default_rng(0)
    tensors = [
        Outgoing(name, shape, kind, lambda shape=shape: rng.standard_normal(shape, np.float32).astype(kind))
        for name, shape in shapes.items()
    ]
    folder.mkdir()
    write_folder(folder, tensors, 150_000_000)
    (folder / "config.json").write_text(json.dumps(config))


def child(folder: str, mesh, dtype: str) -> dict:
    """Loads and saves, and reports bytes and seconds."""
    import jax

    import fmjax.load
    from fmjax.interop import exporter, importer  # noqa: F401
    from fmjax.interop.loading import open_published

    jax.block_until_ready(jax.numpy.ones(8) + 1)
    largest = max(tensor.size for tensor in open_published(folder).tensors.values())
    reset_peak()
    before, begin = memory("VmRSS"), time.perf_counter()
    model = fmjax.load(folder, dtype=dtype, mesh=mesh)
    seconds, peak, after = time.perf_counter() - begin, memory("VmHWM"), memory("VmRSS")
    own = sum(shard.data.nbytes for leaf in jax.tree.leaves(model.params) for shard in leaf.addressable_shards)
    reset_peak()
    begin = time.perf_counter()
    model.save(f"{folder}-saved", format="hf")
    return {
        "own": own, "largest": largest, "load_peak": peak - before, "load_after": after - before,
        "load_seconds": seconds, "save_peak": memory("VmHWM") - after, "save_seconds": time.perf_counter() - begin,
    }  # fmt: skip


def measure(folder: pathlib.Path, devices: int, mesh, dtype: str) -> dict:
    """`child` in a process of its own."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    root = str(pathlib.Path(__file__).parent.parent.parent)
    environment["PYTHONPATH"] = root
    command = [sys.executable, __file__, "--child", str(folder), "--mesh", json.dumps(mesh), "--dtype", dtype]
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--child")
    parser.add_argument("--mesh")
    parser.add_argument("--dtype")
    flags = parser.parse_args()
    if flags.child:
        print(json.dumps(child(flags.child, json.loads(flags.mesh), flags.dtype)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        for number, (name, (devices, mesh, stored, asked)) in enumerate(CASES.items()):
            folder = pathlib.Path(temporary) / str(number)
            make(folder, flags.megabytes, stored)
            r = measure(folder, devices, mesh, asked)
            print(
                f"{name}: shards {r['own'] / 1e6:.0f} MB, largest tensor {r['largest'] / 1e6:.0f} MB; loading peaks "
                f"{(r['load_peak'] - r['own']) / 1e6:+.0f} MB above the shards ({r['load_seconds']:.1f} s), keeps "
                f"{(r['load_after'] - r['own']) / 1e6:+.0f} MB; saving peaks {r['save_peak'] / 1e6:+.0f} MB "
                f"({r['save_seconds']:.1f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
