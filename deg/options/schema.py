"""Every option: default, type, range, unit, and what it means for the animal in the video.

The keys and the defaults are DeepEthogram's, so that a lab's project_config.yaml keeps its meaning. A field is
written

    dropout_p: float = option(0.25, "What it does, and advice.", low=0, below=1)

and everything else follows from it: `deg.options.load` reads and checks values by the annotation and the range,
`deg.options.page` writes docs/options.md. `None` is YAML's `null`. Classes are frozen; a function takes the section
that it needs.
"""

# ruff: noqa: RUF009 - option() and section() make dataclass fields

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from deg.options.forms import sbatch_flag, time_limit_minutes

Auto = Literal["auto"]
Size = int | tuple[int, int]


@dataclass(frozen=True)
class IsPath:
    """Marks the type of an option whose text names a file or a folder."""

    unless: tuple[str, ...] = ()
    """Texts that are not paths, such as `latest`."""
    below_project: bool = False
    """Whether a relative path starts at the project folder; otherwise it starts at the current folder."""
    or_name: bool = False
    """Whether a text without a file of that name is the name of something else, such as a recording."""


PathName = Annotated[str, IsPath()]
WeightsName = Annotated[str, IsPath(unless=("pretrained", "latest", "random"))]
RecordingName = Annotated[str, IsPath(unless=("all",), or_name=True)]


def option(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    form: Callable[[str], Any] | None = None,
) -> Any:
    """Return a field with its documentation. `low` and `high` belong to the range, `above` and `below` do not.

    `form` is a function of `deg.options.forms` that raises ValueError for a text without that form. Range and form of a
    list apply to each element.
    """
    limits = {"low": low, "high": high, "above": above, "below": below}
    known = {name: limit for name, limit in limits.items() if limit is not None}
    return field(default=default, metadata={"doc": doc, "unit": unit, "limits": known, "form": form})


def section(kind: type) -> Any:
    """Return a field that holds the options of `kind`."""
    return field(default_factory=kind)


@dataclass(frozen=True)
class Normalization:
    """Colour statistics of the project's videos, on a scale from 0 to 1. `deg add` keeps them up to date."""

    N: int = option(
        0, "Number of frames that the statistics were made from. 0: no video was added yet.", unit="frames", low=0
    )
    mean: tuple[float, float, float] = option(
        (0.5, 0.5, 0.5),
        "Mean of red, green and blue. Networks were trained with it: do not change it between training and inference.",
    )
    std: tuple[float, float, float] = option(
        (0.5, 0.5, 0.5), "Standard deviation of red, green and blue, averaged over videos.", above=0
    )


@dataclass(frozen=True)
class Augs:
    """Size of the frames that the networks see, and the random changes made to them in training."""

    brightness: float = option(
        0.25, "Brightness is multiplied by a random factor within 1 ± this. 0.1 is mild, 0.9 is very high.", low=0
    )
    contrast: float = option(
        0.1, "Contrast is multiplied by a random factor within 1 ± this. 0.1 is mild, 0.9 is very high.", low=0
    )
    hue: float = option(
        0.1, "Hue is turned by up to ± this fraction of a full turn. Use small values only.", low=0, high=0.5
    )
    saturation: float = option(0.1, "Saturation is multiplied by a random factor within 1 ± this.", low=0)
    color_p: float = option(
        0.5, "Probability that brightness, contrast, saturation and hue of a clip are changed at all.", low=0, high=1
    )
    grayscale: float = option(
        0.5,
        "Probability that a clip is made grey. Lower it if colour matters, for example because animals are marked.",
        low=0,
        high=1,
    )
    resize: Size | None = option(
        None,
        "Frames are resized to [height, width]; one number is the length of the shorter side; null leaves them as "
        "they are. [224, 224] is a good start. Small movements need more; time and memory grow with the area.",
        unit="pixels",
        low=1,
    )
    crop_size: Size | None = option(
        None,
        "[height, width], or one number for a square, cut out before resizing: at a random place in training, from the "
        "centre otherwise. null: no cropping.",
        unit="pixels",
        low=1,
    )
    pad: int | tuple[int, int, int, int] | None = option(
        None,
        "Black margin added after resizing: one number, or [left, right, top, bottom]. null: none.",
        unit="pixels",
        low=0,
    )
    LR: float = option(
        0.5,
        "Probability of flipping a clip left to right. Set it to 0 if left and right are different behaviours.",
        low=0,
        high=1,
    )
    UD: float = option(
        0.0, "Probability of flipping a clip upside down. 0.5 is right for cameras above the arena.", low=0, high=1
    )
    degrees: float = option(
        10.0, "Half of the clips are rotated by a random angle within ± this.", unit="degrees", low=0, high=180
    )
    normalization: Normalization = section(Normalization)


