"""A gallery of shards, encoded by Ray Data: for clusters where Ray starts, places and restarts the processes.

    pip install 'ray[data]'
    python scripts/launch/ray_index.py 'shards/{00000..00999}.tar' my_index --model DIR --parts /shared/parts

A row of the data set is the name of a shard. An actor encodes it and writes its part into the folder of `--parts`, as
`hf-vse index` does; the gallery is made of the parts. A lost actor is started again and repeats its shard. The two
commands can be mixed: one continues what the other began.

An actor reserves half a CPU by default. With a whole one, two actors on two cores leave nothing to the task that hands
them the shards, and all of them wait for ever.
"""

import argparse
from typing import Any

import numpy as np
import ray

from hf_vse import load_encoder
from hf_vse.data.shards import Shards, find_shards
from hf_vse.search.locations import open_store
from hf_vse.search.shards import ShardParts, index_shards


class EncodeShards:
    """An actor: one model, and the shards that it is given."""

    def __init__(self, shards: Shards, model: str, parts: str, batch_size: int):
        self.encoder = load_encoder(model)
        self.parts = ShardParts(shards, self.encoder, parts)
        self.batch_size = batch_size

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name in batch["part"].tolist():
            if name not in self.parts.there():
                self.parts.encode(name, self.encoder, self.batch_size, num_workers=0, progress=False)
        return batch


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="pattern, as of `hf-vse index`")
    parser.add_argument("index", help="the gallery: a folder, or milvus://..., postgresql://...")
    parser.add_argument("--model", required=True)
    parser.add_argument("--parts", required=True, help="folder that all machines see, for what is encoded")
    parser.add_argument("--actors", type=int, default=2, help="processes with a model each [2]")
    parser.add_argument("--num_gpus", type=float, default=0, help="of an actor [0]")
    parser.add_argument("--num_cpus", type=float, default=0.5, help="of an actor [0.5]")
    parser.add_argument("--batch_size", type=int, default=64, help="images encoded at once [64]")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = parse(argv)
    shards, encoder = find_shards(arguments.shards), load_encoder(arguments.model)
    parts = ShardParts(shards, encoder, arguments.parts)
    parts.folder.mkdir(parents=True, exist_ok=True)
    if left := [{"part": name} for name in parts.shards.keys() - parts.there()]:
        ray.data.from_items(left, override_num_blocks=len(left)).map_batches(
            EncodeShards,
            fn_constructor_args=(shards, arguments.model, arguments.parts, arguments.batch_size),
            batch_size=1,
            concurrency=min(arguments.actors, len(left)),
            num_cpus=arguments.num_cpus,
            num_gpus=arguments.num_gpus,
        ).materialize()
    index_shards(shards, encoder, arguments.index, arguments.parts, batch_size=arguments.batch_size)
    return {"items": len(open_store(arguments.index)), "encoded": len(left)}


if __name__ == "__main__":
    print(main())
