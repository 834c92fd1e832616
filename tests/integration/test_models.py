"""Models as files: GGUF, folders, adapters, merged models; and from hidden states to logits per architecture."""

import logging
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    MptConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaAttention

from tests.small_runs import assert_same_bits, largest_difference, run_small, small_config, trained_weights
from tests.tiny import tiny_model, tiny_tokenizer
from tutelage import Run, train
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.collators import pad_batch
from tutelage.data.conversations import Conversation, Message, data_hash
from tutelage.errors import OutputError
from tutelage.losses import AnyHead, Head, IdentityHead
from tutelage.models import head_forward, load_model, load_tokenizer, loading, resolve_model
from tutelage.models.loading import SMOLLM2
from tutelage.training.token_loss import token_loss_sum

QUESTION = (Message("user", "What is the capital of France?"),)


def logits_of(model: Any, input_ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([input_ids], device=model.device)).logits[0].float()


# --- the demo's model, read from its GGUF file ------------------------------------------------------------------


def test_smollm2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted once into the user's own cache, which later tests, runs and the demo find again."""
    source = resolve_model(SMOLLM2)
    monkeypatch.setattr(loading, "_write_safetensors", lambda *_: pytest.fail("converted a second time"))
    assert resolve_model(SMOLLM2) == source
    gguf = loading._packaged_smollm2()
    tokenizer: Any = load_tokenizer(source)
    template = ChatTemplate(tokenizer)
    prompt_ids = template.encode_prompt(QUESTION)
    assert tokenizer.decode(prompt_ids) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    read_again: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assert ChatTemplate(read_again).encode_prompt(QUESTION) == prompt_ids

    converted: Any = AutoModelForCausalLM.from_pretrained(source)
    logits = logits_of(converted, prompt_ids)
    assert tokenizer.decode(logits[-1].argmax()) == "The"
    original: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    assert_close(logits, logits_of(original, prompt_ids), rtol=0, atol=0)
    assert converted.config.tie_word_embeddings is original.config.tie_word_embeddings


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to convert, and an empty cache. What is in the file does not matter to these tests."""
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.mark.parametrize(
    ("failure", "reported"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), OutputError)],
)
def test_an_interrupted_conversion_leaves_nothing(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, reported: type[BaseException]
) -> None:
    def fails_half_way(path: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise failure

    def succeeds(path: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(loading, "_write_safetensors", fails_half_way)
    with pytest.raises(reported):
        resolve_model(str(gguf))
    assert list((loading.cache_folder() / "models").iterdir()) == []
    monkeypatch.setattr(loading, "_write_safetensors", succeeds)
    folder = Path(resolve_model(str(gguf)))
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_changed_gguf_file_is_converted_again(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_write_safetensors", lambda path, folder: (folder / "config.json").write_text("{}"))
    first = resolve_model(str(gguf))
    gguf.write_bytes(b"GGUF, another")
    assert resolve_model(str(gguf)) != first


# --- adapters and merged models ---------------------------------------------------------------------------------


def test_a_trained_adapter_as_the_model_continues(tmp_path: Path) -> None:
    """Training starts where the adapter ended: its weights, on its base, and they alone."""
    first = run_small(tmp_path, "first")
    config = small_config(tmp_path, "second", model=str(first.model_path), max_steps=1, learning_rate=1e-12)
    loaded = load_model(config)
    assert loaded.source == str(tmp_path / "tiny")
    started = {name.replace(".default", ""): p for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert_same_bits({name: p.detach() for name, p in started.items()}, trained_weights(first))
    second = train(config, console=Console(quiet=True))
    assert largest_difference(trained_weights(second), trained_weights(first)) < 1e-9
    third = run_small(tmp_path, "third", model=str(first.model_path), max_steps=1)
    assert largest_difference(trained_weights(third), trained_weights(first)) > 1e-3


def test_an_adapter_under_full_fine_tuning_is_merged_first(tmp_path: Path) -> None:
    first = run_small(tmp_path, "first")
    merged = load_model(small_config(tmp_path, "full", model=str(first.model_path), is_peft=False)).model
    adapted = first.load().model
    prompt = tiny_tokenizer()("What is two and two?")["input_ids"]
    assert_close(logits_of(merged, prompt), logits_of(adapted, prompt), rtol=0, atol=1e-4)
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert not any("lora" in name for name, _ in merged.named_parameters())


@pytest.mark.parametrize("loss", ["sft", "sdft"])
def test_the_merged_model_is_the_adapted_one(tmp_path: Path, loss: str) -> None:
    options: dict[str, Any] = {"loss": loss, "learning_rate": 2.0, "use_rslora": True, "lora_alpha": 5.0}
    adapter = run_small(tmp_path, "adapter", **options)
    merged = run_small(tmp_path, "merged", **options, merge_before_push=True)
    assert adapter.model_path.name == "adapter"
    assert merged.model_path.name == "model"
    prompt = tiny_tokenizer()("What is the capital of France?")["input_ids"]
    alone: Any = AutoModelForCausalLM.from_pretrained(merged.model_path)
    expected = logits_of(adapter.load().model, prompt)
    assert_close(logits_of(alone, prompt), expected, rtol=0, atol=1e-4)
    base = logits_of(tiny_model(tiny_tokenizer()), prompt)
    assert float((expected - base).abs().max()) > 0.1
    tokenizer: Any = AutoTokenizer.from_pretrained(merged.model_path)
    assert ChatTemplate(tokenizer).encode_prompt(QUESTION) == ChatTemplate(tiny_tokenizer()).encode_prompt(QUESTION)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")  # PEFT, of what it does rightly
def test_an_adapter_on_the_head_is_trained(tmp_path: Path) -> None:
    """The loss goes through the head as PEFT has changed it, not through the layer below."""
    tokenizer = tiny_tokenizer()
    options = SMALL | {"vocab_size": len(tokenizer), "tie_word_embeddings": False}
    random_model(Qwen3Config(**options, head_dim=8)).save_pretrained(tmp_path / "untied")
    tokenizer.save_pretrained(tmp_path / "untied")
    run = run_small(tmp_path, "head", model=str(tmp_path / "untied"), target_modules=["q_proj", "lm_head"])
    trained = {name: tensor for name, tensor in trained_weights(run).items() if "lora_B" in name and "lm_head" in name}
    assert len(trained) == 1
    assert all(float(tensor.abs().max()) > 1e-3 for tensor in trained.values())


def test_the_chat_template_of_the_run_goes_with_the_model(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    run = run_small(tmp_path, "own", chat_template=template)
    tokenizer: Any = AutoTokenizer.from_pretrained(run.model_path)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True, tokenize=False)
    assert text == "user: a<|im_end|>assistant: "


def test_the_model_card(tmp_path: Path) -> None:
    """It describes the data as it was when the run began; the file may be gone by the time the model is written."""
    config = small_config(tmp_path, "run", save_steps=1, meta={"who": "me"})
    digest = data_hash(config.training_file)
    run = train(config, console=Console(quiet=True))
    card = (run.model_path / "README.md").read_text()
    assert f"- `rows.jsonl`: sha256 `{digest}`" in card
    assert "base_model: tiny" in card
    for name, value in config.flat().items():
        assert f"\n{name}: {value!r}\n" in card
    for name in ("loss", "nll", "grad_norm"):
        assert f"| {name} | {run.metrics[name]:.6g} |" in card


# --- loading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_peft", [True, False])
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_peft: bool) -> None:
    """Recomputed activations are the same numbers: loss and weights bit for bit, dropout included."""
    calls: list[bool] = []
    original = LlamaAttention.forward

    def forward(self: LlamaAttention, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            calls.append(True)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LlamaAttention, "forward", forward)
    # Where nothing is computed again it may leave out what nobody reads, and then sums in another order.
    monkeypatch.setattr("tutelage.models.head.last_gated_layer_only_at", lambda decoder, place_N: nullcontext())
    options: dict[str, Any] = {"is_peft": is_peft, "lora_dropout": 0.2, "max_steps": 3}
    plain = run_small(tmp_path, "plain", **options)
    calls_without = len(calls)
    recomputed = run_small(tmp_path, "recomputed", **options, gradient_checkpointing=True)
    assert calls_without == 3 * 2  # steps × layers
    assert len(calls) - calls_without == 2 * calls_without
    assert losses(recomputed) == losses(plain)
    assert_same_bits(trained_weights(recomputed), trained_weights(plain))


def losses(run: Run) -> list[float]:
    return [event.values["loss"] for event in run.events() if "loss" in event.values]


def test_a_folder_in_the_place_of_its_parent_is_not_confused(tmp_path: Path) -> None:
    """A model given by a relative path of two parts is the folder, not the Hub id it looks like."""
    config = small_config(tmp_path, "run")
    folder = Path(shutil.copytree(config.model, tmp_path / "org" / "name"))
    assert resolve_model(str(folder)) == str(folder)
    assert resolve_model("org/name") == "org/name"


# --- heads ------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}

READABLE: dict[str, tuple[PreTrainedConfig, dict[str, float | None]]] = {
    "soft-cap (Gemma 2)": (
        Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=3.0),
        {"softcap": 3.0, "scale": 1.0},
    ),
    "scale (Cohere)": (CohereConfig(**SMALL, logit_scale=0.25), {"softcap": None, "scale": 0.25}),
    "divisor (Granite)": (GraniteConfig(**SMALL, logits_scaling=4.0), {"softcap": None, "scale": 0.25}),
    "plain (Qwen3)": (Qwen3Config(**SMALL, head_dim=8), {"softcap": None, "scale": 1.0}),
    "bias (Phi)": (PhiConfig(**SMALL), {"softcap": None, "scale": 1.0}),
    "tied (GPT-2)": (
        GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None),
        {"softcap": None, "scale": 1.0},
    ),
}


def random_model(config: PreTrainedConfig) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        bias = getattr(model.get_output_embeddings(), "bias", None)
        if bias is not None:
            nn.init.normal_(bias)
    return model


def token_ids() -> Tensor:
    return torch.randint(1, 97, (2, 11), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", READABLE)
def test_hidden_states_and_head_give_the_models_own_logits(case: str, caplog: pytest.LogCaptureFixture) -> None:
    config, expected = READABLE[case]
    model = random_model(config)
    logits_BTV = model(input_ids=token_ids()).logits.detach()

    def through_head(hidden_BTD: Tensor, head: AnyHead) -> tuple[Tensor, AnyHead]:
        return head.logits(hidden_BTD.flatten(0, 1)).view_as(logits_BTV), head

    ours_BTV, head = head_forward(model, {"input_ids": token_ids()}, through_head)
    assert_close(ours_BTV, logits_BTV)
    assert float(logits_BTV.std()) > 0.1
    assert isinstance(head, Head)
    assert {"softcap": head.softcap, "scale": head.scale} == expected
    assert (head.bias is not None) is (case == "bias (Phi)")
    assert caplog.records == []
    assert_close(model(input_ids=token_ids()).logits, logits_BTV)  # the model itself is as it was


class ShiftedLogits(nn.Module):
    """A head that does something no config tells."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.weight) - hidden.mean(-1, keepdim=True)


