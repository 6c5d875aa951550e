"""The inventory over real trees, a real S3 server, and manifests as people (and spreadsheets) write them."""

from __future__ import annotations

import fnmatch
import itertools
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.errors import EXIT_PREFLIGHT, EXIT_USAGE, UserError
from scanner.names import glob_match, name_filter
from scanner.pipeline import Todo
from scanner.resume import Done
from scanner.sources import VIDEO_EXTENSIONS, Video, check_sources, iter_videos
from scanner.storage import CredentialsFailed, s3_client
from scanner.uris import local_path
from tests.bench_bucket import BUCKET as LARGE_BUCKET
from tests.bench_bucket import bucket
from tests.queries.rows import span, write_part
from tests.s3 import BUCKET

TREE = (
    "2024/a.mp4",
    "2024/b.MOV",
    "2024/deep/er/c.mkv",
    "2024-old/d.mp4",
    "2024.mp4",
    "clip [1].mp4",
    "ä.webm",
    # and what is passed over:
    "2024/.DS_Store",
    "2024/._a.mp4",
    "2024/.trash/e.mp4",
    "2024/notes.txt",
    "2024/mp4",
)
VIDEOS = [  # in the byte order of the keys
    "2024-old/d.mp4",
    "2024.mp4",
    "2024/a.mp4",
    "2024/b.MOV",
    "2024/deep/er/c.mkv",
    "clip [1].mp4",
    "ä.webm",
]


@pytest.fixture(params=["local", "s3"])
def archive(request, tmp_path: Path) -> str:
    """TREE, as a folder and as a bucket; the URI of its root."""
    if request.param == "s3":
        client = request.getfixturevalue("s3")
        for name in TREE:
            client.put_object(Bucket=BUCKET, Key=name, Body=name.encode())
        client.put_object(Bucket=BUCKET, Key="2024/folder.mp4/", Body=b"")
        return f"s3://{BUCKET}"
    return str(grow(tmp_path / "archive", *TREE))


def grow(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def below(root: str, *sources: str, **options) -> list[str]:
    """What the sources (relative to root) hold: paths below root, with " !" behind those with an error."""
    found = iter_videos([f"{root}/{source}".rstrip("/") for source in sources], **options)
    return [video.uri.removeprefix(f"{root}/") + (" !" if video.error else "") for video in found]


def refusal(*sources: str, exit_code: int = EXIT_USAGE) -> str:
    with pytest.raises(UserError) as caught:
        check_sources(sources)
    assert caught.value.exit_code == exit_code
    return str(caught.value)


# --- folders and prefixes ---------------------------------------------------------------------------------


def test_folder_and_bucket_give_the_same_videos_in_the_same_order(archive):
    check_sources([archive])
    videos = list(iter_videos([archive]))
    assert [video.uri for video in videos] == [f"{archive}/{name}" for name in VIDEOS]
    for video, name in zip(videos, VIDEOS, strict=True):
        assert video.size_bytes == len(name.encode()) and video.content_tag and not video.error
        assert '"' not in video.content_tag


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("2024", ["2024/a.mp4", "2024/b.MOV", "2024/deep/er/c.mkv"]),  # and not 2024-old or 2024.mp4
        ("2024/", ["2024/a.mp4", "2024/b.MOV", "2024/deep/er/c.mkv"]),
        ("2024/a.mp4", ["2024/a.mp4"]),
        ("2024/mp4", ["2024/mp4"]),  # named, so taken whatever its extension
        ("clip [1].mp4", ["clip [1].mp4"]),  # a file, though it looks like a glob
        ("2024/*", ["2024/a.mp4", "2024/b.MOV"]),
        ("2024*/*.mp4", ["2024-old/d.mp4", "2024/a.mp4"]),
        ("**/*.mp4", ["2024-old/d.mp4", "2024.mp4", "2024/a.mp4", "clip [1].mp4"]),
        ("2024/**", ["2024/a.mp4", "2024/b.MOV", "2024/deep/er/c.mkv"]),
        ("**/er/?.mkv", ["2024/deep/er/c.mkv"]),
        ("2024/[!b-z].*", ["2024/a.mp4"]),
        ("*/none/*.mp4", []),
    ],
)
def test_files_folders_and_globs(archive, source, expected):
    check_sources([f"{archive}/{source}"])
    assert below(archive, source) == expected


