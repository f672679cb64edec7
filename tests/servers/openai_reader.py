"""Reads OpenAI Batch output as strictly as OpenAI's own client can; for the Python of an environment that has it.

`openai_reader.py FILE…` prints how many lines of all files were read and what is wrong with each of the others. The client
has no type for a line of Batch output, so that is here, after https://platform.openai.com/docs/api-reference/batch/request-output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from openai.types.chat import ChatCompletion
from pydantic import BaseModel, ValidationError, model_validator


class Response(BaseModel):
    status_code: int
    request_id: str
    body: Any

    @model_validator(mode="after")
    def _body_is_what_its_status_says(self) -> Response:
        if 200 <= self.status_code < 300:
            ChatCompletion.model_validate(self.body, strict=True)
        return self


class Error(BaseModel):
    code: str
    message: str


class Line(BaseModel):
    id: str
    custom_id: str
    response: Response | None
    error: Error | None


def main(paths: list[str]) -> None:
    read, refused = 0, []
    for path in paths:
        for number, line in enumerate(Path(path).read_bytes().splitlines()):
            try:
                Line.model_validate_json(line, strict=True)
            except ValidationError as error:
                refused.append(f"{path}:{number}: {error}")
            else:
                read += 1
    print(json.dumps({"read": read, "refused": refused}))


if __name__ == "__main__":
    main(sys.argv[1:])
