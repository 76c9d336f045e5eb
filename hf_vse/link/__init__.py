"""Record linkage: which records of two catalogues, or of one, are the same thing (CLIPPINGS, arXiv 2304.03464).

What other rooms use:

- `run`: `link_records`, from two sets of records to links with their runners-up, threshold and metrics
- `identify`: which thing of a labelled gallery a photograph shows, or none (open-set identification)
- `records`: `read_records`, the records of a folder, a file or a gallery with their pooled vectors
- `labels`: `read_labels`, known pairs; `output`: `write_links`, the CSV file
- `judging`: `read_links`, such a file with its records, and what a person says of them
"""
