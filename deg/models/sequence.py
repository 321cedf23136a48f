"""The sequence networks: features [B, D, T] of consecutive frames -> logits [B, K, T] of the same frames.

The mlp is the exception: it turns [B, D], one frame or a flattened window of frames, into [B, K].
The tcn is also told which frames lie outside the video (deg.models.tcn).
Layers have the names and the order of DeepEthogram 0.5.0's weight files; DeepEthogram has no tcn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deg.errors import ConfigError
from deg.models.tcn import TCN
from deg.models.tgm import Smoothing

RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class TGMJ(Smoothing):
    """Two classifiers, of the features as they are and smoothed in time; the result is the mean of their logits.

    The two share one bias. Layer `h2` is in the weight files but is not used.
    """

    class_layers: tuple[str, ...] = ("classify1", "classify2")

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        hidden: int,
        dropout_p: float,
        input_dropout: float,
        nonlinear: bool,
        final_bn: bool,
        **smoothing: Any,
    ):
        super().__init__(**smoothing)
        self.input_dropout = nn.Dropout(input_dropout)
        self.nonlinear = nonlinear
        if nonlinear:
            self.h = nn.Conv1d(num_features, hidden, 1)
            self.h2 = nn.Conv1d(num_features, hidden, 1)
            self.dropout = nn.Dropout(dropout_p)
        width = hidden if nonlinear else num_features
        self.classify1 = _pointwise_classifier(width, num_classes, final_bn)
        self.classify2 = _pointwise_classifier(width, num_classes, final_bn)
        _last(self.classify2).bias = _last(self.classify1).bias

    def forward(self, features: Tensor) -> Tensor:
        smoothed = self.smooth(features)
        plain_logits = self.classify1(self._hidden(self.input_dropout(features)))
        smooth_logits = self.classify2(self._hidden(self.input_dropout(smoothed)))
        return (plain_logits + smooth_logits) / 2

    def _hidden(self, features: Tensor) -> Tensor:
        return self.dropout(torch.relu(self.h(features))) if self.nonlinear else features

    def set_class_bias(self, bias_K: Tensor) -> None:
        _set_bias(_last(self.classify1), bias_K)


class TGM(Smoothing):
    """One classifier of the features as they are and smoothed in time, side by side."""

    class_layers: tuple[str, ...] = ("classify",)

    def __init__(self, num_features: int, num_classes: int, *, dropout_p: float, **smoothing: Any):
        super().__init__(**smoothing)
        self.dropout = nn.Dropout(dropout_p)
        self.classify = nn.Conv1d(2 * num_features, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.classify(self.dropout(torch.cat([features, self.smooth(features)], dim=1)))

    def set_class_bias(self, bias_K: Tensor) -> None:
        _set_bias(self.classify, bias_K)


class Linear(nn.Module):
    """A linear classifier of each frame by its own features."""

    class_layers: tuple[str, ...] = ("conv1",)

    def __init__(self, num_features: int, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv1d(num_features, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv1(features)

    def set_class_bias(self, bias_K: Tensor) -> None:
        _set_bias(self.conv1, bias_K)


class ConvNonlinear(nn.Module):
    """Two convolutions in time. The weight files hold each layer twice: by its own name and by its place in `net`."""

    def __init__(self, num_features: int, num_classes: int, *, hidden: int, dropout_p: float):
        super().__init__()
        self.conv1 = nn.Conv1d(num_features, hidden, 7, padding=3, bias=False)
        self.bn1 = nn.BatchNorm1d(hidden)
        self.conv2 = nn.Conv1d(hidden, num_classes, 3, padding=1, bias=False)
        dropout = [nn.Dropout(dropout_p)] if dropout_p > 0 else []
        self.net = nn.Sequential(self.conv1, self.bn1, nn.ReLU(), *dropout, self.conv2)
        self.class_layers: tuple[str, ...] = ("conv2", f"net.{len(self.net) - 1}")

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features)

    def set_class_bias(self, bias_K: Tensor) -> None:
        """Do nothing: the last layer has no bias."""


class Recurrent(nn.Module):
    """A recurrent network over the frames, starting from zeros, and a linear layer on its state at each frame."""

    class_layers: tuple[str, ...] = ("hidden_to_output",)

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        style: Literal["lstm", "gru", "rnn"],
        hidden: int,
        num_layers: int,
        bidirectional: bool,
        hidden_dropout: float,
        dropout_p: float,
    ):
        super().__init__()
        self.rnn = RECURRENT[style](
            num_features, hidden, num_layers, batch_first=True, bidirectional=bidirectional, dropout=hidden_dropout
        )
        self.dropout = nn.Dropout(dropout_p)
        self.hidden_to_output = nn.Linear(2 * hidden if bidirectional else hidden, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        states_BTH, _ = self.rnn(features.transpose(1, 2))
        return self.hidden_to_output(self.dropout(states_BTH)).transpose(1, 2)

    def set_class_bias(self, bias_K: Tensor) -> None:
        _set_bias(self.hidden_to_output, bias_K)


class MLP(nn.Module):
    """Three linear layers on one flattened window of features: [B, D] -> [B, K]."""

    class_layers: tuple[str, ...] = ("model.6",)

    def __init__(self, num_features: int, num_classes: int, *, dropout_p: float):
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(num_features, 256),
            nn.ReLU(),
            nn.Dropout(dropout_p),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Dropout(dropout_p),
            nn.Linear(128, num_classes),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.model(features)

    def set_class_bias(self, bias_K: Tensor) -> None:
        _set_bias(self.model[-1], bias_K)


def _smoothing(sequence: Any) -> dict[str, Any]:
    if sequence.c_in != 1:
        raise ConfigError(f"sequence.c_in is {sequence.c_in}, but features have one channel. Set sequence.c_in=1.")
    names = ("num_layers", "c_out", "n_filters", "filter_length", "soft_attn", "tgm_reduction")
    return {name: getattr(sequence, name) for name in names}


def _tgmj(sequence: Any, num_features: int, num_classes: int) -> TGMJ:
    return TGMJ(
        num_features,
        num_classes,
        hidden=sequence.num_features,
        dropout_p=sequence.dropout_p,
        input_dropout=sequence.input_dropout,
        nonlinear=sequence.nonlinear_classification,
        final_bn=sequence.final_bn,
        **_smoothing(sequence),
    )


def _tgm(sequence: Any, num_features: int, num_classes: int) -> TGM:
    return TGM(num_features, num_classes, dropout_p=sequence.dropout_p, **_smoothing(sequence))


def _linear(sequence: Any, num_features: int, num_classes: int) -> Linear:
    return Linear(num_features, num_classes)


def _conv_nonlinear(sequence: Any, num_features: int, num_classes: int) -> ConvNonlinear:
    return ConvNonlinear(num_features, num_classes, hidden=sequence.hidden_size, dropout_p=sequence.dropout_p)


def _rnn(sequence: Any, num_features: int, num_classes: int) -> Recurrent:
    return Recurrent(
        num_features,
        num_classes,
        style=sequence.rnn_style,
        hidden=sequence.hidden_size,
        num_layers=sequence.num_layers,
        bidirectional=sequence.bidirectional,
        hidden_dropout=sequence.hidden_dropout,
        dropout_p=sequence.dropout_p,
    )


def _mlp(sequence: Any, num_features: int, num_classes: int) -> MLP:
    return MLP(num_features, num_classes, dropout_p=sequence.dropout_p)


def _tcn(sequence: Any, num_features: int, num_classes: int) -> TCN:
    return TCN(
        num_features,
        num_classes,
        hidden=sequence.hidden_size,
        num_layers=sequence.tcn_layers,
        dropout_p=sequence.dropout_p,
        input_dropout=sequence.input_dropout,
    )


SEQUENCE_NETWORKS: dict[str, Callable[[Any, int, int], nn.Module]] = {
    "tgmj": _tgmj,
    "tgm": _tgm,
    "linear": _linear,
    "conv_nonlinear": _conv_nonlinear,
    "rnn": _rnn,
    "mlp": _mlp,
    "tcn": _tcn,
}
"""Constructors by architecture, each called with the section `sequence`, D and K."""


def build_sequence(sequence: Any, num_features: int, num_classes: int) -> nn.Module:
    """Build the network that the section `sequence` of a configuration describes.

    `num_features` is D, the rows of the feature matrix; for the mlp, the length of a flattened window, D * frames.
    """
    if sequence.arch not in SEQUENCE_NETWORKS:
        raise ConfigError(f"sequence.arch is {sequence.arch!r}; expected one of {', '.join(SEQUENCE_NETWORKS)}.")
    return SEQUENCE_NETWORKS[sequence.arch](sequence, num_features, num_classes)


def _pointwise_classifier(inputs: int, num_classes: int, final_bn: bool) -> nn.Module:
    conv = nn.Conv1d(inputs, num_classes, 1, bias=not final_bn)
    return nn.Sequential(conv, nn.BatchNorm1d(num_classes)) if final_bn else conv


def _last(classifier: nn.Module) -> nn.Module:
    """Return the layer that holds the bias: the batch norm if there is one."""
    return classifier[-1] if isinstance(classifier, nn.Sequential) else classifier


def _set_bias(layer: nn.Module, bias_K: Tensor) -> None:
    with torch.no_grad():
        layer.bias.copy_(bias_K)  # type: ignore[union-attr,operator]
