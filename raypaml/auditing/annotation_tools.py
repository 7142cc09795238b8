"""The list of an audit in the forms of the programs that people annotate with: Label Studio and FiftyOne.

Formats: labelstud.io/guide/predictions and /guide/storage (local files), and docs.voxel51.com, "FiftyOneDataset".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from raypaml.auditing.audit_folder import PICTURES
from raypaml.auditing.audit_page import Candidate
from raypaml.files import write_json, write_whole

LABELLING, TASKS = "label_studio.xml", "label_studio.json"
"""Files for Label Studio: the labelling interface, and the tasks."""

_INTERFACE = """\
<!-- The labelling interface of a Label Studio project; the tasks are label_studio.json in the same folder. Label Studio
     shows the pictures where it was started with these settings, and where the project has a source storage "Local
     files" with an absolute path that is, or is above, the folder of the pictures (it need not be synchronised):
       LOCAL_FILES_SERVING_ENABLED=true
       LOCAL_FILES_DOCUMENT_ROOT=the folder that holds the folder of this audit
     Keep the name "answer": raypaml audit reads the answers by it, from an export as JSON, JSON-MIN or CSV. -->
<View>
  <Header value="$question"/>
  <Image name="image" value="$image" zoom="true"/>
  <RectangleLabels name="place" toName="image">
    <Label value="place" background="#3b82f6"/>
  </RectangleLabels>
  <Choices name="answer" toName="image" choice="single" required="true" showInline="true">
    <Choice value="yes" hotkey="y"/>
    <Choice value="no" hotkey="n"/>
    <Choice value="unsure" hotkey="u"/>
  </Choices>
</View>
"""


def write_label_studio(out: Path, model: str, candidates: Sequence[Candidate]) -> None:
    """Write the labelling interface and the tasks, each with what the model predicts as a pre-annotation.

    Args:
        out: folder of the audit, whose parent is to be Label Studio's document root.
        model: name of the run, which stands at the predictions.
        candidates: the list.
    """
    write_whole(out / LABELLING, _INTERFACE)
    root = f"/data/local-files/?d={quote(f'{out.absolute().name}/{PICTURES}')}/"
    write_json(out / TASKS, [_task(one, root, model) for one in candidates], indent=1)


def _task(one: Candidate, root: str, model: str) -> dict[str, object]:
    facts = {"key": one.key, "class": one.class_id, "name": one.name, "score": one.score, "rank": one.rank}
    question = f"Does the image show: {one.name}?"
    x, y, width, height = (100 * share for share in _shares(one))
    box = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": ["place"]}
    size = {"original_width": one.width, "original_height": one.height}
    results: list[dict[str, object]] = [
        {"from_name": "answer", "type": "choices", "value": {"choices": ["yes"]}},
        {"from_name": "place", "type": "rectanglelabels", "value": box, **size},
    ]
    predicted = {
        "model_version": model,
        "score": one.score,
        "result": [one_result | {"to_name": "image"} for one_result in results],
    }
    return {"data": {"image": root + one.picture, "question": question, **facts}, "predictions": [predicted]}


def _shares(one: Candidate) -> tuple[float, float, float, float]:
    """Left, top, width and height of the place, as shares of the picture's."""
    x0, y0, x1, y1 = one.box
    return x0 / one.width, y0 / one.height, (x1 - x0) / one.width, (y1 - y0) / one.height


def write_fiftyone(out: Path, candidates: Sequence[Candidate]) -> None:
    """Write `metadata.json` and `samples.json`, with which the folder of the audit is a FiftyOneDataset.

    A picture is one sample; its field `missing` holds a Classification for each of its candidates, and `places` a
    Detection of where the map of the class is large.
    """
    of_picture: dict[str, list[Candidate]] = {}
    for one in candidates:
        of_picture.setdefault(one.picture, []).append(one)
    write_json(
        out / "metadata.json", {"media_type": "image", "info": {"classes": sorted({c.name for c in candidates})}}
    )
    samples = [_sample(picture, listed) for picture, listed in of_picture.items()]
    write_whole(out / "samples.json", json.dumps({"samples": samples}, indent=1) + "\n")


def _sample(picture: str, listed: Sequence[Candidate]) -> dict[str, object]:
    labels = [
        {
            "_cls": "Classification",
            "class_id": one.class_id,
            "rank": one.rank,
            "label": one.name,
            "confidence": one.score,
        }
        for one in listed
    ]
    places = [
        {"_cls": "Detection", "label": one.name, "confidence": one.score, "bounding_box": _shares(one)}
        for one in listed
    ]
    return {
        "filepath": f"{PICTURES}/{picture}",
        "tags": [],
        "key": listed[0].key,
        "missing": {"_cls": "Classifications", "classifications": labels},
        "places": {"_cls": "Detections", "detections": places},
    }
