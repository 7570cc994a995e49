"""The benchmarks measure what they say; how fast anything is, is not tested."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmarks import __main__ as everything
from benchmarks import convergence, gpu, growth, leave_one_out, measure, plain, speedrun, trained
from benchmarks.measure import Row, Table, in_turn, ratios, run
from benchmarks.ours import build
from benchmarks.pictures import Pictures
from hydra import compose, initialize_config_dir

from litvision.assemble import Run
from litvision.configs import CONF
from litvision.transforms import normalize


@pytest.mark.parametrize(
    ("ratio", "limit", "met"),
    [
        (2.5, "≥ 2.5", "yes"),
        (2.49, "≥ 2.5", "no"),
        (0.25, "≤ 0.25", "yes"),
        (0.26, "≤ 0.25", "no"),
        (0.26, "", ""),
        (None, "≤ 1", ""),
    ],
)
def test_a_row_says_whether_its_limit_is_met(ratio: float | None, limit: str, met: str) -> None:
    assert Row("speed", "1", "2", ratio, limit).met == met


def test_a_table_is_kept_as_markdown_with_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    table = Table("Speed")
    table.add("images/s", "30", "10", 3.0, "≥ 2.5")
    table.notes.append("Medians of 3.")
    table.save("speed")
    lines = (tmp_path / "results" / "speed.md").read_text().splitlines()
    assert lines[0] == "## Speed"
    assert lines[4] == "| images/s | 30 | 10 | 3 | ≥ 2.5 | yes |"
    assert lines[6] == "Medians of 3."
    assert f"torch {torch.__version__}" in lines[-1]


def test_functions_run_in_turn_after_a_round_that_does_not_count() -> None:
    calls: list[str] = []
    functions = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    seconds = in_turn(functions, rounds=2)
    assert calls == ["a", "b"] * 3
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_ratios_are_taken_within_a_round() -> None:
    assert ratios([1.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == 2.0


def test_the_plain_loop_reads_the_pictures_as_torchvision_does_and_learns() -> None:
    torch.manual_seed(0)
    image, label = plain.dataset(4, train=False)[0]
    assert (image.shape, image.dtype, type(label)) == ((3, 32, 32), torch.float32, int)
    training = plain.steps("vgg16", batch_size=4, pictures=4)  # the same four again and again
    losses = [next(training) for _ in range(8)]
    training.close()  # ends its loader's processes
    assert losses[-1] < losses[0]


def test_ours_trains_on_so_many_random_pictures_with_the_default_settings() -> None:
    made = build("trainer.accelerator=cpu", pictures=200)
    assert [len(made.datamodule.subsets[split]) for split in ("train", "val")] == [180, 20]
    assert isinstance(made.datamodule.source, Pictures)
    assert made.trainer.max_epochs == 30


def test_what_a_process_holds_grows_by_what_it_takes() -> None:
    """In a process of its own: here, what other tests left behind goes at any time."""
    code = """
import mmap
from benchmarks import memory
before = memory.held()
with mmap.mmap(-1, 64 << 20) as taken:
    taken.write(b"1" * (64 << 20))
    print(memory.held() - before, memory.peak())
