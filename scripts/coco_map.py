"""Mean average precision of a haul output against COCO annotations, with pycocotools.

    haul run --model yolov8n.pt --input coco/images --output out --conf 0.001
    haul export out --to coco --dest boxes.json
    python scripts/coco_map.py boxes.json coco/instances.json [--near 0.419 --within 0.003]

Loads the export as pycocotools does, so it also proves that the export is what it says.
Classes are matched by name, pictures by file name.
"""

import argparse
import sys

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("export")
    parser.add_argument("annotations")
    parser.add_argument("--near", type=float, help="fail unless mAP50-95 is this ...")
    parser.add_argument("--within", type=float, default=0.003, help="... within so much")
    args = parser.parse_args()

    ours, truth = COCO(args.export), COCO(args.annotations)
    image_id = {image["file_name"]: image["id"] for image in truth.dataset["images"]}
    category_id = {category["name"]: category["id"] for category in truth.dataset["categories"]}
    results = [
        {
            "image_id": image_id[ours.imgs[box["image_id"]]["file_name"]],
            "category_id": category_id[ours.cats[box["category_id"]]["name"]],
            "bbox": box["bbox"],
            "score": box["score"],
        }
        for box in ours.dataset["annotations"]
    ]
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.params.imgIds = sorted(image_id[image["file_name"]] for image in ours.dataset["images"])
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = evaluation.stats[0]
    print(f"mAP50-95 {precision:.4f} over {len(evaluation.params.imgIds)} pictures")
    if args.near is not None and abs(precision - args.near) > args.within:
        print(f"that is further than {args.within} from {args.near}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
