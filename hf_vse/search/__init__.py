"""Galleries: vectors of images that are made once and searched often.

What other rooms use:

- `gallery`: `GalleryIndex`, its `build`, `load`, `save` and `search`; `build`: `build_gallery`
- `model`: `open_model`, the encoder for queries to a gallery; `model_facts`, what a gallery records of its encoder
- `pictures`: `find_images`, the images behind the items of a gallery
- `compression`: `Compression`, smaller vectors; `plan`: `IndexKind`, the kinds of index
- `gallery_images`: `read_metadata`, `is_unicode`; `storage`: `check_place`, `locked`, before something is written
"""
