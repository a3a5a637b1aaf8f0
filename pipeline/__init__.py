"""The map: every module, in the order in which the data meets it.

    manifest row -> Item -> bytes -> frames -> Request -> Reply -> Row -> part file
                    intake          media      model            output

Held in common
    __main__.py                      the commands: python -m pipeline run, check, ...
    options.py                       the command line: options and examples
    types.py                         the records that move
    errors.py                        what can go wrong, drawn as a tree
    trouble.py                       trouble that may pass: which, how often it is tried again
    job.py                           a job: every key, its type, its default, its meaning
    jobfile.py                       YAML -> a frozen Job, or an error with line and key
    jobvalues.py                     ${...} in a job's strings -> values; credentials are refused
    registry.py                      names -> classes, imported when asked for
    flow.py                          the order of the steps
    watchdog.py                      a step that never ends -> the end of the process
    step_timer.py                   seconds -> what they went to

intake: a manifest -> Items -> bytes
    intake/manifest.py               what a job names as its manifest -> rows
    intake/sources/__init__.py       the seam: a file as spans of rows
    intake/sources/parquet.py        Parquet -> rows
    intake/sources/jsonl.py          JSONL -> rows
    intake/sources/csv.py            CSV -> rows
    intake/sources/folder.py         a folder of media -> rows
    intake/read.py                   a row -> an Item
    intake/chat.py                   a cell with a chat -> Turns
    intake/medium.py                 a cell with media or settings -> Medium, Ask
    intake/fetch.py                  a source -> its Blob, within limits; fetches ahead
    intake/guard.py                  whether a job may look there
    intake/web.py                    http(s) -> bytes
    intake/store.py                  s3, gs, az, ... -> bytes
    intake/rest.py                   an object longer than one read -> its other bytes
    intake/sparse.py                 a long MP4 -> a file with holes, filled where frames are wanted
    intake/retry.py                  an attempt, repeated while it is worth it
    intake/ranged.py                 a source far away -> a file to be read here and there
    intake/heads.py                  a source -> the beginning of it, enough for a size
    intake/scratch.py                a folder for downloads that goes with its worker
    intake/blob.py                   bytes as they arrive -> a Blob
    intake/sniff.py                  the first bytes -> what it is

media: bytes -> Clips
    media/look.py                    a Medium -> Clips: fetched, decoded, resized
    media/decode.py                  a Blob -> Clips
    media/decoder.py                 a file -> pixels, by way of a process that may be killed
    media/header.py                  a file's header -> Clips without pixels
    media/wire.py                    messages to and from that process
    media/child.py                   that process
    media/sample.py                  which frames, and when they were
    media/kinds/base.py              the seam: one kind of file
    media/kinds/image.py             pictures, through Pillow
    media/kinds/video.py             videos, by index
    media/kinds/packets.py           which packets some frames need
    media/kinds/decord_reader.py     their frames through decord
    media/kinds/av_reader.py         their frames through PyAV
    media/kinds/pdf.py               pages, through PDFium
    media/resize.py                  frames -> frames of the model's size

model: Clips and text -> Request -> Reply
    model/weights.py                 what a job names as its weights -> a folder on this machine
    model/library.py                 transformers' model classes
    model/families/base.py           the seam: what a model was trained on
    model/families/qwen.py           what all Qwen-VL models share
    model/families/qwen2_vl.py       Qwen2-VL
    model/families/qwen2_5_vl.py     Qwen2.5-VL
    model/families/qwen3_vl.py       Qwen3-VL, dense and mixture of experts
    model/prompt.py                  turns, a chat template -> the pieces of a prompt
    model/grammar.py                 a schema, a budget -> the tokens that may come next
    model/hints.py                   a schema -> steps that help to end an answer
    model/closing.py                 a half-written answer -> the bytes that end it soonest
    model/spelling.py                bytes -> the fewest tokens that spell them
    model/generate.py                Requests -> Replies, in any order
    model/engines/base.py            the seam: Requests -> tokens
    model/engines/scripted.py        replies by rule, without a model
    model/engines/ending.py          a reply that was cut off -> the same, ended
    model/engines/vllm/__init__.py   vLLM's engine in the same process
    model/engines/vllm/arguments.py  a job -> its arguments, or what is wrong with them
    model/engines/vllm/prompt.py     a Request -> the prompt as vLLM takes it
    model/engines/http/__init__.py   any server that speaks the OpenAI protocol
    model/engines/http/message.py    a Request -> the body of a chat completion
    model/engines/http/caller.py     a body -> the server's answer, however often it has to be asked
    model/engines/http/gate.py       how many requests are under way
    model/engines/http/verdict.py    what came back -> a Reply, or what has to happen next
    model/engines/torch/__init__.py  our engine
    model/engines/torch/rank.py      one process of a replica: its share, its cache, what it saw
    model/engines/torch/crew.py      the other processes of a replica: started, told, never outliving it
    model/engines/torch/follow.py    such a process
    model/engines/torch/ranks.py     shares -> one model: sums and gathers where they meet
    model/engines/torch/shard.py     a rank -> which part of each weight it holds
    model/engines/torch/read.py      a checkpoint's files -> weights, or parts of them
    model/engines/torch/load.py      a folder -> a model on a device
    model/engines/torch/int4.py      four-bit weights, as they come or rounded at load
    model/engines/torch/int4_linear.py  one layer of them
    model/engines/torch/extent.py    a config -> parameters and bytes, without weights
    model/engines/torch/memory.py    a device's memory -> whether a model fits, and tokens of cache
    model/engines/torch/intake.py    a Request -> a row, or why it never can be one
    model/engines/torch/rows.py      a row inside the engine
    model/engines/torch/schedule.py  who comes in, and how much is computed in a step
    model/engines/torch/limits.py    work that fails -> smaller pieces of it
    model/engines/torch/vision.py    Clips -> embeddings
    model/engines/torch/forward.py   rows -> a step -> logits
    model/engines/torch/ahead.py     the next pass, launched before the host has read this one
    model/engines/torch/attention.py  packed tokens -> what each attends to
    model/engines/torch/graphs.py    a step of decoding as a CUDA graph
    model/engines/torch/sample.py    logits -> the next tokens

output: Reply -> Row -> part file
    output/schema.py                 what a job names as its schema -> a Schema
    output/canonical.py              a JSON Schema -> the one text that guides, checks and types
    output/parse.py                  text -> the JSON value in it
    output/validate.py               a value -> its exact form, or what is wrong with it
    output/geometry.py               the model's numbers -> the original's pixels and seconds
    output/finish.py                 Item, Request, Reply -> Row
    output/retry.py                  asking again where an answer is not good enough
    output/columns.py                a schema -> the Arrow field of its answers
    output/table.py                  Rows and Failures -> Arrow tables
    output/store.py                  a folder anywhere -> objects that appear whole and once
    output/write.py                  tables -> files, exactly once
    output/hive.py                   tables -> large files in Hive's folders
    output/letters.py                what is written of a chunk -> its rows that are still wrong

run: what drives the steps
    run/brief.py                     a job, its manifest -> the Work that every worker is told
    run/resume.py                    the manifest, its output -> the chunks that are left
    run/buckets.py                   hashes of very many rows -> which of them are equal
    run/lease.py                     who is at work on an output
    run/again.py                     what is wrong with its rows -> chunks that ask them again
    run/export.py                    a job's answers -> the clean table
    run/drive.py                     a job -> answers on disk and an exit code
    run/local.py                     a plain loop: what the pipeline means
    run/cluster.py                   Ray Data: how it scales
    run/workers.py                   the actors of its two pools
    run/ledger.py                    who works on which rows -> those that end processes, kept apart
    run/isolate.py                   a chunk -> what a stage makes of it, with such rows kept apart
    run/pools.py                     what a cluster holds, or may grow to -> how many workers
    run/submit.py                    a job file -> a job on a Ray cluster
    run/tally.py                     receipts -> what a run adds up to
    run/progress.py                  the same as people see it while it runs
    run/metrics.py                   what a run counts -> Prometheus, by way of Ray
    run/log.py                       what happens in a run -> lines: text for people, JSON for machines
    run/plan/__init__.py             a job -> what it will cost and what will fail
    run/plan/survey.py               chunks -> rows, tokens and failures, from headers
    run/plan/gpus.py                 tokens, a model -> hours and money
    run/plan/quote.py                the same as lines for people
    run/signals.py                   SIGTERM, Ctrl-C -> a run that ends in good order
    run/status.py                    an output -> what is answered, wrong and left
    run/report/__init__.py           an output -> one HTML page to look at
    run/report/gather.py             its parts -> figures, and the rows that are shown
    run/report/pictures.py           what a row looked at -> small pictures
    run/report/marks.py              an answer -> boxes, points, stretches of time
    run/report/charts.py             counts and marks -> what is drawn
    run/report/cards.py              all of it -> the values of the template
    run/report/page.py               values -> HTML that is harmless
    run/wire.py                      prepared entries <-> one row of Arrow

tiny: the built-in models, trained here on scenes that are drawn; pipeline/builtin/weights/README.md is their card
    tiny/scenes.py                   a seed -> a scene and the truth about it
    tiny/clips.py                    scenes in which something happens, from when to when
    tiny/invoices.py                 scenes with something to read
    tiny/files.py                    scenes -> pictures, videos and a manifest
    tiny/vocabulary.py               the tokenizer of the trained models
    tiny/checkpoint.py               a model type -> a tiny checkpoint of random weights
    tiny/lessons.py                  scenes -> what training shows
    tiny/pupil.py                    a model that learns, and what it got wrong
    tiny/train.py                    the recipe
    tiny/scores.py                   answers and truths -> figures
    tiny/evaluate.py                 the whole pipeline, held to the truth
    tiny/demo.py                     the same for a person to look at
"""
