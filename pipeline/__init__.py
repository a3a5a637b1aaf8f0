"""vlbatch: batch inference with vision-language models. Words used in the code, then every module.

    manifest row -> Item -> frames -> Request -> Reply -> Row -> part
                 manifest  media    prepare   engine  answer  output

Glossary
    item            a row of the manifest: an id and a question about media
    request         an item that is ready for an engine: prompt tokens, resized frames, sampling settings
    reply           what the engine generated for a request
    row             a reply that was parsed, checked and typed: one row of the output
    failure         why an item has no row: a stage, a kind and a message
    manifest        the files that list the items
    truth           the right answer of a row, which people gave
    measure         a figure that tells how good answers are, such as the share of right values
    chunk           consecutive rows of a manifest file; the unit of retry and commit
    slice           rows of a chunk that travel and are answered together; only large manifests have chunks of several
    part            the Parquet file that holds the answers of one chunk
    commit          creating the part; a chunk counts as done when its part exists
    receipt         what a commit reports to the run: counts, times and warnings
    fingerprint     a hash of everything that shapes an answer; parts of different fingerprints stay apart
    dead letter     an item that failed, stored beside the part so that it can be retried
    generation      one retry of a chunk's failed rows; later generations win over earlier ones
    lease           the object by which one run claims an output, so that two runs do not mix
    shard           the chunks of a manifest that one of several drivers works on
    family          what a model series was trained on: frame sizes, prompt format, positions, coordinates
    engine          whatever turns requests into tokens: our own, vLLM, an HTTP server, or a script
    replica         one copy of the model with its engine; it may span several devices
    rank            one process of a replica that is split over devices
    slot            a place in the engine's batch that one sequence occupies
    sequence        a request inside the engine: its tokens and its part of the KV cache
    prefill         computing the prompt's tokens, many at a time
    decode          computing an answer's tokens, one at a time
    guidance        masking tokens so that an answer fits its schema and its budget
    clip            an image or a video as the model sees it: resized frames

A room imports only rooms that stand above it.

Shared by all rooms
    types.py                                the records that move through the pipeline
    errors.py                               the exceptions, and the exit codes of the commands
    json_values.py                          finds the JSON value in a model's text and repairs harmless mistakes
    retry_policy.py                         decides whether a failed operation runs again, and after how long
    watchdog.py                             ends the process when a step hangs
    step_timer.py                           measures where the time of a run goes
    command_text.py                         writes commands and paths in messages as they can be copied
    registry.py                             finds engines, families, sources, kinds of media, steps and schemas by name

job: a YAML file becomes a frozen Job
    job/key_types.py                        types and helpers that the sections of a job are made of
    job/answer_section.py                   the keys of its section `answer`
    job/embedding_section.py                the keys of `answer.embedding`
    job/rerank_section.py                   the keys of `answer.rerank`
    job/model_section.py                    the keys of its section `model`
    job/spec.py                             every key of a job file, with its type, default and meaning
    job/step_settings.py                    checks media.steps and builds the steps
    job/keys.py                             which keys may stand where in a job file
    job/example_section.py                  the keys of an entry of `prompt.examples`
    job/job_loader.py                       reads a job file; errors name the file, the line and the key
    job/variables.py                        fills in `${...}` and refuses credentials
    job/fingerprint.py                      hashes everything that shapes an answer
    job/reference.py                        prints every key with its meaning
    job/editor_schema.py                    builds the JSON Schema of job files, for editors

schema: what an answer must look like
    schema/json_schema.py                   walks JSON Schemas and narrows them to what can be guided and stored
    schema/schema.py                        Schema: the record that workers receive
    schema/schema_loader.py                 loads the schema that a job names and describes it for a prompt
    schema/choice_schema.py                 the schema and the prompt of a job with answer.choices
    schema/columns.py                       converts a schema to an Arrow field, and answers to its values
    schema/validate.py                      checks an answer against its schema

fetch: a URI becomes bytes
    fetch/fetcher.py                        fetches the media of rows, ahead of use
    fetch/header_fetcher.py                 fetches only the beginning of media, enough to know their size
    fetch/downloader.py                     downloads one source within the job's limits
    fetch/access.py                         decides whether a job may read a URI
    fetch/web.py                            downloads over HTTP, only from servers that the job allows
    fetch/object_store.py                   reads objects from S3, GCS, Azure and other stores
    fetch/storage_clients.py                options and errors of the stores' clients
    fetch/stores.py                         decides which buckets and hub repositories a job may read
    fetch/remote_object.py                  reads remote objects: retries, ranges, a seekable file
    fetch/sparse_video.py                   downloads only those ranges of a video that hold the wanted frames
    fetch/versions.py                       reads which version of a file a URI leads to
    fetch/scratch.py                        a temporary folder that disappears with its worker
    fetch/blob.py                           collects arriving bytes in memory or in a file
    fetch/sniff.py                          detects the kind of a file by its first bytes

manifest: manifest files become chunks, and chunks become Items
    manifest/files.py                       finds the manifest files of a job
    manifest/tables.py                      finds tables that are folders, and numbered files
    manifest/column_selection.py            selects the columns that a job reads
    manifest/nested_columns.py              reads columns inside columns, by path
    manifest/row_keys.py                    the key of a row: its id and a hash of what it asks
    manifest/row_versions.py                adds the versions of media to the questions of rows
    manifest/row_reader.py                  reads the rows of a file, and their keys
    manifest/hash_arrays.py                 compares arrays of names that are hashes
    manifest/chunks.py                      cuts manifest files into chunks, and reads their rows again
    manifest/chunk_table.py                 holds the chunks of a manifest as arrays
    manifest/kept_columns.py                one type and its values for the columns that a job copies to its output
    manifest/items.py                       converts a row to an Item
    manifest/id_table.py                    reads the ids that a table names
    manifest/chat.py                        parses a cell that holds a chat
    manifest/media_cells.py                 parses a cell that holds media or their options
    manifest/sources/base.py                the seam: Source, a manifest format
    manifest/sources/parquet.py             Parquet
    manifest/sources/jsonl.py               JSON Lines
    manifest/sources/csv.py                 CSV
    manifest/sources/webdataset.py          WebDataset tars
    manifest/sources/parquet_part.py        one Parquet file of a table, with the table's columns
    manifest/sources/delta.py               Delta tables
    manifest/sources/iceberg.py             Iceberg tables
    manifest/sources/lance.py               Lance tables
    manifest/sources/hub_dataset.py         data sets on the Hugging Face hub, by config and split
    manifest/sources/folder.py              a folder of media files

media: bytes become resized frames
    media/base.py                           protocols of what preparation needs: a fetcher, a decoder, frame rules
    media/steps/base.py                     the seam: a step of preparation
    media/steps/crop.py                     shows the model a part of each picture or frame
    media/clips.py                          the step that fetches, decodes and resizes media
    media/decode.py                         chooses the frames and their size, and has them decoded
    media/decoder_client.py                 runs the decoder process and kills it when it hangs
    media/decoder_protocol.py               the messages between a worker and its decoder process
    media/sandbox.py                        takes files, network and programs from the decoder process as it starts
    media/decoder_process.py                the decoder process: files in, resized pixels out
    media/header_decoder.py                 reads sizes and durations without decoding pixels
    media/region.py                         regions of a picture, in fractions and in pixels
    media/sample.py                         chooses which frames of a video to decode
    media/resize.py                         resizes frames exactly as the reference processors do
    media/kinds/base.py                     the seam: a kind of media file
    media/kinds/image.py                    images, with Pillow
    media/kinds/video.py                    videos, by frame index
    media/kinds/file_end.py                 tells whether a video's file ends early
    media/kinds/packets.py                  finds the packets that the wanted frames need
    media/kinds/decord_reader.py            reads video frames with decord
    media/kinds/av_reader.py                reads video frames with PyAV
    media/kinds/pdf.py                      PDF pages, with PDFium

model: frames and text become tokens
    model/checkpoint_location.py            finds, downloads and identifies the checkpoint that a job names
    model/modelscope_weights.py             fetches checkpoints from the ModelScope hub
    model/family_loader.py                  loads a checkpoint's config, tokenizer and family
    model/derivatives.py                    known checkpoints of other makers, and the settings they are used with
    model/hf_models.py                      imports transformers' model classes
    model/prompt.py                         renders chat turns with the checkpoint's template
    model/row_encoders/base.py              what a kind of answer makes of a row
    model/row_encoders/choose_encoder.py    chooses how the rows of a job are encoded
    model/row_encoders/choice_encoder.py    turns the choices of a job into continuations of a prompt
    model/row_encoders/embedding_encoder.py  turns a row into what its vector is made of
    model/row_encoders/rerank_encoder.py    asks whether a row fits a query
    model/engine_thread.py                  runs an engine in a thread that several chunks share
    model/detokenizer.py                    converts generated tokens to text, and splits off thinking
    model/families/base.py                  the seam: Family, a series of models
    model/families/model_architecture.py    where a family's vision tower, language model and head are
    model/families/qwen_tower.py            calls the vision towers of the Qwen-VL line
    model/families/qwen.py                  what all Qwen-VL models share
    model/families/qwen2_vl.py              Qwen2-VL
    model/families/qwen2_5_vl.py            Qwen2.5-VL
    model/families/qwen3_vl.py              Qwen3-VL, dense and mixture of experts
    model/families/qwen3_5.py               Qwen3.5, 3.6 and 3.8, dense and mixture of experts
    model/families/generic.py               any other model that vLLM or a server runs
    model/guidance/grammar.py               masks the tokens that may come next, for a schema and a budget
    model/guidance/ending_search.py         finds the shortest ending of a half-written answer
    model/guidance/ending_hints.py          derives from a schema what helps that search
    model/guidance/shortest_encoding.py     encodes bytes in the fewest tokens
    model/guidance/reply_completer.py       completes a reply that the budget cut off, and follows its grammar
    model/guidance/forced_tokens.py         finds the tokens of a reply that its grammar forced
    model/engines/base.py                   the seam: EngineType and Engine
    model/engines/refusals.py               tells what a refusal means, and shortens its message
    model/engines/pixel_key.py              names pictures and videos by their pixels
    model/engines/video_timing.py           when the frames of a clip were shown
    model/engines/scripted.py               replies by rule, without a model
    model/engines/vllm/__init__.py          vLLM inside the replica: settings and checks
    model/engines/vllm/vllm_engine.py       runs vLLM's engine
    model/engines/vllm/arguments.py         converts a job to vLLM's arguments, or says what is wrong
    model/engines/vllm/engine_requests.py   says what vLLM is asked for a Request
    model/engines/vllm/continuation_scores.py  learns from vLLM how probable continuations are
    model/engines/vllm/prompt_inputs.py     converts a Request to vLLM's prompt
    model/engines/vllm/chat_inputs.py       converts a Request to a chat, for models that nothing is known about
    model/engines/http/__init__.py          any server that speaks the OpenAI protocol: checks
    model/engines/http/http_settings.py     its section of a job file
    model/engines/http/http_engine.py       asks the server in an event loop of its own
    model/engines/http/request_body.py      converts a Request to the body of a chat completion
    model/engines/http/choice_scores.py     reads the probabilities of choices from the first tokens that a server tells
    model/engines/http/embeddings.py        asks a server for vectors
    model/engines/http/client.py            sends a request until the server answers it
    model/engines/http/concurrency.py       limits how many requests are in flight
    model/engines/http/rate_limit.py        spreads requests over time: so many a minute
    model/engines/http/responses.py         converts a response to a Reply or an error
    model/engines/torch/__init__.py         our own engine: settings and checks
    model/engines/torch/torch_settings.py   the section `engine` of a job that uses it
    model/engines/torch/engine.py           runs it: continuous batching on torch
    model/engines/torch/vector_pooler.py    which states of a sequence its vector is made of
    model/engines/torch/vision_engine.py    computes vectors from the features of media alone
    model/engines/torch/cache_runs.py       runs of the KV cache, which are given to sequences and come back
    model/engines/torch/scheduler.py        chooses which sequences run, and what the next step computes
    model/engines/torch/prompt_blocks.py    cuts prompts into blocks, whose hashes tell what prompts have in common
    model/engines/torch/prefix_cache.py     finds what prompts begin with, so that it is computed once
    model/engines/torch/sequence.py         a request inside the engine
    model/engines/torch/continuation_scorer.py  which tokens tell how probable continuations are
    model/engines/torch/sequence_builder.py  converts a Request to a sequence, or refuses it
    model/engines/torch/step_runner.py      runs one step: one pass of the language model
    model/engines/torch/pending_step.py     a step that is launched before the tokens of the last one are read
    model/engines/torch/host_memory.py      copies to and from a GPU without waiting for it
    model/engines/torch/attention.py        attention over packed sequences
    model/engines/torch/linear_state.py     the states of linear-attention layers, two for each slot
    model/engines/torch/gated_delta_net.py  computes Gated DeltaNet layers over packed sequences
    model/engines/torch/fla_kernels.py      the same by the kernels of fla-core, on CUDA
    model/engines/torch/kv_cache.py         the KV cache, and where the tokens of a step go in it
    model/engines/torch/vision_cache.py     keeps the features of clips while sequences need them
    model/engines/torch/vision_encoder.py   computes the features of clips, slice by slice
    model/engines/torch/sampler.py          samples the next tokens
    model/engines/torch/cuda_graphs.py      replays decode steps as CUDA graphs
    model/engines/torch/oom_backoff.py      splits work that runs out of memory
    model/engines/torch/memory.py           what weights and steps need of a device's memory, and sizes that fit
    model/engines/torch/model_size.py       computes a model's size from its config
    model/engines/torch/weight_counts.py    counts the weights of the Qwen-VL line from a config alone
    model/engines/torch/meta_model.py       counts those of any model on one without memory
    model/engines/torch/checkpoint.py       reads weights from a checkpoint's files
    model/engines/torch/adapter.py          merges a LoRA adapter into weights as they are read
    model/engines/torch/model_loader.py     loads a checkpoint, or one rank's share of it
    model/engines/torch/int4.py             four-bit weights, read from AWQ or rounded at load
    model/engines/torch/experts.py          the experts of a mixture on CUDA
    model/engines/torch/int4_linear.py      a linear layer of four-bit weights
    model/engines/torch/shard.py            which part of each weight a rank holds
    model/engines/torch/collectives.py      sums and gathers across ranks
    model/engines/torch/replica.py          starts the ranks of a replica, each with its share of the model
    model/engines/torch/layer_compiler.py   compiles layers, all but their attention
    model/engines/torch/shared_pixels.py    hands pixels to other ranks in memory that both map
    model/engines/torch/worker_group.py     starts and stops the other ranks of a replica
    model/engines/torch/tp_worker.py        the process of a rank other than the first

prepare: an Item becomes a Request
    context.py                              RunContext: what every worker needs to know about the run
    prepare.py                              the steps from an Item to a Request

output: a Reply becomes a Row, and Rows become a committed part
    output/answer/annotations.py            finds boxes, points and time spans in an answer
    output/answer/base.py                   what each kind of answer fills in a Row
    output/answer/reader.py                 chooses how the answers of a job are read from replies
    output/answer/json_answer.py            an answer in JSON: parsed, checked, typed, in coordinates of the original
    output/answer/choice_answer.py          an answer from the probabilities of its choices
    output/answer/rerank_answer.py          the probability that a row fits a query
    output/answer/embedding_answer.py       turns the vector of a reply into the column `embedding`
    output/answer/build_row.py              builds a Row from a Reply
    output/answer/confidence.py             how sure the model was of each value of an answer
    output/answer/confidence_maps.py        replaces confidences by those that a score calibrated
    output/answer/geometry.py               maps coordinates and times back to the original media
    output/answer/reask.py                  asks again when an answer is invalid
    output/arrow_tables.py                  builds the tables of a part
    output/commit.py                        writes a part; creating it is the commit
    output/dataset.py                       knows the layout of an output folder: parts, dead letters, runs, questions
    output/dead_letters.py                  finds the rows of a chunk that failed and have no answer yet
    output/failure_counts.py                counts the rows that failed by reason
    output/listing.py                       lists objects page by page
    output/part_index.py                    summaries of many parts, which spare readers their footers
    output/part_listing.py                  holds the names of ten million parts in sorted arrays
    output/local_files.py                   writes files on a local disk whole or not at all
    output/medium_names.py                  names files after rows, the same in every export
    output/store.py                         creates, reads and lists objects in an output folder
    output/thread_map.py                    calls a function on many items from a few threads

truth: what people say the right answers are
    truth/compared_fields.py                finds in a schema what is compared, and how
    truth/truth_index.py                    finds the truth of a row
    truth/base.py                           the seam: TruthReader, a format of truths
    truth/truth_table.py                    Parquet, JSONL and CSV
    truth/coco_truth.py                     COCO files
    truth/label_studio_truth.py             JSON exports of Label Studio
    truth/yolo_truth.py                     folders for YOLO
    truth/cvat_truth.py                     XML of CVAT for images
    truth/job_truth.py                      opens truths for a job: rows to correct in exports, or not to ask
    truth/typed_truth.py                    gives true answers the types of a schema's columns

answer: a Request becomes a Row
    answer.py                               asks the engine and builds the rows of a chunk

run: one run, without Ray
    run/driver.py                           runs a job from its check to its exit code
    run/runner.py                           the seam: Runner, which works on the chunks
    run/local.py                            the runner without Ray: all steps in this process
    run/answer_checks.py                    checks whether the engine can answer by choices or with vectors
    run/examples.py                         reads the examples of a job, which stand before each row
    run/chunk_size.py                       chooses the rows of a chunk by what the first rows weigh
    run/preflight.py                        builds the RunContext and checks the job before anything starts
    run/resume.py                           finds the chunks that are left to do
    run/retry_errors.py                     selects failed rows to ask again
    run/orphans.py                          finds rows that parts of another form of the manifest answer
    run/dedup.py                            finds duplicate rows in little memory
    run/attempts.py                         counts the attempts of a RayJob
    run/budget.py                           stops a run when a question has cost what it may
    run/claims.py                           the objects by which runs claim an output or a shard, one after the other
    run/lease.py                            lets one run at a time work on an output, or on each shard of it
    run/shards.py                           divides chunks among drivers that work on one output at once
    run/signals.py                          stops a run in good order on SIGTERM and Ctrl-C
    run/tally.py                            adds up receipts
    run/progress.py                         shows the progress of a run
    run/run_report.py                       the first and last lines of a run, and its report.json
    run/log.py                              logs events as text or JSON

export: answers become other people's formats
    export/base.py                          the seam: Exporter, a format, and the options of all formats
    export/remarks.py                       collects what people should know about an export beside its rows
    export/splits.py                        divides rows into splits by a hash of their ids
    export/row_changes.py                   what is done to rows before a format gets them
    export/row_filter.py                    selects rows by an expression of DuckDB
    export/media_files.py                   reads the media of rows again, for formats that carry them
    export/export_progress.py               shows how far an export is
    export/export_job.py                    exports the answers of a job: resumes, and accounts for every row
    export/export_claim.py                  says what a folder is an export of, and refuses another one
    export/group_writer.py                  writes the rows of an export in groups
    export/export_sources.py                chooses the rows to export, and joins answers with today's kept columns
    export/row_matching.py                  finds the part that answers a row outside its own chunk
    export/row_spool.py                     keeps manifest rows on disk until their part is exported
    export/chunk_rows.py                    reads ids and kept values of chunks from the manifest
    export/class_names.py                   gives classes their numbers, the same in every export of an output
    export/pictures.py                      divides rows into pictures with what was found in them
    export/group_lines.py                   keeps what groups add to a file about the whole export
    export/upload_queue.py                  writes many small files at once
    export/inline_media.py                  reads media that are bytes in the manifest
    export/split_files.py                   the files of a group, one for each split
    export/plain_values.py                  values in the types that JSON and CSV have
    export/formats/table.py                 the format of a clean table: large Parquet files in Hive folders
    export/formats/json_lines.py            lines of JSON
    export/formats/csv_table.py             CSV, with a column for each value of an answer
    export/option_checks.py                 refuses options that a format cannot follow
    export/table_appender.py                the base of formats that append to a table
    export/formats/delta_table.py           Delta tables
    export/formats/iceberg_table.py         Iceberg tables
    export/formats/lance_table.py           Lance tables
    export/formats/huggingface.py           a data set for Hugging Face's datasets and the hub
    export/hub_push.py                      puts an export on the Hugging Face hub
    export/dataset_card.py                  the card of such a data set
    export/formats/tar_shards.py            WebDataset tars
    export/formats/sharegpt.py              chats for fine-tuning
    export/formats/coco.py                  the format of COCO's object detection
    export/formats/yolo.py                  the format that Ultralytics trains from
    export/formats/voc.py                   the XML files of PASCAL VOC
    export/formats/fiftyone.py              folders that FiftyOne imports
    export/formats/label_studio.py          tasks and predictions for Label Studio
    export/formats/label_studio_config.py   makes its labelling configuration from the schema
    export/formats/label_studio_results.py  turns an answer into the results of a prediction

cluster: everything that needs Ray
    cluster/ray_session.py                  connects to Ray and keeps it quiet
    cluster/ray_runner.py                   the runner on Ray
    cluster/chunk_flow.py                   feeds the slices of chunks to the actors of both pools
    cluster/slice_queue.py                  cuts chunks into slices when their turn comes
    cluster/open_parts.py                   collects the answered slices of a chunk until it can be committed
    cluster/task_size.py                    how many slices one task has
    cluster/actor_pool.py                   which actor gets the next task, and when a pool grows
    cluster/workers.py                      the actors of the two pools
    cluster/late_preparation.py             prepares rows at a replica, where a chunk grew too heavy for a block
    cluster/chunk_codec.py                  encodes a prepared slice as one Arrow row
    cluster/isolation.py                    isolates rows that crash their process
    cluster/crash_ledger.py                 finds such rows: it records what each process works on
    cluster/pools.py                        computes how many workers each pool gets
    cluster/output_folder.py                refuses an output folder that a node does not see
    cluster/ray_job.py                      tells which Ray job this process is the driver of
    cluster/submission.py                   checks a job and collects the files to submit
    cluster/submit.py                       submits a job to a Ray cluster, follows it, and stops a refused one
    cluster/metrics.py                      exports Prometheus metrics

inspect: what people look at
    inspect/output_reader.py                reads the answers, failures and runs of one question
    inspect/progress_bar.py                 shows on a terminal how far a command is
    inspect/status.py                       shows what is answered, failed and left
    inspect/shard_status.py                 shows the same for each shard
    inspect/plan/__init__.py                predicts cost and failures before a run
    inspect/plan/advice.py                  suggests smaller media where that saves many tokens
    inspect/plan/survey.py                  counts rows, tokens and failures from headers
    inspect/plan/shared_beginnings.py       counts the tokens of prompts that an engine copies from row to row
    inspect/plan/gpus.py                    converts tokens to hours and money
    inspect/plan/simulation.py              simulates a run of many replicas: their idle time, and what drivers cost
    inspect/plan/shard_advice.py            tells how many replicas one driver feeds, and how many drivers a job needs
    inspect/plan/measured.py                speeds that were measured on cards, and which of them fit a job
    inspect/plan/plan_text.py               prints a plan
    inspect/figures.py                      samples, bins and rounds numbers for the plan and the report
    inspect/report/__init__.py              writes an HTML report of an output
    inspect/report/statistics.py            reads the figures, the rows to show, and the failures by reason
    inspect/report/previews.py              makes small previews of media
    inspect/report/drawn_media.py           lays out boxes, points and time spans over previews
    inspect/report/truth_marks.py           compares the answers on the page with their truths
    inspect/report/reliability.py           lays out reliability diagrams
    inspect/report/cards.py                 builds the values of the page template
    inspect/report/page.py                  renders the page
    inspect/live/live_output.py             follows an output while runs write it
    inspect/live/live_server.py             serves it as a page on this machine
    inspect/score/__init__.py               measures how good answers are, against a truth
    inspect/score/scored_rows.py            reads an output and marks the rows that have a truth
    inspect/score/row_marks.py              marks one row: which fields are right, and what it adds to each measure
    inspect/score/vector_marks.py           marks rows with vectors: is the nearest row one that belongs with it
    inspect/score/comparators.py            compares a value with the true value
    inspect/score/place_matching.py         pairs boxes, points, events and other elements of lists
    inspect/score/box_matching.py           matches boxes as COCO does, and computes average precision
    inspect/score/assignment.py             pairs two lists so that the sum of weights is greatest
    inspect/score/text_distance.py          edit distance, ANLS, and the forms in which texts are compared
    inspect/score/intervals.py              intervals of measures
    inspect/score/population.py             estimates what all rows are like, from a truth for a sample of them
    inspect/score/label_sample.py           draws the sample and writes it as a table to label
    inspect/score/calibration.py            fits what confidences should have said
    inspect/score/confidence_quality.py     measures what confidences are worth
    inspect/score/score_text.py             prints a score as a table
    inspect/neighbours/__init__.py          finds rows that are alike, by a column of vectors
    inspect/neighbours/vector_table.py      reads the vectors of an output
    inspect/neighbours/whitening.py         gives all directions of vectors the same spread
    inspect/neighbours/cosine_bounds.py     rules out most pairs by products of short vectors
    inspect/neighbours/vector_search.py     groups similar vectors, finds the nearest, chooses diverse ones
    inspect/neighbours/neighbours_page.py   shows them as rows of thumbnails
    inspect/neighbours/progress_line.py     tells how much of a long computation is done
    inspect/corrections.py                  turns what people corrected into a table of truths
    inspect/compare/__init__.py             compares the answers to two questions of an output
    inspect/compare/paired_tests.py         tests whether one is better than the other
    inspect/compare/question_costs.py       what the answers to a question cost
    inspect/compare/compare_text.py         prints a comparison

builtin: models trained here on drawn scenes; pipeline/builtin/weights/README.md is their model card
    builtin/drawing.py                      draws shapes and text
    builtin/scenes.py                       draws images with their ground truth
    builtin/clip_scenes.py                  draws videos in which something happens
    builtin/invoices.py                     draws invoices to read
    builtin/scene_files.py                  writes scenes and a manifest to disk
    builtin/random_checkpoint.py            makes a tiny checkpoint with random weights
    builtin/scores.py                       scores answers against ground truth
    builtin/evaluate.py                     measures the accuracy of the built-in models
    builtin/demo.py                         the demo command
    builtin/training/tokenizer.py           the tokenizer of the built-in models
    builtin/training/batches.py             makes training batches from scenes
    builtin/training/training_model.py      the trainable model and its losses
    builtin/training/train.py               trains the built-in models

new_job: the first job file of a user
    new_job/write_job.py                    writes a job and a schema: the command init
    new_job/gallery.py                      lists the jobs in jobs/, which are the templates
    new_job/job_text.py                     changes keys in the text of a job, and keeps its comments
    new_job/manifest_columns.py             shows the columns of a manifest, and finds those with media and ids
    new_job/schema_text.py                  writes a schema file from the names and types of fields
    new_job/questions.py                    asks at a terminal for what is missing

python_api: what `import vlbatch` offers
    python_api/jobs.py                      runs jobs, and reads outputs as Arrow
    python_api/model.py                     asks a model about media or about a table

command_line: what a user types
    command_line/shell_completion.py        the script by which a shell completes commands
    command_line/commands.py                what each command does
    command_line/score_commands.py          what score, sample, truth and compare do
    command_line/output_commands.py         what status, report and neighbours do
    command_line/output_options.py          the options of the commands that read an output
    command_line/job_options.py             the options of the commands that read or write a job
    command_line/parser.py                  the commands with their options and examples
    __main__.py                             python -m pipeline: parses, runs and sets the exit code
"""
