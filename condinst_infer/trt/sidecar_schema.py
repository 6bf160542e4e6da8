"""The sidecar of an engine as a JSON schema, made from its dataclasses.

python -m condinst_infer.trt.sidecar_schema > export/schema/sidecar.json
"""

import json
import sys

from condinst_infer.contract.metadata import DIGEST_KEY, KEY
from condinst_infer.contract.metadata_schema import DRAFT, Schema, object_schema
from condinst_infer.trt.sidecar import DIGEST, FORMAT, Sidecar


def sidecar_schema() -> Schema:
    """The schema of a file `model.engine.json`."""
    schema = object_schema(Sidecar)
    schema["properties"]["format"]["const"] = FORMAT
    schema["properties"]["props"]["required"] = [KEY, DIGEST_KEY]
    schema["properties"][DIGEST] = {
        "type": "string",
        "description": "SHA-256 of the other fields as JSON with sorted keys",
    }
    schema["required"].append(DIGEST)
    return {**DRAFT, "title": "The sidecar of an engine, model.engine.json", **schema}


if __name__ == "__main__":
    json.dump(sidecar_schema(), sys.stdout, indent=2)
    print()
