"""The data sets: what the images and labels are, that splits share nothing, and what is said of bad files."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from esper.leyline.errors import ConfigError, StorageError
from esper.leyline.randomness import stream
from esper.leyline.task import Split, Splits
from esper.runtime.data import (
    augment,
    cifar10,
    digit_pairs,
    digits,
    digits_clutter,
    synthetic_cifar,
    teacher,
    teacher_classes,
)
from esper.runtime.data import cifar as cifar_files
from esper.runtime.data.scanned_digits import Composed, clutter_images, load_scans, pair_images, source_rows
from esper.runtime.data.splitting import stratified_split
from esper.runtime.data.synthetic import CLASSES, SHAPES, draw
from esper.runtime.data.teacher_net import Teacher, draw_textures

SIZES = (200, 50, 60)

# name: (loader of a small version, shape of an input, classes)
LOADERS: dict[str, tuple[Callable[[int], Splits], tuple[int, ...], int]] = {
    "digits": (digits, (1, 8, 8), 10),
    "digits_clutter": (lambda seed: digits_clutter(seed, *SIZES), (1, 16, 16), 10),
    "digit_pairs": (lambda seed: digit_pairs(seed, *SIZES), (1, 8, 16), 19),
    "synthetic_cifar": (lambda seed: synthetic_cifar(seed, *SIZES), (3, 32, 32), 10),
    "teacher": (lambda seed: teacher(seed, 4, *SIZES), (1, 8, 8), 6),
}
every_loader = pytest.mark.parametrize("name", list(LOADERS))
composed = pytest.mark.parametrize("compose", [clutter_images, pair_images])


def parts(splits: Splits) -> tuple[Split, Split, Split]:
    return splits.train, splits.val, splits.test


# ---- every loader


@every_loader
def test_inputs_are_finite_float32_of_the_promised_shape_and_targets_are_int64_classes(name: str) -> None:
    load, shape, classes = LOADERS[name]

    for split in parts(load(3)):
        assert split.inputs.shape == (len(split.targets), *shape)
        assert split.inputs.dtype == torch.float32
        assert split.inputs.isfinite().all()
        assert split.targets.dtype == torch.int64
        assert 0 <= split.targets.min() <= split.targets.max() < classes


@every_loader
def test_the_same_seed_gives_the_same_tensors_and_another_seed_gives_others(name: str) -> None:
    load = LOADERS[name][0]
    first, again, other = parts(load(0)), parts(load(0)), parts(load(1))

    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)
        assert not torch.equal(a.inputs, c.inputs)


@every_loader
def test_loading_leaves_the_global_generator_alone(name: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    LOADERS[name][0](0)

    assert torch.equal(torch.rand(3), expected)


@every_loader
def test_no_input_occurs_in_two_splits(name: str) -> None:
    # Not even by chance: no two of scikit-learn's 1,797 scans are equal.
    train, val, test = ({image.numpy().tobytes() for image in split.inputs} for split in parts(LOADERS[name][0](2)))

    assert not train & val
    assert not train & test
    assert not val & test


@every_loader
def test_training_inputs_have_mean_zero_and_variance_one(name: str) -> None:
    inputs = LOADERS[name][0](0).train.inputs.double()

    assert inputs.mean().abs() < 1e-4
    assert abs(inputs.square().mean() - 1) < 0.02  # 63/64 where single images of 64 pixels are scaled


@pytest.mark.parametrize(
    "load",
    [
        lambda: digits_clutter(0, n_val=0),
        lambda: digit_pairs(0, n_val=0),
        lambda: synthetic_cifar(0, n_val=0),
        lambda: teacher(0, 4, n_val=0),
    ],
)
def test_an_empty_split_is_refused(load: Callable[[], Splits]) -> None:
    with pytest.raises(ConfigError, match="n_val is 0; every split needs at least 1 image"):
        load()


# ---- splitting


def test_a_stratified_split_divides_every_class_alike_and_loses_nothing() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 20)[torch.randperm(80, generator=stream(0, "test"))]

    rows = stratified_split(labels, (0.6, 0.2, 0.2), stream(1, "test"))

    assert [labels[part].bincount().tolist() for part in rows] == [[30, 6, 12], [10, 2, 4], [10, 2, 4]]
    assert torch.cat(rows).sort().values.tolist() == list(range(80))


# ---- digits


def test_digits_are_split_60_20_20_with_every_class_in_proportion() -> None:
    splits = digits(0)
    counts = np.bincount(load_digits().target)

    for split, share in zip(parts(splits), (0.6, 0.2, 0.2), strict=True):
        assert np.abs(split.targets.bincount().numpy() - share * counts).max() <= 1
    assert sum(map(len, parts(splits))) == 1797


def test_digits_scale_validation_and_test_by_training_statistics() -> None:
    scans, splits = load_scans(), digits(4)
    train, _, test = source_rows(scans, 4)
    known = scans.pixels[train].numpy().astype(np.float64)

    expected = (scans.pixels[test].numpy() - known.mean()) / known.std()

    np.testing.assert_allclose(splits.test.inputs.numpy(), expected, atol=1e-5)


def test_scans_are_the_ones_of_scikit_learn() -> None:
    scans, bunch = load_scans(), load_digits()

    assert np.array_equal(scans.pixels[:, 0].numpy(), bunch.images)
    assert np.array_equal(scans.labels.numpy(), bunch.target)


@composed
def test_no_source_image_appears_in_two_splits(compose: Callable[..., list[Composed]]) -> None:
    train, val, test = (set(part.sources.flatten().tolist()) for part in compose(0, (1000, 500, 500)))

    assert not train & val
    assert not train & test
    assert not val & test


@composed
def test_no_image_uses_its_first_source_twice(compose: Callable[..., list[Composed]]) -> None:
    for part in compose(0, (1000, 500, 500)):
        assert (part.sources[:, 1:] != part.sources[:, :1]).all()


def test_a_cluttered_image_holds_its_digit_whole_and_is_labelled_by_it() -> None:
    bunch = load_digits()

    for part in clutter_images(1, (20, 20, 20)):
        rows = zip(part.images.pixels[:, 0].numpy(), part.images.labels, part.sources[:, 0], strict=True)
        for pixels, label, source in rows:
            scan = bunch.images[source]
            windows = np.lib.stride_tricks.sliding_window_view(pixels, (8, 8)).reshape(81, 8, 8)
            assert (windows >= scan).all(axis=(1, 2)).any()
            assert label == bunch.target[source]


def test_clutter_adds_ink_outside_the_digit_and_at_most_four_pieces_of_it() -> None:
    images = clutter_images(0, (300, 1, 1))[0]
    bunch = load_digits()
    digit_ink = (bunch.images[images.sources[:, 0]] > 0).sum(axis=(1, 2))

    extra = (images.images.pixels[:, 0].numpy() > 0).sum(axis=(1, 2)) - digit_ink

    assert extra.min() >= 0
    assert 4 * 16 >= extra.max() > 16
    assert 10 < extra.mean() < 40  # half of a piece is ink and some of it lies behind the digit


def test_digits_lie_anywhere_on_the_canvas() -> None:
    pixels = clutter_images(0, (2000, 1, 1))[0].images.pixels[:, 0]

    assert (pixels > 0).any(0).all()  # ink reaches every pixel


def test_a_pair_is_two_scans_side_by_side_labelled_by_their_sum() -> None:
    bunch = load_digits()

    for part in pair_images(0, (300, 100, 100)):
        left, right = part.sources.T.numpy()
        assert np.array_equal(part.images.pixels[:, 0, :, :8].numpy(), bunch.images[left])
        assert np.array_equal(part.images.pixels[:, 0, :, 8:].numpy(), bunch.images[right])
        assert np.array_equal(part.images.labels.numpy(), bunch.target[left] + bunch.target[right])


def test_cluttered_digits_are_balanced_and_sums_are_triangular() -> None:
    clutter = digits_clutter(0).train.targets.bincount(minlength=10) / 3000
    pairs = digit_pairs(0).train.targets.bincount(minlength=19) / 3000
    triangle = torch.tensor([min(total, 18 - total) + 1 for total in range(19)]) / 100

    assert (clutter - 0.1).abs().max() < 0.01
    assert (pairs - triangle).abs().max() < 0.025  # 4.5 standard deviations of a share of 10 % among 3,000


# ---- synthetic images


def test_synthetic_pixels_are_the_same_on_every_machine() -> None:
    # All the arithmetic is on integers. If this changes, so do all results on the task: say so in dev/LOG.md.
    images = draw(40, 32, 48, stream(0, "test"))

    digest = hashlib.sha256(images.pixels.numpy().tobytes() + images.labels.numpy().tobytes()).hexdigest()

    assert digest == "42c089a4181a8428a42249dd1621619354c8a5ce02d0cb80e5bc360242b2781f"


def test_synthetic_classes_share_each_cue_with_one_other_class_and_any_two_cues_name_the_class() -> None:
    for cue in range(3):
        assert sorted([row[cue] for row in CLASSES].count(name) for name in {row[cue] for row in CLASSES}) == [2] * 5
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert len({(row[first], row[second]) for row in CLASSES}) == 10


def test_synthetic_classes_are_equally_common() -> None:
    splits = synthetic_cifar(0)

    assert [split.targets.bincount().tolist() for split in parts(splits)] == [[200] * 10, [50] * 10, [50] * 10]


def test_the_size_of_one_synthetic_split_does_not_change_another() -> None:
    small, large = synthetic_cifar(0, 50, 30, 30, size=16), synthetic_cifar(0, 90, 30, 30, size=16)

    assert torch.equal(small.test.targets, large.test.targets)
    # equal but for the training statistics that scale them
    assert torch.corrcoef(torch.stack([small.test.inputs.flatten(), large.test.inputs.flatten()]))[0, 1] > 0.999


def test_all_shapes_cover_about_the_same_area() -> None:
    x = torch.arange(-1023, 1024, 2)
    near, far = torch.minimum(x.abs()[:, None], x.abs()), torch.maximum(x.abs()[:, None], x.abs())

    areas = [4 * int(contains(near, far, torch.tensor(400)).sum()) for contains in SHAPES.values()]

    assert areas == pytest.approx([np.pi * 400**2] * 5, rel=0.02)


def test_noise_is_the_standard_deviation_that_each_pixel_gets() -> None:
    quiet, loud = draw(50, 16, 0, stream(0, "test")), draw(50, 16, 20, stream(0, "test"))

    difference = loud.pixels.double() - quiet.pixels.double()

    assert difference.std().item() == pytest.approx(20.5, rel=0.02)  # three draws on -20..20: sqrt(20 * 21)


def test_impossible_synthetic_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="size is 4; shapes need 8 pixels or more"):
        synthetic_cifar(0, size=4)
    with pytest.raises(ConfigError, match="noise is -1; use 0 to 1000 levels"):
        synthetic_cifar(0, noise=-1)


# ---- teacher


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_teacher_of_any_width_uses_all_its_classes_about_equally(width: int) -> None:
    labels = Teacher.draw(width, stream(0, "net")).labels(draw_textures(3000, stream(0, "fresh")))

    share = labels.bincount(minlength=teacher_classes(width)) / 3000

    assert len(share) == width + 2
    assert (share * len(share) - 1).abs().max() < 0.3


def test_the_teacher_listens_to_as_many_channels_as_its_width() -> None:
    net = Teacher.draw(5, stream(0, "net"))

    assert net.filters.shape == (5, 1, 3, 3)
    assert torch.allclose(net.filters.flatten(1) @ net.filters.flatten(1).T, torch.eye(5), atol=1e-6)
    assert torch.linalg.matrix_rank(net.readout) == 5


def test_the_given_share_of_teacher_labels_is_moved_to_another_class() -> None:
    clean, noisy = teacher(0, 4, noise=0.0), teacher(0, 4, noise=0.25)

    for a, b, n in zip(parts(clean), parts(noisy), (3000, 500, 1000), strict=True):
        assert torch.equal(a.inputs, b.inputs)
        moved = (a.targets != b.targets).double().mean().item()
        assert moved == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / n) ** 0.5)


def test_a_linear_reader_of_the_teachers_channels_beats_one_that_lacks_half_of_them() -> None:
    splits = teacher(0, 8, noise=0.0)
    net = Teacher.draw(8, stream(0, "teacher net", 8))

    def accuracy(channels: int) -> float:
        def features(images: torch.Tensor) -> torch.Tensor:
            heard = torch.nn.functional.conv2d(images, net.filters[:channels], padding=1).relu().mean((2, 3))
            return torch.cat([heard, torch.ones(len(heard), 1)], dim=1)

        one_hot = torch.nn.functional.one_hot(splits.train.targets).float()
        weights = torch.linalg.lstsq(features(splits.train.inputs), one_hot).solution
        return float(((features(splits.test.inputs) @ weights).argmax(1) == splits.test.targets).double().mean())

    assert accuracy(8) > accuracy(4) + 0.1 > accuracy(1) + 0.2


def test_impossible_teachers_are_refused() -> None:
    with pytest.raises(ConfigError, match="width is 9; there are 8 kernels to listen to, use 1 to 8"):
        teacher(0, 9)
    with pytest.raises(ConfigError, match=r"noise is 1.0; it is a share of labels"):
        teacher(0, 4, noise=1.0)


# ---- CIFAR-10, on small files in the true format

Batches = list[tuple[np.ndarray, list[int]]]  # rows of 3,072 bytes and labels, test batch last
BATCH = 20  # images of each small batch, two per class


@pytest.fixture
def small_batches() -> Batches:
    random = np.random.default_rng(0)
    return [
        (random.integers(0, 256, (BATCH, 3072), dtype=np.uint8), (np.arange(BATCH) % 10).tolist()) for _ in range(6)
    ]


def binary_files(batches: Batches) -> dict[str, bytes]:
    """Records of one label byte and 3,072 pixel bytes."""
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    return {
        name: np.concatenate([np.array(labels, np.uint8)[:, None], rows], axis=1).tobytes()
        for name, (rows, labels) in zip(names, batches, strict=True)
    }


def python_files(batches: Batches) -> dict[str, bytes]:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {name: python2_pickle(*batch) for name, batch in zip(names, batches, strict=True)}


def python2_pickle(rows: np.ndarray, labels: list[int]) -> bytes:
    """The opcodes that Python 2's cPickle wrote into the published files: protocol 2, byte strings, old numpy names."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + value.to_bytes(2, "little")

    content = rows.tobytes()
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = empty + b"(K\x01" + number(len(rows)) + number(3072) + b"\x86" + dtype
    array += b"\x89T" + len(content).to_bytes(4, "little") + content + b"tb"
    items = text(b"batch_label") + text(b"training batch 1 of 5")
    items += text(b"labels") + b"](" + b"".join(map(number, labels)) + b"e"
    items += text(b"data") + array + text(b"filenames") + b"](" + text(b"a.png") * len(labels) + b"e"
    return b"\x80\x02}(" + items + b"u."


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_archive(path: Path, folder: str, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {**files, "readme.html": b"<html>"}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("form", ["binary folder", "binary archive", "python folder", "python archive", "inner folder"])
def test_cifar_is_read_alike_from_every_form_it_is_published_in(
    form: str, tmp_path: Path, small_batches: Batches
) -> None:
    if form == "binary folder":
        write_folder(tmp_path / "cifar-10-batches-bin", binary_files(small_batches))
    elif form == "binary archive":
        write_archive(tmp_path / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", binary_files(small_batches))
    elif form == "python folder":
        write_folder(tmp_path / "cifar-10-batches-py", python_files(small_batches))
    elif form == "python archive":
        write_archive(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", python_files(small_batches))
    else:
        write_folder(tmp_path / "cifar-10-batches-bin", binary_files(small_batches))

    asked = tmp_path / "cifar-10-batches-bin" if form == "inner folder" else tmp_path
    splits = cifar10(asked, seed=0)

    assert [len(split) for split in parts(splits)] == [90, 10, 20]
    assert splits.test.inputs.shape == (20, 3, 32, 32)
    assert splits.test.targets.tolist() == small_batches[5][1]
    # One scale and shift per channel lead from the test file's bytes, red plane first, to the inputs.
    for channel in range(3):
        stored = small_batches[5][0].reshape(-1, 3, 1024)[:, channel].flatten().astype(np.float64)
        given = splits.test.inputs[:, channel].flatten().numpy()
        slope, shift = np.polyfit(stored, given, 1)
        np.testing.assert_allclose(given, slope * stored + shift, atol=1e-5)


def test_cifar_validation_takes_a_tenth_of_every_class_from_training_and_the_seed_picks_it(
    tmp_path: Path, small_batches: Batches
) -> None:
    write_folder(tmp_path / "cifar-10-batches-bin", binary_files(small_batches))

    first, again, other = (cifar10(tmp_path, seed) for seed in (0, 0, 1))

    assert first.val.targets.bincount().tolist() == [1] * 10
    assert torch.equal(first.val.inputs, again.val.inputs)
    assert not torch.equal(first.val.inputs, other.val.inputs)
    assert torch.equal(first.test.targets, other.test.targets)
    assert first.train.inputs.mean((0, 2, 3)).abs().max() < 1e-4


def test_a_python_batch_that_numpy_pickles_today_is_read_too(small_batches: Batches) -> None:
    rows, labels = small_batches[0]
    by_column = np.asfortranarray(rows)

    for array in (rows, by_column):
        batch = cifar_files._parse_python(pickle.dumps({b"data": array, b"labels": labels}, protocol=4))
        assert batch is not None
        assert np.array_equal(batch.pixels.reshape(BATCH, -1).numpy(), rows)
        assert batch.labels.tolist() == labels


class Crafted:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("crafted-pickle-ran"),)


def test_a_crafted_pickle_is_refused_and_runs_nothing(
    tmp_path: Path, small_batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = python_files(small_batches)
    files["data_batch_2"] = pickle.dumps({b"data": Crafted(), b"labels": [1]})
    write_folder(tmp_path / "cifar-10-batches-py", files)

    with pytest.raises(ConfigError, match="data_batch_2 is not a batch of CIFAR-10"):
        cifar10(tmp_path, seed=0)

    assert not Path("crafted-pickle-ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": 1, b"labels": [1]}),
        pickle.dumps({b"data": np.zeros((1, 3072), np.float32), b"labels": [1]}),
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1, 2]}),
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [-1]}),
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [2**80]}),
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}),
    ],
)
def test_a_damaged_python_batch_is_named(content: bytes, tmp_path: Path, small_batches: Batches) -> None:
    write_folder(tmp_path / "cifar-10-batches-py", {**python_files(small_batches), "test_batch": content})

    with pytest.raises(ConfigError, match="test_batch is not a batch of CIFAR-10"):
        cifar10(tmp_path, seed=0)


