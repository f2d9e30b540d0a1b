"""Every key of a recipe, once, with its meaning. Recipes start from here and change what they need.

Any key can be given on the command line: --config.objective.temperature=0.07. Unknown keys are refused.
The values here are the paper's, and its code's, for unsupervised BERT-base (docs/paper.md).
"""

from collections.abc import Mapping
from typing import TypeVar

from ml_collections import ConfigDict

from simcse_jax.system.errors import UserError

Recipe = TypeVar("Recipe")


def choose(variants: Mapping[str, Recipe], name: str) -> Recipe:
    """The variant of this name (the part after the colon of --config=FILE:variant); UserError if there is none."""
    if name not in variants:
        raise UserError(f"The recipe has no variant {name!r}. It has: {', '.join(variants)}.")
    return variants[name]


def get_config() -> ConfigDict:
    """The locked configuration that every recipe starts from."""
    config = ConfigDict()

    config.model = ConfigDict()
    # A Hugging Face folder or Hub name. With init = "random" it gives sizes and tokenizer only, and "" means BERT.
    config.model.name = "bert-base-uncased"
    # "pretrained": weights from model.name; "random": sizes from model.name, or from the keys below where not 0.
    config.model.init = "pretrained"
    config.model.num_hidden_layers = 0
    config.model.hidden_size = 0
    config.model.num_attention_heads = 0
    config.model.intermediate_size = 0
    # "": the tokenizer of model.name; a folder; or "train": a WordPiece of vocab_size trained on data.files (needs
    # init = "random").
    config.model.tokenizer = ""
    config.model.vocab_size = 0
    # The vector of a sentence at test time; recorded in the checkpoint and the export. cls, cls_before_pooler, avg,
    # avg_top2, avg_first_last or avg_embedding_last.
    config.model.pooler = "cls_before_pooler"
    # The same in training: "cls" puts a fresh dense + tanh head on the first token (the paper's MLP).
    config.model.train_pooler = "cls"
    # Who encodes positives and hard negatives. "none": the encoder itself; "copy": one with parameters of its own, the
    # same at the start (dual encoder); "momentum": one that follows the first, by a share 1 - momentum a step (MoCo).
    # Evaluated and exported is the first.
    config.model.second_encoder = "none"
    config.model.momentum = 0.999
    # Rate at every site, in [0, 1). The paper's table: 0.1 is best, 0 collapses.
    config.model.dropout = 0.1
    # Both views of a sentence with the same dropout mask: the paper's collapse (its table "fixed 0.1"), for study.
    config.model.same_mask = False
    # Also zero parts of the input embeddings in training: "token" (whole tokens), "feature" (the same features of all
    # tokens of a sentence) or "span" (a stretch of tokens), a share cutoff_rate of them; "" = none. With
    # model.dropout = 0 it is the only noise.
    config.model.cutoff = ""
    config.model.cutoff_rate = 0.1
    # Compute in "float32", "bfloat16" (parameters stay float32) or "float64" (needs JAX_ENABLE_X64=1).
    config.model.dtype = "float32"
    # Layout: layers as straight-line code ("on"; longer to compile) or as a loop ("off"). "auto": on for CPUs, where it
    # is a fifth faster, off for chips, where it moves more bytes (docs/performance.md), and with remat.
    config.model.unroll = "auto"
    # Layout: recompute layers in the backward pass, for memory.
    config.model.remat = False

    config.data = ConfigDict()
    # Comma-separated files or globs (.txt, .csv, .tsv, .jsonl, .parquet; text also .gz, .xz),
    # hf://datasets/OWNER/NAME/FILE, or a Hub data set OWNER/NAME[:config][:split].
    config.data.files = ""
    # Comma-separated column names: sentence[,positive[,hard negative ...]]. "": sent0, sent1, hard_neg* where the
    # header has them, else all columns.
    config.data.columns = ""
    # What makes a positive. "dropout": the same sentence twice; "columns": pairs or triplets; "next_sentence": in .txt
    # with a blank line between documents; or a changed copy: "crop" (words cut away at the ends), "word_deletion",
    # "synonym", "mask" (tokens predicted by the pretrained masked language model), "repetition" (tokens, as ESimCSE).
    config.data.positive = "dropout"
    # The share of the words (tokens) that a changed copy changes, in [0, 1). 0 with word_deletion and synonym: exactly
    # one word.
    config.data.rate = 0.1
    # "next_sentence": the positive is one of so many following sentences of the document, 1 or 3.
    config.data.window = 1
    # "synonym": a file of lines like "big, large, huge" (docs/objectives.md); "" = the English one that comes along.
    config.data.synonyms = ""
    # "mask": the masked language model that predicts, as it is: a folder or Hub name; "" = model.name.
    config.data.mask_model = ""
    # Tokens per sentence, special tokens included; longer ones are cut.
    config.data.max_length = 32
    # Layout: sentences share rows of row_length tokens (0 = twice max_length, at most 512); packed = False gives each
    # sentence a row of its own.
    config.data.packed = True
    config.data.row_length = 0
    # Where tokenised data is kept. "": $SIMCSE_CACHE or ~/.cache/simcse_jax.
    config.data.cache_dir = ""

    config.train = ConfigDict()
    # Sentences (examples) per step, over all devices.
    config.train.batch_size = 64
    # Exactly one of these is above 0. One given on the command line replaces the recipe's.
    config.train.steps = 0
    config.train.epochs = 1.0
    config.train.examples = 0
    config.train.seed = 0
    # Groups that each device encodes at a time, activations recomputed (GradCache); 0 = all at once.
    config.train.groups_at_once = 0
    config.train.log_every_steps = 10

    config.objective = ConfigDict()
    # "info_nce": the paper's; "triplet": FaceNet's, of squared distances on the unit sphere; "margin_ranking": of
    # similarities; "sigmoid": SigLIP's; "none": masked language modelling alone (mlm.weight above 0).
    config.objective.loss = "info_nce"
    config.objective.temperature = 0.05
    # Learn the temperature, and sigmoid's bias, from those on. SigLIP starts at 0.1 and -10.
    config.objective.learned_temperature = False
    # The learning rate of these, with the optimizer's schedule; 0 = the optimizer's, which hardly moves them where it
    # is that of a pretrained encoder. SigLIP: 1e-3.
    config.objective.learning_rate = 0.0
    config.objective.bias = -10.0
    # "cosine" or "dot".
    config.objective.similarity = "cosine"
    # triplet (FaceNet: 0.2) and margin_ranking. Negatives of a triplet: "all", the "hardest", or "semi_hard": the
    # closest of those farther away than the positive.
    config.objective.margin = 0.2
    config.objective.mining = "semi_hard"
    # Matryoshka: the mean of the loss over the first 768, 256 and 64 features: "768,256,64". "" = all features only.
    config.objective.widths = ""
    # Earlier positives kept as further negatives, with second_encoder = "momentum"; 0 = none.
    config.objective.queue = 0
    # Weight of an anchor's own hard negatives in the denominator; 1 = none.
    config.objective.hard_negative_weight = 1.0
    # Average with the loss of positives against anchors.
    config.objective.symmetric = False
    # Leave out candidates whose text equals the anchor's or its positive's.
    config.objective.mask_duplicates = True
    # Layout: similarities are computed, and held, for at most so many anchors against the candidates of as many
    # examples at a time (against all candidates, where loss is not info_nce), so memory grows with the batch and not
    # with its square; 0 = all of a device's at once. Where that does not divide the batch, smaller tiles of one size,
    # padded.
    config.objective.tile = 1024

    config.mlm = ConfigDict()
    # Weight of a masked-language-modelling loss beside the contrastive one, on masked copies of all texts of a batch,
    # changed ones too; 0 = none. The paper's appendix D tries 0.01, 0.1 and 1. The head comes with the pretrained
    # weights.
    config.mlm.weight = 0.0
    # Share of the tokens to predict; of them 80 % are masked, 10 % replaced by random tokens.
    config.mlm.rate = 0.15
    # Choose whole words, long and short ones alike, instead of their pieces.
    config.mlm.whole_word = False
    # Held-out text, like data.files and with its data.columns: the perplexity of its whole batches is logged with each
    # evaluation, and decides which state is the best where there is no eval.data. "" = none.
    config.mlm.validation = ""

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 3e-5
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 0.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    # Largest global gradient norm; 0 = no clipping.
    config.optimizer.clip_norm = 1.0

    config.eval = ConfigDict()
    # Graded pairs: a .tsv or .csv of score, sentence, sentence; SentEval's sts-dev.csv or its folder; or the senteval
    # archive of the Hub. "" = no evaluation (the last state is then the best).
    config.eval.data = "hf://datasets/princeton-nlp/datasets-for-simcse/senteval.tar"
    config.eval.every_steps = 125
    # Stop after this many evaluations without a better score; 0 = never.
    config.eval.patience = 0

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 500

    config.mesh = ConfigDict()
    # Devices = data x fsdp; -1 = all visible. Both split parameters and optimizer state; with fsdp > 1 they are whole
    # at no time: a layer is gathered when it runs.
    config.mesh.data = -1
    config.mesh.fsdp = 1

    return config.lock()
