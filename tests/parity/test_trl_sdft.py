"""sdft against TRL's experimental `SDFTTrainer(distillation_mode="full_logits")` on the same rollouts.

TRL 1.16 computes `F.kl_div(teacher_logp, student_logp, log_target=True)` for `distillation_alpha=1.0`, which is
Σ_v p_student·(log p_student − log p_teacher): KL(student ‖ teacher), our `reverse_kl`. Alpha 0.0 is `forward_kl`,
anything between is `jsd` with beta = alpha. Both sides divide the logits by a temperature: there the sampling
temperature, here `sdft_loss_temperature`.

What differs, and why the losses are compared with `sdft_normalization: sequence`: TRL takes the mean over each
response, then over the responses of a micro-batch, and divides by the number of micro-batches. Its loss therefore
depends on how a step is cut, and a response whose tokens are all skipped counts as a 0, which ours leaves out.
TRL pads prompts on the left and passes no position ids: the models are in float64, but rotary angles are computed
in float32, and with them the shift of positions costs a few parts in ten million.
"""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor

from tests.invariant.test_teacher import sdft_trainer
from tests.parity.test_trl_sft import FLOAT32, assert_same_gradients, gradients
from tests.small_runs import small_config
from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.data.rows import DistillationRow
from tutelage.losses import Divergence, divergence, linear_divergence, reverse_kl
from tutelage.models import inference_mode_of
from tutelage.training.sdft_trainer import Rollout, SdftTrainer

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")  # a notice, not a fault
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer
    from trl.experimental.sdft.loss_utils import compute_divergence, compute_full_logit_self_distillation_loss

# As in `tutelage.models.loading`: PEFT 0.21 asks models for an attribute that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

OF_ALPHA = {1.0: Divergence("reverse_kl"), 0.0: Divergence("forward_kl"), 0.3: Divergence("jsd", beta=0.3)}
EOS = tiny_tokenizer().eos_token_id


def rollouts() -> list[Rollout]:
    """Responses of 5, 2 and 9 tokens, two with an end of turn (which is also the pad token)."""
    generator = torch.Generator().manual_seed(4)

    def tokens(length: int) -> list[int]:
        return torch.randint(3, 300, (length,), generator=generator).tolist()

    lengths = [(4, 12, [*tokens(4), EOS]), (9, 30, [*tokens(1), EOS]), (6, 15, tokens(9))]
    return [
        Rollout(
            DistillationRow(tokens(prompt), tokens(teacher), "", [EOS], "", "", 1.0, row, f"r:{row}"), response, True
        )
        for row, (prompt, teacher, response) in enumerate(lengths)
    ]


def trl_batch() -> dict[str, Tensor]:
    """What `SDFTTrainer._prepare_training_batch` would make of them: prompts padded left, responses right."""
    rows = rollouts()

    def padded(sequences: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
        longest = max(map(len, sequences))
        fill = [[EOS] * (longest - len(ids)) for ids in sequences]
        none = [[0] * len(ids) for ids in fill]
        ones = [[1] * len(ids) for ids in sequences]
        pairs, masks = zip(fill, sequences, strict=True), zip(none, ones, strict=True)
        left = side == "left"
        ids = [blank + own if left else own + blank for blank, own in pairs]
        mask = [blank + own if left else own + blank for blank, own in masks]
        return torch.tensor(ids), torch.tensor(mask)

    prompt_ids, prompt_mask = padded([rollout.row.prompt_ids for rollout in rows], "left")
    teacher_ids, teacher_mask = padded([rollout.row.teacher_prompt_ids for rollout in rows], "left")
    completion_ids, completion_mask = padded([rollout.response for rollout in rows], "right")
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "teacher_input_ids": torch.cat([teacher_ids, completion_ids], dim=1),
        "teacher_attention_mask": torch.cat([teacher_mask, completion_mask], dim=1),
    }


