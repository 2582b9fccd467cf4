"""Predict uint8 (2, H, W) probability maps (0 center, 1 material) of RGB uint8 windows. Only this step uses floats.

Input: pixels of ``model.input_box(box)``, white outside the slide. Output: the maps of ``box``, which in fp32
and int8 do not depend on how the slide was cut into boxes. Weights are a safetensors file and a JSON card in the same folder.
"""

from __future__ import annotations

from wsiseg.predict.arithmetic import arithmetic_of, machine_id
from wsiseg.predict.engine import Model, load_model, model_from_net, predict, predict_picture
from wsiseg.predict.machine import device_report, resolve_engine, resolve_precision, tune_malloc
from wsiseg.predict.nets import NETS, NetSpec, UNet, build_net, fold_batch_norm, half_field_wpx, macs_per_px
from wsiseg.predict.quantize import QUANTIZATION, activation_ranges, is_quantizable
from wsiseg.predict.weights import DEFAULT_WEIGHTS, as_stored, load_weights, save_weights, weights_path

__all__ = [
    "DEFAULT_WEIGHTS",
    "Model",
    "NETS",
    "NetSpec",
    "QUANTIZATION",
    "UNet",
    "activation_ranges",
    "arithmetic_of",
    "as_stored",
    "build_net",
    "device_report",
    "fold_batch_norm",
    "half_field_wpx",
    "is_quantizable",
    "load_model",
    "load_weights",
    "machine_id",
    "macs_per_px",
    "model_from_net",
    "predict",
    "predict_picture",
    "resolve_engine",
    "resolve_precision",
    "save_weights",
    "tune_malloc",
    "weights_path",
]