def test_include_exclude_and_limit(archive):
    assert below(archive, "", include=["*.mp4"]) == ["2024-old/d.mp4", "2024.mp4", "2024/a.mp4", "clip [1].mp4"]
    assert below(archive, "", include=["2024/*"], exclude=["*/er/*", "b.MOV"]) == ["2024/a.mp4"]
    assert below(archive, "2024", include=["deep/*"]) == ["2024/deep/er/c.mkv"]  # relative to the source
    assert below(archive, "2024/a.mp4", exclude=["a.*"]) == []
    assert below(archive, "", limit=2) == VIDEOS[:2]
    assert below(archive, "", limit=0) == []


def test_overlapping_sources_give_each_video_once(archive):
    assert below(archive, "2024/a.mp4", "", "2024", "**/*.mp4") == ["2024/a.mp4"] + [
        name for name in VIDEOS if name != "2024/a.mp4"
    ]


def test_every_video_extension_in_any_case(tmp_path):
    names = {f"x.{extension}" for extension in VIDEO_EXTENSIONS} | {
        f"y.{extension.upper()}" for extension in VIDEO_EXTENSIONS
    }
    grow(tmp_path, *names, "z.jpg", "mp4")
    assert set(below(str(tmp_path), "")) == names


def test_links_loops_and_what_cannot_be_read_in_a_folder(tmp_path):
    root = grow(tmp_path / "archive", "a.mp4", "sub/b.mp4")
    grow(tmp_path, "outside/c.mp4")
    (root / "loop").symlink_to(root)
    (root / "elsewhere").symlink_to(tmp_path / "outside")
    (root / "link.mp4").symlink_to(tmp_path / "outside" / "c.mp4")
    (root / "broken.mp4").symlink_to(tmp_path / "none.mp4")
    (root / "self.mp4").symlink_to(root / "self.mp4")
    os.mkfifo(root / "pipe.mp4")
    (root / "empty.mp4").touch()
    assert below(str(root), "") == ["a.mp4", "broken.mp4 !", "empty.mp4", "link.mp4", "self.mp4 !", "sub/b.mp4"]
    assert below(str(tmp_path), "archive/elsewhere") == ["archive/elsewhere/c.mp4"]  # named, so followed


def test_relative_sources_and_dots(tmp_path, monkeypatch):
    grow(tmp_path, "a/b.mp4", "c/d.mp4")
    monkeypatch.chdir(tmp_path / "a")
    expected = [str(tmp_path / "a" / "b.mp4")]
    for source in (".", "b.mp4", "*.mp4", "../a", "../a/*.mp4", "./../a/b.mp4", f"file://{tmp_path}/a"):
        check_sources([source])
        assert [video.uri for video in iter_videos([source])] == expected


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9 #1.mp4")
    (tmp_path / name).write_bytes(b"x")
    (video,) = iter_videos([str(tmp_path)])
    assert video.uri == f"file://{tmp_path}/caf%E9%20%231.mp4"
    assert local_path(video.uri).read_bytes() == b"x"
    assert list(iter_videos([video.uri])) == [video]
    (tmp_path / "list.txt").write_bytes(b"caf\xe9 #1.mp4\n")  # as `ls > list.txt` writes it
    assert list(iter_videos([str(tmp_path / "list.txt")])) == [video]


def test_a_source_that_vanished_after_the_preflight_is_a_row(archive):
    gone = [f"{archive}-gone/2024", f"{archive}-gone/list.txt"]
    assert [(video.uri, bool(video.error)) for video in iter_videos(gone)] == [(uri, True) for uri in gone]


# --- memory -----------------------------------------------------------------------------------------------


def peak_of(videos) -> tuple[int, int]:
    """(how many, peak of Python memory in bytes) of going through the inventory."""
    tracemalloc.start()
    count = sum(1 for _ in videos)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return count, peak


