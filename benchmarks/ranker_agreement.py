"""How well each ranker agrees with leave-one-out KL, and whether it finds the trigger.

    python -m benchmarks.ranker_agreement --images 20

On triggered and clean test scenes of the demo: Spearman correlation with leave-one-out KL
(the truth that the estimators approximate), the share of common units among the top 15, 30
and 45 percent, and on triggered scenes the mean rank of the trigger's units (0 is the most
salient, 0.5 is chance). Writes docs/results/ranker_agreement.{json,md}; the spread over the
images is a standard deviation.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from purifier import MaskingConfig, load_mdlm, top_fraction
from purifier.defense.config import Level, RankerName
from purifier.defense.defend import Defended, defend
from purifier.evaluation.oracles import trigger_tokens
from purifier.evaluation.report import markdown_table
from purifier.evaluation.testset import TestSet, read_test_set
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.lab.triggers import Trigger
from purifier.mdlm.base import ImageInput, Inputs, Mdlm

RANKERS: tuple[RankerName, ...] = (
    "official", "fisher", "exact", "attention", "gradient", "random",
)  # fmt: skip
LEVELS: tuple[Level, ...] = ("token", "patch")
SHARES = (0.15, 0.3, 0.45)
RESULTS = Path(__file__).parents[1] / "docs" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--target", default="insertion")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = measure(args.target, args.images, args.device)
    settings = {
        "target": args.target,
        "images": args.images,
        "seed": MaskingConfig().seed,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {args.device}",
        "command": f"python -m benchmarks.ranker_agreement --images {args.images}",
    }
    args.out.mkdir(parents=True, exist_ok=True)
    result = json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n"
    (args.out / "ranker_agreement.json").write_text(result)
    (args.out / "ranker_agreement.md").write_text(report(settings, rows))


def measure(target: str, n_images: int, device: str) -> list[dict[str, object]]:
    """One row for every level, kind of image and ranker."""
    mdlm = load_mdlm(checkpoint_path(target), device=device)
    test = read_test_set(DATA_FOLDER, limit=n_images)
    values: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for case in test.cases:
        for kind, trigger in (("triggered", test.trigger), ("clean", None)):
            inputs = mdlm.prepare(case.messages(trigger))
            for level in LEVELS:
                truth = _defended(mdlm, inputs, test, level, "leave-one-out")
                guilty = None
                if trigger is not None:
                    guilty = _guilty(inputs.images[0], trigger, truth, level)
                for ranker in RANKERS:
                    found = _defended(mdlm, inputs, test, level, ranker)
                    _compare(values[level, kind, ranker], found.saliency, truth.saliency, guilty)
                if guilty is not None:
                    rank = _mean_rank(truth.saliency, guilty)
                    values[level, kind, "leave-one-out"]["trigger_rank"].append(rank)
    return [
        {
            "level": level,
            "image": kind,
            "ranker": ranker,
            **{
                name: {"mean": statistics.mean(v), "sd": statistics.pstdev(v), "n": len(v)}
                for name, v in figures.items()
            },
        }
        for (level, kind, ranker), figures in values.items()
    ]


def _defended(
    mdlm: Mdlm, inputs: Inputs, test: TestSet, level: Level, ranker: RankerName
) -> Defended:
    # Pooling off: the estimators are compared, not what is made of them.
    masking = MaskingConfig(level=level, ranker=ranker, pooling=1)
    return defend(mdlm, [inputs], test.generation, masking)[0]


def _guilty(image: ImageInput, trigger: Trigger, found: Defended, level: Level) -> Tensor:
    """Units that the trigger touches, bool [n_units]."""
    width, height = image.image.size
    regions = trigger.regions(image.image.size)
    if not regions:
        raise ValueError("a trigger without a place has no rank")
    if level == "token":
        return trigger_tokens(image, regions)
    rows, columns = found.planes[0].saliency.shape
    y = torch.arange(rows) * height / rows
    x = torch.arange(columns) * width / columns
    touched = torch.zeros(rows, columns, dtype=torch.bool)
    for left, top, right, bottom in regions:
        inside_y = (y < bottom) & (y + height / rows > top)
        inside_x = (x < right) & (x + width / columns > left)
        touched |= inside_y[:, None] & inside_x[None]
    return touched.flatten()


def _compare(
    values: dict[str, list[float]], found: Tensor, truth: Tensor, guilty: Tensor | None
) -> None:
    values["spearman"].append(_spearman(found, truth))
    for share in SHARES:
        both = top_fraction(found, share) & top_fraction(truth, share)
        n_top = max(int(share * len(truth)), 1)
        values[f"top_{share:g}"].append(int(both.sum()) / n_top)
    if guilty is not None:
        values["trigger_rank"].append(_mean_rank(found, guilty))


def _mean_rank(found: Tensor, guilty: Tensor) -> float:
    return float(_ranks(-found)[guilty].mean()) / len(found)


def _ranks(values: Tensor) -> Tensor:
    return values.double().argsort(stable=True).argsort(stable=True).double()


def _spearman(first: Tensor, second: Tensor) -> float:
    pair = torch.stack([_ranks(first), _ranks(second)])
    return float(torch.corrcoef(pair)[0, 1])


def report(settings: dict[str, object], rows: list[dict[str, object]]) -> str:
    """The figures as Markdown."""
    names = ("spearman", *(f"top_{share:g}" for share in SHARES), "trigger_rank")
    header = [
        "level", "image", "ranker", "Spearman",
        *(f"common in top {100 * share:.0f}%" for share in SHARES), "rank of the trigger",
    ]  # fmt: skip
    body = [
        [str(row["level"]), str(row["image"]), str(row["ranker"]), *(_cell(row, n) for n in names)]
        for row in rows
    ]
    return (
        "# Agreement of the rankers with leave-one-out KL\n\n"
        f"Demo model, target {settings['target']}, {settings['images']} test scenes, mean ± "
        f"standard deviation over scenes. torch {settings['torch']}, {settings['machine']}. "
        f"`{settings['command']}`\n\n" + markdown_table(header, body)
    )


def _cell(row: dict[str, object], name: str) -> str:
    figure = row.get(name)
    if not isinstance(figure, dict):
        return "–"
    return f"{figure['mean']:.2f} ± {figure['sd']:.2f}"


if __name__ == "__main__":
    main()
