"""From any source of images and captions to batches.

What the other rooms use:

- `sources.load_pairs`: any source in the columns of `schema.py`; `sources.with_validation` holds a part out.
- `spec.DataSpec`: which images and captions a run, a gallery or an evaluation is about; saved, read, loaded.
- `collator.VSECollator`, `sampler`, `pairs`: batches for training; `streams`: of shards, resumed where they were.
- `shards`: WebDataset and parquet shards named by a pattern, row by row.
- `images`, `decoding`, `features`, `digests`: reading image files and arrays, and telling their contents apart.
- `tokenization.train_word_tokenizer`: a tokenizer of the training captions.

`karpathy`, `columns`, `folders` and `scenes` each know one kind of source; `load_pairs` calls them.
"""
