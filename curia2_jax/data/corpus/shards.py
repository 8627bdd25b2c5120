"""ArrayRecord shards whose records TensorFlow Datasets can open, written and read without TensorFlow.

Each ArrayRecord holds one serialized `tf.train.Example` with the single bytes feature `slice`, a record of
`records.py`. The files are uncompressed and grouped one by one: the payload is compressed already, and any
larger group makes a random read tens of times slower.
"""

import collections
import json
import pathlib
import threading

from array_record.python import array_record_module

from curia2_jax.data.corpus import layout
from curia2_jax.data.corpus.records import CorruptRecord

FEATURE = "slice"
# Open and read costs of ArrayRecord grow with the records in a file; at this many a read takes 0.04 ms.
MAX_RECORDS = 16_384
_WRITE = "group_size:1,uncompressed"
_SCALAR_OF_BYTES = {"dtype": "string", "encoding": "none", "shape": {}}
_READ = "readahead_buffer_size:0,max_parallelism:0"


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(tag: int, payload: bytes) -> bytes:
    return bytes([tag]) + _varint(len(payload)) + payload


def to_example(record: bytes) -> bytes:
    """Serialized tf.train.Example {'slice': record}, byte for byte what TensorFlow Datasets writes."""
    bytes_list = _field(0x0A, record)
    entry = _field(0x0A, FEATURE.encode()) + _field(0x12, _field(0x0A, bytes_list))
    return _field(0x0A, _field(0x0A, entry))


def from_example(example: bytes) -> memoryview:
    """The record inside a serialized tf.train.Example.

    Raises:
      CorruptRecord: the bytes are something else.
    """
    view, start = memoryview(example), 0

    def enter(tag: int, start: int) -> tuple[int, int]:
        if start >= len(view) or view[start] != tag:
            raise CorruptRecord("not a tf.train.Example with one feature 'slice'")
        length, shift, start = 0, 0, start + 1
        while True:
            if start >= len(view) or shift > 63:
                raise CorruptRecord("not a tf.train.Example with one feature 'slice'")
            byte = view[start]
            length, shift, start = length | (byte & 0x7F) << shift, shift + 7, start + 1
            if byte < 0x80:
                return start, length

    for tag in (0x0A, 0x0A):
        start, length = enter(tag, start)
    start, length = enter(0x0A, start)
    start += length
    for tag in (0x12, 0x0A, 0x0A):
        start, length = enter(tag, start)
    if start + length != len(view):
        raise CorruptRecord("a tf.train.Example of another length")
    return view[start:]


def writer(path: pathlib.Path) -> array_record_module.ArrayRecordWriter:
    """An open shard; `write(to_example(record))` for each record, then `close()`."""
    return array_record_module.ArrayRecordWriter(str(path), _WRITE)


class ShardReader:
    """Random reads from many shards, opened when first asked for, with a bounded number open at once.

    Thread-safe. An open shard costs a file descriptor and about 25 bytes of memory a record.
    """

    def __init__(self, paths: list[pathlib.Path], max_open: int = 256):
        self._paths, self._max_open = paths, max_open
        self._open: collections.OrderedDict[int, array_record_module.ArrayRecordReader] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: int, row: int) -> memoryview:
        """Record at `row` of `shard`.

        Raises:
          CorruptRecord: the file cannot deliver it.
        """
        with self._lock:
            reader = self._open.get(shard)
            if reader is not None:
                self._open.move_to_end(shard)
        if reader is None:
            reader = _open(self._paths[shard])  # outside of the lock: it takes most of a millisecond
            with self._lock:
                self._open[shard] = reader
                if len(self._open) > self._max_open:
                    self._open.popitem(last=False)  # closed once no other thread reads from it
        try:
            example = reader.read([row])[0]
        except (RuntimeError, IndexError, ValueError) as error:
            raise CorruptRecord(f"{self._paths[shard].name}, record {row}: {error}") from error
        return from_example(example)


def _open(path: pathlib.Path) -> array_record_module.ArrayRecordReader:
    try:
        return array_record_module.ArrayRecordReader(str(path), _READ)
    except (RuntimeError, ValueError) as error:
        raise CorruptRecord(f"{path.name}: {error}") from error


def count(path: pathlib.Path) -> int:
    """Number of records in a shard.

    Raises:
      CorruptRecord: the file is no shard.
    """
    return _open(path).num_records()


def write_metadata(folder: pathlib.Path, lengths: list[int], total_bytes: int) -> None:
    """Files `features.json` and `dataset_info.json`, with which `tfds.builder_from_directory(folder)` opens the shards.

    `lengths` are the records of each shard, in order; `total_bytes` is what they take. The files are byte for byte what
    TensorFlow Datasets writes. The tests import it and this does not: that takes a second, and replaces Python's import
    for all threads meanwhile, which breaks those that import something just then.
    """
    split = {
        "name": layout.SPLIT,
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "numBytes": str(total_bytes),
        "shardLengths": [str(length) for length in lengths],
    }
    info = {"name": layout.DATASET, "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
    module = "tensorflow_datasets.core.features"
    tensor = {"pythonClassName": f"{module}.tensor_feature.Tensor", "tensor": _SCALAR_OF_BYTES}
    features = {
        "pythonClassName": f"{module}.features_dict.FeaturesDict",
        "featuresDict": {"features": {FEATURE: tensor}},
    }
    (folder / layout.DATASET_INFO).write_text(json.dumps(info, indent=2, sort_keys=True))
    (folder / layout.FEATURES).write_text(json.dumps(features, indent=4, sort_keys=True))