@dataclass(frozen=True)
class Compute:
    """How a job uses the machine that it runs on."""

    fp16: bool = option(
        False, "Train with 16-bit numbers, as `train.precision=fp16` does. Inference has `inference.precision`."
    )
    num_workers: int = option(
        8, "Processes that load training data, for each device. 0: load in the training process.", low=0
    )
    batch_size: int | Auto = option(
        "auto",
        "Clips (sequence network: stretches of video) in each training step, over all devices together, so that the "
        "result does not depend on the number of devices. auto: the most that fit into memory. A new project sets 32.",
        low=1,
    )
    min_batch_size: int = option(8, "Smallest batch that auto may choose.", low=1)
    max_batch_size: int = option(512, "Largest batch that auto may choose.", low=1)
    gpu_id: int = option(0, "Index of the GPU to use if only one is used.", low=0)
    devices: int | Auto = option(
        "auto", "Processes that train one network together. auto: one for each GPU, or a single one on the CPU.", low=1
    )
    threads: int | Auto = option(
        "auto", "CPU threads for each training process. auto: an equal share of the cores.", low=1
    )
    cache: Annotated[str, IsPath(unless=("project", "scratch", "none"))] = option(
        "project",
        "Where decoded and resized frames are kept, so that a training clip is a single read. project: in the folder "
        "frame_cache of the project; scratch: on the node's own disk ($SLURM_TMPDIR or $TMPDIR); none: nowhere, each "
        "clip is decoded from its video, which is much slower; or a folder. You may delete the cache whenever no "
        "training runs.",
    )
    cache_format: Literal["raw", "jpeg"] = option(
        "raw", "raw: the exact pixels; jpeg: nearly the same, in a tenth to a fifth of the space, but slower to read."
    )
    cache_limit: float = option(
        500.0,
        "Largest size of the cache. When it is full, the videos that were not used for the longest time are removed.",
        unit="GB",
        above=0,
    )


@dataclass(frozen=True)
class Split:
    """Which recordings the networks are trained on, and which they are evaluated on."""

    reload: bool = option(
        True,
        "Keep the split in split.yaml; new recordings are assigned at random. false: draw a new split. Sequence "
        "training always keeps the split, so that it is evaluated on recordings that no network was trained on.",
    )
    file: Annotated[str, IsPath(below_project=True)] | None = option(
        None, "A split file to use and keep up to date. null: split.yaml in the data folder."
    )
    train_val_test: tuple[float, float, float] = option(
        (0.8, 0.2, 0.0),
        "Shares of the recordings for training, validation and test, which add up to 1; or numbers of recordings, "
        "where a single -1 means the rest.",
        low=-1,
    )


@dataclass(frozen=True)
class Reload:
    """Which weights to use if none are named."""

    latest: bool = option(False, "If `weights` is null, use the newest of that network in the project.")


@dataclass(frozen=True)
class StepsPerEpoch:
    """Number of batches in an epoch."""

    train: int | None = option(1000, "Training batches in an epoch. null: the whole training set.", low=1)
    val: int | None = option(
        None,
        "Validation batches in an epoch. null: the whole validation set; a number: frames evenly spaced over it, the "
        "same in every epoch.",
        low=1,
    )
    test: int | None = option(None, "Test batches, in the same way. null: the whole test set.", low=1)


