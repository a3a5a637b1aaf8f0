"""A manifest of pictures and videos in, typed Parquet out: labels by vision-language models, in bulk."""

from __future__ import annotations

import os
import sys

from pipeline.command_line import commands, parser
from pipeline.command_line.output_options import locate_output
from pipeline.errors import ExitCode, PipelineError, StoppedError, Terminated
from pipeline.run import log

PRINT_LAST_COMMANDS = (
    "plan",
    "status",
    "report",
    "score",
    "sample",
    "neighbours",
    "compare",
    "check",
)  # a closed pipe cuts only text whose work is done
RESUME_ADVICE = "committed answers are kept; run the same command again to continue"


def main(arguments: list[str] | None = None) -> int:
    options = parser.parse_arguments(__doc__, arguments)
    try:
        locate_output(options)
        code = parser.COMMANDS[options.command].run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.ALL_ANSWERED if options.command in PRINT_LAST_COMMANDS else ExitCode.BROKEN_PIPE
    except PipelineError as error:
        if options.debug:
            raise
        log.write_exit_reason(f"error: {error}")
        if isinstance(error, StoppedError):
            return ExitCode.INCOMPLETE
        if getattr(options, "stop_when_refused", False):
            commands.stop_ray_job()
        return ExitCode.CANNOT_RUN
    except KeyboardInterrupt:
        log.write_exit_reason(f"interrupted; {RESUME_ADVICE}", level="warning")
        return ExitCode.INTERRUPTED
    except Terminated:
        log.write_exit_reason(f"terminated; {RESUME_ADVICE}", level="warning")
        return ExitCode.TERMINATED


if __name__ == "__main__":
    sys.exit(main())
