"""The dataset doctor: what is wrong with fine-tuning data, shown and, where there is one way to do it, mended.

findings.py   what can be found, how bad it is, and what to do about it
texts.py      where a record's texts stand, in whichever format
tags.py       tags that do not pair up, and closing them
scale.py      how the file writes its boxes: the grid, fractions, percent or pixels, and in which order
inspect.py    a file -> Examination
report.py     counts, lengths and what is trained, as data
sheet.py      pictures with their boxes, as one HTML or PNG file: page.py writes the one, poster.py the other
cards.py      which pictures those are
fix.py        a mended copy

    examination = check_file(Path("train.json"), tokenizer, max_length=2048)
    print(examination.num_errors, [finding.found for finding in examination.findings])
"""
