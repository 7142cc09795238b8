"""Weights listed in the order of another network's layers, under that network's names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raypaml.model.backbones import build_backbone, build_whole
from tools.papers.lite_weights import main


def test_names_are_paired_by_position_and_shapes_must_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = build_whole("timm:tf_efficientnet_lite0").state_dict()
    torch.save({f"_layer{number}": value for number, value in enumerate(weights.values())}, tmp_path / "a.pth")
    out = tmp_path / "a.safetensors"
    monkeypatch.setattr("sys.argv", ["lite_weights", str(tmp_path / "a.pth"), str(out)])
    main()
    found = load_file(out)
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    build_backbone("timm:tf_efficientnet_lite0", str(out))
    monkeypatch.setattr("sys.argv", ["lite_weights", str(tmp_path / "a.pth"), str(out), "--model", "timm:resnet10t"])
    with pytest.raises(ValueError, match=r"not the weights of timm:resnet10t: .*; give another --model"):
        main()
