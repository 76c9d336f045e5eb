"""From any source of images and captions to batches; begin with `sources.load_pairs`."""