def test_a_large_tree_does_not_pile_up(tmp_path):
    for folder in range(40):
        (tmp_path / f"{folder}").mkdir()
        for number in range(500):
            (tmp_path / f"{folder}" / f"{number}.mp4").touch()
    count, peak = peak_of(iter_videos([str(tmp_path)]))
    assert count == 20_000
    assert peak < 2 << 20  # one folder's names; 20,000 Videos would take 8 MB


def test_a_large_bucket_does_not_pile_up():
    """One whose keys are made up as they are asked for: moto takes a second per page."""
    with bucket(20_000):
        assert len(list(iter_videos([f"s3://{LARGE_BUCKET}"], limit=1))) == 1  # imports boto3, before memory is counted
        count, peak = peak_of(iter_videos([f"s3://{LARGE_BUCKET}"]))
    assert count == 20_000
    assert peak < 12 << 20  # one page of 1,000 keys and its XML; all of them would take 5 times that


# --- manifests --------------------------------------------------------------------------------------------


def write_manifest(path: Path, uris: list[str]) -> str:
    if path.suffix == ".txt":
        path.write_text("\ufeff# a comment\n\n" + "\n".join(uris) + "\n")
    elif path.suffix == ".csv":
        path.write_text("\ufefftitle,uri\n" + "".join(f'"a, ""b""\nc",{uri}\n' for uri in uris))
    elif path.suffix == ".jsonl":
        path.write_text("\ufeff" + "".join(json.dumps({"uri": uri, "n": 1}) + "\r\n" for uri in uris))
    else:
        pq.write_table(pa.table({"n": list(range(len(uris))), "uri": uris}), path)
    return str(path)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl", ".parquet"])
def test_a_manifest_gives_every_line_a_video(s3, tmp_path, suffix):
    s3.put_object(Bucket=BUCKET, Key="k/ä.mp4", Body=b"abc")
    grow(tmp_path, "lists/in.mp4", "videos/out.bin", "videos/hash # in name.mp4")
    uris = [
        "in.mp4",
        "../videos/out.bin",
        f"{tmp_path}/videos/hash # in name.mp4",
        f"s3://{BUCKET}/k/ä.mp4",
        "in.mp4",
        "none.mp4",
        f"s3://{BUCKET}/none.mp4",
        "https://host/a.mp4?X-Amz-Signature=SECRET",
        "s3://KEY:SECRET@bucket/a.mp4",
        "../videos",
        "s3://bucket-only",
    ]
    source = write_manifest(tmp_path / "lists" / f"list{suffix}", uris)
    check_sources([source])
    videos = list(iter_videos([source]))
    assert [video.uri for video in videos] == [
        f"{tmp_path}/lists/in.mp4",
        f"{tmp_path}/videos/out.bin",
        f"{tmp_path}/videos/hash # in name.mp4",
        f"s3://{BUCKET}/k/ä.mp4",
        f"{tmp_path}/lists/none.mp4",
        f"s3://{BUCKET}/none.mp4",
        "https://host/a.mp4",
        "s3://bucket/a.mp4",
        f"{tmp_path}/videos",
        "s3://bucket-only",
    ]
    assert [video.error is None for video in videos] == [True] * 4 + [False] * 6
    assert "SECRET" not in repr(videos)
    # the same object, listed or in a manifest, is the same video
    assert videos[3] == next(iter_videos([f"s3://{BUCKET}"]))
    # include and exclude see paths below the manifest's folder
    assert [video.uri for video in iter_videos([source], include=["in.*"])][:1] == [f"{tmp_path}/lists/in.mp4"]
    # the manifest in a bucket resolves its relative lines there
    s3.upload_file(source, BUCKET, f"k/list{suffix}")
    write_manifest(tmp_path / f"s3{suffix}", ["ä.mp4", "./../k/ä.mp4"])
    s3.upload_file(str(tmp_path / f"s3{suffix}"), BUCKET, f"k/s3{suffix}")
    check_sources([f"s3://{BUCKET}/k/s3{suffix}"])
    assert list(iter_videos([f"s3://{BUCKET}/k/s3{suffix}"])) == [videos[3]]


