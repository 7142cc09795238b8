"""`python -m raypaml.audit`: which training labels are likely missing, and what those who looked at them answered."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypaml.flags import Parser, run_command

if TYPE_CHECKING:
    from raypaml.auditing.candidates import Rejected
    from raypaml.config import TrainConfig
    from raypaml.data.folder import DataFolder
    from raypaml.model.cam import CamClassifier
    from raypaml.reports.audit_page import Candidate

PROG = "python -m raypaml.audit"
LENGTHS = (100, 200, 500, 1000, 2000)
"""Of the list, at which its precision is given where the full labels are known."""


def parse(argv: Sequence[str]) -> Any:
    """The flags."""
    parser = Parser(prog=PROG, description="List the training labels that are likely missing, or apply the answers.")
    parser.add_argument("run", metavar="RUN", help="folder of a finished run of a large-loss scheme")
    parser.add_argument("--data", default="", help="folder of shards, index and vocabulary [the run's]")
    parser.add_argument("--top", type=int, default=500, metavar="N", help="entries listed [500]")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="[auto]")
    parser.add_argument("--apply", default="", metavar="ANSWERS.CSV", help="write a data set with these answers")
    about = "folder of the audit [audit, in the run's]; with --apply: of the new data set"
    parser.add_argument("--out", default="", metavar="DIR", help=about)
    return parser.parse(argv)


def _opened(asked: Any) -> tuple[Path, TrainConfig, DataFolder]:
    from raypaml.data.folder import open_folder, resolve_data
    from raypaml.training.run_folder import check_vocabulary, read_config

    run = Path(asked.run)
    config = read_config(run / "config.json")
    data = open_folder(resolve_data(asked.data or config.data.data, _say), **config.data.opening)
    check_vocabulary(run, data.vocabulary.digest, data.address)
    return run, config, data


def audit(asked: Any) -> Path:
    """Rank, look, write; returns the folder."""
    import numpy as np
    import torch

    from raypaml.auditing.candidates import figures, most_often, ranking, rejected_entries, score
    from raypaml.losses.schemes import KEEPING
    from raypaml.reports.audit_page import PICTURES, write_audit_page, write_tables
    from raypaml.training.distributed import own_gpu
    from raypaml.training.models import tested_model

    if asked.top < 1:
        raise ValueError(f"top={asked.top}: must be at least 1")
    run, config, data = _opened(asked)
    index = data.splits["train"]
    keeping, epochs = config.loss.scheme in KEEPING, config.optim.epochs
    found = most_often(rejected_entries(run, index, keeping=keeping, epochs=epochs))
    torch.set_num_threads(1)  # as prediction does: several take each other's cores on a busy machine
    device = "cuda" if own_gpu(asked.device) else "cpu"
    model = tested_model(run, config.model, len(data.vocabulary)).to(device)
    rows = np.arange(len(index)) if index.has_truth else np.unique(found.entries // index.num_classes)
    _say(f"{len(found.entries):,} entries were rejected; scoring them on {len(rows):,} images")
    scored = score(model, data, found.entries, rows, max(asked.top, *LENGTHS))
    if scored.broken:
        _say(f"{scored.broken:,} broken images left out")
    order = ranking(found, scored.logits)
    known = figures(index, found.entries[order], scored.best, LENGTHS) if index.has_truth else None
    out = Path(asked.out) if asked.out else run / "audit"
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    candidates = _candidates(order[: asked.top], found, scored.logits, run, data, model, out / PICTURES)
    write_tables(out, candidates)
    (out / "audit.json").write_text(json.dumps({"entries": len(order), "figures": known}, indent=2) + "\n")
    write_audit_page(out, run, candidates, epochs, known)
    if known is not None:
        _print_figures(known)
    return out


def _candidates(
    order: Any, found: Rejected, logits: Any, run: Path, data: DataFolder, model: CamClassifier, pictures: Path
) -> list[Candidate]:
    """The first of the ranking, each with its history and its picture."""
    import numpy as np
    import torch

    from raypaml.auditing.candidates import history
    from raypaml.data.batches import Reader
    from raypaml.metrics.thresholds import sigmoid
    from raypaml.reports.audit_page import Candidate, place, strip

    index, vocabulary = data.splits["train"], data.vocabulary
    reader = Reader(data.shards, index, (), skip_broken=True)
    entries = found.entries[order]
    epochs = history(run, index, entries)
    made = []
    for rank, (position, entry) in enumerate(zip(order, entries.tolist(), strict=True), start=1):
        row, k = divmod(entry, index.num_classes)
        pixels = reader.image(row)
        with torch.inference_mode():
            image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(next(model.parameters()).device)
            cam = model.cam(image)[0, k].float().cpu().numpy()
        box = place(cam, *pixels.shape[:2])
        strip(pixels, cam, box).save(pictures / f"{rank:05d}.jpg", quality=90)
        made.append(
            Candidate(
                rank=rank,
                key=index.keys(np.array([row]))[0],
                class_id=vocabulary.class_ids[k],
                name=vocabulary.names[k],
                score=float(sigmoid(logits[position : position + 1])[0]),
                times=int(found.times[position]),
                epochs=", ".join(map(str, epochs[entry])),
                box=box,
                picture=f"{rank:05d}.jpg",
            )
        )
    return made


def _print_figures(known: dict[str, Any]) -> None:
    for at, value in known["precision"].items():
        print(
            f"first {at:,}: {100 * value:.1f} % really missing; by score alone {100 * known['score_alone'][at]:.1f} %, "
            f"at random {100 * known['chance']:.1f} %"
        )


def apply(asked: Any) -> None:
    """Write the data set with the answers."""
    from raypaml.auditing.answers import apply_answers, read_answers

    if not asked.out:
        raise ValueError("apply: --out DIR is needed, the folder of the new data set")
    _, _, data = _opened(asked)
    answers = read_answers(Path(asked.apply), data.splits["train"], data.vocabulary)
    record = apply_answers(data, answers, Path(asked.out), Path(asked.apply))
    print(f"{asked.out}: {record['positive']:,} new positives, {record['negative']:,} new negatives")
    _say(f"next: python -m raypaml.train --data {asked.out} --config {Path(asked.run) / 'config.json'}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Audit, or apply."""
    asked = parse(sys.argv[1:] if argv is None else argv)
    if asked.apply:
        apply(asked)
        return 0
    out = audit(asked)
    print(f"{out / 'index.html'}")
    return 0


if __name__ == "__main__":
    run_command(main, PROG)