@dataclass(frozen=True)
class Regularization:
    """The penalty on the weights that is added to the loss."""

    style: Literal["l2_sp", "l2"] = option(
        "l2_sp", "l2 pulls weights towards zero; l2_sp towards the pretrained ones, which suits small data sets."
    )
    alpha: float = option(
        1e-5,
        "l2: strength of the pull towards zero. l2_sp: strength of the pull towards the pretrained weights.",
        low=0,
    )
    beta: float = option(1e-3, "l2_sp: strength of the pull towards zero, for weights that were not pretrained.", low=0)


@dataclass(frozen=True)
class Train:
    """How a network learns: steps, learning rate, when to stop, what counts in the loss."""

    lr: float | Auto = option(1e-4, "Learning rate at the start. auto: found by a short trial run.", above=0)
    scheduler: Literal["plateau", "cosine", "multistep"] | None = option(
        "plateau",
        "When the learning rate falls. plateau: when validation no longer improves; multistep: at the `milestones`; "
        "cosine: in waves; null: never.",
    )
    num_epochs: int = option(100, "Largest number of epochs.", low=1)
    steps_per_epoch: StepsPerEpoch = section(StepsPerEpoch)
    min_lr: float = option(5e-7, "Lowest learning rate that plateau may set.", low=0)
    stopping_type: Literal["learning_rate", "early", "num_epochs"] = option(
        "learning_rate",
        "When training ends before `num_epochs`. learning_rate: when the learning rate has fallen to `min_lr`; early: "
        "after `patience` epochs without improvement; num_epochs: never.",
    )
    milestones: tuple[int, ...] = option(
        (50, 100, 150, 200, 250, 300), "Epochs at which multistep lowers the learning rate.", unit="epochs", low=1
    )
    patience: int = option(
        3, "Epochs without improvement before the learning rate falls or training stops early.", unit="epochs", low=0
    )
    early_stopping_begins: int = option(0, "Training does not stop early before this epoch.", unit="epochs", low=0)
    viz_metrics: bool = option(True, "Draw learning curves and confusion matrices into the run's folder.")
    viz_examples: int = option(10, "How many example clips to draw.", low=0)
    reduction_factor: float = option(
        0.1, "The learning rate is multiplied by this when plateau lowers it.", above=0, below=1
    )
    loss_weight_exp: float = option(
        0.25,
        "How much more a rare behaviour counts in the loss: (negative / positive frames) to the power of this. 0: all "
        "count the same; 1: fully balanced, which finds more of a rare behaviour, with more false alarms. A new "
        "project sets 1.",
        low=0,
    )
    loss_gamma: float = option(
        1.0, "Focal loss: a higher value makes easy frames count less. 0: plain cross-entropy; 2 is high.", low=0
    )
    softmax_weights: bool = option(
        False,
        "Softmax models: rare behaviours count more in the loss, by `loss_weight_exp`. DeepEthogram never does this.",
    )
    label_smoothing: float = option(
        0.05,
        "Labels 0 and 1 are replaced by this and 1 minus this, which tolerates imprecise onsets and offsets.",
        low=0,
        below=0.5,
    )
    oversampling_exp: float = option(
        0.0,
        "Feature extractor: frames of rare behaviours are drawn more often, by (share of the behaviour) to the power "
        "of minus this. 0: every frame once. Do not combine it with a high `loss_weight_exp`.",
        low=0,
    )
    regularization: Regularization = section(Regularization)
    seed: int = option(
        0, "Seed of everything random: the same seed, data and number of devices give the same network.", low=0
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto",
        "Number format to compute in; weights stay in fp32. auto: bf16 where it is faster, see `inference.precision`.",
    )
    gradient_clip: float | None = option(None, "Gradients longer than this are shortened to it. null: never.", above=0)
    accumulate: int = option(
        1,
        "Number of pieces in which a batch is computed, one after the other. Raise it if a batch does not fit into "
        "memory.",
        low=1,
    )
    flow_batchnorm: Literal["frozen", "original"] = option(
        "frozen",
        "Batch normalisation of the flow generator while the feature extractor is trained. frozen: as in inference; "
        "original: with the statistics of each batch, which then differ from those of inference, as in DeepEthogram.",
    )
    checkpoint_every: float = option(
        10.0, "A killed training resumes from a state that is at most this old.", unit="minutes", above=0
    )
    compile: bool | Auto = option(
        "auto",
        "Compile the networks, which costs minutes at the start and is faster afterwards. auto: on a GPU, where it "
        "pays off.",
    )


