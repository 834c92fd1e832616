"""The arithmetic of the bench: ratios, spreads, targets, limits. Nothing here measures anything."""

from typing import Any

import pytest
from rich.console import Console

from benchmarks import __main__ as runner
from benchmarks.distillation import part_limits, step_rows
from benchmarks.figures import line
from benchmarks.limits import Decoder, Predictions, PrefixTree, Rates, rollout_limit, rollout_work
from benchmarks.measure import alternating
from benchmarks.table import BEGIN, END, Row, Target, cells, markdown, show, with_table

MACHINE = {
    "date": "2026-01-02",
    "processor": "a processor",
    "cores": 2,
    "python": "3.11.7",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "trl": "1.16.0",
    "gemm_gflops": {"start": 340.4, "end": 351.6},
    "bandwidth_gb": {"start": 30.0, "end": 29.0},
    "minutes": 17.25,
}


def row(**options: Any) -> Row:
    given: dict[str, Any] = {
        "name": "step",
        "unit": "s",
        "ours": [3.0, 1.0, 2.0],
        "peer": [4.0, 5.0],
        "peer_name": "TRL",
    }
    return Row(**(given | options))


# --- ratios, spreads, targets -----------------------------------------------------------------------------------------


def test_ratio_is_of_medians_and_its_spread_of_extremes() -> None:
    """Medians 2 and 4.5: 0.444. Lowest over highest is 1/5, highest over lowest 3/4."""
    assert row().ratio == pytest.approx(4 / 9)
    assert row().ratio_spread == pytest.approx((0.2, 0.75))


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target(0.45), True),  # 0.444 ≤ 0.45
        (Target(0.44), False),
        (Target(0.44, at_least=True), True),
        (Target(2.0, of="value"), True),  # the median of ours is 2
        (Target(1.9, of="value"), False),
        (None, None),
    ],
)
def test_targets(target: Target | None, met: bool | None) -> None:
    assert row(target=target).met is met


@pytest.mark.parametrize("missing", ["ours", "peer"])
def test_a_side_that_failed_meets_no_target(missing: str) -> None:
    found = row(target=Target(0.45), **{missing: []})
    assert (found.ratio, found.ratio_spread, found.met) == (None, None, False)
    assert "failed" in " ".join(cells(found.as_json()))


def test_a_peer_of_zero_gives_no_ratio() -> None:
    assert row(peer=[0.0]).ratio is None


# --- JSON and tables --------------------------------------------------------------------------------------------------


def test_row_as_json() -> None:
    assert row(limit=1.5, target=Target(0.45)).as_json() == {
        "name": "step",
        "unit": "s",
        "ours": 2.0,
        "ours_spread": [1.0, 3.0],
        "peer": 4.5,
        "peer_name": "TRL",
        "peer_spread": [4.0, 5.0],
        "ratio": pytest.approx(0.444444, abs=1e-6),
        "ratio_spread": [0.2, 0.75],
        "limit": 1.5,
        "target": "ratio ≤ 0.45",
        "met": True,
    }


def test_cells_of_a_row() -> None:
    """2 s are 1.33 times a limit of 1.5 s."""
    assert cells(row(limit=1.5, target=Target(2.5, at_least=True)).as_json()) == (
        "step",
        "s",
        "2 (1–3)",
        "4.5 (4–5) TRL",
        "0.44 (0.20–0.75)",
        "1.5",
        "1.33",
        "ratio ≥ 2.5",
        "no",
    )


def test_large_numbers_have_commas_and_one_sample_has_no_spread() -> None:
    found = cells(row(ours=[12345.6], peer=[], peer_name="", unit="rows/s").as_json())
    assert (found[2], found[3], found[4]) == ("12,346", "", "")


def test_table_in_the_terminal_has_every_row() -> None:
    console = Console(width=190, record=True)
    show([row(name="first").as_json(), row(name="second", target=Target(0.1)).as_json()], console)
    lines = console.export_text().splitlines()
    assert [line.split()[0] for line in lines] == ["what", "first", "second"]
    assert lines[2].split()[-1] == "no"


def content() -> dict[str, Any]:
    rows = [row(name="a"), row(name="b", limit=1.0)]
    known = {"case": "sdft", "title": "SDFT", "date": "2026-01-02"}
    return {"machine": MACHINE, "rows": [known | one.as_json() for one in rows]}


def test_table_of_the_docs_stands_between_its_marks_and_replaces_the_old_one() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = with_table(page, content())
    assert once == with_table(once, content())
    assert once.startswith(f"before\n{BEGIN}\n2026-01-02, a processor, 2 cores")
    assert once.endswith(f"{END}\nafter\n")
    assert "old" not in once
    assert "| b | s | 2 (1–3) | 4.5 (4–5) TRL | 0.44 (0.20–0.75) | 1 | 2.00 |  |  |" in once.splitlines()


