"""A recording is added to a project whole or not at all."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import videos
import yaml

from deg.data.labels import read_labels
from deg.data.lock import exclusive
from deg.data.stats import read_stats
from deg.errors import DegError, LabelError, ProjectError, VideoError
from deg.options.load import load_config
from deg.options.schema import Normalization
from deg.projects import add as recordings_module
from deg.projects.add import add_recording
from deg.projects.project import create_project, open_project


@pytest.fixture
def project(tmp_path):
    return create_project(tmp_path / "lab_deepethogram", ["groom", "rear"])


@pytest.fixture
def video(tmp_path):
    """`video("m.avi", 12)` writes a small video of random frames outside the project."""

    def make(name: str = "m.avi", num_frames: int = 12) -> Path:
        path = tmp_path / "camera" / name
        path.parent.mkdir(exist_ok=True)
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
        rng = np.random.default_rng(0)
        for _ in range(num_frames):
            writer.write(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        writer.release()
        return path

    return make


def rewrite(project, /, **sections) -> Path:
    """Change the project file as a person would with an editor."""
    content = yaml.safe_load(project.config_file.read_text())
    for name, changes in sections.items():
        content[name] = content.get(name, {}) | changes if isinstance(changes, dict) else changes
    project.config_file.write_text(yaml.safe_dump(content))
    return project.config_file


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_recording_is_added_with_its_labels(project, video, tmp_path):
    (tmp_path / "scored by hand.csv").write_text(",groom,rear\n" + "".join(f"{i},{i % 2},0\n" for i in range(12)))
    record = add_recording(project, video("m.avi", 12), tmp_path / "scored by hand.csv")
    assert record == open_project(project.path).records["m"]
    names = sorted(path.name for path in record.folder.iterdir())
    assert names == ["m.avi", "m_labels.csv", "record.yaml", "stats.yaml"]
    labels_TK = read_labels(record.labels, project.class_names, 12)
    assert labels_TK[:2].tolist() == [[1, 0, 0], [0, 1, 0]]
    assert yaml.safe_load((record.folder / "record.yaml").read_text())["rgb"] == {"all": ["m.avi"], "default": "m.avi"}
    assert (tmp_path / "camera/m.avi").exists()


def test_pooled_statistics_are_those_of_all_frames_together(project, tmp_path):
    """One video is dark and one is bright: averaged deviations miss that difference, pooled ones do not."""
    frames = {"dark.avi": 40, "bright.avi": 200}
    for name, level in frames.items():
        writer = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter.fourcc(*"FFV1"), 25, (64, 48))
        noise = np.random.default_rng(level).integers(-9, 10, (12, 48, 64, 3))
        for frame in noise:
            writer.write((level + frame).astype(np.uint8))
        writer.release()
        add_recording(project, tmp_path / name, pooled_statistics=True)
    total = open_project(project.path).normalization
    assert total.mean == pytest.approx([120 / 255] * 3, abs=0.01)
    assert total.std == pytest.approx([80 / 255] * 3, rel=0.02)


def test_pooled_statistics_need_those_of_every_recording(project, video):
    (add_recording(project, video("m.avi")).folder / "stats.yaml").unlink()
    with pytest.raises(ProjectError, match=r"expected stats\.yaml"):
        add_recording(project, video("n.avi"), pooled_statistics=True)
    assert [record.key for record in open_project(project.path).records.values()] == ["m"]


def test_the_projects_statistics_grow_and_nothing_else_changes(project, video):
    rewrite(project, gui={"cmap": "deepethogram"})
    before = yaml.safe_load(project.config_file.read_text())
    add_recording(project, video("a.avi", 12))
    add_recording(project, video("b.avi", 21))
    after = yaml.safe_load(project.config_file.read_text())
    assert after["augs"].pop("normalization")["N"] == 2 + 3
    before["augs"].pop("normalization")
    assert after == before
    found = open_project(project.path).normalization
    assert np.allclose(found.mean, read_stats(project.data_path / "a/stats.yaml").mean, atol=0.02)
    assert load_config(project.config_file).augs.normalization == found


def test_a_damaged_video_can_be_used_up_to_the_damage(project, video, tmp_path):
    path = video(num_frames=30)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError):
        add_recording(project, path)
    record = add_recording(project, path, frame_count="decoded")
    assert 0 < read_stats(record.folder / "stats.yaml").N < 3


def test_link_and_move(project, video):
    linked, moved = video("a.avi"), video("b.avi")
    link = add_recording(project, linked, mode="link").video
    assert link.is_symlink() and link.resolve() == linked
    content = moved.read_bytes()
    assert add_recording(project, moved, mode="move").video.read_bytes() == content
    assert not moved.exists()


def test_moving_a_link_keeps_what_it_points_to(project, video, tmp_path):
    target = video("a.avi")
    (tmp_path / "b.avi").symlink_to("camera/a.avi")
    record = add_recording(project, tmp_path / "b.avi", mode="move")
    assert record.video.read_bytes() == target.read_bytes()
    assert not (tmp_path / "b.avi").is_symlink()


def test_moving_to_another_disk(project, video, monkeypatch):
    path = video()
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self == path:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    record = add_recording(project, path, mode="move")
    assert record.video.is_file()
    assert not path.exists()


def test_a_folder_of_images(project, tmp_path):
    folder = tmp_path / "mouse 3.2020"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        cv2.imwrite(str(folder / f"{i:05d}.png"), rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    record = add_recording(project, folder)
    assert record.key == "mouse 3.2020"
    assert record.video.name == "mouse 3.2020"
    assert len(list(record.video.iterdir())) == 3


@pytest.fixture
def unpadded(tmp_path):
    """A folder of images img1.png to img10.png and img11.PNG."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in (*(f"img{i}.png" for i in range(1, 11)), "img11.PNG"):
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    return folder


