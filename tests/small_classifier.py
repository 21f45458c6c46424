"""A small real classifier of each head, on scikit-learn's digits: two layers of 32 values, ten classes. No model."""

import numpy as np
from sklearn.datasets import load_digits

from llmembed.backbones import BackboneSpec
from llmembed.classifier import Classifier, ClassifierRecord, RecordedBackbone, SourceRecord, TrainingSettings
from llmembed.features import FeatureMap
from llmembed.features.scaling import fit_scaler, moments
from llmembed.heads import make_head

QUICK = {
    "logistic": {"inverse_penalties": (0.01, 0.1)},
    "lda": {},
    "gbdt": {"rounds": 4, "leaves": 5},
    "mlp": {"epochs": 2, "hidden": (16,)},
}
SPEC = BackboneSpec(
    model="digits",
    weights="0" * 64,
    tokenizer="1" * 64,
    depth=4,
    layers=(1, 2, 4),
    dim=32,
    pooling="mean",
    max_length=128,
)
LAYERS = (2, 4)


def digit_embeddings() -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings float16 [1797, 2, 32] and class indices [1797]."""
    X, y = load_digits(return_X_y=True)
    return X.reshape(-1, 2, 32).astype(np.float16), y


def make_classifier(head: str = "lda", *, seed: int = 0, fusion: str = "concat", **options) -> Classifier:
    """Fit a classifier on the first 600 digits."""
    embeddings, digits = (each[:600] for each in digit_embeddings())
    feature_map = FeatureMap((fit_scaler([moments(embeddings)]),), fusion)
    learned = {"fusion": fusion, "layout": ((2, 32),)} if fusion in ("weighted", "cooccurrence") else {}
    fitted = make_head(head, seed=seed, **{**QUICK[head], **learned, **options})
    fitted.fit(feature_map.apply([embeddings]), digits)
    record = ClassifierRecord(
        backbones=(RecordedBackbone(name="digits", found_at="digits", spec=SPEC, layers=LAYERS),),
        fusion=fusion,
        head=head,
        labels=tuple(f"digit {value}" for value in fitted.classes_),
        training=TrainingSettings(
            fusion=fusion,
            head=head,
            seed=seed,
            dataset="digits",
            dataset_digest="0" * 16,
            backbones=(SourceRecord("digits", SPEC.fingerprint, LAYERS),),
        ),
    )
    return Classifier(record, feature_map, fitted)
