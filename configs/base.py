"""The options that every training run has.

configs/sft.py and configs/step_grpo.py add those of their algorithm, and
`r1router_jax/training/config.py` checks all.  This file is not a run itself.
"""

import ml_collections as mlc


def base_config() -> mlc.ConfigDict:
  """Return the options that all runs share, each with its usual value."""
  c = mlc.ConfigDict()
  c.seed = 0  # Seed of every random draw.
  c.parallel = "pmap"  # "fsdp" splits weights over config.mesh.
  # Sizes of the axes of the training mesh; -1 takes the devices left.  `data`
  # and `fsdp` split the rows of a batch, `fsdp` and `tensor` the weights.
  c.mesh = dict(data=-1, fsdp=1, tensor=1)
  # The mesh that responses are drawn on; here `tensor` alone splits weights.
  c.rollout_mesh = dict(data=-1, tensor=1)

  c.policy = dict(
    # Whatever --policy takes but an address: a folder, a model of the Hugging
    # Face hub, "warm_start" (the policy that comes with the package), or
    # "smollm2_base", say; or "" for random weights.
    start_from="warm_start",
    induction=False,  # Random weights that can copy: models/induction_init.py.
    # Encoder of build_kb, such as "minilm", whose vectors of words are part of
    # these weights; "": none.
    word_vectors="",
    # Adapters beside the layers whose path fits `match`, a regular expression;
    # rank 0 adds none.  Train them alone with trainable_regex "lora_".
    lora=dict(rank=0, alpha=32.0, match="layers/[qkvo]$"),
  )
  c.trainable_regex = ""  # Parameters whose path fits are trained; "": all.

  c.data = dict(
    # The TFDS dataset: georouter, or r1_router_rows/NAME for R1-Router's rows.
    name="georouter",
    # A split as TFDS spells it, such as "train[:90%]"; config.seed chooses the
    # rows of a slice.
    split="train",
    tfds_dir="",  # Folder of prepared datasets; "" is the default of TFDS.
    # R1-Router's JSON Lines files, which are prepared as the split "train" of
    # r1_router_rows: paths or globs, with commas between them.
    train_files="",
    # Other questions: a .jsonl, .csv or .parquet file of your own, which is the
    # split "train" (data/question_files.py says what a row is), or the name of
    # a benchmark that is prepared, which is the split "test".  "domains" is a
    # grammar of invented domains (docs/domains.md); "countries" are those of
    # GeoRouter about countries that are not.  Both make as many as `generated`,
    # of a split train or val, each with its passages.
    questions="",
    generated=0,
    families=(),  # Families that questions are taken of; () is all.
    share=1.0,  # Share of the questions to learn from; config.seed chooses.
    # Folder of the images that train_files or questions name; "" is that of the
    # file of questions.
    images="",
    # The knowledge bases: the folder that build_kb wrote, or
    # "text=http://host:port,image=DIR,table=DIR"; "" takes gold evidence.
    kb_dir="",
    passages=dict(text=1, image=1, table=1),  # Passages read per answer step.
  )

  c.micro_batch_size = 0  # Rows of a backward pass and data shard; 0: all.
  # JAX's precision of an update's products, such as "bfloat16", which makes
  # linear layers twice as fast on CPUs with AVX512-BF16; "" leaves it to JAX.
  c.matmul_precision = ""
  c.max_skipped = 3  # Updates in a row with a loss that is not finite, at most.
  # With knowledge bases the policy answers whole questions by the routing loop,
  # without it answers gold steps: training/validation.py.
  c.validation = dict(
    every=0,  # Iterations between two validations; 0: never.
    split="val",  # A split of the same dataset, or of `questions`.
    questions="",  # Held-out questions of their own, like data.questions.
    train_files="",  # Like data.train_files, of the split "val".
    steps=256,  # Gold steps, or whole questions, to answer, at most.
    # The scalar that chooses <workdir>/best: f1, exact or recall of questions,
    # total (the mean reward) of gold steps; "": f1, or total.
    best_by="",
  )
  c.samples_every = 0  # Iterations between entries of samples.jsonl; 0: never.
  c.wandb = ""  # A project of Weights & Biases that gets the scalars, too.
  return c


def base_optimizer() -> mlc.ConfigDict:
  """Return the options of AdamW at a constant learning rate."""
  return mlc.ConfigDict(
    dict(
      name="adamw",  # Or "muon": Muon on matrices and NAdam elsewhere.
      lr=1e-6,  # Peak learning rate of AdamW.
      muon_lr=0.0,  # Peak learning rate of Muon.
      warmup=0,  # Updates of linear warm-up.
      final=1.0,  # Learning rate at the end, as a fraction of the peak.
      b2=0.999,  # AdamW's decay of squared gradients.
      weight_decay=0.01,  # Of matrices; under "muon" of those that it moves.
      clip_norm=1.0,  # Largest global norm of a gradient.
    )
  )


def qwen_overrides(**changes) -> dict:
  """Return policy overrides for a published Qwen checkpoint."""
  return dict(
    style="full",  # The prompts of the R1-Router paper.
    prompt_tokens=(1024, 2048, 4096),  # Padded lengths; longer ones are cut.
    compute=dict(dtype="bfloat16", remat="full", attention="auto"),
    **changes,
  )


def get_config(variant: str = "") -> mlc.ConfigDict:
  """Tell that this file is not a run."""
  del variant
  raise ValueError("configs/base.py is no run: take configs/step_grpo.py:tiny.")


def set_smollm2(c: mlc.ConfigDict, start_from: str) -> None:
  """Change a run to SmolLM2 on a CPU: adapters alone, in 16-bit products."""
  c.policy.update(start_from=start_from, induction=False)
  c.policy.lora = dict(rank=16, alpha=32.0, match="layers/([qkvo]|mlp/.*)$")
  c.trainable_regex = "lora_"
  c.policy.overrides = dict(compute=dict(dtype="float32", remat="dots"))
  c.matmul_precision = "bfloat16"
  c.optim.weight_decay = 0.0
