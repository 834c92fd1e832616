"""How much memory a GPU needs for a run, from the config and the sizes of the model alone. Torch-free.

    peak = what stays (weights, optimizer, teacher) + the largest of four phases (rollouts, loss, backward, step)

Bytes. Every sequence is taken to be as long as the config lets it be. Not counted: the CUDA context and libraries
(about 1 GB), and what an allocator cannot use between blocks. docs/scaling.md has a table of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tutelage.config.objectives import GrpoConfig, SdftConfig
from tutelage.config.training import TrainingConfig
from tutelage.errors import ConfigError

Sharding = Literal["none", "zero2", "fsdp"]

GB = 10**9
FLOAT, HALF = 4, 2
FOUR_BIT = 4.127 / 8
"""A weight of NF4 with its constants quantised too (arXiv:2305.14314, section 3)."""
MOMENT_BYTES = {"sgd": 0, "adafactor": 0, "adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2}
"""Optimizer state for each trained number; of others the two float32 moments of Adam (arXiv:1412.6980)."""
ADAM_MOMENTS = 2 * FLOAT
ROW_CHUNK_LOGITS, ROW_COPIES = 2**24, 3
BLOCK_CHUNK_LOGITS = 30_000_000
"""Logits of a chunk of the head, at most, as `losses.chunked` has them: by rows, on a GPU, with log-probabilities and
gradient beside them; by blocks of the vocabulary, on a CPU, once, and where the head is frozen not even that."""
SAMPLED_AT_ONCE = 32
KEY_VALUE_CACHE = 4 * 2**30
"""The most rows that are sampled at once, and the most bytes of their cache (`rollouts`)."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Llama-like decoder: attention with rotary positions, gated layers, two norms a layer."""

    vocabulary: int
    width: int
    layers: int
    inner: int
    heads: int
    key_heads: int
    head_width: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ModelShape":
        """From a model's `config.json`. Raises ConfigError where it does not name these sizes."""
        try:
            heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
            return cls(
                vocabulary=int(config["vocab_size"]),
                width=width,
                layers=int(config["num_hidden_layers"]),
                inner=int(config["intermediate_size"]),
                heads=heads,
                key_heads=int(config.get("num_key_value_heads") or heads),
                head_width=int(config.get("head_dim") or width // heads),
                tied=bool(config.get("tie_word_embeddings", False)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the model's config.json has no usable {error}; its memory can be estimated for Llama-like models only"
            ) from error

    def linear(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one layer: inputs and outputs of each."""
        queries, keys = self.heads * self.head_width, self.key_heads * self.head_width
        return {
            "q_proj": (self.width, queries),
            "k_proj": (self.width, keys),
            "v_proj": (self.width, keys),
            "o_proj": (queries, self.width),
            "gate_proj": (self.width, self.inner),
            "up_proj": (self.width, self.inner),
            "down_proj": (self.inner, self.width),
        }

    @property
    def in_layers(self) -> int:
        """Weights of all linear layers but the head."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear().values())

    @property
    def in_embeddings(self) -> int:
        """Weights of embeddings and head, which may be one."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All of them; biases, a ten-thousandth, are left out."""
        return self.in_layers + self.in_embeddings + (2 * self.layers + 1) * self.width

    def adapter(self, rank: int, targets: list[str]) -> int:
        """Numbers of a LoRA adapter: r · (inputs + outputs) for each layer it is on (arXiv:2106.09685)."""
        return self.layers * sum(rank * sum(sizes) for name, sizes in self.linear().items() if name in targets)


@dataclass(frozen=True)
class Placement:
    """gpus: that share the rows. sharding: what they share of the model. half: bfloat16 where the run takes it, as on a
    GPU; a CPU has float32 throughout."""

    gpus: int = 1
    sharding: Sharding = "none"
    half: bool = True


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU. The first three stay; the others come and go."""

    weights: float
    optimizer: float
    teacher: float
    gradients: float
    activations: float
    one_layer: float
    """Of the activations: all there is of them at the end of the backward pass."""
    head: float
    rollouts: float
    step: float
    accumulates: bool
    """Whether gradients of one micro-batch are there while the loss of the next is computed."""
    loading: float = 0.0
    """Of the weights as they are read, where they are shared out or made smaller after that."""

    @property
    def peak(self) -> float:
        before = self.gradients if self.accumulates else 0.0
        loss, backward, step = before + self.activations + self.head, self.gradients + self.one_layer, self.step
        phases = self.rollouts, loss, backward, self.gradients + step
        return max(self.loading, self.weights + self.optimizer + self.teacher + max(phases))


def memory_of(config: TrainingConfig, shape: ModelShape, place: Placement | None = None) -> Memory:
    """What a run needs on each GPU."""
    place = place or Placement()
    trained = shape.adapter(config.r, config.target_modules) if config.is_peft else shape.parameters
    states = 1 if place.sharding == "none" else place.gpus
    memory = Memory(
        weights=_weights(config, shape, place, trained),
        optimizer=trained * MOMENT_BYTES.get(config.optim, ADAM_MOMENTS) / states,
        teacher=_teacher(config, shape, trained),
        gradients=trained * FLOAT * _gradient_copies(place) / states,
        activations=_activations(config, shape, place),
        one_layer=_tokens(config) * _of_a_layer(config, shape, place),
        head=_head(config, shape, place),
        rollouts=_rollouts(config, shape, place),
        # Adam for many tensors at once has one more copy of what it trains; on a CPU it goes tensor by tensor.
        step=trained * FLOAT / states if place.half and MOMENT_BYTES.get(config.optim, 1) else 0.0,
        accumulates=config.gradient_accumulation_steps > 1,
        loading=shape.parameters * FLOAT if place.sharding == "zero2" and not config.is_peft else 0.0,
    )
    if place.sharding != "fsdp":
        return memory
    gathered = _gathered(config, shape)
    return replace(memory, activations=memory.activations + gathered, one_layer=memory.one_layer + gathered)


def _weights(config: TrainingConfig, shape: ModelShape, place: Placement, trained: int) -> float:
    """Frozen ones in half precision or 4 bits, trained ones in float32. Autocast keeps a half copy of the latter.
    DeepSpeed trains in half precision, beside float32 weights that it shares out."""
    if not config.is_peft:
        if place.sharding == "zero2" and place.half:
            return shape.parameters * (HALF + FLOAT / place.gpus)
        autocast = HALF if place.half and place.sharding != "fsdp" else 0
        shared = place.gpus if place.sharding == "fsdp" else 1
        return shape.parameters * (FLOAT / shared + autocast)
    frozen_bytes = HALF if place.half else FLOAT
    in_layers = FOUR_BIT if config.load_in_4bit else frozen_bytes
    frozen = shape.in_layers * in_layers + (shape.parameters - shape.in_layers) * frozen_bytes
    return (frozen + trained * FLOAT) / (place.gpus if place.sharding == "fsdp" else 1)


def _gradient_copies(place: Placement) -> int:
    """Data parallelism adds gradients up in buckets of its own."""
    return 2 if place.sharding == "none" and place.gpus > 1 else 1


def _gathered(config: TrainingConfig, shape: ModelShape) -> float:
    """What FSDP has whole during a pass: two layers (one at work, the next on its way), the embeddings and the head, in
    half precision; and, where all is trained, their gradients, which are added in float32."""
    numbers = 2 * shape.in_layers / shape.layers + shape.in_embeddings
    return numbers * (HALF if config.is_peft else HALF + FLOAT)


def _sequences(config: TrainingConfig) -> int:
    """Of a micro-batch."""
    objective = config.objective
    answers = objective.num_generations if isinstance(objective, SdftConfig) else 1
    pair = 2 if config.loss in ("dpo", "orpo") else 1
    return config.per_device_train_batch_size * answers * pair


def _tokens(config: TrainingConfig) -> int:
    """Of a micro-batch."""
    return _sequences(config) * config.max_seq_length


def _activations(config: TrainingConfig, shape: ModelShape, place: Placement) -> float:
    """What the layers hold for the backward pass; checkpointed, the input of each and one layer whole."""
    layer = _of_a_layer(config, shape, place)
    residual = shape.width * (HALF if place.half and config.is_peft else FLOAT)
    layers = layer + shape.layers * residual if config.gradient_checkpointing else shape.layers * layer
    return _tokens(config) * (layers + 4 * residual)  # the last hidden states, their norm, and the gradients of both


def _of_a_layer(config: TrainingConfig, shape: ModelShape, place: Placement) -> float:
    """Bytes for each token that autograd holds of one layer.

    Each of two norms: its input in float32, its output in the type of products, and, if its own weight is trained, the
    normalised input. Attention: q, k, v and the output (FlashAttention-2, arXiv:2307.08691, holds no scores). The gated
    layer: gate and up (`models.gated_mlp`). For an adapter: r numbers for each layer it is on.
    """
    size = HALF if place.half else FLOAT
    norm = shape.width * (FLOAT + size + (0 if config.is_peft else FLOAT))
    attention = (2 * shape.heads + 2 * shape.key_heads) * shape.head_width * size
    gated = 2 * shape.inner * size
    adapters = config.r * len(config.target_modules) * size if config.is_peft else 0
    return 2 * norm + attention + gated + adapters


def _head(config: TrainingConfig, shape: ModelShape, place: Placement) -> float:
    """A chunk of logits and, where the head is trained, the gradient of its weight until it is added.

    TRL's orpo forms all logits, in float32, and their log-probabilities and gradient.
    """
    logits = _tokens(config) * shape.vocabulary
    if config.loss == "orpo":
        return ROW_COPIES * FLOAT * logits
    of_weight = 0 if config.is_peft else shape.vocabulary * shape.width * FLOAT
    if place.half:
        return min(logits, ROW_CHUNK_LOGITS) * ROW_COPIES * FLOAT + of_weight
    return of_weight if config.is_peft else min(logits, BLOCK_CHUNK_LOGITS) * FLOAT + of_weight


def _teacher(config: TrainingConfig, shape: ModelShape, trained: int) -> float:
    """sdft: a float32 copy of what is trained, on the GPU or off it, and what it says of a step: hidden states, and,
    where the head is trained, the head of each micro-batch. dpo, and grpo with a `beta`: a frozen model, which for an
    adapter is the base with the adapter off."""
    objective = config.objective
    if isinstance(objective, SdftConfig):
        copy = 0 if objective.teacher == "live" or objective.teacher_device == "cpu" else trained * FLOAT
        hidden = _sequences(config) * objective.max_new_tokens * shape.width * FLOAT
        heads = 0 if config.is_peft else shape.vocabulary * shape.width * FLOAT
        return copy + config.gradient_accumulation_steps * (hidden + heads)
    has_reference = config.loss == "dpo" or (config.loss == "grpo" and config.beta > 0)
    return 0 if config.is_peft or not has_reference else shape.parameters * FLOAT


def _rollouts(config: TrainingConfig, shape: ModelShape, place: Placement) -> float:
    """Keys and values of the rows sampled at once, each of the longest sequence."""
    objective = config.objective
    if not isinstance(objective, SdftConfig | GrpoConfig):
        return 0.0
    rows = min(SAMPLED_AT_ONCE, _sequences(config) * config.gradient_accumulation_steps)
    size = HALF if place.half and config.is_peft else FLOAT
    token = 2 * shape.layers * shape.key_heads * shape.head_width * size
    return min(rows * config.max_seq_length * token, KEY_VALUE_CACHE)