class WeightOfAnotherKind(Tensor):
    """As quantised and sharded weights are: products with it may mean something else."""


def unreadable(case: str) -> Any:
    if case == "a weight of another kind":
        model = random_model(Qwen3Config(**SMALL, head_dim=8))
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().as_subclass(WeightOfAnotherKind))
        return model
    if case == "another module":
        model = random_model(Qwen3Config(**SMALL, head_dim=8))
        model.lm_head = ShiftedLogits(model.lm_head)
        return model
    # The config has a `logit_scale`, which this architecture does not apply.
    return random_model(MptConfig(vocab_size=97, d_model=32, n_layers=2, n_heads=4, logit_scale=0.5))


@pytest.mark.parametrize("case", ["another module", "a scale that is not applied", "a weight of another kind"])
@pytest.mark.parametrize("objective", ["nll", "dft"])
def test_an_unreadable_head_falls_back_to_dense_logits(
    case: str, objective: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The same loss and gradient as from the model's own logits, and one line that says so."""
    model = unreadable(case)
    batch = _batch()
    logits_BTV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double()
    predicted = batch["labels"][:, 1:] != -100
    targets = batch["labels"][:, 1:][predicted]
    logp = logits_BTV[:, :-1][predicted].log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    expected = (-logp if objective == "nll" else -logp.exp().detach() * logp).sum()
    expected.backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            loss_sum, _ = token_loss_sum(model, batch, objective)
    loss_sum.backward()
    assert_close(loss_sum.detach().double(), expected.detach(), rtol=1e-5, atol=0)
    for name, parameter in model.named_parameters():
        if name in gradient:
            assert_close(parameter.grad, gradient[name], rtol=1e-4, atol=1e-5)
    assert [record.getMessage() for record in caplog.records] == [
        f"{type(model).__name__}: its head is not a plain linear layer on the decoder; losses use its full logits"
    ]
    assert isinstance(head_forward(model, {"input_ids": token_ids()}, lambda hidden, head: head), IdentityHead)


def _batch() -> dict[str, Any]:
    """Two rows of the tiny tokenizer, whose ids are brought into a vocabulary of 97."""
    template = ChatTemplate(tiny_tokenizer())
    rows = [
        template.encode(Conversation((Message("user", "a"), Message("assistant", answer)), None, 1.0, "rows:1"))
        for answer in ("b", "one two three")
    ]
    batch = pad_batch(rows, 0)
    batch["input_ids"] = batch["input_ids"] % 97
    batch["labels"] = torch.where(batch["labels"] == -100, -100, batch["labels"] % 97)
    return batch


def test_a_run_on_a_model_with_an_unreadable_head(tmp_path: Path) -> None:
    """Everything but the memory it takes is as usual, for self-distillation too."""
    tokenizer = tiny_tokenizer()
    config = MptConfig(vocab_size=len(tokenizer), d_model=32, n_layers=2, n_heads=4, logit_scale=0.5)
    random_model(config).save_pretrained(tmp_path / "mpt")
    tokenizer.save_pretrained(tmp_path / "mpt")
    for loss in ("sft", "sdft"):
        run = run_small(
            tmp_path, f"mpt-{loss}", loss=loss, model=str(tmp_path / "mpt"), target_modules=["Wqkv"], max_steps=4
        )
        history = losses(run)
        assert all(value > 0 for value in history)
        if loss == "sft":
            assert history[-1] < history[0]
