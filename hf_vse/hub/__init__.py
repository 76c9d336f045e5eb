"""Publishing: models with their cards, data sets, the demo Space, and the formats of other libraries.

For others: `push_model`, `leave_card` of `push`; `push_data`, `without_broken_images` of `data`; `push_space`,
`check_space` of `space`; `export_model` of `export`; `export_onnx` of `onnx_export`; `MODEL_FILES`, `files_in` of
`model_files`; `METRICS` of `record`.

The words of the cards are in `card.md.j2`, `exported.md.j2` and `data_card.md.j2`. What is published of
a folder is decided in `contents`, whether it is a whole model in `directory`, and which texts nobody else should get
in `private`.
"""
