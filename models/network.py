"""The CNN-LSTM: convolutions score each frame; the frames' mean, and an LSTM over features, score a clip."""

from __future__ import annotations

import torch
from torch import nn

from models.backbone import FEATURES, feature_channels
from models.spec import Architecture

DROPOUT = 0.2  # as in MobileNetV2's own classifier


class ClipNet(nn.Module):
    """Logits (higher: more likely manipulated) of a face clip and of each of its frames.

    The three steps of forward() are methods, because scoring and Grad-CAM need what lies between them.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = FEATURES[architecture.backbone]
        self.features = self.backbone.make(architecture.width_mult)
        channels = feature_channels(self.features)
        self.dropout = nn.Dropout(DROPOUT)
        self.frame_head = nn.Linear(channels, 1)
        self.lstm = nn.LSTM(channels, architecture.lstm_hidden, architecture.lstm_layers, batch_first=True)
        self.clip_head = nn.Linear(architecture.lstm_hidden, 1)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """frames: (B, T, 3, H, W) float32, normalised. lengths: (B,) int64, 1..T; later frames are padding.

        Returns frame logits (B, T) and clip logits (B,). Those of padding frames mean nothing; in eval mode padding
        changes no other logit.
        """
        pooled = self.pool(self.features(frames.flatten(0, 1)))
        return self.heads(pooled.unflatten(0, frames.shape[:2]), lengths)

    def early(self, frames: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) frames, normalised, to the maps (N, c, h, w) that heatmaps are drawn from."""
        return self.features[: self.backbone.explained + 1](frames)

    def late(self, maps: torch.Tensor) -> torch.Tensor:
        """What `early` gave to the last feature maps: late(early(frames)) is features(frames)."""
        return self.features[self.backbone.explained + 1 :](maps)

    @staticmethod
    def pool(maps: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) feature maps to their averages (N, C)."""
        return maps.mean(dim=(2, 3))

    def heads(self, pooled: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, C) pooled features and (B,) lengths to frame logits (B, T) and clip logits (B,)."""
        pooled = self.dropout(pooled)
        frame_logits = self.frame_head(pooled).squeeze(-1)
        # The LSTM only looks back, so its output at a clip's last real frame has seen no padding.
        outputs, _ = self.lstm(pooled)
        last = outputs[torch.arange(len(outputs), device=outputs.device), lengths - 1]
        real = torch.arange(frame_logits.shape[1], device=lengths.device) < lengths[:, None]
        mean = (frame_logits * real).sum(dim=1) / lengths
        # What the LSTM adds is what the order of frames says beyond each of them: with few labelled clips it learns
        # that much better than the whole score.
        return frame_logits, mean + self.clip_head(self.dropout(last)).squeeze(-1)
