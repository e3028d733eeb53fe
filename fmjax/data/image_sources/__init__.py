"""Where images with labels or captions lie: folders, caption files, tars, Parquet, IDX files, TFDS datasets."""
