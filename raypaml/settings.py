"""The settings of a training run, in groups of frozen dataclasses: one flag a field, its docstring the flag's help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from raypaml.augmentation.augmentations import augmentation_names
from raypaml.extensions import ImportModule
from raypaml.losses.schemes import scheme_names


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data."""

    data: str = "digits"
    """Folder of shards, index and vocabulary (path, s3:// or gs://), or digits[:single_positive|verified[:SEED]]."""
    global_batch_size: int = 32
    """Images per step over all workers; rejection looks at this batch."""
    lanes: int = 0
    """Pieces of a global batch, at most one worker each; 0: the largest divisor of the batch size up to 64."""
    shuffle_window: int = 0
    """Shards that each lane mixes at once; 0: a permutation of all samples, for data on a local disk."""
    cache: str = ""
    """Folder of each node for shards that come from s3:// or gs://; default in XDG_CACHE_HOME or ~/.cache."""
    cache_gb: float = 50.0
    """Shards kept in it, in 10^9 bytes."""
    skip_budget: float = 0.0
    """Share of a split's samples that may be broken: these are skipped, counted and named; 0: the first is an error."""
    loader_workers: int = 0
    """Threads per worker that read and decode ahead; 0 decodes between steps."""
    flip: bool = False
    """Mirror half of the training images."""
    augment: str = field(default="none", metadata={"choices": augmentation_names})
    """How training images are changed at random, besides --flip, in a new way in every epoch; published: as the code of
    the scheme's paper does. The end of this help says what each does."""
    augment_settings: str = ""
    """NAME=VALUE,... for numbers of the augmentation instead of those that the end of this help lists."""

    @property
    def opening(self) -> dict[str, Any]:
        """How `data.data_folder.open_folder` opens the data."""
        return {"cache": self.cache, "cache_gb": self.cache_gb, "lenient": self.skip_budget > 0}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Model."""

    backbone: str = "small"
    """small (for digits), any classification model of torchvision with a feature map, or timm:NAME, also a vision
    transformer; timm:NAME@PIXELS makes one of a fixed size for images of another. Published: resnet50; OpenImages:
    resnet101."""
    weights: str = ""
    """Backbone weights: a safetensors or state-dict file, names with any prefix; or to download, imagenet for what
    torchvision or timm choose, imagenet-v1 or imagenet-v2 for torchvision's first or later ones. Published: V1."""
    from_run: str = field(default="", metadata={"flag": "--from", "metavar": "RUN"})
    """Start from the weights, backbone and head, of a run (its best checkpoint) or of one of its checkpoints: a folder,
    or a run's address, s3:// or gs://. Backbone and classes must be the same; the optimizer and all else begin anew."""
    from_sha256: str = ""
    """SHA-256 that these weights must have; default: those of the best checkpoint at the start, which the run keeps
    to."""
    alpha: float = 5.0
    """BoostLU's factor on positive attributions, >= 1; 1 switches it off. Published: 5."""
    head_weights: bool = False
    """The head too starts from the weights file, from the linear classifier that reads its pooled map, such as
    fc.weight [K, D] and fc.bias [K] of a ResNet. Published: off."""
    head_init: Literal["normal", "torch"] = "normal"
    """How a new head begins: normal weights of deviation 0.01 and biases 0, or torch, as its layers do, both uniform
    within 1 / sqrt(channels); with head_weights neither. Published: torch; 0.3 mAP worse where it was compared
    (losses/README.md)."""
    head_prior: float = 0.0
    """Probability that a new head begins with for every class, by its bias, < 1; about the share of positives among all
    entries of images x classes. 0: biases as head_init says, and so about one half (published)."""
    sync_batchnorm: bool = False
    """BatchNorm statistics of the global batch, not of each GPU's part. GPUs only. Published: off (one GPU)."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Loss and rejection."""

    scheme: str = field(default="ll_r", metadata={"choices": scheme_names})
    """The loss, which decides what unobserved entries cost; the end of this help says what each scheme does."""
    scheme_settings: str = ""
    """NAME=VALUE,... for settings of the scheme; the others keep what the recipe has for the scheme, or the defaults,
    which the end of this help lists."""
    scheme_defaults: Literal["published", "earlier"] = "published"
    """Settings of the scheme that are not given: published, or earlier, as they were before some of them could be set
    (detach_focal and epsilon were 0, last_epoch 1); runs begun then go on so by themselves."""
    priors: str = ""
    """Run trained with scheme ignore, whose mean scores are the class priors of scheme csl."""
    pseudo_labels: str = ""
    """Parquet or CSV (path, s3:// or gs://) with the columns key, class and score, 0 to 1: what another model says of
    training images, for schemes that take it. An entry without a row has no score."""
    pseudo_labels_sha256: str = ""
    """SHA-256 that this file must have; default: the one it has at the start, which the run keeps to."""
    delta_rel: float = 0.5
    """Percent of all entries of a batch added to the rejected an epoch. Published with BoostLU: LL-R 0.5, LL-Ct 0.2,
    LL-Cp 0.1; OpenImages: 0.005 or 0.01."""
    rejection_alpha: float = 0.0
    """alpha of the logits by which delta_rel's rejection ranks the entries, >= 1, while loss and gradient keep --alpha;
    0: the same (published)."""
    warmup_epochs: int = 1
    """Plain assume-negative epochs before the first rejection, >= 1. Published: 1; EM+APL: 3 to 5."""
    schedule: Literal["epoch", "samples"] = "epoch"
    """Raise the rejection rate after each epoch (published) or with every sample seen."""
    rejection_scope: Literal["global", "rank"] = "global"
    """Compare losses over the global batch, or within each worker's part of it (as published code would)."""
    rejection_rounding: Literal["up", "half_up"] = "up"
    """How the number of entries to reject becomes whole: up (published), or half up, as earlier versions rounded."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimisation."""

    epochs: int = 10
    """Passes over the training split; a run that has begun or finished may go on with more. Published: 10; OpenImages:
    20."""
    patience: int = 0
    """End training after so many epochs in a row without a better validation mAP; 0: never. Published: never; EM: 1."""
    stop_below: float = 0.0
    """End training when validation mAP is more than so many points, of 100, below its best so far; 0: never. Published:
    LL 3; GR 2; BoostLU never."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """adam (published), adamw, or sgd (VOC's rows of the LL paper)."""
    momentum: float = 0.9
    """Momentum of sgd. Published: 0.9."""
    weight_decay: float = 0.0
    """Pull of every weight towards 0: adam and sgd add so much of the weight to its gradient, as torch does; adamw
    takes lr times so much off the weight. Published: 0; LL's sgd: 0.001; ASL: 0.0001."""
    decay_biases: bool = True
    """Weight decay acts on biases and the scales of norms too. Published: on; ASL: off."""
    lr: float = 1e-5
    """Learning rate of the backbone, where its schedule is at its highest. Published: 1e-5; OpenImages: 2e-5."""
    head_lr_mult: float = 10.0
    """The head learns this many times faster than the backbone. Published: 10; EM, EM+APL: 1."""
    lr_schedule: Literal["constant", "trapezoid", "cosine", "one-cycle"] = "constant"
    """After the warm-up: level (published); level, and linearly to 0 over the last third; half a cosine to 0; or up and
    down along cosines, the momentum (Adam's first beta) down to 0.85 and up again (ASL), as torch's OneCycleLR does."""
    lr_warmup: str = ""
    """While the learning rate rises to its highest, linearly but in one-cycle: '100 steps', '1 epoch' or '20%' of the
    run. Default: none; trapezoid: 100 steps; one-cycle: 20% (ASL). Published: none."""
    freeze_backbone: int = 0
    """First epochs in which only the head learns, as in the papers' LinearInit; 0: none (published: end to end)."""
    feature_cache: str = "run"
    """Where frozen epochs keep the backbone's features, in float16: run (its folder, removed after them), a folder
    (kept, and shared by runs with the same backbone and data), or off: computed again in every epoch, as always where
    images are mirrored or augmented."""
    test_features: bool = True
    """Keep the features of the test split too where feature_cache is a folder, and predict it from them; the scores of
    a float32 run then differ from those of images by float16's rounding."""
    reproducible: bool = False
    """Add gradients exactly, lane by lane: the same weights, to the bit, on any number of workers. No BatchNorm, unless
    the backbone stays frozen."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast type; auto: bfloat16 where the GPU has it. Published: float32."""
    evaluation_precision: Literal["run", "float32"] = "run"
    """Autocast type of validation, prediction and serving: run for that of training, or float32 always."""
    matmul_precision: Literal["high", "highest", "torch"] = "high"
    """float32 products and convolutions on a GPU: high in TF32, highest exact, torch as torch comes (exact products,
    TF32 convolutions)."""
    cudnn_benchmark: bool = True
    """Let cuDNN time its algorithms for every new size on a GPU and take the fastest; never under reproducible."""
    threads: int = 1
    """Threads of a worker's arithmetic on the CPU, on which last bits depend; 0: as OMP_NUM_THREADS says."""
    micro_batch_size: int = 0
    """Images a worker takes through the network at once (reproducible: whole lanes); its part is accumulated in two
    passes, rejection still sees the global batch. 0: all at once (published)."""
    clip_gradient: float = 0.0
    """Largest Euclidean norm of the whole gradient; 0: no limit (published)."""
    ema: float = 0.0
    """Decay per step, < 1, of an average of the weights that is evaluated and kept instead; 0: none (published)."""
    compile: bool = False
    """Compile the network with torch.compile for whole batches; the first step takes minutes, a short last batch runs
    uncompiled. Published: off."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Run."""

    name: str = ""
    """Name of the run; the same name continues it. Default: recipe, scheme, date and time."""
    storage: str = "runs"
    """Folder that holds the runs, with several machines one that all of them see; or an address, s3:// or gs://."""
    workers: int = 1
    """Training processes, one GPU each where there are GPUs; 2:8 is --min-workers 2 --workers 8. One without an address
    is the process of the command itself, without Ray."""
    min_workers: int = 0
    """Start, and go on after a loss, with this many or more, and grow again up to workers; 0: always all workers."""
    max_failures: int = 8
    """Times that workers may be lost and started again from the last checkpoint, preempted nodes not counted. One
    worker without an address goes on after errors only: what ends its process ends the command."""
    hang_seconds: float = 300.0
    """Workers of whom none gets any further for so long (six times as long while one compiles) are ended and started
    again, and the one to blame is named. One worker without an address is ended with the command; --address local
    gives it a process of its own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: one GPU per worker where the cluster has that many, else the CPU."""
    address: str = ""
    """Ray cluster to join (also RAY_ADDRESS), or local: a private one on this machine; default: local, and for one
    worker none."""
    imports: str = field(default="", metadata={"flag": "--import", "action": ImportModule, "metavar": "MODULE"})
    """Module of yours that registers schemes, backbones, augmentations or metrics; may be repeated, and is given again
    wherever the run is used."""
    seed: int = 0
    """It decides initial weights, the order of samples, and how images are mirrored and augmented."""
    checkpoint_steps: int = 0
    """Save also every so many steps; 0: after each epoch only, when stopped, and before a preemption."""
    nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """Logits or gradients that are not finite: stop; leave that step's samples out, of skip_budget; or go back to the
    last checkpoint, once (a second time at the same step stops). A GPU leaves out the update by itself."""
    reference: str = ""
    """Run or checkpoint, best one of full labels, to compare the maps with after each epoch; "" for none."""
    tracker: Literal["none", "tensorboard", "mlflow", "wandb"] = "none"
    """Curves for one of these too, in the run's folder, without network unless its environment variables name one."""
    profile: int = 0
    """Trace so many training steps of every worker with torch.profiler, from its sixth on, into the run's folder
    profile; 0: none."""
    history: bool = False
    """Write which entries each epoch rejected, for raypaml.audit."""
    probe_images: int = 200
    """Validation images, evenly spaced, whose maps are compared with those of --reference."""