@dataclass(frozen=True)
class FlowGenerator:
    """The network that estimates motion between frames; it learns without labels."""

    arch: Literal["TinyMotionNet", "MotionNet", "TinyMotionNet3D"] = option(
        "TinyMotionNet", "TinyMotionNet is fast (deg_f), MotionNet is larger (deg_m), TinyMotionNet3D is for deg_s."
    )
    n_rgb: int = option(11, "Frames that it sees at once.", unit="frames", low=2)
    weights: WeightsName | None = option(
        "pretrained",
        "pretrained: the newest in the folder of pretrained weights; latest: the newest trained in this project; or a "
        "path. null: train from scratch; in inference, where null is the default, use those that the feature extractor "
        "was trained with.",
    )
    loss: Literal["MotionNet"] = option("MotionNet", "The loss that it learns from.")
    flow_sparsity: bool = option(
        False, "Prefer motion that is zero in most places: for small animals on a still background."
    )
    sparsity_weight: float = option(0.0, "Strength of `flow_sparsity`.", low=0)
    smooth_weight_multiplier: float = option(1.0, "How smooth the motion must be: 0.25 for fine movements.", low=0)
    max: float = option(
        5.0, "Motion that flow videos show in full colour. It does not affect results.", unit="pixels", above=0
    )


@dataclass(frozen=True)
class FeatureExtractor:
    """The two-stream network. From pictures and motion it computes 1024 features and the behaviours' probabilities."""

    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet3d_34"] = option(
        "resnet18", "resnet18 is fast (deg_f), resnet50 is better (deg_m), resnet3d_34 is best and slow (deg_s)."
    )
    n_flows: int = option(10, "Motion fields that the flow stream sees: one less than `flow_generator.n_rgb`.", low=1)
    n_rgb: int = option(1, "Pictures that the spatial stream sees: 1, or 11 for resnet3d_34.", unit="frames", low=1)
    fusion: Literal["average", "concatenate"] = option(
        "average",
        "How the two streams are combined. average: the mean of their logits; concatenate: one layer on the features "
        "of both.",
    )
    final_bn: bool = option(False, "Batch normalisation of the logits.")
    final_activation: Literal["sigmoid", "softmax"] = option(
        "sigmoid", "sigmoid: behaviours may happen together; softmax: exactly one at a time."
    )
    dropout_p: float = option(
        0.25,
        "Share of features set to zero in training. Raise it if training is much better than validation.",
        low=0,
        below=1,
    )
    curriculum: bool = option(False, "Train the streams one after the other, then together. This takes longer.")
    weights: WeightsName | None = option(
        "pretrained",
        "pretrained: the newest in the folder of pretrained weights; latest: the newest trained in this project; or a "
        "path. null: start from ImageNet weights (2D networks only); random: start from random weights.",
    )


