"""Exports the two towers of a trained model to ONNX; the same as `hf-vse export MODEL --format onnx --output FOLDER`.

    python scripts/export_onnx.py --model runs/quickstart --output onnx

Needs `pip install 'hf_vse[onnx]'`. Writes `image_encoder.onnx`, `text_encoder.onnx`, and `onnx.json` with the opset,
the versions and the largest difference between the unit vectors of both. Runs the code of the installed package, not
code in the model folder. Usage:

    session = onnxruntime.InferenceSession("onnx/text_encoder.onnx")
    embeds = session.run(["embeds"], dict(processor(text=["a small red circle"], return_tensors="np")))[0]
"""

import argparse
import sys


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder or Hub id")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--no_check", action="store_true", help="do not compare with the model")
    parser.add_argument("--by_region", action="store_true", help="features are sets of regions, not one vector each")
    arguments = parser.parse_args()
    from hf_vse.cli.main import main as command

    flags = [f"--{name}" for name in ("no_check", "by_region") if getattr(arguments, name)]
    return command(["export", arguments.model, "--format", "onnx", "--output", arguments.output, *flags])


if __name__ == "__main__":
    sys.exit(main())
