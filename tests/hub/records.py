"""The record of a run on COCO, as `metrics.json` holds it, with paths and a secret that are nobody's business."""

from typing import Any

HOME = "/home/somebody"


def metrics(offset: float) -> dict[str, float]:
    names = [f"{side}_{level}" for side in ("i2t", "t2i") for level in ("r1", "r5", "r10", "medr", "meanr")]
    found = {name: offset + 3.14159 * place for place, name in enumerate(names)}
    return found | {"rsum": sum(value for name, value in found.items() if "_r" in name)}


def split(offset: float, **more: Any) -> dict[str, Any]:
    chance = {f"{side}_r{level}": level / 50 for side in ("i2t", "t2i") for level in (1, 5, 10)}
    sizes = {"images": 5000, "captions": 25000, "broken_images": 1, "fingerprint": "0123456789abcdef"}
    return sizes | {"metrics": metrics(offset), "chance": chance} | more


def stage(name: str, loss_type: str) -> dict[str, Any]:
    return {"name": name, "loss_type": loss_type, "seconds": 90.0, "steps": 1200, "epochs": 3.0}


def coco_record() -> dict[str, Any]:
    return {
        "dataset": "coco",
        "loss_type": "hardnce",
        "metrics": {"validation": split(10), "test": split(11, metrics_1k_folds=metrics(40))},
        "stages": [stage("base", "hinge_sum"), stage("contrastive", "hardnce")],
        "environment": {"versions": {"torch": "2.13.0"}, "device": "a GPU", "processes": 2},
        "recipe": {
            "dataset": "coco",
            "data_dir": f"{HOME}/photographs/coco",
            "features": "../features/grid.npy",
            "image_tower": f"{HOME}/towers/resnet",
            "text_tower": "org/words",
            "output_dir": f"{HOME}/runs/first",
            "hub_token": "hf_secret",
            "run_name": f"as in {HOME}/notes.txt",
            "learning_rate": 2e-4,
            "stages": [{"name": "base"}, {"name": "contrastive", "learning_rate": 1e-4}],
        },
    }