@dataclass(frozen=True)
class Sequence:
    """The network that reads features over time and gives the final probabilities."""

    arch: Literal["tgmj", "tgm", "linear", "conv_nonlinear", "rnn", "mlp", "tcn"] = option(
        "tgmj",
        "tgmj and tgm learn filters over time; tcn looks at the longest stretch of time, and DeepEthogram does not "
        "have it; linear is the simplest, for comparison.",
    )
    latent_name: str | None = option(
        None, "Group of the outputs file that features are read from. null: the name in the feature extractor's `arch`."
    )
    output_name: str | None = option(
        None, "Group of the outputs file that results are written to. null: the name in `sequence.arch`."
    )
    sequence_length: int = option(180, "Stretch of video seen at once.", unit="frames", low=1)
    nonoverlapping: bool = option(True, "Training stretches do not overlap: an epoch sees each frame once.")
    dropout_p: float = option(
        0.5, "Share of activations set to zero in training. It has no effect on linear.", low=0, below=1
    )
    num_layers: int = option(3, "Layers of filters (tgm, tgmj) or of the rnn.", low=1)
    tcn_layers: int = option(
        7, "Layers of the tcn; each doubles the stretch of time that a frame's label depends on.", low=1, high=14
    )
    hidden_size: int = option(64, "Width of rnn, conv_nonlinear and tcn.", low=1)
    filter_length: int = option(
        15, "Length of a filter of tgm and tgmj: about as long as a short bout.", unit="frames", low=1
    )
    input_dropout: float = option(
        0.5, "Share of input features set to zero in training (tgm, tgmj, tcn).", low=0, below=1
    )
    n_filters: int = option(8, "Basic filters that each filter is mixed from (tgm, tgmj).", low=2)
    tgm_reduction: Literal["max", "mean", "conv1x1"] = option("max", "How filter channels are combined (tgm, tgmj).")
    c_in: int = option(1, "Input channels of the first layer (tgm, tgmj).", low=1)
    c_out: int = option(8, "Channels of a layer of filters (tgm, tgmj).", low=1)
    soft_attn: bool = option(True, "Channels are weighted by attention rather than by a convolution (tgm, tgmj).")
    num_features: int = option(128, "Width of the layer before the classifier (tgmj).", low=1)
    nonlinear_classification: bool = option(True, "Use the layer before the classifier (tgmj).")
    final_bn: bool = option(True, "Batch normalisation of the logits (tgmj).")
    bidirectional: bool = option(False, "The rnn also reads backwards in time.")
    rnn_style: Literal["lstm", "gru", "rnn"] = option("lstm", "Kind of rnn.")
    hidden_dropout: float = option(0.0, "Dropout between layers of the rnn.", low=0, below=1)
    weights: WeightsName | None = option(
        None,
        "latest: the newest trained in this project; or a path. null: train from scratch; in inference: as latest.",
    )
    input_type: Literal["features", "keypoints"] = option(
        "features", "Read the feature extractor's features, or DeepLabCut keypoints."
    )


@dataclass(frozen=True)
class Inference:
    """How features and probabilities of the videos are computed: of which, how fast, in how many pieces."""

    directory_list: RecordingName | tuple[RecordingName, ...] = option(
        "all", "all: every recording; or the recordings' folders, one or a list."
    )
    ignore_error: bool = option(
        True, "If a video fails, continue with the others and name it at the end. false: stop at the first failure."
    )
    overwrite: bool = option(False, "Compute results again that already exist.")
    use_loaded_model_cfg: bool = option(
        True, "Build the network as the config.yaml of its training run says, not as the project's configuration says."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "fp32",
        "Number format to compute in. fp32 gives DeepEthogram's results; bf16 rounds more coarsely and is often much "
        "faster. auto: bf16 where it is faster (on GPUs since Ampere; on a CPU, one convolution is timed in both "
        "formats), else fp32.",
    )
    batch_size: Literal["auto", 1, 2, 4, 8, 16, 32, 64, 128, 256] = option(
        "auto",
        "Frames classified at once, each with the ten around it. auto: as many as fit into memory.",
        unit="frames",
    )
    devices: int | Auto = option(
        "auto", "Worker processes on this machine. auto: one for each GPU, or a single one on the CPU.", low=1
    )
    decoders: int | Auto = option(
        "auto",
        "Processes that decode video for each worker. auto: one on the CPU; on a GPU, all of its share of the "
        "cores but one in eight, at least one, which feed the GPU.",
        low=1,
    )
    frame_count: Literal["claimed", "decoded"] = option(
        "claimed",
        "claimed: trust the number of frames in the video's header; decoded: count the frames by decoding first, which "
        "is slower, for files with a wrong header.",
    )
    damaged_frames: Literal["refuse", "keep"] = option(
        "refuse",
        "refuse: a video with damaged frames is not inferred, and the error names them. keep: damaged frames are used "
        "as the decoder shows them (black if it shows nothing), and the result lists them.",
    )
    compile: bool | Auto = option(
        "auto",
        "Compile the networks, which costs minutes at the start and is faster afterwards. auto: on a GPU, if the work "
        "is long enough.",
    )
    units_per_device: int = option(
        6,
        "The work is cut into about this many pieces for each device. With more pieces, less is lost when a job is "
        "killed, and the devices finish closer together; with fewer, less time is spent on starting up.",
        low=1,
    )
    argmax: bool = option(
        False,
        "Softmax models: predict the most probable behaviour; DeepEthogram compares each with its threshold.",
    )
    threads: int | Auto = option("auto", "CPU threads for each process. auto: an equal share of the cores.", low=1)


