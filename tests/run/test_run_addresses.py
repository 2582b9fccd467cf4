"""What manifests of archives and addresses lead to."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.fetch.s3_server import Bucket, s3_server
from wsiseg.errors import InputError, ManifestError
from wsiseg.results.manifest import SlideInput, find_slides
from wsiseg.results.slide_input import wanted_of

MD5 = "0123456789abcdef0123456789ABCDEF"
HEADER = "id\tfilename\tmd5\tsize\tstate\n"


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", ["gdc_manifest.2026-01-01.txt", "m.tsv", "MANIFEST", "m.csv"])
def test_a_gdc_manifest_under_any_of_its_names(name: str, tmp_path: Path) -> None:
    text = (
        HEADER
        + f"7a0e1f\tTCGA-AA-1.uuid-1.svs\t{MD5}\t123\tlive\n\n8b\tTCGA-BB.svs\t{MD5}\t5\treleased\n9\tx.bam\t{MD5}\t5\tlive\n"
    )
    found = find_slides([written(tmp_path / name, text)], cohort="BRCA", mpp=0.25)
    assert [(s.slide_id, s.path) for s in found.slides] == [
        ("TCGA-AA-1.uuid-1", "https://api.gdc.cancer.gov/data/7a0e1f"),
        ("TCGA-BB", "https://api.gdc.cancer.gov/data/8b"),
    ]
    one = found.slides[0]
    assert (one.filename, one.size_bytes, one.md5) == ("TCGA-AA-1.uuid-1.svs", 123, MD5.lower())
    assert (one.cohort, one.mpp) == ("BRCA", 0.25)
    assert [s.path for s in found.skipped] == ["x.bam"]


@pytest.mark.parametrize(
    "row",
    [
        f"\ta.svs\t{MD5}\t5\tx",
        f"1/../2\ta.svs\t{MD5}\t5\tx",
        "1\ta.svs\tabc\t5\tx",
        f"1\ta.svs\t{MD5}\tbig\tx",
        f"1\t\t{MD5}\t5\tx",
    ],
    ids=["no id", "an id that is a path", "short md5", "no size", "no name"],
)
def test_a_broken_row_of_a_gdc_manifest_is_named_by_its_line(row: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="line 3: expected id, filename, md5"):
        find_slides([written(tmp_path / "m.txt", f"{HEADER}1\tok.svs\t{MD5}\t5\tlive\n{row}\n")])


def test_two_files_of_one_name_in_a_manifest_are_no_silent_loss(tmp_path: Path) -> None:
    text = HEADER + f"1\ta.svs\t{MD5}\t5\tlive\n2\ta.svs\t{MD5}\t5\tlive\n"
    with pytest.raises(InputError, match="Two slides share the name 'a'"):
        find_slides([written(tmp_path / "m.txt", text)])


def test_a_list_of_s5cmd_names_series(tmp_path: Path) -> None:
    lines = """# To download the files in this manifest:
# s5cmd --no-sign-request --endpoint-url https://s3.amazonaws.com run manifest.s5cmd
cp s3://idc-open-data/0a1b-2c/* .
cp 's3://idc-open-data/ffff/*' data/
cp s3://idc-open-data/0a1b-2c/* .
cp s3://idc-open-data/one.dcm .
"""
    found = find_slides([written(tmp_path / "m.s5cmd", lines)])
    assert [(s.slide_id, s.path) for s in found.slides] == [
        ("0a1b-2c", "s3://idc-open-data/0a1b-2c/"),
        ("ffff", "s3://idc-open-data/ffff/"),
        ("one", "s3://idc-open-data/one.dcm"),
    ]
    google = lines.replace("https://s3.amazonaws.com", "https://storage.googleapis.com")
    assert find_slides([written(tmp_path / "g.txt", google)]).slides[0].path == "gs://idc-open-data/0a1b-2c/"
    with pytest.raises(ManifestError, match="line 3: expected a command of s5cmd such as 'cp s3://BUCKET"):
        find_slides([written(tmp_path / "bad.txt", "cp s3://a/b/* .\n\nrm s3://a/b/*\n")])


@pytest.mark.parametrize(
    "columns",
    [
        {"series_aws_url": ["s3://idc-open-data/u1/*", "s3://idc-open-data/u2/*", "s3://idc-open-data/u3/*"]},
        {"aws_bucket": ["idc-open-data"] * 3, "crdc_series_uuid": ["u1", "u2", "u3"]},
    ],
    ids=["addresses", "buckets"],
)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_of_the_imaging_data_commons(columns: dict[str, list[str]], ending: str, tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "collection_id": "tcga_luad",
            "SeriesInstanceUID": ["1.2.3", "1.2.4", "1.2.5"],
            "Modality": ["SM", "SM", "CT"],
            **columns,
        }
    )
    path = tmp_path / f"idc.{ending}"
    table.to_csv(path, index=False) if ending == "csv" else table.to_parquet(path)
    found = find_slides([str(path)])
    assert [(s.slide_id, s.path, s.cohort) for s in found.slides] == [
        ("1.2.3", "s3://idc-open-data/u1/", "tcga_luad"),
        ("1.2.4", "s3://idc-open-data/u2/", "tcga_luad"),
    ]


def test_rows_of_our_own_manifest_may_be_addresses(tmp_path: Path) -> None:
    local = tmp_path / "b.svs"
    local.write_bytes(b"x")
    text = f"path,slide_id,size,md5\ns3://b/x/a.svs,,77,{MD5}\nhttps://h/data/12,named,,\nfile://{local},,,\n"
    found = find_slides([written(tmp_path / "m.csv", text)])
    a, named, b = found.slides
    assert (a.slide_id, a.path, a.size_bytes, a.md5) == ("a", "s3://b/x/a.svs", 77, MD5.lower())
    assert (named.slide_id, named.path) == ("named", "https://h/data/12")
    assert (b.slide_id, b.path) == ("b", str(local))
    assert wanted_of(b) is None
    assert not found.notes
    with pytest.raises(ManifestError, match="line 2: expected md5 of 32 hex digits"):
        find_slides([written(tmp_path / "n.csv", "path,md5\ns3://b/a.svs,12\n")])


def test_an_address_is_a_slide_and_keeps_its_ending_out_of_the_id(tmp_path: Path) -> None:
    found = find_slides(["https://host/p/scan%201.ndpi?X-Amz-Signature=abc", "s3://b/TCGA-1.uuid.svs"])
    assert [s.slide_id for s in found.slides] == ["scan 1", "TCGA-1.uuid"]
    local = tmp_path / "c.svs"
    local.write_bytes(b"x")
    assert find_slides([f"file://{local}"]).slides == [SlideInput("c", str(local))]


@pytest.fixture(scope="module")
def bucket() -> Bucket:  # type: ignore[misc]
    with s3_server() as running:
        yield running


def test_a_folder_of_a_bucket_is_searched(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    for key in ("p/x/scan.svs", "p/y/scan.svs", "p/dicom/1.dcm", "p/dicom/2.dcm", "p/readme.md"):
        bucket.put(key, b"data")
    found = find_slides(["s3://slides/p/"])
    assert {s.path: s.slide_id for s in found.slides} == {
        "s3://slides/p/x/scan.svs": "x__scan",
        "s3://slides/p/y/scan.svs": "y__scan",
        "s3://slides/p/dicom/": "dicom",
    }
    assert [s.path for s in found.skipped] == ["s3://slides/p/readme.md"]
    with pytest.raises(InputError, match="no slide below this address"):
        find_slides(["s3://slides/nothing/"])
