"""vlbatch in Python: run jobs, read outputs, ask a model.

import vlbatch

job = vlbatch.load_job("jobs/caption.yaml", {"input.manifest": "./pictures"})
output = vlbatch.run(job, row_limit=20)
output.read_answers(["id", "answer"]).to_pandas()

with vlbatch.Model.open("Qwen/Qwen2.5-VL-3B-Instruct", schema="boxes", prompt="Find the dogs.") as model:
    model.ask(["dog.jpg", "s3://acme/cat.jpg"])

dataset.map_batches(vlbatch.AnswerTable, fn_constructor_args=[job], batch_format="pyarrow", concurrency=1)
"""

from pipeline.errors import PipelineError
from pipeline.job.spec import Job
from pipeline.python_api.jobs import Output, load_job, read, run
from pipeline.python_api.model import AnswerTable, Model

__all__ = ["AnswerTable", "Job", "Model", "Output", "PipelineError", "load_job", "read", "run"]