@dataclass(frozen=True)
class Postprocessor:
    """How probabilities become bouts."""

    type: Literal["min_bout_per_behavior", "min_bout"] | None = option(
        "min_bout_per_behavior",
        "How bouts and gaps that are too short are removed. min_bout_per_behavior: by a length for each behaviour, "
        "learned from the labels; min_bout: by one length for all; null: not at all.",
    )
    min_bout_length: float = option(
        1.0,
        "min_bout: bouts up to this many frames are removed. min_bout_per_behavior: the percentile of the labelled "
        "bouts' lengths that counts as too short.",
        unit="frames or percentile",
        low=0,
    )


@dataclass(frozen=True)
class ProjectSection:
    """What the project is, and where its files are. Relative paths start at the project folder."""

    name: str | None = option(None, "Name of the project.")
    labeler: str | None = option(None, "Who labelled it.")
    class_names: tuple[str, ...] | None = option(
        None,
        "Behaviours, in the order of the columns of all label files; the first must be background. Do not reorder or "
        "rename them by hand: labels and weights depend on the order.",
    )
    path: str | None = option(
        None, "The project folder when the file was written. It may be outdated: the folder that the file is in counts."
    )
    config_file: str | None = option(None, "Name of the project's configuration file.")
    data_path: str = option("DATA", "Folder of the recordings, one folder each.")
    image_order: Literal["natural", "deepethogram"] = option(
        "natural",
        "Frames of a recording that is a folder of images. natural: numbers in the names count as numbers (img2.png "
        "before img10.png), and endings may be in capitals; deepethogram: as DeepEthogram does it, in the order of the "
        "text (img10.png before img2.png), without images whose endings are in capitals. Choose it if labels were made "
        "with DeepEthogram and `deg check` says that the two differ.",
    )
    model_path: str = option("models", "Folder of training and inference runs.")
    pretrained_path: str = option(
        "pretrained_models",
        "Folder of the downloaded weights. It is looked for in the model path, the project folder, and its models "
        "folder.",
    )


