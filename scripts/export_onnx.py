"""Exports the two towers of a trained model to ONNX and compares them with the model.

    python scripts/export_onnx.py --model runs/quickstart --output onnx

Needs `pip install 'hf_vse[onnx]'`. Writes `image_encoder.onnx`, `text_encoder.onnx`, and `onnx.json` with the opset,
the versions and the largest difference between the unit vectors of both. Runs the code of the installed package, not
code in the model folder. Usage:

    session = onnxruntime.InferenceSession("onnx/text_encoder.onnx")
    embeds = session.run(["embeds"], dict(processor(text=["a small red circle"], return_tensors="np")))[0]
"""

import argparse
import sys
from pathlib import Path


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder or Hub id")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--no_check", action="store_true", help="do not compare with the model")
    parser.add_argument("--by_region", action="store_true", help="features are sets of regions, not one vector each")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    from hf_vse.embed.load import load_encoder
    from hf_vse.errors import one_line_errors
    from hf_vse.hub.onnx_export import export_onnx

    with one_line_errors():
        encoder = load_encoder(arguments.model, device="cpu", kind="vse")
        try:
            record = export_onnx(
                encoder.model,
                encoder.processor,
                arguments.output,
                check=not arguments.no_check,
                by_region=arguments.by_region,
            )
        except ImportError as error:
            sys.exit(f"error: {error}")
    for side in ("image", "text"):
        written = record[side]
        found = written["largest_difference"]
        verdict = "not compared" if found is None else f"largest difference {found:.1e}"
        print(f"{arguments.output / written['file']}   {', '.join(written['inputs'])} -> embeds   {verdict}")


if __name__ == "__main__":
    main()