def test_broken_lines_are_told_and_the_others_taken(tmp_path):
    grow(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "l.jsonl").write_text('{"uri": "a.mp4"}\n{broken\n[1]\n{"uri": 3}\n\n{"uri": "b.mp4"}\n')
    (tmp_path / "l.csv").write_text('uri;n\na.mp4;1\n;2\n"a"x;3\n"b.mp4";4\n')
    pq.write_table(pa.table({"uri": ["a.mp4", None, "b.mp4"]}), tmp_path / "l.parquet")
    root = str(tmp_path)
    assert below(root, "l.jsonl") == ["a.mp4", "l.jsonl:2 !", "l.jsonl:3 !", "l.jsonl:4 !", "b.mp4"]
    assert below(root, "l.csv")[:3] == ["a.mp4", "l.csv:3 !", "l.csv:4 !"]
    assert below(root, "l.parquet") == ["a.mp4", "l.parquet:2 !", "b.mp4"]
    errors = [video.error for video in iter_videos([f"{root}/l.jsonl"]) if video.error]
    assert errors[0] == "line 2 of the manifest is not JSON"


def test_lines_that_no_file_can_be_called_are_told_and_the_others_taken(tmp_path):
    grow(tmp_path, "a.mp4")
    (tmp_path / "l.jsonl").write_bytes(
        rb'{"uri": "\ud800.mp4"}\n{"uri": "../x\u0000y.mp4"}\n{"uri": "a.mp4"}\n'.replace(rb"\n", b"\n")
    )
    (tmp_path / "l.txt").write_bytes(b"https://h/caf\xe9.mp4\ns3://\xff\n" + b"#" * 5000 + b"\n../x\0y.mp4\na.mp4\n")
    for name, broken in (("l.jsonl", 2), ("l.txt", 3)):
        videos = list(iter_videos([f"{tmp_path}/{name}"]))
        assert [video.error is None for video in videos] == [False] * broken + [True]
        assert list(Done().remaining(videos)) == [Todo(video) for video in videos]
        pa.array(
            [text for video in videos for text in (video.uri, video.error)], pa.string()
        )  # which Parquet will hold


def test_what_could_not_be_listed_is_never_done(tmp_path):
    folder = f"{tmp_path}/archive/"
    row = {"content_tag": "", "model_digest": "m", "settings_digest": "s", "status": "missing"}
    write_part(tmp_path, [span(folder, **row), span(f"{folder}gone.mp4", **row)])
    done = Done.load(str(tmp_path), "m", "s", retry_failed=False)
    broken = Video(folder, "", None, "folder could not be read: Stale file handle", is_listing=True)
    gone = Video(f"{folder}gone.mp4", "", None, "is not there")
    assert [todo.video for todo in done.remaining([broken, gone])] == [broken]


def test_an_unclosed_quote_is_told(tmp_path):
    grow(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "l.csv").write_text('title,uri\nx,a.mp4\n"open,b.mp4\ny,a.mp4\n')
    assert below(str(tmp_path), "l.csv")[0] == "a.mp4"
    assert below(str(tmp_path), "l.csv")[1].endswith("!")


def test_lines_without_end_do_not_fill_the_memory(tmp_path):
    grow(tmp_path, "a.mp4")
    with (tmp_path / "l.txt").open("w") as file:
        file.write("a.mp4\n" + "x" * (5 << 20) + "\na.mp4\n")
    assert [bool(video.error) for video in iter_videos([f"{tmp_path}/l.txt"])][:2] == [False, True]