@dataclass(frozen=True)
class Cluster:
    """The cluster that `--on slurm` submits to. A profile, which `deg cluster init` writes, holds what a site needs.

    Memory and cores are for one task: a rank of a training or a worker of an inference.
    """

    profile: Annotated[str, IsPath(or_name=True)] | None = option(
        None,
        "Name of a cluster profile, or its file; `cluster=NAME` on the command line and `cluster: NAME` in a file mean "
        "the same. Profiles are in the folders of $DEG_CLUSTERS, in ~/.config/deg/clusters and, for everybody, in "
        "/etc/xdg/deg/clusters.",
    )
    image: PathName | None = option(
        None,
        "The Apptainer image that jobs run in, on a file system that all nodes see. null: no image; jobs run the "
        "Python that submits them, which all nodes must see as well.",
    )
    apptainer: str = option("apptainer", "The program that runs the image on the nodes.")
    apptainer_options: tuple[str, ...] = option((), "Further options of `apptainer exec`, such as --sharens.")
    modules: tuple[str, ...] = option((), "Environment modules that jobs load before anything else.")
    setup: tuple[str, ...] = option(
        (), "Shell lines that jobs run on the node, after loading the modules and before starting the image."
    )
    binds: tuple[PathName, ...] = option(
        (),
        "Folders to make visible in the image, besides those of the project, the videos and the weights, which are "
        "found automatically.",
    )
    environment: tuple[str, ...] = option(
        (), "Further environment variables to pass into the image; a * at the end stands for any ending."
    )
    scratch: str | None = option(
        None,
        "Folder on the node's own disk. Variables such as $USER have their values on the node. null: the first of "
        "$SLURM_TMPDIR, $TMPDIR and /tmp that exists.",
    )
    partition: str | None = option(None, "Partition of the jobs that compute. null: the site's default.")
    merge_partition: str | None = option(
        None, "Partition of the small jobs between the stages, which need no GPU. null: the same as `partition`."
    )
    account: str | None = option(None, "Account that pays.")
    qos: str | None = option(None, "Quality of service.")
    constraint: str | None = option(None, "Features that nodes must have, such as a100|h100.")
    time: str | None = option(
        "4:00:00",
        "Time limit of a job that computes: minutes, hours:minutes:seconds or days-hours. A training may need "
        "longer: the next job resumes it. null: the partition's default.",
        form=time_limit_minutes,
    )
    merge_time: str | None = option(
        "1:00:00",
        "Time limit of the small jobs between the stages. null: the partition's default.",
        form=time_limit_minutes,
    )
    nodes: int | None = option(1, "Nodes of a training.", low=1)
    tasks_per_node: int | Auto = option(
        "auto", "Ranks of a training on each node. auto: one for each GPU, or a single one without GPUs.", low=1
    )
    gpus_per_node: int | None = option(
        1, "GPUs of a training on each node; a worker of an inference has one. null or 0: no GPUs.", low=0
    )
    gpu_flag: Literal["gpus_per_node", "gres", "gpus"] = option(
        "gpus_per_node", "How this site wants GPUs to be requested: --gpus-per-node=N, --gres=gpu:N or --gpus=N."
    )
    gpu_type: str | None = option(None, "Type of the GPUs, where it must be named: a100 as in gpu:a100:2.")
    cpus_per_task: int | None = option(8, "Cores for a task. null: not requested.", low=1)
    memory_gb: float | None = option(
        32.0, "Memory for a task. null: not requested, for sites that forbid it.", unit="GiB", above=0
    )
    memory_flag: Literal["mem", "mem_per_cpu"] = option("mem", "Request memory per node or per core.")
    jobs: int = option(16, "Workers of an inference that run at the same time.", low=1)
    max_array_size: int | None = option(
        None, "Largest number of elements in an array job. null: what `scontrol show config` says.", low=1
    )
    requeue: bool = option(
        True,
        "Jobs may be put back into the queue. false where the site forbids it: then a follow-up job is submitted.",
    )
    restarts: int = option(10, "Work that was started this often without any progress is given up.", low=1)
    stop_ahead: int | None = option(
        120, "A job is told to save and stop this long before its time limit. null: never.", unit="seconds", low=1
    )
    sbatch: tuple[str, ...] = option(
        (),
        "Further flags of sbatch as name=value, such as mail-type=END; name=null removes one that deg sets.",
        form=sbatch_flag,
    )


@dataclass(frozen=True)
class Config:
    """All sections. Made by `deg.options.load.load_config`."""

    preset: str | None = option(
        None,
        "deg_f (fast), deg_m (medium) or deg_s (slow, most accurate): sets the architectures that belong together.",
    )
    notes: str | None = option(None, "Added to the name of the run's folder.")
    project: ProjectSection = section(ProjectSection)
    augs: Augs = section(Augs)
    compute: Compute = section(Compute)
    split: Split = section(Split)
    reload: Reload = section(Reload)
    train: Train = section(Train)
    flow_generator: FlowGenerator = section(FlowGenerator)
    feature_extractor: FeatureExtractor = section(FeatureExtractor)
    sequence: Sequence = section(Sequence)
    inference: Inference = section(Inference)
    postprocessor: Postprocessor = section(Postprocessor)
    cluster: Cluster = section(Cluster)
    ignored: tuple[str, ...] = ()
    """Keys of DeepEthogram that were given and have no effect, in dotted form; not an option."""
