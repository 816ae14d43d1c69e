"""Tables from files, also odd ones."""

import zipfile

import numpy as np
import pandas as pd
import pytest

from pyro_lvm.datasets.tables import read_table


@pytest.mark.parametrize(
    ("text", "columns", "missing"),
    [
        ("a,b\n1,2\n3,\n", ["a", "b"], 1),
        ("1,2\n3,NA\n", ["column 0", "column 1"], 1),
        ("1,NA\n3,4\n", ["column 0", "column 1"], 1),
        ("\n1,2\n3,4\n", ["column 0", "column 1"], 0),
        ("\ufeffa,b\n1,2\n3,4\n", ["a", "b"], 0),
        ("\ufeff1,2\n3,4\n", ["column 0", "column 1"], 0),
        ("a,b\nTrue,1\nFalse,2\n", ["a", "b"], 0),
    ],
)
def test_csv(tmp_path, text, columns, missing):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    table = read_table(str(path))
    assert list(table.columns) == columns
    assert len(table) == 2
    assert table.isna().to_numpy().sum() == missing


ARRAYS = {
    "one column": (np.arange(3.0), (3, 1)),
    "big-endian": (np.ones((2, 3), dtype=">f4"), (2, 3)),
    "records": (np.zeros(2, dtype=[("a", float), ("b", int)]), (2, 2)),
    "truth values": (np.ones((2, 2), dtype=bool), (2, 2)),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(tmp_path, kind):
    array, shape = ARRAYS[kind]
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", x=array, y=np.zeros(7))
    for name in ("a.npy", "a.npz"):
        assert read_table(str(tmp_path / name)).shape == shape


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content, allow_pickle=True)


ODD = {
    "header.csv": (b"a,b\n", "it has no rows, only a header"),
    "blank.csv": (b"\n\n", "the file is empty"),
    "text.csv": (b"a,b\n1,x\n", "column 'b' holds text; drop or encode it"),
    "dates.csv": (b"a\n2020-01-01\n", "holds text"),
    "latin.csv": "a,b\nä,1\n".encode("latin-1"),
    "ragged.csv": (b"a,b\n1,2\n1,2,3\n", "Expected 2 fields in line 3, saw 3"),
    "zeros.csv": bytes(100),
    "value.npy": (np.float64(3.0), r"expected rows and columns, got shape \(\)"),
    "cube.npy": (np.zeros((2, 2, 2)), r"expected rows and columns, got shape \(2, 2, 2\)"),
    "none.npy": (np.zeros((0, 2)), "it has no rows"),
    "empty.npy": (np.zeros(0), "it has no rows"),
    "no columns.npy": (np.zeros((2, 0)), "it has no columns"),
    "objects.npy": (np.array([None, {}]), "Object arrays cannot be loaded"),
    "words.npy": (np.array([["a", "b"]]), "holds text"),
    "days.npy": (np.array([["2020-01-01"]], dtype="M8[D]"), r"holds values of type datetime64"),
    "cut.npy": b"\x93NUMPY\x01\x00",
    "nothing.npy": b"",
    "several.npz": ({"a": np.zeros(2), "b": np.zeros(2)}, "it holds a, b; name the array to use 'x'"),
    "labels.npz": ({"z": np.zeros(2)}, "it holds z; name the array to use 'x'"),
    "no array.npz": ({}, "it holds no array"),
    "objects.npz": ({"x": np.array([None, {}])}, "Object arrays cannot be loaded"),
    "rubbish.npz": b"PK\x03\x04rubbish",
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_get_one_sentence(tmp_path, name):
    content, message = ODD[name] if isinstance(ODD[name], tuple) else (ODD[name], "not a table of numbers")
    write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as raised:
        read_table(str(tmp_path / name))
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)


def test_a_zip_with_a_damaged_array(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(1000.0))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[80:120] = bytes(40)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match="not a table of numbers"):
        read_table(str(tmp_path / "a.npz"))
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as file:
        file.writestr("x.txt", "hello")
    with pytest.raises(ValueError, match="not a table of numbers"):
        read_table(str(tmp_path / "b.npz"))


def test_parquet(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1")
    try:
        import pyarrow  # noqa: F401 - is it there?
    except ImportError:
        with pytest.raises(ValueError, match=r"expected pyarrow, .* not installed\. Run pip install pyarrow, or save"):
            read_table(str(path))
        return
    with pytest.raises(ValueError, match="not a table of numbers"):
        read_table(str(path))
    frame = pd.DataFrame({"a": [1.0, None], "b": pd.array([1, None], dtype="Int64")})
    frame.to_parquet(path)
    assert read_table(str(path)).isna().to_numpy().sum() == 2
    frame.assign(c=["u", "v"]).to_parquet(path)
    with pytest.raises(ValueError, match="column 'c' holds text"):
        read_table(str(path))