def test_images_that_deepethogram_takes_otherwise_are_told(project, unpadded, caplog):
    record = add_recording(project, unpadded)
    (message,) = caplog.messages
    assert str(record.video) in message and "takes img10.png before img9.png" in message
    assert "does not see 1 of the 11 images" in message and "image_order: deepethogram" in message


def test_nothing_is_told_where_deepethograms_images_are_kept(project, unpadded, caplog):
    add_recording(project, unpadded, image_order="deepethogram")
    assert caplog.messages == []


def test_labels_must_be_of_the_images_that_count(project, unpadded, tmp_path):
    (tmp_path / "ten.csv").write_text(",groom,rear\n" + "".join(f"{i},1,0\n" for i in range(10)))
    with pytest.raises(LabelError, match="10"):
        add_recording(project, unpadded, tmp_path / "ten.csv")
    assert add_recording(project, unpadded, tmp_path / "ten.csv", image_order="deepethogram").labels is not None


def test_a_video_that_deepethogram_does_not_see_is_added_and_told(project, tmp_path, caplog):
    record = add_recording(project, videos.write_video(tmp_path / "m.mkv", 12))
    assert record.video == project.data_path / "m/m.mkv" and record == open_project(project.path).records["m"]
    (message,) = caplog.messages
    assert "DeepEthogram sees only .avi, .mp4, .h5, .mov" in message and "`ffmpeg -i m.mkv -c copy m.mp4`" in message


@pytest.mark.parametrize("name", ["overflow.avi", "m_output.avi", "labelled.avi", "myLabel.avi", "score.avi"])
def test_names_by_which_the_video_would_be_lost_are_refused(project, video, name):
    with pytest.raises(VideoError, match="its name contains"):
        add_recording(project, video(name))


def test_other_names_that_are_not_allowed(project, tmp_path, video):
    (tmp_path / "m.gif").touch()
    with pytest.raises(VideoError, match=r"expected \.avi, .*\.mkv.* found `\.gif`"):
        add_recording(project, tmp_path / "m.gif")
    with pytest.raises(VideoError, match="does not exist"):
        add_recording(project, tmp_path / "gone.mp4")
    with pytest.raises(VideoError, match="begins with a dot"):
        add_recording(project, video(".m.avi"))


def test_the_same_name_twice_is_refused(project, video):
    add_recording(project, video("m.avi"))
    before = tree(project.path)
    with pytest.raises(ProjectError, match=r"already has a recording of this name, .*DATA/m\b"):
        add_recording(project, video("m.avi"))
    assert tree(project.path) == before


@pytest.mark.parametrize(
    ("fault", "mode"),
    [
        ("video", "move"),
        ("labels", "move"),
        ("length", "copy"),
        ("normalization", "move"),
        ("disk", "copy"),
        ("disk", "link"),
        ("disk", "move"),
    ],
)
def test_what_fails_leaves_everything_as_it_was(project, video, tmp_path, monkeypatch, mode, fault):
    path, labels = video(), tmp_path / "x_labels.csv"
    labels.write_text("background,groom,rear\n" + "1,0,0\n" * (11 if fault == "length" else 12))
    if fault == "video":
        path.write_bytes(path.read_bytes()[:6000])
    elif fault == "labels":
        labels.write_text("nonsense\n")
    elif fault == "normalization":
        rewrite(project, augs={"normalization": {"N": 3}})
    elif fault == "disk":

        def full(path: Path, content: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        monkeypatch.setattr(recordings_module, "write_atomically", full)
    before = tree(tmp_path)
    expected = {"video": VideoError, "labels": LabelError, "length": LabelError}.get(fault, ProjectError)
    with pytest.raises(expected):
        add_recording(project, path, labels, mode=mode)
    assert tree(tmp_path) == before
    assert list(project.data_path.iterdir()) == []


def test_a_video_without_any_contrast_is_refused_as_the_first(project, tmp_path):
    (tmp_path / "black").mkdir()
    cv2.imwrite(str(tmp_path / "black/0.png"), np.zeros((20, 30, 3), dtype=np.uint8))
    with pytest.raises(VideoError, match="same colour"):
        add_recording(project, tmp_path / "black")
    assert open_project(project.path).normalization == Normalization()


def test_several_add_at_once(project, video):
    paths = [video(f"m{i}.avi") for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda path: add_recording(project, path), paths))
    assert len(open_project(project.path).records) == 6
    assert open_project(project.path).normalization.N == 12


def test_one_wins_of_several_that_add_the_same(project, video):
    path = video()

    def attempt(_):
        try:
            return add_recording(project, path).key
        except DegError:
            return None

    with ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(attempt, range(4)))
    assert sorted(keys, key=str) == [None, None, None, "m"]
    assert open_project(project.path).normalization.N == 2
    assert [path.name for path in project.data_path.iterdir()] == ["m"]


def test_waiting_for_another_ends(project, video, monkeypatch):
    monkeypatch.setattr(recordings_module, "LOCK_SECONDS", 0.2)
    busy = ProjectError("not this one")
    with exclusive(project.path, seconds=0, busy=busy), pytest.raises(ProjectError, match="another `deg add`"):
        add_recording(project, video())
    assert list(project.data_path.iterdir()) == []


def test_what_a_killed_process_left_is_no_recording(project, video):
    (project.data_path / ".m.0badcafe.part").mkdir()
    add_recording(project, video())
    assert list(open_project(project.path).records) == ["m"]