"""
    grown, peak = map(int, run("-c", code).split())
    assert 60e6 < grown < 75e6
    assert peak > 64 << 20


def test_distance_from_a_line() -> None:
    assert growth.apart_from_line([1, 2, 3], [10, 20, 30]) == pytest.approx(0)
    assert growth.apart_from_line([1, 2, 3], [10, 26, 30]) > 0.1


def test_pictures_written_for_decoding_are_decoded(tmp_path: Path) -> None:
    growth.write_pictures(tmp_path, 20)
    assert len(list(tmp_path.glob("train/*/*.jpg"))) == 20
    assert growth.decode(tmp_path, workers=0) > 0


def test_a_curve_becomes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "RESULTS", tmp_path)
    growth.draw("batch", {"vgg16": ([32, 64], [10, 20])}, "batch size", "images/s", log=True)
    assert "<svg" in (tmp_path / "batch.svg").read_text()


def test_ways_are_compared_seed_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "RESULTS", tmp_path)
    folders = []

    def way(gain: float) -> trained.Way:
        def train(seed: int, folder: Path) -> float:
            folders.append(folder.relative_to(tmp_path).as_posix())
            return 0.5 + 0.1 * seed + gain

        return train

    comparison = trained.Comparison("ideas", "TinyNet", [0, 1])
    comparison.measure({"whole": way(0), "without it": way(-0.02)})
    lines = (tmp_path / "ideas.md").read_text().splitlines()
    assert lines[-2:] == ["| whole | 55.0% | +0.0, +0.0 |", "| without it | 53.0% | -2.0, -2.0 |"]
    assert folders == [
        "ideas/whole-0", "ideas/without-it-0", "ideas/whole-1", "ideas/without-it-1"
    ]  # fmt: skip


def test_a_folder_is_named_so_that_an_override_takes_it() -> None:
    name = trained.folder_name("without Muon (SGD, rate 0.05)")
    assert name == "without-Muon-SGD-rate-0.05"


def test_a_run_that_is_done_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "REAL", ["data=shapes", "data.train_size=60", "data.test_size=20"])
    options = [
        "model.network._target_=tiny.TinyNet",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
    ]
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    first = trained.train(tmp_path / "run", options)
    assert first["state"] == "done"
    monkeypatch.setattr(trained, "run", None)  # what would train
    assert trained.train(tmp_path / "run", options) == first
    with pytest.raises(SystemExit, match=r"was trained with another optimizer.lr than is asked"):
        trained.train(tmp_path / "run", [*options, "optimizer.lr=0.02"])
    with pytest.raises(SystemExit, match=r"was trained with another data.mix than is asked"):
        trained.train(tmp_path / "run", [*options, "data.mix=mixup"])


def test_every_way_that_leaves_something_out_composes() -> None:
    with initialize_config_dir(str(CONF)):
        for model in ("vgg16", "resnet18"):
            recipe = f"experiment={model}_fast"
            whole = compose("train", [recipe])
            for options in leave_one_out.WITHOUT.values():
                assert compose("train", [recipe, *options]) != whole, options


def test_accuracy_by_epoch_and_second() -> None:
    rates = [(1.0, 450.0), (2.0, 900.0)]  # 45,000 pictures
    fast = convergence.points([(1.0, 0.5), (2.0, 0.75)], rates)
    assert fast == [(100.0, 0.5), (150.0, 0.75)]
    table = convergence.table({"fast": fast, "slow": fast[:1]}).splitlines()
    assert table[2:] == ["| 1 | 50.0%, 100 s | 50.0%, 100 s |", "| 2 | 75.0%, 150 s |  |"]
    axes = convergence.draw({"fast": fast}).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[100.0, 0.5], [150.0, 0.75]]


@pytest.mark.parametrize("read", ["val", "test", "none"])
def test_the_cost_is_of_the_whole_fit_and_the_accuracy_of_what_it_ended_with(
    read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = read == "val"
    runs: list[Run] = []

    def keep(*options: str) -> Run:
        runs.append(build(*options))
        return runs[0]

    monkeypatch.setattr(speedrun, "READ", read)
    monkeypatch.setattr(speedrun, "build", keep)
    sizes = ["data=shapes", "data.train_size=100", "data.test_size=40", "data.batch_size=25"]
    network = ["experiment=speedrun", "model.network.widths=[8,16,16]"]
    options = [*network, *sizes, "trainer.max_epochs=2", "trainer.accelerator=cpu"]
    if not validate:
        options += ["data.val_fraction=0", "monitor=train/loss"]
    monkeypatch.setattr(speedrun, "EVERY", 5)  # of 8 steps
    peaks = iter([1e9, 9e9, 3e9])  # before, meanwhile and after

    clock = itertools.count()
    monkeypatch.setattr(speedrun, "time", SimpleNamespace(perf_counter=lambda: next(clock)))

    def peak() -> float:
        for _ in range(1000):  # it takes long
            next(clock)
        return next(peaks)

    found = speedrun.once(options, peak, "cpu")
    assert found["seconds"] < 100  # and it is not counted
    assert found["cost"] == pytest.approx(2e9 * found["seconds"])
    along = found["cost, by products measured along the way"]
    assert 5e9 * found["seconds"] < along < 6e9 * found["seconds"]  # (1 + 9) / 2, (9 + 3) / 2
    assert found["images/s"] * found["seconds"] == pytest.approx(180 if validate else 200)
    assert 0 < found["of these, until the first step is done"] < found["seconds"]
    classifier, data = runs[0].classifier, runs[0].datamodule
    if read == "none":
        assert not any("accuracy" in what for what in found)
        assert runs[0].trainer.state.fn == "fit"  # and nothing after it
        return
    pictures = data.subsets["val" if validate else "test"]
    assert (len(data.subsets["train"]), len(pictures)) == ((90, 10) if validate else (100, 40))
    pixels = pictures.images.pixels[pictures.indices]
    labels = pictures.images.labels[pictures.indices]
    images = normalize(pixels, torch.tensor(data.mean), torch.tensor(data.std))
    averaged = classifier.network.eval()
    bfloat16 = torch.autocast("cpu", torch.bfloat16, enabled="bf16" in runs[0].trainer.precision)
    with torch.inference_mode(), bfloat16:
        expected = [
            (network(images).argmax(1) == labels).float().mean().item()
            for network in (averaged.network, averaged)
        ]
    accuracies = [found["accuracy"], found["accuracy, averaged over views"]]
    assert accuracies == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kernel", "family"),
    [
        ("Memcpy DtoH (Device -> Pinned)", "copy from the device"),
        ("Memcpy HtoD (Pageable -> Device)", "copy"),
        ("sm90_xmma_fprop_implicit_gemm_bf16", "convolution and product"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW", "batch norm"),
        ("void at::native::multi_tensor_apply_kernel<FusedSgdMathFunctor>", "optimizer"),
        ("void at::native::vectorized_elementwise_kernel<4>", "elementwise and reduction"),
        ("something else", "other"),
    ],
)
def test_kernels_by_family(kernel: str, family: str) -> None:
    assert gpu.family(kernel) == family


@pytest.mark.slow  # it compiles two networks
def test_the_gpu_benchmark_runs_from_start_to_finish_on_a_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu, "MODES", {"eager": "false"})
    monkeypatch.setattr(gpu.ProductPeak, "SIZES", (64,))
    table = Table("GPU")
    gpu.correctness(table, "cpu")
    assert [row.ratio for row in table.rows] == [0, 0, 0]
    gpu.rates(table, "cpu", (2,), steps=1)
    gpu.loading(table, "cpu", size=60, batch=20)
    gpu.where_time_goes(table, "cpu", batch=2, steps=1)
    shares = [row.ratio for row in table.rows if ": time in" in row.what]
    assert sum(shares) == pytest.approx(1)
    assert all(math.isfinite(row.ratio) for row in table.rows)


def test_an_unknown_benchmark_is_answered_with_those_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "stap"])
    with pytest.raises(
        SystemExit, match="no benchmark 'stap': it takes step, convolutions, update, loader"
    ):
        everything.main()
