"""Every file name of a corpus, once.

CORPUS/
  contract.json                         what was done to every slice, and counts; written last: with it this is a corpus
  curia-slices.array_record-*           the shards; with dataset_info.json and features.json they are a dataset of
                                        TensorFlow Datasets
  index.parquet                         a row a slice
  columns/                              the same, memory-mapped: rows.npy, NAME.npy, NAME.vocabulary.arrow
  labels/SERIES.npz                     label maps
  benchmark/TASK/                       benchmarks cut from them
  preview/                              pictures
  local/                                what must not leave the site: salt, options, sources, quarantine, corrections,
                                        what is known of each series, hashes of the names of files that were looked
                                        at and of the keys of patients who withdrew
  work/                                 only while an ingest goes on
    options.json plan.json              what was asked for; how many parts there are
    catalog.sqlite tables.sqlite        what was found of each file; tables while they are sorted
    plan-NNNNN.json                     the scans of a part
    now-NNNNN                           the scan that a part is at
    fatal.json                          scans that ended the process which read them
    journal.json                        what is left to do when a finished corpus is changed
    shard-NNNNN.array_record .parquet   the records and index rows of a part
    shard-NNNNN.json                    its report, written last: with it the part is finished
    labels-SERIES.npz samples-*.npz     label maps and samples of benchmarks
"""

CONTRACT = "contract.json"
DATASET_INFO, FEATURES = "dataset_info.json", "features.json"
DATASET, SPLIT = "curia", "slices"  # as TensorFlow Datasets calls them
INDEX = "index.parquet"
COLUMNS, LABELS, BENCHMARK, PREVIEW, LOCAL, WORK = "columns", "labels", "benchmark", "preview", "local", "work"
ROWS = "rows"  # the column that holds several

# In BENCHMARK/TASK: splits that are not learned from, and in each the table of its samples, with a column of patients.
TESTED, SAMPLES, PATIENT_OF_SAMPLE = ("test", "val"), "extra_data.npy", "patient_id"

# In LOCAL; the options in WORK too.
SALT, OPTIONS, SUMMARY = "salt", "options.json", "summary.json"
QUARANTINE, CORRECTIONS, SOURCES = "quarantine.csv", "corrections.csv", "sources.csv"
QUARANTINE_PAGE, SERIES, FORGOTTEN = "quarantine.html", "series.parquet", "forgotten.json"
SEEN = "seen.sqlite"

# In WORK.
CATALOG, SORTED = "catalog.sqlite", "tables.sqlite"
PLAN, FATAL, JOURNAL = "plan.json", "fatal.json", "journal.json"
ANY_PART_NOW = "now-*"


ANY_SHARD = f"{DATASET}-{SPLIT}.array_record-*"


def shard(number: int, count: int) -> str:
    """Shard `number` of `count`, as TensorFlow Datasets expects it."""
    return f"{DATASET}-{SPLIT}.array_record-{number:05d}-of-{count:05d}"


def column(name: str) -> str:
    """Values of an index column."""
    return f"{COLUMNS}/{name}.npy"


def vocabulary(name: str) -> str:
    """Strings of a text column."""
    return f"{COLUMNS}/{name}.vocabulary.arrow"


def label_maps(series: str) -> str:
    """Label maps of a series."""
    return f"{LABELS}/{series}.npz"


def part_plan(number: int) -> str:
    """Scans of a part."""
    return f"plan-{number:05d}.json"


def part_now(number: int) -> str:
    """Name of the scan that a part is at."""
    return f"now-{number:05d}"


def part_records(number: int) -> str:
    """Records of a part."""
    return f"shard-{number:05d}.array_record"


def part_kept(number: int) -> str:
    """Those records of a part that are added to a corpus."""
    return f"kept-{number:05d}.array_record"


def part_rows(number: int) -> str:
    """Index rows of a part."""
    return f"shard-{number:05d}.parquet"


def part_report(number: int) -> str:
    """Report of a part."""
    return f"shard-{number:05d}.json"


def part_label_maps(series: str) -> str:
    """Label maps of a series that is not in the corpus yet."""
    return f"labels-{series}.npz"


def part_samples(series: str, task: str, number: int) -> str:
    """Samples that one of the label maps of a series gives to a benchmark."""
    return f"samples-{series}-{task}-{number}.npz"
