"""The settings of a training run, in groups of frozen dataclasses: each field is a flag, and its docstring the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from raypaml.augmentation.augmentations import augmentation_names
from raypaml.extensions import ImportModule
from raypaml.losses.schemes import scheme_names

LARGEST_ALPHA = 1e6
"""BoostLU's largest factor; published is 5, and far larger ones overflow float32."""
SettingValues = dict[str, Any]
"""Values of settings by their names, each of the type of its field."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data."""

    data: str = "digits"
    """Data set: a folder of shards, index and vocabulary (path, s3:// or gs://), or the embedded
    digits[:single_positive|verified[:SEED]]."""
    global_batch_size: int = 32
    """Images per step, all workers together; rejection compares the entries of this whole batch."""
    lanes: int = 0
    """Equal parts of a global batch, which the workers share out; at most so many workers. 0: the largest divisor of
    the batch size up to 64."""
    shuffle_window: int = 0
    """Shards whose samples are mixed at a time, for data in an object store or on a network disk; 0: every epoch is a
    permutation of all samples, for data on a local disk."""
    cache: str = ""
    """Folder on every node in which shards that come from s3:// or gs:// are kept; default: in XDG_CACHE_HOME or
    ~/.cache."""
    cache_gb: float = 50.0
    """Disk space on every node for shards kept from s3:// or gs://, in 10^9 bytes; when it is full, shards that the
    epoch has used up, or that were read longest ago, are removed."""
    skip_budget: float = 0.0
    """Share of a split's samples, 0 to 1, that may be broken: these are skipped, counted and named. 0: the first broken
    sample is an error."""
    loader_workers: int = 0
    """Threads per worker that read and decode images ahead; 0: images are decoded between steps."""
    flip: bool = False
    """Mirror half of the training images, drawn anew in every epoch."""
    augment: str = field(default="none", metadata={"choices": augmentation_names})
    """Random changes of training images, drawn anew in every epoch, besides the mirroring of --flip. published: those
    of the code of the scheme's paper. The end of this help describes each."""
    augment_settings: str = ""
    """Numbers of the augmentation, NAME=VALUE,...; the end of this help lists them with their defaults."""

    @property
    def opening(self) -> SettingValues:
        """The keyword arguments with which `data.data_folder.open_folder` opens the data."""
        return {"cache": self.cache, "cache_gb": self.cache_gb, "lenient": self.skip_budget > 0}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Model."""

    backbone: str = "small"
    """Network below the head: small (for digits), any classification model of torchvision with a feature map, or
    timm:NAME, which may be a vision transformer; timm:NAME@PIXELS adapts a model of fixed image size to another.
    Published: resnet50; OpenImages: resnet101."""
    weights: str = ""
    """Backbone weights: a safetensors or state-dict file, names with any prefix; or, to be downloaded, imagenet (the
    default of torchvision or timm), imagenet-v1 or imagenet-v2 (torchvision's first and later ones). Published:
    imagenet-v1."""
    from_run: str = field(default="", metadata={"flag": "--from", "metavar": "RUN"})
    """Start from the weights, backbone and head, of another run (its best checkpoint) or of one of its checkpoints: a
    folder, or an address, s3:// or gs://. Backbone and classes must be the same; the optimizer, the epochs and the seed
    begin anew."""
    from_sha256: str = ""
    """SHA-256 that the weights named by --from must have; default: recorded when the run begins, and required whenever
    it goes on."""
    alpha: float = 5.0
    """BoostLU's factor on positive values of the class activation map, >= 1; 1 switches BoostLU off. Published: 5."""
    head_weights: bool = False
    """Initialise the head as well from the file of --weights: from its linear classifier over pooled features, such as
    fc.weight [K, D] and fc.bias [K] of a ResNet. Published: off."""
    head_init: Literal["normal", "torch"] = "normal"
    """How a new head is initialised. normal: weights with standard deviation 0.01, biases 0; torch: torch's default,
    both uniform within 1 / sqrt(channels). No effect with --head-weights. Published: torch, with which mAP was 0.3
    lower where both were compared (losses/README.md)."""
    head_prior: float = 0.0
    """Probability, below 1, that a new head gives every class before training, by its biases; about the share of
    positives among all entries (images x classes). 0: about one half, as the biases are initialised (published)."""
    sync_batchnorm: bool = False
    """Compute BatchNorm's statistics over the global batch rather than over each GPU's part of it; GPUs only.
    Published: off (one GPU)."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Loss and rejection."""

    scheme: str = field(default="ll_r", metadata={"choices": scheme_names})
    """Loss, which decides how unobserved entries count; the end of this help says what each scheme does."""
    scheme_settings: str = ""
    """Settings of the scheme, NAME=VALUE,...; those not named keep the recipe's value for the scheme, or the default.
    The end of this help lists them."""
    scheme_defaults: Literal["published", "earlier"] = "published"
    """Defaults of the scheme's settings: published, or earlier, the values in force before these settings existed
    (detach_focal=0, epsilon=0, last_epoch=1), which runs begun at that time keep without this flag."""
    priors: str = ""
    """Run trained with --scheme ignore, whose mean scores are the class priors of --scheme csl."""
    pseudo_labels: str = ""
    """Scores that another model gives to training images, for schemes that use them: a Parquet or CSV file (path, s3://
    or gs://) with the columns key, class and score (0 to 1). An entry without a row has no score."""
    pseudo_labels_sha256: str = ""
    """SHA-256 that the file of pseudo labels must have; default: recorded when the run begins, and required whenever it
    goes on."""
    delta_rel: float = 0.5
    """Percent of all entries (images x classes) of a batch by which the rejected ones grow every epoch after the
    warm-up; ll_cp rejects this percentage in every epoch. Published with BoostLU: LL-R 0.5, LL-Ct 0.2, LL-Cp 0.1;
    OpenImages: 0.005 or 0.01."""
    rejection_alpha: float = 0.0
    """BoostLU's factor, >= 1, in the logits by which rejection ranks entries, while loss and gradient use that of
    --alpha; 0: the same factor (published). Only for schemes that reject by --delta-rel."""
    warmup_epochs: int = 1
    """Epochs of plain assume-negative training before the first rejection, >= 1. Published: 1; EM+APL: 3 to 5."""
    schedule: Literal["epoch", "samples"] = "epoch"
    """When the rejection rate rises: epoch, after every epoch (published), or samples, with every training sample."""
    rejection_scope: Literal["global", "rank"] = "global"
    """Where the entries to reject are selected: global, over the global batch, or rank, within each worker's part of it
    (as published code would on several GPUs)."""
    rejection_rounding: Literal["up", "half_up"] = "up"
    """How the number of entries to reject becomes whole: up (published), or half_up, as earlier versions rounded it."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimisation."""

    epochs: int = 10
    """Passes over the training split; a run may be continued with more, even after it has finished. Published: 10;
    OpenImages: 20."""
    patience: int = 0
    """End training after this many epochs in a row without a better validation mAP; 0: never. Published: never; EM:
    1."""
    stop_below: float = 0.0
    """End training when validation mAP is more than this many points, of 100, below its best so far; 0: never.
    Published: LL 3; GR 2; BoostLU never."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimizer: adam (published), adamw, or sgd (used by the LL paper on VOC)."""
    momentum: float = 0.9
    """Momentum of --optimizer sgd. Published: 0.9."""
    weight_decay: float = 0.0
    """Weight decay: adam and sgd add this multiple of each weight to its gradient, as in torch; adamw takes the
    learning rate times this multiple off the weight. Published: 0; LL with sgd: 0.001; ASL: 0.0001."""
    decay_biases: bool = True
    """Apply weight decay to biases and to the scales of normalisation layers as well. Published: on; ASL: off."""
    lr: float = 1e-5
    """Learning rate of the backbone at its highest. Published: 1e-5; OpenImages: 2e-5."""
    head_lr_mult: float = 10.0
    """Learning rate of the head as a multiple of the backbone's. Published: 10; EM, EM+APL: 1."""
    lr_schedule: Literal["constant", "trapezoid", "cosine", "one-cycle"] = "constant"
    """Learning rate after its warm-up: constant; trapezoid, constant and over the last third linearly to 0; cosine,
    half a cosine down to 0; or one-cycle, up and down along cosines while the momentum (Adam's first beta) falls to
    0.85 and rises again, as in torch's OneCycleLR (used by ASL)."""
    lr_warmup: str = ""
    """Time in which the learning rate rises to its highest, along a cosine in one-cycle and linearly elsewhere: '100
    steps', '1 epoch' or '20%' of the run. Default: for --lr-schedule trapezoid 100 steps, for one-cycle 20% (ASL), else
    none. Published: none."""
    freeze_backbone: int = 0
    """Epochs at the beginning in which only the head learns, as in the papers' LinearInit; 0: none (published)."""
    feature_cache: str = "run"
    """Where the features of a frozen backbone are kept, in float16: run (the run's folder, until the backbone learns),
    a folder (for good, and shared by runs with the same backbone and data), or off. Where they are not kept, and where
    images are mirrored or augmented, every epoch computes them again."""
    test_features: bool = True
    """Where --feature-cache is a folder, keep the features of the test split there too, and predict it from them.
    Scores of a float32 run then differ from those computed from images by float16's rounding."""
    reproducible: bool = False
    """Compute the same weights, to the bit, on any number of workers, by adding up gradients exactly. Refuses layers
    that prevent this (BatchNorm, dropout) unless the backbone stays frozen."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast type of training; auto: bfloat16 where the GPU has it, else float32. Published: float32."""
    evaluation_precision: Literal["run", "float32"] = "run"
    """Autocast type of validation, prediction and inference: run, the same as in training, or float32."""
    matmul_precision: Literal["high", "highest", "torch"] = "high"
    """Precision of float32 products and convolutions on a GPU: high (TF32), highest (exact), or torch (torch's default:
    exact products, TF32 convolutions)."""
    cudnn_benchmark: bool = True
    """Let cuDNN time its algorithms for every new input size on a GPU and use the fastest; always off with
    --reproducible."""
    threads: int = 1
    """CPU threads of each worker's arithmetic, on which the last bits of results depend; 0: as OMP_NUM_THREADS says."""
    micro_batch_size: int = 0
    """Images that a worker passes through the network at once, to save memory; 0: its whole part of the global batch
    (published). Less than that part costs a second forward pass: the first gives all logits, so that rejection still
    compares the whole global batch, and the second gives the gradients, which are summed. With --reproducible it must
    be at least the global batch size divided by --lanes."""
    clip_gradient: float = 0.0
    """Largest Euclidean norm of the whole gradient; 0: no limit (published)."""
    ema: float = 0.0
    """Decay per step, below 1, of an exponential moving average of the weights, which is then what is evaluated and
    kept; 0: no average (published)."""
    compile: bool = False
    """Compile the network with torch.compile. The first step then takes minutes, and batches that are not whole, such
    as the last of an epoch, run uncompiled. Published: off."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Run."""

    name: str = ""
    """Name of the run; that of an existing run continues it. Default: recipe, scheme, date and time."""
    storage: str = "runs"
    """Folder that holds the runs, which all machines must see; or an address, s3:// or gs://."""
    workers: int = 1
    """Training processes, each with a GPU of its own where there are GPUs; 2:8 stands for --min-workers 2 --workers 8.
    One worker without --address is the process of the command itself, without Ray."""
    min_workers: int = 0
    """Workers with which training may start, and go on after a loss, until there are as many as --workers asks for; 0:
    only with all of them."""
    max_failures: int = 8
    """How many times lost workers are started again from the last checkpoint; preempted nodes do not count. One worker
    without --address is the process of the command: if that is killed, the run ends."""
    hang_seconds: float = 300.0
    """Seconds without progress of any worker after which all are ended, the one that holds the others up is named, and
    they are started again; six times as long while a network is compiled. One worker without --address ends with its
    command."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where workers compute; auto: a GPU for every worker where there are that many, else the CPU."""
    address: str = ""
    """Ray cluster to join (also RAY_ADDRESS), or local, a private one on this machine. Default: local; for a single
    worker no Ray."""
    imports: str = field(default="", metadata={"flag": "--import", "action": ImportModule, "metavar": "MODULE"})
    """Module of yours that registers schemes, backbones, augmentations or metrics; may be repeated, and must be given
    again wherever the run is used."""
    seed: int = 0
    """Seed of the initial weights, the order of samples, and the mirroring and augmentation of images."""
    checkpoint_steps: int = 0
    """Steps between checkpoints within an epoch; 0: none within an epoch. A checkpoint is saved in any case after every
    epoch, when the run is stopped, and before a preemption."""
    nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """What to do when logits or gradients are not finite. stop: end with an error; skip: leave out the step, whose
    samples then count against --skip-budget; rollback: go back to the last checkpoint, but end where the same step
    fails again."""
    reference: str = ""
    """Run or checkpoint, ideally trained on full labels; after every epoch the class activation maps of this run are
    compared with its maps."""
    tracker: Literal["none", "tensorboard", "mlflow", "wandb"] = "none"
    """Experiment tracker that also gets the curves. It writes into the run's folder and uses no network unless its own
    environment variables say so."""
    profile: int = 0
    """Training steps of every worker to trace with torch.profiler, from the sixth on, into the folder profile of the
    run; 0: none."""
    history: bool = False
    """Record which entries each epoch rejects; the page of raypaml audit then shows these epochs."""
    probe_images: int = 200
    """Validation images, evenly spaced, on which class activation maps are compared with those of --reference."""


ConfigGroup = DataConfig | ModelConfig | LossConfig | OptimConfig | RunConfig
"""One of the groups of `config.TrainConfig`."""
