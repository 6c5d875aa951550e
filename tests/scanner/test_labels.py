"""Labelled data sets in each layout: what is found, who belongs together, and what strangers' lists may not do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.errors import UserError
from scanner.labels import LAYOUTS, Labelled, describe, detect_layout, find_labelled, join_groups


def tree(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def manifest(root: Path, text: str | bytes, *files: str) -> Path:
    root.mkdir(exist_ok=True)
    (root / "manifest.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return tree(root, *files)


def found(root: Path, layout: str | None = None) -> dict[str, Labelled]:
    """What is found, by the path below the folder."""
    return {item.uri.removeprefix(f"{root.name}/"): item for item in find_labelled(str(root), layout)}


def refusal(root: Path, layout: str | None = None) -> str:
    with pytest.raises(UserError) as refused:
        find_labelled(str(root), layout)
    message = str(refused.value)
    assert "\n" not in message
    return message


# --- manifest.csv -----------------------------------------------------------------------------------------


def test_a_manifest_says_it_all(tmp_path):
    root = manifest(
        tmp_path / "mine",
        "file,label,method,source,group,notes\n"
        "b/one.mp4,fake,faceswap,web,anna,\n"
        './a/two.JPG, REAL ,ignored,,,"a, b"\n'
        "gone.mp4,real,,web,,\n",
    )
    items = found(root)
    assert list(items) == ["b/one.mp4", "a/two.JPG", "gone.mp4"]
    one, two, gone = items.values()
    assert (one.kind, one.label, one.method, one.source, one.group) == ("video", "fake", "faceswap", "web", "anna")
    assert (two.kind, two.label, two.method, two.source, two.group) == ("image", "real", None, "mine", "mine/a/two.JPG")
    assert one.path == str(root / "b/one.mp4")
    assert gone.uri == "mine/gone.mp4"  # not there, but nothing is lost silently


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_spreadsheets_write_other_delimiters_and_a_byte_order_mark(tmp_path, sign):
    text = "\ufefffile,label\r\na.mp4,real\r\n".replace(",", sign)
    assert list(found(manifest(tmp_path / "d", text))) == ["a.mp4"]


def test_a_manifest_of_another_name_stands_for_its_folder(tmp_path):
    root = manifest(tmp_path / "d", "file,label\nx.mp4,real\n")
    (root / "part2.csv").write_text("file,label\na.mp4,fake\n")
    (item,) = find_labelled(str(root / "part2.csv"))
    assert (item.uri, item.label) == ("d/a.mp4", "fake")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("a.mp4,rael", "line 2: the label must be real or fake, not 'rael'"),
        ("a.mp4,real\n\nb.mp4,", "line 4: the label must be real or fake, not ''"),
        (",real", "line 2: `file` is empty"),
        ("../a.mp4,real", "line 2: '../a.mp4' leaves the folder"),
        ("x/../../a.mp4,real", "leaves the folder"),
        ("/etc/passwd,real", "'/etc/passwd' leaves the folder"),
        (".,real", "leaves the folder"),
        ("a.mp4", "line 2: 1 values for 2 columns"),
        ("a, b.mp4,real", "line 2: 3 values for 2 columns"),
        ('"a.mp4,real', "is not CSV after line"),
        ("a.mp4,real\na.mp4,fake", "line 3: a.mp4 stands in line 2 already, with other values"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, lines, says):
    assert says in refusal(manifest(tmp_path / "d", f"file,label\n{lines}\n"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,label\na,real\n", "needs the columns file and label"),
        ("", "needs the columns file and label"),
        ("file,label,file\n", "two columns have the same name"),
        ("file,label,source\na.mp4,real,\x1b[31m\n", "`source` holds control characters"),
        (b"file,label\n\xff.mp4,real\n", "is not UTF-8"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, text, says):
    assert says in refusal(manifest(tmp_path / "d", text))


def test_a_line_that_stands_twice_is_one_file(tmp_path):
    assert list(found(manifest(tmp_path / "d", "file,label\na.mp4,real\n./a.mp4,REAL\n"))) == ["a.mp4"]


def test_a_manifest_does_not_lead_out_through_a_linked_folder(tmp_path):
    tree(tmp_path / "secret", "a.mp4")
    root = manifest(tmp_path / "d", "file,label\nway/a.mp4,real\n")
    (root / "way").symlink_to(tmp_path / "secret")
    assert "line 2: way/a.mp4 leads out of the folder" in refusal(root)


@given(st.text(max_size=60))
def test_no_manifest_reaches_beyond_its_folder(tmp_path_factory, text):
    root = tmp_path_factory.mktemp("any") / "d"
    try:
        items = find_labelled(str(manifest(root, f"file,label\n{text},real\n".encode("utf-8", "replace"))))
    except UserError:
        return
    for item in items:
        assert Path(os.path.realpath(item.path)).is_relative_to(os.path.realpath(root))


# --- data sets --------------------------------------------------------------------------------------------


def test_faceforensics_keeps_a_swap_with_both_of_its_people(tmp_path):
    root = tree(
        tmp_path / "FF",
        "original_sequences/youtube/c23/videos/000.mp4",
        "original_sequences/youtube/c23/videos/003.mp4",
        "original_sequences/youtube/c40/videos/003.mp4",
        "original_sequences/youtube/c23/videos/500.mp4",
        "original_sequences/actors/c23/videos/01__walking.mp4",
        "manipulated_sequences/Deepfakes/c23/videos/000_003.mp4",
        "manipulated_sequences/Deepfakes/masks/videos/000_003.mp4",
        "manipulated_sequences/NeuralTextures/raw/videos/500_700.mp4",
        "manipulated_sequences/DeepFakeDetection/c23/videos/01_02__walking__AB12.mp4",
        "manipulated_sequences/Deepfakes/c23/videos/.hidden.mp4",
    )
    items = found(root)
    assert detect_layout(str(root)) == "faceforensics"
    assert len(items) == 8 and not any("masks" in name for name in items)
    groups = {name.rsplit("/", 1)[-1]: item.group for name, item in items.items()}
    assert groups["000_003.mp4"] == groups["000.mp4"] == groups["003.mp4"] == "faceforensics:000"
    assert groups["500_700.mp4"] == groups["500.mp4"] == "faceforensics:500"
    assert groups["01__walking.mp4"] == groups["01_02__walking__AB12.mp4"] == "faceforensics-actors:01"
    methods = {item.method for item in items.values() if item.label == "fake"}
    assert methods == {"Deepfakes", "NeuralTextures", "DeepFakeDetection"}
    assert all(item.method is None for item in items.values() if item.label == "real")


def test_celeb_df_joins_a_fake_with_the_people_in_it(tmp_path):
    root = tree(
        tmp_path / "Celeb-DF-v2",
        "Celeb-real/id0_0000.mp4",
        "Celeb-real/id1_0005.mp4",
        "Celeb-real/id7_0001.mp4",
        "Celeb-synthesis/id0_id1_0000.mp4",
        "YouTube-real/00000.mp4",
        "List_of_testing_videos.txt",
    )
    items = found(root)
    assert {name: item.label for name, item in items.items()} == {
        "Celeb-real/id0_0000.mp4": "real",
        "Celeb-real/id1_0005.mp4": "real",
        "Celeb-real/id7_0001.mp4": "real",
        "YouTube-real/00000.mp4": "real",
        "Celeb-synthesis/id0_id1_0000.mp4": "fake",
    }
    groups = [items[name].group for name in items]
    assert groups[0] == groups[1] == items["Celeb-synthesis/id0_id1_0000.mp4"].group
    assert len(set(groups)) == 3
    assert describe(list(items.values()), "celeb-df") == "4 real and 1 fake videos of 2 sources; layout: celeb-df"


def test_dfdc_is_read_from_its_metadata(tmp_path):
    root = tree(tmp_path / "dfdc", "dfdc_train_part_0/a.mp4", "dfdc_train_part_0/b.mp4", "dfdc_train_part_0/other.mp4")
    entries = {
        "b.mp4": {"label": "FAKE", "split": "train", "original": "a.mp4"},
        "a.mp4": {"label": "REAL", "split": "train", "original": None},
        "gone.mp4": {"label": "FAKE", "original": "elsewhere.mp4"},
    }
    (root / "dfdc_train_part_0/metadata.json").write_text(json.dumps(entries))
    items = found(root)
    assert list(items) == [f"dfdc_train_part_0/{name}.mp4" for name in ("a", "b", "gone")]
    a, b, gone = items.values()
    assert (a.label, b.label, a.group, b.group, gone.group) == ("real", "fake", "dfdc:a", "dfdc:a", "dfdc:elsewhere")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "must map names"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"../a.mp4": {"label": "REAL"}}', "not the plain name of a file"),
        ('{"a.mp4": {"label": "FAKE", "original": "/etc/passwd"}}', "not the plain name of a file"),
        ('{"a.mp4": {"label": "FAKE", "original": 3}}', "not the plain name of a file"),
        ('{"a.mp4": {"label": "MAYBE"}}', "has no label REAL or FAKE"),
        ('{"a.mp4": "REAL"}', "has no label REAL or FAKE"),
    ],
)
def test_metadata_that_is_none_is_refused(tmp_path, text, says):
    (tmp_path / "metadata.json").write_text(text)
    assert says in refusal(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.sampled_from(["REAL", "FAKE", "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
entry = st.fixed_dictionaries({}, optional={"label": json_values, "original": json_values})


@given(st.dictionaries(st.text(max_size=8), entry | json_values, max_size=4))
def test_no_metadata_does_harm(tmp_path_factory, value):
    root = tmp_path_factory.mktemp("dfdc")
    (root / "metadata.json").write_text(json.dumps(value))
    try:
        items = find_labelled(str(root))
    except UserError:
        return
    assert all(Path(item.path).parent == root and item.label in ("real", "fake") for item in items)


def test_deeperforensics_shares_its_targets_with_faceforensics(tmp_path):
    root = tree(
        tmp_path / "DF",
        "source_videos/W021/light_up/camera_down/a.mp4",
        "source_videos/M004/light_up/camera_down/b.mp4",
        "manipulated_videos/end_to_end/000_W021.mp4",
        "manipulated_videos/reenact_postprocess/017_M004.mp4",
        "lists/splits/train.txt",
    )
    assert detect_layout(str(root)) == "deeperforensics"
    items = found(root)
    by_name = {name.rsplit("/", 1)[-1]: item for name, item in items.items()}
    assert by_name["a.mp4"].group == by_name["000_W021.mp4"].group != by_name["b.mp4"].group
    assert by_name["000_W021.mp4"].method == "end_to_end"
    other = tree(tmp_path / "FF", "manipulated_sequences/Deepfakes/c23/videos/000_017.mp4")
    together = join_groups([*items.values(), *found(other).values()])
    assert len({item.group for item in together}) == 1  # 000_017 ties W021's targets to M004's


def test_real_and_fake_folders(tmp_path):
    root = tree(
        tmp_path / "mine",
        "Real/tv/deep/a.mp4",
        "Real/b.webm",
        "Real/c.png",
        "Real/notes.txt",
        "fake/tool/a.mp4",
        "other/x.mp4",
    )
    items = found(root)
    assert {name: (item.label, item.source) for name, item in items.items()} == {
        "Real/b.webm": ("real", "mine"),
        "Real/c.png": ("real", "mine"),
        "Real/tv/deep/a.mp4": ("real", "tv"),
        "fake/tool/a.mp4": ("fake", "tool"),
    }
    assert describe(list(items.values()), "folders") == (
        "2 real and 1 fake videos, 1 real and 0 fake images of 3 sources; layout: folders"
    )


def test_a_folder_of_real_faces_alone_will_do(tmp_path):
    assert list(found(tree(tmp_path / "d", "real/a.jpg"))) == ["real/a.jpg"]


def test_a_name_that_is_not_utf8_gets_a_uri_and_keeps_its_path(tmp_path):
    name = os.fsdecode(b"\xff.mp4")
    (item,) = find_labelled(str(tree(tmp_path / "d", f"real/{name}")))
    assert item.uri == "d/real/\\xff.mp4"
    assert Path(item.path).read_bytes() == b"x"


# --- which layout -----------------------------------------------------------------------------------------


def test_a_manifest_goes_first_and_metadata_last(tmp_path):
    root = tree(tmp_path / "d", "real/a.mp4", "Celeb-real/id0_0000.mp4", "real/metadata.json")
    assert detect_layout(str(root)) == "celeb-df"
    assert list(found(root, "folders")) == ["real/a.mp4"]
    (root / "manifest.csv").write_text("file,label\nreal/a.mp4,fake\n")
    assert detect_layout(str(root)) == "manifest"


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_layout_that_is_not_there_gives_nothing_or_says_so(tmp_path, layout):
    if layout == "manifest":
        assert "manifest.csv could not be read: No such file" in refusal(tmp_path, layout)
    else:
        assert find_labelled(str(tmp_path), layout) == []


def test_a_folder_without_a_layout_is_told_which_there_are(tmp_path):
    message = refusal(tree(tmp_path / "d", "a.mp4"))
    assert all(layout in message for layout in LAYOUTS)


@pytest.mark.parametrize("folder", ["s3://bucket/FF", "", "no/such/folder", "a\0b"])
def test_what_is_no_folder_is_refused(folder):
    with pytest.raises(UserError):
        find_labelled(folder)


people = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3).map(tuple)


@given(st.lists(people, max_size=12))
def test_groups_are_the_connected_components_of_people(casts):
    items = [Labelled(f"d/{i}", "", "video", "fake", None, "d", f"d/{i}", cast) for i, cast in enumerate(casts)]
    groups = [item.group for item in join_groups(items)]
    reach = [set(cast) for cast in casts]  # grown until nothing changes: the definition, slowly
    for _ in casts:
        reach = [set().union(*(other for other in reach if other & mine)) for mine in reach]
    assert groups == [min(mine) for mine in reach]
    assert [item.group for item in join_groups(join_groups(items))] == groups