def test_a_damaged_binary_batch_is_named(tmp_path: Path, small_batches: Batches) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    files = binary_files(small_batches)
    write_folder(folder, files)

    (folder / "data_batch_3.bin").write_bytes(files["data_batch_3.bin"][:-5])
    with pytest.raises(ConfigError, match=r"data_batch_3\.bin is not a batch of CIFAR-10; delete it and put cifar-10"):
        cifar10(tmp_path, seed=0)

    (folder / "data_batch_3.bin").write_bytes(files["data_batch_3.bin"][3073:])
    with pytest.raises(ConfigError, match="batches hold 20, 20, 19, 20, 20, 20 images instead of equally many"):
        cifar10(tmp_path, seed=0)

    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(ConfigError, match=r"data_batch_3\.bin cannot be read \(No such file or directory\)"):
        cifar10(tmp_path, seed=0)


def test_a_broken_archive_is_reported_on_one_line(tmp_path: Path, small_batches: Batches) -> None:
    archive = tmp_path / "cifar-10-binary.tar.gz"
    files = binary_files(small_batches)
    write_archive(archive, "cifar-10-batches-bin", files)
    whole = archive.read_bytes()

    for damaged in (whole[: len(whole) // 2], b"<html>moved</html>", b""):
        archive.write_bytes(damaged)
        with pytest.raises(ConfigError, match="it is not a whole archive") as caught:
            cifar10(tmp_path, seed=0)
        assert "\n" not in str(caught.value)

    write_archive(archive, "cifar-10-batches-bin", {name: files[name] for name in list(files)[:5]})
    with pytest.raises(ConfigError, match=r"cifar-10-batches-bin/test_batch\.bin is not in it"):
        cifar10(tmp_path, seed=0)


def test_missing_files_are_explained_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        cifar10(tmp_path / "nowhere", seed=0)

    message = str(caught.value)
    assert "\n" not in message
    for part in ("nowhere", "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "--data synthetic"):
        assert part in message


def test_a_download_without_a_network_says_what_to_do_instead(tmp_path: Path) -> None:
    unreachable = (tmp_path / "no-such-server").as_uri()

    with pytest.raises(ConfigError, match=r"could not download .* by hand, or use --data synthetic") as caught:
        cifar_files.fetch(cifar_files.BINARY, unreachable, tmp_path)

    assert "\n" not in str(caught.value)


def test_a_download_with_a_wrong_checksum_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "portal.html").write_text("please log in")

    with pytest.raises(ConfigError, match=r"sent 13 bytes with MD5 \w{32}; put cifar-10-binary"):
        cifar_files.fetch(cifar_files.BINARY, (tmp_path / "portal.html").as_uri(), tmp_path / "data")

    assert not (tmp_path / "data").exists()


def test_a_download_with_the_right_checksum_lands_under_its_name(tmp_path: Path, small_batches: Batches) -> None:
    server = tmp_path / "server.tar.gz"
    write_archive(server, "cifar-10-batches-bin", binary_files(small_batches))
    md5 = hashlib.md5(server.read_bytes()).hexdigest()
    small = cifar_files.Version("cifar-10-binary.tar.gz", md5, "cifar-10-batches-bin", ".bin")

    target = cifar_files.fetch(small, server.as_uri(), tmp_path / "data")

    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-10-binary.tar.gz"]
    assert len(cifar10(target.parent, seed=0).train) == 90


def test_a_download_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "server").write_bytes(b"anything")
    small = cifar_files.Version("a.tar.gz", hashlib.md5(b"anything").hexdigest(), "a", "")

    with pytest.raises(StorageError, match="choose another data folder"):
        cifar_files.fetch(small, (tmp_path / "server").as_uri(), tmp_path / "server" / "below-a-file")


# ---- augmentation


def test_augmenting_keeps_shape_and_type_and_is_reproducible() -> None:
    images = torch.randn(16, 3, 12, 10)

    first, again = (augment(images, stream(0, "augment")) for _ in range(2))

    assert first.shape == images.shape
    assert first.dtype == images.dtype
    assert torch.equal(first, again)
    assert not torch.equal(first, augment(images, stream(1, "augment")))


def test_every_augmented_image_is_a_shift_of_the_original_or_of_its_mirror_image() -> None:
    images = torch.rand(40, 2, 6, 6) + 1  # never zero, so the border that moved in is known
    shifts, mirrored = set(), 0

    for before, after in zip(images, augment(images, stream(0, "augment"), pad=2), strict=True):
        matches = []
        for flipped in (False, True):
            padded = np.pad((before.flip(2) if flipped else before).numpy(), ((0, 0), (2, 2), (2, 2)))
            for top in range(5):
                for left in range(5):
                    if np.array_equal(padded[:, top : top + 6, left : left + 6], after.numpy()):
                        matches.append((flipped, top, left))
        [(flipped, top, left)] = matches
        shifts.add((top, left))
        mirrored += flipped

    assert len(shifts) > 12
    assert 10 <= mirrored <= 30


def test_augmenting_by_nothing_changes_nothing() -> None:
    images = torch.randn(4, 1, 5, 5)

    assert torch.equal(augment(images, stream(0, "augment"), pad=0, flip=False), images)