def test_many_objects_in_a_manifest_stay_in_order(s3, tmp_path):
    names = [f"{number:03}.mp4" for number in range(150)]
    for name in names[::2]:
        s3.put_object(Bucket=BUCKET, Key=name, Body=b"x")
    source = write_manifest(tmp_path / "l.txt", [f"s3://{BUCKET}/{name}" for name in names])
    videos = list(iter_videos([source]))
    assert [video.uri for video in videos] == [f"s3://{BUCKET}/{name}" for name in names]
    assert [bool(video.error) for video in videos] == [False, True] * 75
    assert len(list(iter_videos([source], limit=3))) == 3


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"path,n\na.mp4,1\n", "no column `uri`"),
        ("b.csv", b"", "no column `uri`"),
        ("c.jsonl", b'{"path": "a.mp4"}\n', "no `uri`"),
        ("d.jsonl", b"not json\n", "no `uri`"),
        ("e.parquet", b"not parquet", "could not be parsed as Parquet"),
        ("f.txt", "a.mp4\n".encode("utf-16"), "not a text file in UTF-8"),
    ],
)
def test_manifests_that_cannot_work_are_refused(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    assert says in refusal(str(tmp_path / name))
    assert all(video.error for video in iter_videos([str(tmp_path / name)]))


def test_a_parquet_manifest_needs_uris_that_are_text(tmp_path):
    for name, table in {"a.parquet": {"path": ["a"]}, "b.parquet": {"uri": [1]}}.items():
        pq.write_table(pa.table(table), tmp_path / name)
        assert "no text column `uri`" in refusal(str(tmp_path / name))


# --- preflight --------------------------------------------------------------------------------------------


def test_what_cannot_be_a_source_is_refused_with_the_fix(tmp_path):
    grow(tmp_path, "interviews/a.mp4")
    os.mkfifo(tmp_path / "pipe")
    assert f"Did you mean {tmp_path}/interviews?" in refusal(f"{tmp_path}/interview")
    assert f"There is no zzz in {tmp_path}" in refusal(f"{tmp_path}/zzz/deep/*.mp4")
    assert "does not exist" in refusal(f"{tmp_path}/interviews/a.mp4/b")
    assert "not a file or a folder" in refusal(f"{tmp_path}/pipe")
    assert "Nothing to scan" in refusal()
    assert "SOURCE is empty" in refusal("")
    for uri in ("https://me:SECRET@host/a.mp4", "gs://bucket/a", "S3://bucket/a"):
        message = refusal(uri)
        assert message.startswith(uri.partition("//")[0]) and "s3://bucket/prefix" in message
        assert "SECRET" not in message
    assert "hush" not in refusal("s3://KEY:hush@bucket/a")
    assert "bucket's name" in refusal("s3://")
    assert "bucket's name" in refusal("s3://*/a.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission(tmp_path):
    grow(tmp_path, "open/a.mp4", "closed/b.mp4")
    (tmp_path / "closed").chmod(0)
    assert "Permission denied" in refusal(f"{tmp_path}/closed", exit_code=EXIT_PREFLIGHT)
    assert below(str(tmp_path), "") == ["closed/ !", "open/a.mp4"]
    (tmp_path / "closed").chmod(0o700)


def test_buckets_that_are_not_there_and_keys_misspelt(s3):
    s3.put_object(Bucket=BUCKET, Key="interviews/a.mp4", Body=b"x")
    assert "there is no bucket nowhere" in refusal("s3://nowhere/2024")
    assert "not a valid bucket name" in refusal("s3://UPPER CASE/2024")
    assert f"did you mean s3://{BUCKET}/interviews/?" in refusal(f"s3://{BUCKET}/interview5")
    assert "no key of archive begins with it" in refusal(f"s3://{BUCKET}/zzz")
    assert "does not exist" in refusal(f"s3://{BUCKET}/list.csv")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("403 AccessDenied", "2024 could not be listed: AccessDenied. deepsweep needs s3:ListBucket on archive."),
        ("403 InvalidAccessKeyId", "refused the AWS credentials"),
        ("403 SignatureDoesNotMatch", "refused the AWS credentials"),
        ("403 RequestTimeTooSkewed", "Set this machine's clock"),
        ("400 AuthorizationHeaderMalformed", "Set AWS_DEFAULT_REGION"),
        ("418 Teapot", "the server answered Teapot"),
    ],
)
def test_a_bucket_that_does_not_let_us_in(proxy, code, says):
    proxy.listing_fault = code
    assert says in refusal("s3://archive/2024", exit_code=EXIT_PREFLIGHT)
    if "credentials" in says or "clock" in says:  # they may expire while a scan lists: no video is to blame
        with pytest.raises(CredentialsFailed, match=says):
            list(iter_videos(["s3://archive/2024"]))
        return
    (video,) = iter_videos(["s3://archive/2024"])
    assert says in (video.error or "")


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        ("400 ExpiredToken", "ExpiredToken. The server refused the AWS credentials: renew them"),
        ("403 InvalidAccessKeyId", "refused the AWS credentials"),
        ("403 RequestTimeTooSkewed", "RequestTimeTooSkewed. Set this machine's clock"),
    ],
)
def test_credentials_that_expire_while_a_manifest_is_looked_up_are_held_against_no_video(
    proxy, tmp_path, refusal, says
):
    """An answer to HEAD is a bare 400 or 403, whatever is wrong."""
    source = write_manifest(tmp_path / "l.txt", [f"s3://{BUCKET}/a.mp4"])
    proxy.refusal = refusal
    with pytest.raises(CredentialsFailed, match=says) as caught:
        pytest.fail(f"{list(iter_videos([source]))} came out")
    assert caught.value.exit_code == EXIT_PREFLIGHT
    assert proxy.gets("a.mp4") == 1, "asked once more, and not time and again"


