#!/usr/bin/env python3
"""The plain baseline that a detector of MCP-RiskCue's logs has to beat: word and character TF-IDF, logistic regression.

    tfidf_riskcue.py TRAIN.jsonl TEST.jsonl... [--tokenizer tokenizer.json --max-tokens N]

One model says risky or not, a second one which risk, from the last log of each row. With --max-tokens only training
rows whose last message is at most so long are used, to be fair to a run that drops longer ones. Prints for each test
file accuracy, exact label, false-positive rate, recall and AUC. Needs scikit-learn, and tokenizers for --max-tokens.
"""

import argparse
import json

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_union


def load(path):
    messages, labels = [], []
    with open(path, encoding="utf-8") as file:
        for row in map(json.loads, file):
            messages.append(row["prompt"][-1]["content"])
            labels.append(row["security_type"][-1])
    return messages, np.array(labels)


def logs(messages):
    return [json.loads(message.split(":", 1)[1])["Environment_status"] for message in messages]


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("train")
    args.add_argument("test", nargs="+")
    args.add_argument("--tokenizer")
    args.add_argument("--max-tokens", type=int)
    args = args.parse_args()

    messages, labels = load(args.train)
    keep = np.arange(len(messages))
    if args.max_tokens:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(args.tokenizer)
        keep = np.array([i for i in keep if len(tokenizer.encode(messages[i]).ids) <= args.max_tokens])
    labels = labels[keep]
    texts = logs([messages[i] for i in keep])
    vectorizer = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=2, max_features=200_000),
    )
    features = vectorizer.fit_transform(texts).tocsr()
    risky = labels != "Safe"
    flag = LogisticRegression(C=10, max_iter=3000).fit(features, risky)
    kind = LogisticRegression(C=10, max_iter=3000).fit(features[risky], labels[risky])
    print(f"{args.train}: {len(labels)} rows")
    for path in args.test:
        messages, gold = load(path)
        features = vectorizer.transform(logs(messages)).tocsr()
        flagged, truth = flag.predict(features), gold != "Safe"
        verdict = np.where(flagged, kind.predict(features), "Safe")
        scores = {
            "accuracy": (flagged == truth).mean(),
            "exact": (verdict == gold).mean(),
            "FPR": flagged[~truth].mean(),
            "recall": flagged[truth].mean(),
            "AUC": roc_auc_score(truth, flag.decision_function(features)),
        }
        print(f"{path}: {len(gold)} rows  " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items()))


if __name__ == "__main__":
    main()
