"""`lapa evaluate --compare RUN RUN ...`: latent action models on one corpus, and one page.

Quantizers trained here or made by `lapa import`, with codes or without, are measured alike. The
same command goes on where it ended, and one with more runs measures only those. Writes
compare.html, compare.json and compare.csv.
"""

from pathlib import Path

from lapa_jax.runs import program as programs
from lapa_jax.studies import compare, compare_page
from lapa_jax.verbs import flags, text


def main(argv: list[str]) -> int:
    parser = flags.parser(
        "lapa evaluate",
        __doc__,
        "lapa evaluate --compare runs/pixels runs/univla --corpus data/robot --out results/compare",
    )
    add = parser.add_argument
    add("--compare", nargs="+", required=True, metavar="RUN", help="directories of runs")
    told = "directory to evaluate on; again: the same episodes in a size that other runs need"
    add("--corpus", action="append", required=True, help=told)
    add("--out", required=True, help="folder of the results")
    told = "the same episodes in another view; again: in another size"
    add("--paired", action="append", default=[], help=told)
    told = "the same episodes with moving distractors; again: in another size"
    add("--distractors", action="append", default=[], help=told)
    add("--split", default="train", help="of these directories")
    add("--max_examples", type=flags.number(int, "[8, inf)"), default=2000, help="pairs")
    told = "between the frames of a pair; 0: that of each run's training"
    add("--window_seconds", type=flags.number(float, "[0, inf)"), default=0.0, help=told)
    told = "only episodes that the training left out (data.corpora.<name>.fraction below 1)"
    add("--holdout", action="store_true", help=told)
    args = parser.parse_args(argv)
    out = Path(args.out)
    how = compare.Compared(
        corpora=tuple(args.corpus),
        paired=tuple(args.paired),
        distractors=tuple(args.distractors),
        split=args.split,
        max_pairs=args.max_examples,
        window_seconds=args.window_seconds,
        held_out=args.holdout,
    )
    study = compare.open_comparison(args.compare, out, how)
    programs.keep_compiled(out)
    compare.run_comparison(study)
    found = compare.results(study)
    compare_page.write(out / "compare.html", found, how)
    text.show(text.table(compare_page.text_rows(found), left=(0,)))
    text.show(f"\n{out}/compare.html, {out}/compare.json, {out}/compare.csv")
    return 0
