"""Figures that people ask for and that are not here, with the reason."""

UNSUPPORTED_METRICS = {
    "SPICE": (
        "it compares scene graphs, which Stanford's CoreNLP 3.6 and a parser on top of it make of the captions: a Java "
        "program that asks for 8 GB of memory and downloads its models. No port of it is known to give the same "
        "figures, and a rougher parser would bear its name wrongly. pycocoevalcap runs the original"
    ),
}