def ours_and_trls(folder: Path, is_peft: bool, alpha: float = 1.0, **options: Any) -> tuple[SdftTrainer, Any]:
    """Both trainers in float64: the teacher is the model as loaded, the student has moved away from it."""
    spec = OF_ALPHA[alpha]
    config = small_config(
        folder,
        "run",
        loss="sdft",
        is_peft=is_peft,
        sdft_teacher="base",
        sdft_normalization="sequence",
        sdft_divergence=spec.kind,
        sdft_jsd_beta=spec.beta,
        **options,
    )
    ours = sdft_trainer(config)
    student: Any = ours.model.double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    teacher = tiny_model(tiny_tokenizer()).double()
    twin: Any = tiny_model(tiny_tokenizer()).double()
    if is_peft:
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=config.r,
            lora_alpha=config.lora_alpha,
            use_rslora=config.use_rslora,
            target_modules=list(config.target_modules),
        )
        twin = get_peft_model(twin, lora).double()
    twin.load_state_dict(student.state_dict())
    arguments = SDFTConfig(
        output_dir=str(folder / "trl"),
        distillation_mode="full_logits",
        distillation_alpha=alpha,
        temperature=options.get("sdft_loss_temperature", 1.0),
        num_loss_tokens_to_skip=options.get("sdft_skip_tokens", 0),
        # Under LoRA TRL's own base teacher, the model without its adapter. A full model's would be loaded again by
        # its name, which this one does not have: a teacher is put in its place.
        teacher_model_kind="base" if is_peft else "live",
        num_generations=1,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
    )
    data = Dataset.from_list([{"prompt": "a", "privileged_context": "b"}])
    trls = SDFTTrainer(model=twin, args=arguments, train_dataset=data, processing_class=tiny_tokenizer())
    if not is_peft:
        trls.teacher_model = teacher
    trls.model.eval()
    return ours, trls


@pytest.mark.parametrize("alpha", OF_ALPHA)
def test_per_token_loss(tmp_path: Path, alpha: float) -> None:
    """TRL's per-token losses of its own logits, against ours of hidden states, row by row and unpadded."""
    ours, trls = ours_and_trls(tmp_path, is_peft=False)
    logits = trls._compute_teacher_student_logits(trls.model, trls.teacher_model, trl_batch())
    trl_BT = compute_full_logit_self_distillation_loss(
        logits.student_logits, logits.teacher_logits, distillation_alpha=alpha
    )
    spec = OF_ALPHA[alpha]
    student: Any = ours.model
    teacher: Any = trls.teacher_model
    for row, rollout in enumerate(rollouts()):
        views = ((student, rollout.row.prompt_ids), (teacher, rollout.row.teacher_prompt_ids))
        student_TD, teacher_TD = (
            model.base_model(torch.tensor([prompt + rollout.response])).last_hidden_state[0, len(prompt) - 1 : -1]
            for model, prompt in views
        )
        weights = student.lm_head.weight, teacher.lm_head.weight
        linear_T = torch.stack(
            [
                linear_divergence(student_TD[[t]], teacher_TD[[t]], weights[0], kind=spec, teacher_weight=weights[1])
                for t in range(len(rollout.response))
            ]
        )
        dense_T = divergence(student_TD @ weights[0].mT, teacher_TD @ weights[1].mT, spec)
        expected_T = trl_BT[row, : len(rollout.response)]
        assert (expected_T > 0.01).all()
        torch.testing.assert_close(linear_T, expected_T, rtol=FLOAT32, atol=0)
        torch.testing.assert_close(dense_T, expected_T, rtol=FLOAT32, atol=0)


@pytest.mark.parametrize(
    ("is_peft", "alpha", "options"),
    [
        (False, 1.0, {}),
        (True, 1.0, {"sdft_skip_tokens": 1}),
        (False, 0.3, {"sdft_loss_temperature": 0.7}),
    ],
)
def test_loss_and_every_gradient_of_the_trainers(
    tmp_path: Path, is_peft: bool, alpha: float, options: dict[str, Any]
) -> None:
    ours, trls = ours_and_trls(tmp_path, is_peft, alpha, **options)
    with ours.teacher.applied(ours.model), inference_mode_of(ours.model):
        batch = ours._batch_for_student(rollouts())
    loss_ours = ours.loss_sum(ours.model.eval(), batch) / batch["sequences"]
    loss_trl = trls.compute_loss(trls.model, trl_batch())
    assert float(loss_ours.detach()) == pytest.approx(float(loss_trl.detach()), rel=FLOAT32)
    assert_same_gradients(gradients(ours.model, loss_ours), gradients(trls.model, loss_trl))


def test_alpha_one_is_the_reverse_kl() -> None:
    """p = (½, ½), q = (¼, ¾): KL(p ‖ q) = 0.143841; the other direction would be 0.130812."""
    student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert float(compute_divergence(student, teacher, 1.0)) == pytest.approx(0.143841, abs=1e-6)
    assert float(reverse_kl(student, teacher)) == pytest.approx(0.143841, abs=1e-6)