def test_an_object_that_a_manifest_may_not_read_is_one_videos_error(proxy, tmp_path):
    source = write_manifest(tmp_path / "l.txt", [f"s3://{BUCKET}/a.mp4"])
    proxy.refusal = "403 AccessDenied"
    (video,) = iter_videos([source])
    assert "AccessDenied. deepsweep needs s3:GetObject on archive." in (video.error or "")


def test_a_server_that_refuses_heads_alone_is_asked_for_a_byte(proxy, s3, tmp_path):
    tag = s3.put_object(Bucket=BUCKET, Key="a.mp4", Body=b"x" * 1000)["ETag"].strip('"')
    proxy.head_fault = "403 Forbidden"
    (video,) = iter_videos([write_manifest(tmp_path / "l.txt", [f"s3://{BUCKET}/a.mp4"])])
    assert (video.content_tag, video.size_bytes, video.error) == (tag, 1000, None)


def test_settings_that_cannot_reach_a_server(s3, monkeypatch, tmp_path):
    def with_settings(**settings: str | None) -> str:
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value) if value is not None else patch.delenv(name, raising=False)
            s3_client.cache_clear()
            return refusal("s3://archive/2024", exit_code=EXIT_PREFLIGHT)

    nowhere = {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    no_keys = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
    assert "no AWS credentials found" in with_settings(**nowhere, **no_keys)
    assert "no AWS credentials found" in with_settings(**nowhere, AWS_SECRET_ACCESS_KEY=None)
    message = with_settings(AWS_ENDPOINT_URL="http://me:SECRET@127.0.0.1:1")
    assert "127.0.0.1:1 did not answer" in message and "SECRET" not in message
    assert "is not a URL" in with_settings(AWS_ENDPOINT_URL="127.0.0.1:9000")
    assert "AWS_PROFILE" in with_settings(**nowhere, AWS_PROFILE="nobody")


# --- names ------------------------------------------------------------------------------------------------

NAMES = st.text("ab.*?[]é/", max_size=12)


@settings(deadline=None)
@given(NAMES, st.lists(NAMES, max_size=2), st.lists(NAMES, max_size=2))
def test_exclude_wins_and_no_include_means_all(path, include, exclude):
    def hit(patterns):
        names = (path, path.rpartition("/")[2])
        return any(fnmatch.fnmatchcase(name, pattern) for name, pattern in itertools.product(names, patterns))

    assert name_filter(include, exclude)(path) == ((not include or hit(include)) and not hit(exclude))
    assert not name_filter(include, ["*"])(path)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=5))
def test_globs_match_what_they_are_made_of(parts):
    assert glob_match(parts, parts)
    assert glob_match(parts, ["**"]) and glob_match(parts, ["**", *parts]) and glob_match(parts, [*parts[:-1], "*"])
    assert glob_match(parts, ["**", "**", parts[-1]])
    assert not glob_match(parts, ["*"] * (len(parts) + 1))
