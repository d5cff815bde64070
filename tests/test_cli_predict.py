"""From training on one's own images to using the network: train, eval, predict, explain; from Python and by commands."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinyres as tr
from tinyres import nn
from tinyres.cli import main
from tinyres.errors import CheckpointError, NonFiniteError, TinyresError, UsageError
from tinyres.train import Trainer, evaluate, load_network, predict
from tinyres.train.checkpoint import read, write
from tinyres.train.progress import Silent

TRAIN = ["train", "--epochs", "2", "--batch-size", "8", "--model", "resnet8", "--backend", "numpy", "--lr", "0.02"]


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr("tinyres.train.folder.write_curves", lambda path, *rest: path.write_bytes(b"a picture"))
    monkeypatch.chdir(tmp_path)
    with tr.use_backend("numpy"):
        yield


def make_images(folder, classes=("red", "blue", "green")):
    """Images of one colour, with noise: a net learns them at once."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            image = rng.integers(0, 60, (20, 24, 3), np.uint8)
            image[..., ("red", "green", "blue").index(name) if name in ("red", "green", "blue") else k] += 180
            Image.fromarray(image).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images and a run on them."""
    folder = tmp_path_factory.mktemp("trained")
    make_images(folder / "colours")
    (folder / "colours" / "red" / "notes.txt").write_text("no image")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinyres.train.folder.write_curves", lambda path, *rest: path.write_bytes(b"a picture"))
        patch.chdir(folder)
        with tr.use_backend("numpy"):
            assert (
                main([*TRAIN, "--data", "colours", "--size", "16", "--split", "0.3", "--epochs", "6", "--out", "run"]) == 0
            )
    return folder


def test_training_on_a_folder_names_what_it_left_out_and_its_choice(capsys, tmp_path):
    make_images(tmp_path / "colours")
    (tmp_path / "colours" / "red" / "notes.txt").write_text("no image")
    assert main([*TRAIN, "--data", "colours", "--size", "16"]) == 0
    out = capsys.readouterr().out
    assert "left out 1 file: red/notes.txt (it is no image)" in out and "24 training and 6 test images" in out
    assert "chosen by its test error" in out and "--validation N" in out
    assert (tmp_path / "runs" / "colours-resnet8" / "best.safetensors").exists()
    assert main([*TRAIN, "--data", "colours", "--strict", "--out", "other"]) == 2
    assert "without strict" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_a_run_is_resumed_and_tested_from_anywhere(trained, capsys):
    assert main(["train", "--resume", "--out", str(trained / "run")]) == 0
    capsys.readouterr()
    assert main(["eval", str(trained / "run"), "--classes", "--confusion", "c.png", "--json", "e.json"]) == 0
    out = capsys.readouterr().out
    assert "resnet8 on 9 test images of colours" in out and "By class" in out
    found = json.loads(Path("e.json").read_text())
    assert found["classes"] == ["blue", "green", "red"] and np.sum(found["confusion"]) == 9
    assert found["error"] == pytest.approx(100 * (1 - np.trace(found["confusion"]) / 9))
    with Image.open("c.png") as picture:
        assert picture.size[0] > 200
    assert main(["explain", str(trained / "run"), "--batch-size", "8"]) == 0


def test_the_network_file_says_where_its_images_were(trained, capsys, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    moved = tmp_path / "colours here"
    shutil.copytree(trained / "colours", moved)
    loaded = load_network(tmp_path / "run" / "best.safetensors")
    assert loaded.classes == ("blue", "green", "red") and loaded.source["size"] == 16 and loaded.source["split"] == 0.3
    assert main(["eval", "run", "--data", str(moved)]) == 0  # with the size and the split of the training
    assert "9 test images of colours here" in capsys.readouterr().out


def test_images_that_are_not_there_any_more_are_asked_for(tmp_path, capsys):
    make_images(tmp_path / "colours")
    assert main([*TRAIN, "--data", "colours", "--out", "run"]) == 0
    shutil.rmtree(tmp_path / "colours")
    capsys.readouterr()
    assert main(["eval", "run"]) == 2
    assert "which is not here; name the images with --data" in capsys.readouterr().err


def test_classes_are_compared_by_their_names(trained, tmp_path, capsys):
    make_images(tmp_path / "two", ("red", "green"))
    assert main(["eval", str(trained / "run"), "--data", "two", "--classes"]) == 0  # some of the classes, in another order
    out = capsys.readouterr().out
    assert "error" in out and "blue" in out
    loaded = load_network(trained / "run" / "best.safetensors")
    assert float(out.split("error ")[1].split(" %")[0]) < 50, loaded.classes
    make_images(tmp_path / "other", ("red", "green", "violet"))
    assert main(["eval", str(trained / "run"), "--data", "other"]) == 2
    assert "'violet', which the network does not know" in capsys.readouterr().err


def test_predictions_of_files_and_folders(trained, capsys):
    arguments = ["predict", str(trained / "colours" / "red"), str(trained / "colours" / "blue" / "3.png")]
    assert main([*arguments, "--weights", str(trained / "run"), "--top", "2", "--json", "p.json", "--csv", "p.csv"]) == 1
    out = capsys.readouterr().out
    assert "notes.txt: left out: it is no image" in out
    found = json.loads(Path("p.json").read_text())
    assert len(found["predictions"]) == 11 and found["left out"][0]["why"] == "it is no image"
    best = [one["classes"][0]["class"] for one in found["predictions"]]
    assert best.count("red") >= 8 and best[-1] == "blue"
    for one in found["predictions"]:
        first, second = one["classes"]
        assert first["probability"] >= second["probability"] and first["probability"] + second["probability"] <= 1.00001
    with open("p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class 1"] for row in rows] == best
    assert main([*arguments[2:], "--weights", str(trained / "run")]) == 2  # a command that lacks its first argument
    capsys.readouterr()
    assert main(["predict", str(trained / "colours" / "blue"), "--weights", str(trained / "run")]) == 0


def test_predict_in_python_is_the_softmax_of_the_logits(trained):
    loaded = load_network(trained / "run" / "best.safetensors")
    data = tr.data.load(str(trained / "colours"), size=16)
    shares = predict(loaded.model, data.test_images, loaded.mean, loaded.scale, batch_size=4)
    assert shares.shape == (len(data.test_labels), 3) and shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    x = ((data.test_images / 255 - loaded.mean) * loaded.scale).astype(np.float32)
    loaded.model.eval()
    logits = loaded.model(tr.tensor(x)).data
    np.testing.assert_allclose(shares, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.png",), "nowhere.png does not exist"),
        (("run/config.json",), "none of the files is an image"),
        (("colours", "--size", "3"), "--size"),
        (("colours", "--json", "x.txt"), "must name a file that ends in .json"),
    ],
)
def test_a_wrong_prediction_is_one_line(arguments, words, trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    assert main(["predict", *arguments, "--weights", "run"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


# --- from Python -----------------------------------------------------------------------------------------------------


def small():
    data = tr.data.shapes(n_train=24, n_test=8)
    data.train_images, data.test_images = data.train_images[:, :, ::2, ::2].copy(), data.test_images[:, :, ::2, ::2].copy()
    return data


@pytest.mark.parametrize(
    "make",
    [
        lambda: tr.models.resnet(8, shortcut="B"),
        lambda: tr.models.build("plain8"),
        lambda: tr.models.preresnet(8),
        lambda: tr.models.resnet(11, block="bottleneck"),
    ],
)
def test_a_network_made_in_python_can_be_used_from_the_command(make, tmp_path, capsys):
    tr.manual_seed(0)
    model = make()
    state = tr.default_generator().bit_generator.state
    trainer = Trainer(model, small(), epochs=1, batch_size=8, out=tmp_path / "run", display=Silent())
    assert tr.default_generator().bit_generator.state == state  # to describe it has drawn no numbers
    trainer.fit()
    assert main(["eval", "run", "--limit-test", "8"]) == 0
    assert trainer.network["name"] in capsys.readouterr().out
    loaded = load_network(tmp_path / "run" / "best.safetensors")
    for name, array in loaded.model.state_dict().items():
        np.testing.assert_array_equal(array, model.state_dict()[name])


def test_another_classifier_is_described_and_a_changed_network_is_not():
    model = tr.models.resnet(8)
    model.fc = nn.Linear(64, 4)
    assert tr.models.describe(model, 4) == {"name": "resnet8", "num_classes": 4}
    model.layer1 = nn.Sequential(*list(model.layer1), nn.Identity())
    model.layer1.extra = nn.Linear(2, 2)
    assert tr.models.describe(model, 4) is None


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 10)

    def forward(self, x):
        return self.fc(x.reshape(x.shape[0], -1))


def test_a_network_of_ones_own_says_how_to_load_it(tmp_path, capsys):
    trainer = Trainer(Mine(), small(), epochs=1, batch_size=8, out=tmp_path / "run", display=Silent())
    trainer.fit()
    assert main(["eval", "run"]) == 2
    assert "load_network(path, model=MyNet())" in capsys.readouterr().err
    loaded = load_network(tmp_path / "run" / "best.safetensors", model=Mine())
    np.testing.assert_array_equal(loaded.model.fc.weight.data, trainer.model.fc.weight.data)
    assert loaded.classes == trainer.dataset.classes
    with pytest.raises(CheckpointError):
        load_network(tmp_path / "run" / "best.safetensors", model=tr.models.resnet(8))


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def test_fine_tuning_keeps_the_normalisation_and_says_so(trained, tmp_path, capsys):
    make_images(tmp_path / "two", ("red", "violet"))
    arguments = [
        "train",
        "--data",
        "two",
        "--size",
        "16",
        "--weights",
        str(trained / "run"),
        "--epochs",
        "2",
        "--batch-size",
        "8",
    ]
    assert main([*arguments, "--backend", "numpy", "--lr", "0.01"]) == 0
    out = capsys.readouterr().out
    assert "starting from resnet8" in out and "normalised as there" in out and "a new classifier for the 2 classes" in out
    run = tmp_path / "runs" / "two-from-run"
    before, after = load_network(trained / "run" / "best.safetensors"), load_network(run / "best.safetensors")
    np.testing.assert_array_equal(after.mean, before.mean)
    np.testing.assert_array_equal(after.scale, before.scale)
    assert after.classes == ("red", "violet") and after.model.fc.weight.shape == (2, 64)
    kept, now = (one.model.layer1[0].conv1.weight.data for one in (before, after))
    assert 0 < np.abs(now - kept).max() < 0.5  # it began there
    shutil.rmtree(tmp_path / "trained", ignore_errors=True)
    assert main(["train", "--resume", "--out", str(run)]) == 0


def test_fine_tuning_is_resumed_with_the_same_bits(trained, tmp_path):
    arguments = [
        "train",
        "--data",
        str(trained / "colours"),
        "--size",
        "16",
        "--weights",
        str(trained / "run"),
        "--epochs",
        "3",
    ]
    arguments += ["--batch-size", "8", "--backend", "numpy", "--lr", "0.01", "--save-every", "0"]
    assert main([*arguments, "--out", "whole"]) == 0

    class Stop(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        right, left = Trainer._stop_or_save, [3]

        def stop(self):
            right(self)
            left[0] -= 1
            if not left[0]:
                raise Stop

        patch.setattr(Trainer, "_stop_or_save", stop)
        with pytest.raises(Stop):
            main([*arguments, "--out", "parts"])
    assert main(["train", "--resume", "--out", "parts"]) == 0
    whole, parts = (load_network(Path(name, "last.safetensors")).model.state_dict() for name in ("whole", "parts"))
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array)


def test_a_run_is_not_resumed_with_another_normalisation(trained, tmp_path):
    def trainer(model):
        return Trainer(model, small(), epochs=2, batch_size=8, out=tmp_path / "run", display=Silent())

    loaded = load_network(trained / "run" / "best.safetensors")
    model = tr.models.with_classes(loaded.model, 10)
    trained_as = {**loaded.network, "num_classes": 10}
    one = trainer(model)
    np.testing.assert_array_equal(one.mean, loaded.mean)
    one.fit()
    with pytest.raises(UsageError, match="normalises images in another way"):
        trainer(tr.models.build(**trained_as)).fit(resume=True)


def test_weights_and_a_network_by_name_exclude_each_other(trained, capsys):
    assert main(["train", "--data", "shapes", "--weights", str(trained / "run"), "--model", "resnet8"]) == 2
    assert "leave --model and --shortcut out" in capsys.readouterr().err


# --- what is not as it should be -------------------------------------------------------------------------------------


def test_an_error_within_an_evaluation_leaves_mode_and_recording_as_they_were(trained):
    """While the error is still held: a traceback keeps everything in it alive."""
    loaded = load_network(trained / "run" / "best.safetensors")
    loaded.model.train()
    images = tr.data.load(str(trained / "colours"), size=16).test_images
    with pytest.raises(TinyresError) as held:
        evaluate(loaded.model, images, np.full(len(images), 7), loaded.mean, loaded.scale)
    assert loaded.model.training and tr.is_grad_enabled() and held.value is not None


def test_a_loss_beyond_float32_is_named_though_the_logits_are_finite(trained):
    model = load_network(trained / "run" / "best.safetensors").model
    model.fc.weight.data[...], model.fc.bias.data[...] = 0, [3e38, -3e38, 0]
    images = np.zeros((3, 3, 16, 16), np.uint8)
    with pytest.raises(NonFiniteError, match="the loss is inf"):
        evaluate(model, images, np.array([1, 1, 1]))


@pytest.mark.parametrize("source", [{"path": 5}, {"path": ["x"], "size": 16, "split": 0.2, "seed": 0}, "x", {"size": 16}])
def test_a_source_that_is_none_is_not_followed(source, trained, tmp_path, capsys):
    contents = read(trained / "run" / "best.safetensors")
    texts = {**contents.texts, "result": {**contents.texts["result"], "source": source, "data": "shapes"}}
    write(tmp_path / "odd.safetensors", contents.arrays, {}, texts)
    assert load_network(tmp_path / "odd.safetensors").source == {}
    assert main(["eval", "odd.safetensors"]) == 2 and "tells 3 classes apart" in capsys.readouterr().err
