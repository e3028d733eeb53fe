from setuptools import find_packages, setup

TPU_COMPILER = "jax[tpu]>=0.10"  # it runs, and compiles for TPUs, on machines without one
GGUF = "gguf>=0.17"  # its tables of block sizes, and how blocks are unpacked
CONSTRAINED = "llguidance>=1.9"  # which tokens go on with a text of a schema, an expression or a grammar
SEARCH = "faiss-cpu>=1.9"  # nearest neighbours among very many vectors
EVAL = ["sacrebleu>=2.4", "rouge-score>=0.1.2", "seqeval>=1.2.2"]  # metrics of evaluation tasks

setup(
    name="fmjax",
    version="0.1.0",
    description="Foundation models in JAX: pretrain, adapt, inspect and evaluate, from one core to a TPU slice.",
    python_requires=">=3.11",
    packages=find_packages(include=["fmjax", "fmjax.*"]),
    package_data={"fmjax.native": ["*.cc"]},
    package_dir={"": "."},  # installed with -e, fmjax is then found from the folder of its clone too
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "grain>=0.2.18",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources>=6",  # TFDS imports it without declaring it
        "sentencepiece>=0.2",
        "protobuf>=4",  # SentencePiece's messages, which it does not declare
        "jinja2>=3.1.6",  # chat templates; older sandboxes leak
        "ml-collections>=1.1",
        "safetensors>=0.5",
        "tokenizers>=0.21",
        "huggingface_hub>=0.30",
        "pyarrow>=16",
        "zstandard>=0.22",
        "tensorboardX>=2.6",
        "matplotlib>=3.8",
        "pillow>=10",
        "tqdm>=4.66",
        "scikit-learn>=1.5",
    ],
    extras_require={
        "tpu": [TPU_COMPILER],
        "plan": [TPU_COMPILER],
        "cuda": ["jax[cuda13]>=0.10"],
        "eval": EVAL,
        "gguf": [GGUF],
        "search": [SEARCH],
        "constrained": [CONSTRAINED],
        "test": [
            "pytest>=8", "pytest-xdist>=3.5", "nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29",
            *EVAL, GGUF, SEARCH, CONSTRAINED,
            f"{TPU_COMPILER}; sys_platform == 'linux' and platform_machine == 'x86_64'",
        ],  # fmt: skip
        "tensorboard": ["tensorboard>=2.16"],  # to look at the events of a run
        "lm-eval": ["lm-eval>=0.4.9"],
        "oracle": [
            "torch>=2.6", "transformers>=5", "diffusers>=0.42", "peft>=0.21", "trl>=1.16", "rlax>=0.1.8",
            "bitsandbytes>=0.50", "sentencepiece", "protobuf",
        ],  # fmt: skip
        "experiments": ["sacrebleu>=2.4", "vaderSentiment>=3.3"],
    },
)
