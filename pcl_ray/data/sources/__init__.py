"""Where images come from beside folders: arrays, shards (tar and Parquet files) here or in object storage,
lists of files, tables of labels.
"""
