"""`deepsweep export`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from models.registry import DEFAULT_MODEL, load_spec
from models.spec import ModelError
from scanner.errors import UserError

if TYPE_CHECKING:
    from models.spec import ModelSpec


@click.command("export")
@click.option(
    "--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME|DIR", help="Built-in model, or a folder of one."
)
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder that the files go to."
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="PREP",
    help="Also write an int8 model, calibrated and measured on what `deepsweep prepare` wrote.",
)
def export(model: str, out: Path, calibrate: Path | None) -> None:
    """Export a trained model to ONNX, and to int8 for CPU and mobile.

    The graph takes uint8 RGB face crops and normalises them itself; the number of clips and of frames is
    free. It is left in place once ONNX Runtime and PyTorch agree on its probabilities to 0.001, the int8 model
    if the AUC of its frames is less than 0.01 below that of the other. A README.md beside them shows how to feed
    them. Needs pip install deepsweep[export].

    \b
    A model of your own:
      deepsweep export --model runs/best --out exported
    With int8, calibrated on prepared data:
      deepsweep export --model runs/best --out exported --calibrate prepared
    """
    try:
        spec = load_spec(model)
        _export_float(spec, out)
        if calibrate is not None:
            _export_int8(spec, out, calibrate)
    except ModelError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{error.filename or out} could not be written: {error.strerror}.") from None


def _export_float(spec: ModelSpec, out: Path) -> None:
    from models.export import INPUTS, ONNX_FILE, OUTPUTS, TOLERANCE, export_onnx

    comparisons = export_onnx(spec, out)
    size, (frames, lengths) = spec.input_size, INPUTS
    click.echo(f"{_described(out / ONNX_FILE)}: {spec.name}, digest {spec.digest[:12]}")
    click.echo(f"  in   {frames} (N, T, {size}, {size}, 3) uint8 RGB, normalised in the graph; {lengths} (N,) int64")
    click.echo(f"  out  {OUTPUTS[0]} (N, T), NaN beyond a clip's length; {OUTPUTS[1]} (N,) float32")
    click.echo(f"  largest difference from PyTorch's probabilities ({TOLERANCE:g} is allowed):")
    for case in comparisons:
        click.echo(f"    N = {case.clips}, T = {case.frames}: {case.difference:.1e}")


def _export_int8(spec: ModelSpec, out: Path, prepared: Path) -> None:
    from models.export import ONNX_FILE
    from models.prepared import PrepError
    from models.quantize import INT8_FILE, MAX_AUC_LOSS, quantize

    try:
        result = quantize(spec, out / ONNX_FILE, prepared, out)
    except PrepError as error:
        raise UserError(str(error)) from None
    figures = (
        f"AUC of frames {result.auc_int8:.4f}, in float32 {result.auc_float:.4f} "
        f"({result.frames:,} frames of {result.tracks} faces that calibration did not see)"
    )
    if result.kept:
        click.echo(f"{_described(out / INT8_FILE)}: {figures}")
    else:
        click.echo(f"{INT8_FILE} was not kept, because it loses {MAX_AUC_LOSS:g} or more: {figures}.")


def _described(path: Path) -> str:
    return f"{path} ({path.stat().st_size / 1e6:.1f} MB)"
