"""The clock of the parts of a step, peaks of memory, and the rows that cases make of samples. Nothing here trains."""

import re
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import figures, jobs, products, steps
from benchmarks.cases import data, divergence, rollouts, sdft, sdft_vocabulary, sft, startup, token_losses
from benchmarks.cases.grpo import upper_case_share
from benchmarks.limits import Decoder, Rates
from benchmarks.measure import AnonymousPeak, PeakMemory

RATES = Rates(1e9, 1e9)

# --- parts of a step --------------------------------------------------------------------------------------------------


class Layers:
    """A decoder whose `forward` can be put onto the object and taken off again, as a module's."""

    def __init__(self, trainer: "FakeTrainer") -> None:
        self._trainer = trainer

    def forward(self) -> None:
        self._trainer.layers()


class FakeTrainer:
    """Whatever `StepClock` wraps; each piece of work moves the clock by so many seconds."""

    def __init__(self, clock: SimpleNamespace) -> None:
        self.clock = clock
        self.decoder = Layers(self)
        self.model = SimpleNamespace(base_model=self.decoder, parameters=lambda: [torch.zeros(1)])
        self.accelerator = SimpleNamespace(backward=lambda loss: self.take(11))
        self.callbacks: list[Any] = []

    def take(self, seconds: float) -> None:
        self.clock.now += seconds

    def layers(self) -> None:
        self.take(5 if torch.is_grad_enabled() else 3)

    def add_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def sample(self) -> None:
        with torch.no_grad():
            self.decoder.forward()
        self.take(2)

    def compute_loss(self, *, fails: bool = False) -> None:
        with torch.no_grad():
            self.model.base_model.forward()
        self.model.base_model.forward()
        self.take(7)
        if fails:
            raise ValueError("no loss")


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> FakeTrainer:
    clock = SimpleNamespace(now=100.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(steps, "time", clock)
    monkeypatch.setattr(steps, "PeakMemory", lambda: SimpleNamespace(mib=lambda: clock.now - 100))
    return FakeTrainer(clock)


def test_a_step_is_cut_into_its_parts(trainer: FakeTrainer) -> None:
    """A rollout is 3 of layers and 2 of its own, all of it rollout. The loss takes 3 without gradient (teacher), 5 with
    it (student forward) and 7 beside them (head and loss). Then 11 backward, 13 optimizer, 17 of nothing: 61 in all."""
    clock = steps.StepClock(trainer, "sample")
    control = SimpleNamespace(should_save=True)
    clock.on_train_begin(model=trainer.model)
    for _ in range(2):
        trainer.sample()
        trainer.compute_loss()
        trainer.accelerator.backward(None)
        clock.on_pre_optimizer_step()
        trainer.take(13)
        clock.on_optimizer_step()
        trainer.take(17)
        clock.on_step_end(None, None, control)
    parts = {"rollout": 5, "teacher": 3, "student forward": 5, "head and loss": 7, "backward": 11, "optimizer": 13}
    assert clock.steps == [{"step": 61, **parts, "other": 17}] * 2
    assert clock.samples(1) == {"step": [61], **{name: [took] for name, took in parts.items()}} | {
        "other": [17],
        "peak_mib": [122],
    }
    assert clock.samples(2) == {"peak_mib": [122]}
    assert trainer.callbacks == [clock]
    assert control.should_save is False


def test_the_layers_of_a_rollout_are_the_models_own(trainer: FakeTrainer) -> None:
    """While it samples, nothing is put onto the decoder; afterwards it is timed again, also after an error."""
    seen: list[bool] = []

    def sample() -> None:
        seen.append("forward" in vars(trainer.decoder))
        raise KeyError

    trainer.sample = sample  # type: ignore[method-assign] - stands for the trainer's own
    steps.StepClock(trainer, "sample")
    assert "forward" in vars(trainer.decoder)
    with suppress(KeyError):
        trainer.sample()
    assert seen == [False]
    assert "forward" in vars(trainer.decoder)


def test_layers_outside_a_loss_are_not_taken_off_it(trainer: FakeTrainer) -> None:
    """TRL's teacher may run before the loss: 3 for it, and the loss keeps its 7 and 5 and 3. A loss that fails is over:
    what follows is outside it."""
    clock = steps.StepClock(trainer)
    clock.on_train_begin(model=trainer.model)
    with suppress(ValueError):
        trainer.compute_loss(fails=True)
    with torch.no_grad():
        trainer.decoder.forward()
    clock.on_step_end(None, None, SimpleNamespace())
    assert clock.steps == [{"step": 18, "teacher": 6, "student forward": 5, "head and loss": 7, "other": 0}]


# --- memory -----------------------------------------------------------------------------------------------------------


def test_peak_memory_is_that_of_memory_which_was_given_back() -> None:
    """64 MiB that are filled and freed; the little that Python takes beside them is below 4 MiB."""
    memory = PeakMemory()
    block = bytearray(b"x") * (64 * 2**20)
    del block
    assert memory.mib() == pytest.approx(64, abs=4)


def test_peak_of_anonymous_memory_counts_children() -> None:
    """A child fills 48 MiB, says so and waits: beside them it is a Python of 4 to 12 MiB."""
    code = "x = bytearray(b'x') * (48 * 2**20); print(flush=True); input()"
    memory = AnonymousPeak()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        memory.look()
        child.communicate(b"\n")
    assert 50 < memory.mib() < 64
    assert memory.processes == 2


# --- rollouts ---------------------------------------------------------------------------------------------------------


def test_lengths_of_rollouts() -> None:
    found = rollouts.lengths()
    assert len(found) == 32
    assert (min(found) >= 8, max(found) <= 128) == (True, True)
    assert found == rollouts.lengths()


def test_a_row_is_known_by_how_it_begins() -> None:
    """Rows that begin 1 2 3 and 1 5 6 have 3 and 5 tokens. 1 5 9 agrees with the second for two tokens, with the first
    for one. Before three tokens are there no row is done."""
    ended = rollouts.Lengths([[1, 2, 3], [1, 5, 6]], [3, 5])
    assert [ended([1, 2, 3][:size]) for size in (1, 2, 3)] == [False, False, True]
    assert [ended([1, 5, 6, 0, 0][:size]) for size in (3, 4, 5)] == [False, False, True]
    assert [ended([1, 5, 9, 0, 0][:size]) for size in (3, 4, 5)] == [False, False, True]


def test_rows_that_begin_alike_are_refused() -> None:
    with pytest.raises(ValueError, match="two rows begin with the same 2 tokens; take other seeds"):
        rollouts.Lengths([[1, 2], [3, 4], [1, 2]], [2, 3, 4])


def test_rows_of_rollouts_are_rates() -> None:
    """All tokens in 2 s against 5 s: 2.5 times as many, which is the target. The limit is 1 s of prompts and 1 s of
    reading."""
    work = {"flops prompts": [1e9], "flops decoding": [0.0], "bytes decoding": [1e9]}
    found = rollouts.rows({"ours": {"s": [2.0]} | work, "generate": {"s": [5.0]}}, RATES)
    tokens = sum(rollouts.lengths())
    assert (found[0].ours, found[0].limit, found[0].met) == ([tokens / 2], tokens / 2, True)
    assert found[0].ratio == pytest.approx(2.5)
    assert [one.met for one in found] == [True, None, False, None]


# --- rows of other cases ----------------------------------------------------------------------------------------------


def test_memory_of_a_large_vocabulary_has_its_target_against_every_default() -> None:
    """150 MiB against 1000, 1500 and 900: 0.15, 0.1 and 0.167."""
    peaks = {"ours": 150.0, "trl": 1000.0, "trl_topk": 1500.0, "trl_default": 900.0}
    found = sdft_vocabulary.rows({side: {"peak_mib": [peak]} for side, peak in peaks.items()}, RATES)
    assert [(one.ratio, one.met) for one in found[:3]] == [
        (pytest.approx(0.15), True),
        (pytest.approx(0.1), True),
        (pytest.approx(1 / 6), False),
    ]
    assert [one.name for one in found[3:]] == ["step"]


def test_rows_of_token_losses_are_against_products_and_trl() -> None:
    """1.3 s against products of 1 s (at most 1.35) and TRL's 1.2 s (never slower). A trained head has three products of
    2·1024·896·151,936 FLOPs, at 1e9 a second."""
    name = "NLL, trained head"
    samples = {"ours": {name: [1.3], f"products {name}": [1.0]}, "trl": {name: [1.2]}}
    found = [one for one in token_losses.rows(samples, RATES) if one.name == name]
    assert [(one.peer_name, one.ratio, one.met) for one in found] == [
        ("its three products", pytest.approx(1.3), True),
        ("TRL, chunked_logprob", pytest.approx(1.3 / 1.2), False),
    ]
    assert found[0].limit == pytest.approx(836.41, abs=0.01)
    assert set(token_losses.WORKS.values()) == {(loss, head) for loss in ("dft", "nll") for head in (False, True)}


def test_rows_of_the_divergence() -> None:
    """135 MiB of 2700 is 0.05; 1.4 s is more than 1.35 times the products."""
    samples = {
        "ours": {"s": [1.4], "products": [1.0], "peak_mib": [135.0]},
        "dense": {"s": [2.0], "peak_mib": [2700.0]},
    }
    found = divergence.rows(samples, RATES)
    assert [(one.ratio and round(one.ratio, 4), one.met) for one in found] == [
        (1.4, False),
        (0.7, None),
        (None, None),
        (0.05, True),
        (None, None),
    ]


def test_memory_of_a_further_row_is_that_of_twice_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 MiB more for 2^20 / 64 rows more is 64 bytes each."""
    monkeypatch.setattr(data, "NUMBER", 2**14)
    found = data.rows({"ours": {"peak_mib": [100.0]}, "ours_twice": {"peak_mib": [101.0]}}, RATES)
    assert [(one.ours, one.met) for one in found if one.unit == "bytes"] == [([64.0], True)]


def test_rows_of_data_have_a_long_tail_of_words() -> None:
    """The second thousand rows have 1,226 words that the first, with 3,843, had not. Without made-up words there were
    none: the tool calls begin anew after 320 rows. The first rows are the same, however many there are."""
    chats = list(data.conversations(2000))
    assert chats[:1000] == list(data.conversations(1000))
    words = [
        {word for chat in part for turn in chat for word in re.findall(r"\w+", turn["content"].partition("\nN")[0])}
        for part in (chats[:1000], chats[1000:])
    ]
    assert [len(words[0]), len(words[1] - words[0])] == [3843, 1226]


def test_rows_of_sft_are_for_each_trained_token() -> None:
    """2 s for 800 tokens are 2.5 ms each; 0.5 of TRL's. The limit is 1 s of products: 1.25 ms."""
    ours = {"step": [2.0], "trained": [800.0], "flops backward": [1e9]}
    found = sft.rows({"ours": ours, "trl": {"step": [4.0]}}, RATES)
    assert (found[0].ours, found[0].peer, found[0].limit, found[0].met) == ([2.5], [5.0], 1.25, True)


def test_heavy_packages_are_those_that_are_loaded_whatever_is_printed() -> None:
    """A warning on stderr and lines on stdout are no packages; a module with the name of one is."""
    said = "print('torch', file=sys.stderr); print('numpy'); print('no end', end='')"
    assert startup.heavy_packages(said) == []
    assert startup.heavy_packages(said + "; sys.modules['numpy'] = sys") == ["numpy"]


def test_share_of_upper_case() -> None:
    """Of `AbC!` two in four; of nothing none."""
    completions = [[{"content": "AbC!"}], [{"content": ""}]]
    assert upper_case_share(completions=completions) == [0.5, 0.0]


def test_rows_of_jobs_are_there_for_every_side_that_failed() -> None:
    """Only claims were measured: 2 and 4 a second. All that other sides would have measured has failed."""
    name = "claim and end, 10,000 pending, PostgreSQL|1/s"
    found = jobs.rows({"ours": {name: [2.0]}, "procrastinate": {name: [4.0]}}, RATES)
    assert [(one.name, one.ratio) for one in found if one.ours] == [(name.partition("|")[0], 0.5)]
    assert len(found) == 2 + 2 + 4 + 5


# --- servers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('a\\nb\\nc'); raise SystemExit('no port')", "ended with exit code 1: b | c | no port"),
        ("import os; os._exit(2)", "ended with exit code 2: it said nothing"),
    ],
)
def test_a_server_that_ends_is_reported_by_its_last_words(tmp_path: Path, code: str, message: str) -> None:
    said = tmp_path / "said"
    with said.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=output, stderr=subprocess.STDOUT)
    with pytest.raises(jobs.ServerFailedError) as raised:
        jobs.answering(process, said)
    assert str(raised.value) == f"tutelage serve {message}"


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    said = tmp_path / "said"
    said.write_text("starting\n")
    process: Any = SimpleNamespace(poll=lambda: None)
    with pytest.raises(jobs.ServerFailedError, match=r"^tutelage serve does not answer after 0\.1 s: starting$"):
        jobs.answering(process, said, 0.1)


