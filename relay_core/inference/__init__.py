"""Run a model over files, data sets and studies, to a mask or a class.

`onnx_model` runs an exported model, without torch; `torch_model` runs a checkpoint's solver. Whatever needs torch loads on
first use.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from relay_core.inference import onnx_model
    from relay_core.inference.datasets import predict_dataset
    from relay_core.inference.files import CLASSES, predict_files
    from relay_core.inference.isolation import Decoders
    from relay_core.inference.onnx_model import INPUT, KEY, ModelFacts, OnnxModel, Precision
    from relay_core.inference.outputs import ANSWER, OUTPUTS, SCORE, shapes
    from relay_core.inference.own_size import evaluate_at_own_size
    from relay_core.inference.prediction import classify, predict
    from relay_core.inference.questions import Answer, Form, Question
    from relay_core.inference.served import ServedSolver
    from relay_core.inference.studies import predict_study
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        ["onnx_model"],
        {
            "datasets": ["predict_dataset"],
            "files": ["CLASSES", "predict_files"],
            "isolation": ["Decoders"],
            "onnx_model": ["INPUT", "KEY", "ModelFacts", "OnnxModel", "Precision"],
            "outputs": ["ANSWER", "OUTPUTS", "SCORE", "shapes"],
            "own_size": ["evaluate_at_own_size"],
            "prediction": ["classify", "predict"],
            "questions": ["Answer", "Form", "Question"],
            "served": ["ServedSolver"],
            "studies": ["predict_study"],
        },
    )
