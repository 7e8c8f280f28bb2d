"""Every key of TRL's GRPOConfig and SFTConfig with its default, for tests/golden/trl-keys.json.

    python trl_keys.py > ../trl-keys.json        # TRL 1.16, transformers 5.17
"""

import dataclasses
import json

import transformers
import trl

base = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}


def default(field):
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def own(config, of_base):
    return {f.name: default(f) for f in dataclasses.fields(config) if (f.name in base) == of_base}


print(json.dumps({
    "trl": trl.__version__, "transformers": transformers.__version__,
    "GRPOConfig": own(trl.GRPOConfig, False), "SFTConfig": own(trl.SFTConfig, False),
    "TrainingArguments": own(trl.GRPOConfig, True),
}, indent=1, default=str))
