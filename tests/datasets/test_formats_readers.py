"""Each public format, written as its publishers write it, comes out as the same pictures and nuclei."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsiseg.datasets.formats import FORMATS, convert, detect_format, repair_overlap_sums
from wsiseg.errors import FormatError
from wsiseg.labels import compact_labels, read_labels
from wsiseg.metrics import instance_scores

RGB = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def nuclei():
    """Three rectangles, two of them touching, in 40 x 50 px."""
    labels = np.zeros((40, 50), np.int32)
    labels[4:12, 5:15] = 1
    labels[4:12, 15:22] = 2
    labels[25:36, 30:44] = 3
    return labels


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        import tifffile

        tifffile.imwrite(path, array)
    elif path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return path


def same_partition(a, b):
    return (compact_labels(a) > 0).tolist() == (b > 0).tolist() and len({*zip(a.ravel(), b.ravel(), strict=True)}) == len(
        np.unique(b)
    )


def converted(source, out, image_id, expected_format, labels=None, **options):
    """Detect, convert, and check one image of the result."""
    assert detect_format(source) == expected_format
    result = convert("auto", source, out, **options)
    import json

    info = json.loads((out / "INFO.json").read_text())
    assert result.n_images == info["n_images"] == len(list(out.glob("*.labels.png")))
    assert (np.asarray(Image.open(out / f"{image_id}.png")) == RGB).all()
    got = read_labels(out / f"{image_id}.labels.png")
    assert same_partition(got, nuclei() if labels is None else labels)
    return info


def test_nucfuse_tif_and_npy(tmp_path):
    save(tmp_path / "s/images/monuseg 01.tif", RGB)
    save(tmp_path / "s/labels/monuseg 01.npy", nuclei().astype(np.float64) * 7)
    info = converted(tmp_path / "s", tmp_path / "o", "monuseg_01", "nucfuse", mpp=0.5)
    assert info["mpp"] == 0.5
    save(tmp_path / "s/labels/lost.npy", nuclei())
    with pytest.raises(FormatError, match=r"lost\.tif"):
        convert("nucfuse", tmp_path / "s", tmp_path / "p")


def test_nucfuse_splits_with_the_same_stem(tmp_path):
    for split, shift in (("train", 0), ("test", 5)):
        save(tmp_path / f"s/{split}/a.tif", np.roll(RGB, shift, 0))
        save(tmp_path / f"s/{split}/a.npy", np.roll(nuclei(), shift, 0))
    convert("nucfuse", tmp_path / "s", tmp_path / "o")
    for split, shift in (("train", 0), ("test", 5)):
        assert (np.asarray(Image.open(tmp_path / f"o/{split}_a.png")) == np.roll(RGB, shift, 0)).all()
        assert same_partition(read_labels(tmp_path / f"o/{split}_a.labels.png"), np.roll(nuclei(), shift, 0))


APERIO = """<?xml version="1.0" encoding="UTF-8"?>
<Annotations MicronsPerPixel="0.252000"><Annotation Id="1" Name="" ReadOnly="0" Visible="1"><Attributes/>
<Regions><RegionAttributeHeaders/>{regions}</Regions><Plots/></Annotation></Annotations>"""


def region(number, corners):
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners)
    return f'<Region Id="{number}" Type="0" Zoom="0.1" Area="9"><Attributes/><Vertices>{vertices}</Vertices></Region>'


def test_monuseg_xml_first_region_owns_overlaps(tmp_path):
    corners = [
        [(5.2, 4.3), (15.1, 4.3), (15.1, 12.2), (5.2, 12.2)],  # pixel centers 5.5 .. 14.5 and 4.5 .. 11.5 lie inside
        [(10.0, 4.0), (22.0, 4.0), (22.0, 12.0), (10.0, 12.0)],  # reaches into the first, which came first
        [(30, 25), (44, 25), (44, 36), (30, 36)],
    ]
    stem = "TCGA-A7-A13E-01Z-00-DX1"
    save(tmp_path / f"s/Tissue Images/{stem}.tif", RGB)
    (tmp_path / "s/Annotations").mkdir()
    xml = tmp_path / f"s/Annotations/{stem}.xml"
    xml.write_text(APERIO.format(regions="".join(region(i, c) for i, c in enumerate(corners, 1))))
    info = converted(tmp_path / "s", tmp_path / "o", stem, "monuseg")
    assert info["mpp_per_image"] == {stem: 0.252}
    assert info["group_per_image"] == {stem: "TCGA-A7-A13E"}
    xml.write_text(APERIO.format(regions="<Region><Vertices><Vertex X='1'/></Vertices></Region>"))
    with pytest.raises(FormatError, match="not an Aperio"):
        convert("monuseg", tmp_path / "s", tmp_path / "p")


def overlapping():
    """Nuclei 1 and 2 overlap by two columns: as ids with the greater on top, and as the published sum."""
    one, two, three = (nuclei() == k for k in (1, 2, 3))
    two = two.copy()
    two[4:12, 13:15] = True
    greater = np.where(three, 3, np.where(two, 2, np.where(one, 1, 0)))
    return greater, one * 1 + two * 2 + three * 3


def test_label_masks_modify_are_preferred(tmp_path):
    greater, summed = overlapping()
    for organ in ("human bladder", "mouse fat"):
        name = organ.replace(" ", "_") + "_01"
        save(tmp_path / f"s/{organ}/tissue images/{name}.png", RGB)
        save(tmp_path / f"s/{organ}/label masks modify/{name}.tif", greater.astype(np.uint16))
        save(tmp_path / f"s/{organ}/label masks/{name}.tif", summed.astype(np.uint16))
    info = converted(tmp_path / "s", tmp_path / "o", "human_bladder_01", "imagej", greater)
    assert info["organ_per_image"] == {"human_bladder_01": "human bladder", "mouse_fat_01": "mouse fat"}


def test_summed_overlaps_are_given_back(tmp_path):
    greater, _ = overlapping()
    summed = overlapping()[1]
    assert len(np.unique(summed)) == 4  # the trap: the sum 1 + 2 is nucleus 3's id
    save(tmp_path / "s/tissue images/a.tif", RGB)
    save(tmp_path / "s/label masks/a.tif", summed.astype(np.uint16))
    info = converted(tmp_path / "s", tmp_path / "o", "a", "imagej", greater)
    assert info["n_nuclei"] == 3
    assert "1 overlap region" in info["notes"][0]


@pytest.mark.parametrize("seed", range(8))
def test_repair_of_random_overlapping_discs(seed):
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:150, :150]
    summed, greater = np.zeros((150, 150), np.int32), np.zeros((150, 150), np.int32)
    for k in range(1, 31):
        row, column = divmod(k - 1, 6)
        disc = (yy - 15 - 25 * row) ** 2 + (xx - 15 - 24 * column) ** 2 <= rng.uniform(10.0, 13.5) ** 2
        summed += k * disc
        greater[disc] = k
    assert len(np.unique(summed)) > 31 or (summed != greater).any()
    got, n_regions = repair_overlap_sums(summed)
    assert (got == greater).all()
    assert n_regions > 0


def test_three_nuclei_over_one_another():
    summed, greater = np.zeros((40, 40), np.int32), np.zeros((40, 40), np.int32)
    ids = [5, 9, 11]
    for k in range(1, 12):  # the others lie apart, so that ids run 1..11
        if k not in ids:
            summed[2, 3 * k] = greater[2, 3 * k] = k
    for k, (y, x) in zip(ids, [(10, 10), (10, 18), (17, 14)], strict=True):
        summed[y : y + 12, x : x + 12] += k
        greater[y : y + 12, x : x + 12] = k
    assert (summed == 25).any()
    assert (repair_overlap_sums(summed)[0] == greater).all()


def test_ids_that_nothing_explains_are_refused():
    labels = nuclei()
    labels[38, 2] = 77
    with pytest.raises(FormatError, match=r"tile_3: id 77 can be neither .*id 4 is missing.*modify"):
        repair_overlap_sums(labels, "tile_3")
    untouched, n = repair_overlap_sums(nuclei())
    assert n == 0
    assert (untouched == nuclei()).all()


def roi_zip(path, corner_lists):
    roifile = pytest.importorskip("roifile")
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for number, corners in enumerate(corner_lists):
            roi = roifile.ImagejRoi.frompoints(np.array(corners, np.float32))
            roi.roitype = roifile.ROI_TYPE.POLYGON
            archive.writestr(f"{number:04d}.roi", roi.tobytes())


def test_imagej_roi_zips(tmp_path):
    save(tmp_path / "s/human brain/tissue images/human_brain_01.png", RGB)
    boxes = [(5, 4, 15, 12), (13, 4, 22, 12), (30, 25, 44, 36)]
    corners = [[(a, b), (c, b), (c, d), (a, d)] for a, b, c, d in boxes]
    roi_zip(tmp_path / "s/human brain/Imagej_zips/human_brain_01.zip", corners)
    converted(tmp_path / "s", tmp_path / "o", "human_brain_01", "imagej", overlapping()[0])
    (tmp_path / "s/human brain/Imagej_zips/human_brain_01.zip").write_bytes(b"no zip")
    with pytest.raises(FormatError, match="ImageJ"):
        convert("imagej", tmp_path / "s", tmp_path / "p")


def test_consep_and_cpm_mat(tmp_path):
    from scipy.io import savemat

    inst = nuclei().astype(np.float64)
    save(tmp_path / "c/Train/Images/train_1.png", np.dstack([RGB, np.full((40, 50), 255, np.uint8)]))  # RGBA, as published
    (tmp_path / "c/Train/Labels").mkdir()
    extra = {"type_map": inst * 0, "inst_type": np.ones((3, 1)), "inst_centroid": np.ones((3, 2))}
    savemat(tmp_path / "c/Train/Labels/train_1.mat", {"inst_map": inst, **extra})
    info = converted(tmp_path / "c", tmp_path / "o", "consep_train_1", "mat")
    assert (info["mpp"], info["organs"]) == (0.25, ["colon"])
    save(tmp_path / "m/train/Images/image_00.png", RGB)
    (tmp_path / "m/train/Labels").mkdir()
    savemat(tmp_path / "m/train/Labels/image_00.mat", {"inst_map": inst})
    assert converted(tmp_path / "m", tmp_path / "q", "train_image_00", "mat")["mpp"] is None


def test_dsb2018_one_mask_a_nucleus(tmp_path):
    save(tmp_path / "s/00ae65/images/00ae65.png", np.dstack([RGB, np.full((40, 50), 255, np.uint8)]))
    for k in (1, 2, 3):
        save(tmp_path / f"s/00ae65/masks/{k}.png", ((nuclei() == k) * 255).astype(np.uint8))
    assert converted(tmp_path / "s", tmp_path / "o", "00ae65", "dsb2018")["mpp"] is None
    save(tmp_path / "s/00ae65/images/other.png", RGB)
    with pytest.raises(FormatError, match="expected one picture, got 2"):
        convert("dsb2018", tmp_path / "s", tmp_path / "p")


def test_pannuke_classes_become_nuclei(tmp_path):
    masks = np.zeros((2, 40, 50, 6))
    masks[1, :, :, 0] = np.where(nuclei() == 1, 4, 0)
    masks[1, :, :, 3] = np.where(nuclei() == 2, 4, 0)  # the same id in another class is another nucleus
    masks[1, :, :, 4] = np.where(nuclei() == 3, 9, 0)
    masks[1, :, :, 5] = nuclei() == 0
    masks[0, :, :, 5] = 1
    save(tmp_path / "s/Fold 2/images/fold2/images.npy", np.stack([RGB, RGB]).astype(np.float64))
    save(tmp_path / "s/Fold 2/images/fold2/types.npy", np.array(["Breast", "Bile-duct"]))
    save(tmp_path / "s/Fold 2/masks/fold2/masks.npy", masks)
    info = converted(tmp_path / "s", tmp_path / "o", "pannuke_fold2_0001", "pannuke")
    assert info["organ_per_image"]["pannuke_fold2_0001"] == "bile-duct"
    assert info["nuclei_per_image"] == {"pannuke_fold2_0000": 0, "pannuke_fold2_0001": 3}
    save(tmp_path / "s/Fold 2/masks/fold2/masks.npy", masks[:1])
    with pytest.raises(FormatError, match="expected"):
        convert("pannuke", tmp_path / "s", tmp_path / "p")


def test_pcns_with_crosswalk(tmp_path):
    save(tmp_path / "s/data/12_crop.png", RGB)
    save(tmp_path / "s/data/12_labeled_mask_corrected.png", nuclei().astype(np.uint16) * 256)
    (tmp_path / "s/pcns_crosswalk.txt").write_text("Patch-ID,CancerType,WSI-ID\n12,BRCA,TCGA-X\n")
    info = converted(tmp_path / "s", tmp_path / "o", "pcns_0012", "pcns")
    assert (info["mpp"], info["organs"]) == (0.25, ["brca"])
    (tmp_path / "s/data/12_crop.png").unlink()
    with pytest.raises(FormatError, match=r"12_crop\.png"):
        convert("pcns", tmp_path / "s", tmp_path / "p")


def test_tnbc_binary_masks(tmp_path):
    apart = np.where(nuclei() == 2, 0, nuclei())
    apart[4:12, 16:22] = 2
    save(tmp_path / "s/Slide_04/04_2.png", RGB)
    save(tmp_path / "s/GT_04/04_2.png", ((apart > 0) * 255).astype(np.uint8))
    info = converted(tmp_path / "s", tmp_path / "o", "tnbc_04_2", "tnbc", apart)
    assert info["group_per_image"] == {"tnbc_04_2": "04"}
    save(tmp_path / "s/Slide_04/04_3.png", RGB)
    with pytest.raises(FormatError, match="04_3"):
        convert("tnbc", tmp_path / "s", tmp_path / "p")


def test_every_format_states_what_it_is(tmp_path):
    with pytest.raises(FormatError, match="not a known data set") as caught:
        detect_format(tmp_path)
    assert all(name in str(caught.value) for name in FORMATS)
    with pytest.raises(FormatError, match="the folder does not exist"):
        detect_format(tmp_path / "none")
    with pytest.raises(FormatError, match="no format 'kumar'"):
        convert("kumar", tmp_path, tmp_path / "o")
    for name in FORMATS:
        with pytest.raises(FormatError, match="no annotated image"):
            convert(name, tmp_path, tmp_path / f"o_{name}")


@pytest.mark.skipif("WSISEG_DATA" not in os.environ, reason="needs the given data sets")
@pytest.mark.parametrize("name", ["human_bladder_01", "human_bladder_02"])
def test_real_rois_give_the_published_label_mask(tmp_path, name):
    truth = Path(os.environ["WSISEG_DATA"]) / "formats" / "nuc_eval_examples" / "GT"
    expected = read_labels(truth / f"{name}.tif")
    save(tmp_path / f"s/tissue images/{name}.png", np.zeros((*expected.shape, 3), np.uint8))
    (tmp_path / "s/zips").mkdir()
    with zipfile.ZipFile(tmp_path / f"s/zips/{name}.zip", "w") as archive:
        for roi in sorted((truth / f"{name}_roiset").glob("*.roi")):
            archive.write(roi, roi.name)
    convert("imagej", tmp_path / "s", tmp_path / "o")
    got = read_labels(tmp_path / f"o/{name}.labels.png")
    scores = instance_scores(got, expected)
    assert scores.n_pred == scores.n_truth == scores.matched[0] == scores.matched[5]  # every nucleus at IoU > 0.75
    assert scores.dice > 0.98
