"""Make the small label font that the package carries, from Debian's `fonts-wqy-microhei`.

The font is cut down to ASCII, Latin-1, common punctuation and GB2312, and loses what labels do not need: hinting and layout tables.
The result is the same for the same source font and the same fonttools version.

    apt-get install --no-install-recommends fonts-wqy-microhei
    pip install fonttools
    python scripts/make_font.py
"""

import argparse
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

SOURCE = Path("/usr/share/fonts/truetype/wqy/wqy-microhei.ttc")
TARGET = Path(__file__).resolve().parent.parent / "src/qwen_vl/assets/fonts/label-sans.ttf"
MAX_BYTES = 2_000_000
# U+FFFD stands for characters that the font lacks; arrows, dashes, quotes and the euro sign are common in answers.
EXTRA = "\u2013\u2014\u2018\u2019\u201c\u201d\u2022\u2026\u20ac\u2190\u2191\u2192\u2193\ufffd"


def gb2312_characters() -> set[str]:
    """List every character of GB2312: rows 0xA1 to 0xF7 of two-byte codes, 0xA1 to 0xFE in each."""
    codes = (bytes((high, low)) for high in range(0xA1, 0xF8) for low in range(0xA1, 0xFF))
    return {character for code in codes for character in code.decode("gb2312", errors="ignore")}


def wanted_characters() -> set[str]:
    """List all characters that the bundled font must draw, where the source has them."""
    latin = {chr(code) for code in (*range(0x20, 0x7F), *range(0xA0, 0x100))}
    return latin | gb2312_characters() | set(EXTRA)


def subset_options() -> subset.Options:
    """Keep outlines, widths and licence names; drop hinting and layout features."""
    options = subset.Options(hinting=False, layout_features=[], notdef_outline=True)
    options.name_IDs = [0, 1, 2, 3, 4, 5, 6, 13, 14]  # 0: copyright, 13 and 14: licence
    options.name_languages = [0x409]
    options.drop_tables += ["GSUB", "GPOS", "GDEF", "BASE", "vhea", "vmtx", "VORG", "FFTM"]  # layout, vertical writing, editor dates
    return options


def make_font(source: Path, target: Path) -> int:
    """Write the subset of `source` to `target` and return its size in bytes."""
    font = TTFont(source, fontNumber=0, lazy=True, recalcTimestamp=False)  # face 0 is the proportional one; face 1 is monospaced
    subsetter = subset.Subsetter(subset_options())
    subsetter.populate(text="".join(sorted(wanted_characters())))
    subsetter.subset(font)
    target.parent.mkdir(parents=True, exist_ok=True)
    font.save(target)
    return target.stat().st_size


def main() -> None:
    """Read the arguments, make the font, and refuse a result that is too large to carry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=SOURCE, help="font file or collection (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=TARGET, help="file to write (default: the package's asset)")
    arguments = parser.parse_args()
    num_bytes = make_font(arguments.source, arguments.out)
    print(f"{arguments.out}: {num_bytes} bytes")
    if num_bytes > MAX_BYTES:
        raise SystemExit(f"error: {num_bytes} bytes is more than {MAX_BYTES}; drop characters")


if __name__ == "__main__":
    main()
