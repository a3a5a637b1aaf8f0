"""The schemas that ship: one file with one pydantic model each, and one line in `pipeline/registry.py`.

A model defines the grammar that guides the answer, the check afterwards, and the typed columns. Its field descriptions
go into the prompt. It may also define `default_prompt` (for jobs without a prompt), `example`, and a method
`violations()` that yields sentences about an answer that is well formed but doubtful. A validator that raises makes
the answer invalid. `json_schema_extra={"x-means": ...}` marks a box, a point, seconds, or the number of the image that
they refer to; they are stored in pixels and seconds of the original file. `json_schema_extra={"x-compare": ...}` says
how `score` compares a field with the truth (pipeline/inspect/score/comparators.py); other fields are compared by type.
"""