def test_table_of_the_docs_names_the_machine_and_each_case_once() -> None:
    lines = markdown(content()).splitlines()
    assert "340 GFLOP/s at the start, 352 at the end" in lines[0]
    assert [line for line in lines if line.startswith("###")] == ["### SDFT"]


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="put both where the table is to stand"):
        with_table("no marks", content())


def test_the_page_of_the_docs_takes_the_table() -> None:
    page = runner.PAGE.read_text(encoding="utf-8")
    filled = with_table(page, content())
    assert (filled.partition(BEGIN)[0], filled.partition(END)[2]) == (page.partition(BEGIN)[0], page.partition(END)[2])
    assert "### SDFT" in filled.partition(BEGIN)[2].partition(END)[0]


def test_rows_of_another_day_say_when() -> None:
    found = content()
    for one in found["rows"]:
        one["date"] = "2026-01-01"
    assert "Measured on 2026-01-01." in markdown(found).splitlines()
    assert "Measured on" not in markdown(content())


def test_every_case_names_its_sides_and_survives_their_failure() -> None:
    """Rows without samples: none has a ratio, and no target is met."""
    for name in runner.CASES:
        for one in runner.rows_of(name, {}, Rates(1.0, 1.0)):
            assert (one["ratio"], bool(one["met"])) == (None, False)


# --- limits -----------------------------------------------------------------------------------------------------------

SMALL = Decoder(hidden=4, layers=2, heads=2, kv_heads=1, head_size=2, intermediate=8, vocabulary=10)
"""Of one layer: q and o 4·4 each, k and v 4·2 each, MLP 3·4·8: 16 + 16 + 8 + 8 + 96 = 144 weights."""


def test_weights_of_a_small_decoder() -> None:
    """Two layers and a head of 10·4."""
    assert (SMALL.layer_weights, SMALL.qkv_weights, SMALL.kv_weights) == (144, 32, 16)
    assert SMALL.weights == 2 * 144 + 40