# --- plots ------------------------------------------------------------------------------------------------------------


def test_plots_have_both_sides_with_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures; the first has two panels with the points of both sides, in seconds and MiB."""
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "IMAGES", tmp_path)
    monkeypatch.setattr("tutelage.experiments.figure_style.png", lambda figure: drawn.append(figure) or b"")
    points = [
        {"axis": "new_tokens", "size": size, "side": side, "seconds": [size / 8], "peak_mib": [10.0 * size]}
        for size in (64, 16)
        for side in ("ours", "trl")
    ]
    figures.draw_sizes(points)
    names = ["performance-batch.png", "performance-response-length.png", "performance-vocabulary.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    panels = drawn[0].axes
    assert [panel.get_ylabel() for panel in panels] == ["seconds", "MiB"]
    for panel, values in zip(panels, ([2.0, 8.0], [160.0, 640.0]), strict=True):
        assert [list(line.get_xdata()) for line in panel.lines] == [[16, 64]] * 2
        assert [list(line.get_ydata()) for line in panel.lines] == [values] * 2
        assert panel.get_xlabel() == "tokens of each response"
        shown = [text.get_text() for text in panel.get_legend().get_texts()]
        assert shown == ["this project", f"TRL {version('trl')}, full logits"]


# --- the products of a step alone -------------------------------------------------------------------------------------


def test_the_products_of_a_step_are_timed_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts that share a token, three tokens each; every product counts 1 second for a multiplication."""
    decoder = Decoder(hidden=32, layers=2, heads=2, kv_heads=1, head_size=16, intermediate=64, vocabulary=1024)
    done: list[int] = []

    def counted(name: str) -> Any:
        original = getattr(torch, name)

        def product(left: Any, right: Any, out: Any) -> Any:
            done.append(left.numel() * right.shape[-1])
            return original(left, right, out=out)

        return product

    for name in ("mm", "bmm"):
        monkeypatch.setattr(torch, name, counted(name))

    def clock(work: Any) -> float:
        done.clear()
        work()
        return float(sum(done))

    monkeypatch.setattr(products, "seconds", clock)
    found = products.products_alone(decoder, [[1, 2], [1, 3]], [[4, 5, 6], [4, 7]], 3)
    layer = (64 * 32 + 32 * 32 + 128 * 32 + 32 * 64) * 2
    # Of prompt and answer all but the last token is read: 1 + 2 · (1 + 2) tokens, of the teacher 1 + (2 + 2) + (1 + 2).
    assert found["student forward"] == found["backward"] == [7 * layer]
    assert found["teacher"] == [8 * layer]
    assert found["rollout"] == [3 * layer + 2 * 2 * (layer + 1024 * 32)]
    assert found["head and loss"] == [(6 + 6 + 6) * 1024 * 32]
    assert found["step"] == [sum(value for part, (value,) in found.items() if part != "step")]


def test_a_step_stands_beside_its_products() -> None:
    samples = {
        "ours": {"step": [6.0], "rollout": [2.0], "optimizer": [0.1], "peak_mib": [1.0]},
        "products": {"step": [3.0], "rollout": [1.0]},
    }
    shown = [row for row in sdft.rows(samples, RATES) if row.peer_name == "its large products alone"]
    assert [(row.name, row.ratio) for row in shown] == [("step", 2.0), ("– rollout", 2.0)]
