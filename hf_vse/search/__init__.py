"""Galleries: vectors of images that are made once and searched often.

What other rooms use:

- `locations`: `open_store`, a gallery wherever it is
- `store`: `GalleryStore`, what every store does; `move_gallery`
- `gallery`: `GalleryIndex`, its `build`, `load`, `save` and `search`; `build`: `build_gallery`
- `model`: `open_model`, the encoder for queries to a gallery; `model_facts`, what a gallery records of its encoder
- `text_tower`: `open_text_tower`, sentences without torch; `on_demand`: with the model for photographs
- `shards`: `index_shards`, a gallery from shards by any number of processes; `claims`, how these share the work
- `pictures`: `find_images`, the images behind the items of a gallery
- `compression`: `Compression`, smaller vectors; `plan`: `IndexKind`, the kinds of index
- `gallery_images`: `read_metadata`, `is_unicode`

A folder is `folder_store` over `gallery`, `build`, `change`, `segments`, `columns` and `storage`; `nothing_new` tells
without the model that a folder of images is indexed already. An engine is one
file (`milvus`, `pgvector`) over `engine`, which searches, `fill`, which writes what has changed, and `pushdown`, by
which its filters mean what `filters` says.
"""