def test_sizes_are_read_from_a_config() -> None:
    """SmolLM2-135M has 134,515,008 parameters, of which 61 norms of 576 are no products; embedding and head are one."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
    )
    assert Decoder.of(config).weights == 134_515_008 - 61 * 576


@pytest.mark.parametrize(
    ("sequences", "tokens", "pairs"),
    [
        ([[1, 2, 3]], 3, 1 + 2 + 3),
        ([[1, 2, 3], [1, 2, 4]], 4, 1 + 2 + 3 + 3),
        ([[1, 2], [1, 2], [2, 1]], 4, 1 + 2 + 1 + 2),
        ([[1, 2], [1, 2, 3]], 3, 1 + 2 + 3),
    ],
)
def test_what_sequences_begin_with_in_common_counts_once(sequences: list[list[int]], tokens: int, pairs: int) -> None:
    assert PrefixTree.of(sequences) == PrefixTree(tokens, pairs)


def test_flops_of_forward() -> None:
    """5 tokens, 3 of them used: layer one 5·144, layer two 3·144 and 2·16 (keys and values of the others), doubled for
    multiplication and addition: 2·(720 + 432 + 32) = 2368. Attention of layer one: 15 pairs, 2 heads of 2, two
    products: 15·2·2·2·2 = 240."""
    assert SMALL.forward(PrefixTree.of([[1, 2, 3, 4, 5]]), 3) == 2368 + 240


def test_flops_of_backward() -> None:
    """Gradients of the inputs: as forward, 2368, less the first q, k and v, 2·5·32 = 320, and twice the attention, 480.
    All weights: 2368 more. An adapter of rank 3: Σ in + out of a layer is 2·(4+4) + 2·(4+2) + 3·(4+8) = 64, four
    products of the rank, in one layer of two: 4·5·3·64 = 3840."""
    tree = PrefixTree.of([[1, 2, 3, 4, 5]])
    assert SMALL.backward(tree, 3) == 2368 - 320 + 480 + 2368
    assert SMALL.backward(tree, 3, rank=3) == 2368 - 320 + 480 + 3840


def test_flops_of_the_head() -> None:
    """3 positions, 4 wide, 10 tokens, three products: 2·3·4·10·3."""
    assert SMALL.head(3, 3) == 720


def test_places_to_predict_from_are_those_before_a_label() -> None:
    """[1, 2, 3, 4] with labels on 3 and 4 reads 1, 2, 3: 4 predicts nothing. [1, 5, 6, 7], label on 5, reads 1 alone,
    which is there already. Tokens 1, 2, 3; pairs 1 + 2 + 3; predicted from: 2 and 3, then 1. The label in first place,
    which nothing predicts, counts nowhere."""
    rows = [([1, 2, 3, 4], [1, -100, 3, 4]), ([1, 5, 6, 7], [-100, 5, -100, -100])]
    assert Predictions.of_labels(rows) == Predictions(PrefixTree(3, 6), 3)


def test_places_to_predict_responses_from() -> None:
    """Prompts [1, 2] twice and [1, 3], three tokens each: 1, 2, 3 once, then the first two tokens of each response, for
    the third predicts nothing: 3 + 6 tokens. Pairs: 1 + 2 + 2, and 3 + 4 for each response: 26. Predicted from: the
    ends of two different prompts, two tokens of each response: 8."""
    prompts = [[1, 2], [1, 2], [1, 3]]
    assert Predictions.of_responses(prompts, 3) == Predictions(PrefixTree(9, 26), 8)
    assert Predictions.of_responses(prompts, 1) == Predictions(PrefixTree(3, 5), 2)


def test_work_of_a_step() -> None:
    """9 tokens, 8 of them used. Layers: 2·(9·2·144 − 1·(144 − 16)) = 4928, attention 4·1·2·2·26 = 416. Head at 8
    places: 2·8·4·10 = 640 a product, two of them, three where its weights are trained. Backward of all weights:
    4928 − 2·9·32 + 2·416, and 4928 more; with rank 3 instead 4·9·1·3·64 = 6912."""
    predictions = Predictions.of_responses([[1, 2], [1, 2], [1, 3]], 3)
    assert SMALL.training(predictions) == {
        "flops student forward": [4928 + 416],
        "flops head and loss": [1920],
        "flops backward": [4928 - 576 + 832 + 4928],
    }
    assert SMALL.training(predictions, rank=3) == {
        "flops student forward": [4928 + 416],
        "flops head and loss": [1280],
        "flops backward": [4928 - 576 + 832 + 6912],
    }


def test_limit_of_a_rollout() -> None:
    """Lengths 1 and 4: three steps read 4·328 bytes each, and one row takes part in them: 2·328 FLOPs each. Prompts
    [1, 2] and [1, 3] are 3 tokens, 2 used: 2·(3·144 + 2·144 + 16) + attention 5·2·2·2·2 = 1472 + 80, and 2·2·40 for
    the head: 1712."""
    work = rollout_work(SMALL, [[1, 2], [1, 3]], [1, 4])
    assert work == {"flops prompts": [1712.0], "flops decoding": [1968.0], "bytes decoding": [3936.0]}
    assert rollout_limit(work, Rates(flops=1712, bytes=1312)) == pytest.approx(1 + 3)
    assert rollout_limit(work, Rates(flops=984, bytes=1e9)) == pytest.approx(1712 / 984 + 2)


def test_limit_of_a_step_is_the_sum_of_its_parts() -> None:
    work = {
        "flops teacher": [10.0],
        "flops student forward": [20.0],
        "flops head and loss": [30.0],
        "flops backward": [40.0],
        "flops prompts": [50.0],
        "flops decoding": [1.0],
        "bytes decoding": [60.0],
    }
    limits = part_limits(work, Rates(flops=10, bytes=20))
    assert (limits["rollout"], limits["step"]) == (5 + 3, 1 + 2 + 3 + 4 + 8)


def test_rows_of_a_step_have_a_line_for_each_part_that_was_measured() -> None:
    sides = {
        "ours": {"step": [3.0], "rollout": [2.0], "other": [1.0], "flops backward": [4.0]},
        "trl": {"step": [6.0], "rollout": [4.0], "teacher": [1.0], "other": [1.0]},
    }
    found = step_rows("step", sides, "trl", "TRL", Rates(2.0, 1.0), parts=True, target=Target(0.5))
    assert [(one.name, one.ratio, one.limit, one.met) for one in found] == [
        ("step", 0.5, 2.0, True),
        ("– rollout", 0.5, None, None),
        ("– teacher", None, None, None),
        ("– other", 1.0, None, None),
    ]


# --- plots ------------------------------------------------------------------------------------------------------------


def test_a_line_of_a_plot_has_medians_in_order_of_size() -> None:
    points = [
        {"axis": "prompts", "size": 8, "side": "ours", "seconds": [3.0, 5.0, 4.0]},
        {"axis": "prompts", "size": 2, "side": "ours", "seconds": [1.0]},
        {"axis": "prompts", "size": 2, "side": "trl", "seconds": [9.0]},
        {"axis": "vocabulary", "size": 2, "side": "ours", "seconds": [7.0]},
    ]
    assert line(points, "prompts", "ours", "seconds") == ([2, 8], [1.0, 4.0])


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_works_take_turns() -> None:
    order: list[str] = []
    times = alternating({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 3
    assert [len(times[name]) for name in "ab"] == [3, 3]
