"""What answers look like: one file and one pydantic model each, and one line in `pipeline/registry.py`.

A model gives the grammar that guides, the check afterwards, and the typed columns. Field descriptions go into the
prompt. Besides its fields it may say `default_prompt` (used where the job asks nothing), `example`, and have a method
`violations()` that yields sentences about an answer that is well formed but doubtful; a validator that raises makes
the answer invalid. `json_schema_extra={"x-means": ...}` marks a place: box, point, seconds, or the image meant.
Places come out in pixels and seconds of the original file.
"""
