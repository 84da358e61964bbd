"""The console script ``mdm``: a file per family of verbs, each verb's options beside its function.

Nothing heavy is imported before a verb is called, so that `mdm status` answers at once and `mdm train` runs on a node
without Prefect and MLflow.
"""

import argparse
import os
import sys
from collections.abc import Callable

from flows.cli import data, images, models, pipeline, records, training

Verb = tuple[Callable[[argparse.Namespace], int], Callable[[argparse.ArgumentParser], None] | None, str]

VERBS: dict[str, Verb] = {
    "run": (pipeline.run, pipeline.run_options, "run a whole reproduction here; again: it resumes"),
    "data": (
        data.data,
        data.data_options,
        "list data sets; make, verify one, or take samples out of it for good",
    ),
    "embed": (data.embed, data.embed_options, "embed the captions of a preset's shards with its frozen text encoder"),
    "config": (models.config, models.config_options, "print a preset, whole and resolved, as --config takes it back"),
    "models": (models.models, None, "list the named models with resolutions, parameters and forward GFLOP"),
    "train": (training.train, training.train_options, "train the job of a run folder, or go on with it; or price it"),
    "ema": (training.ema, training.ema_options, "rebuild a run's EMA with another length, from the snapshots it kept"),
    "sample": (images.sample, images.sample_options, "draw images of a prompt of your own, at all resolutions"),
    "evaluate": (images.evaluate, images.evaluate_options, "measure a run's drawn samples again"),
    "status": (pipeline.status, pipeline.status_options, "what is done, running and missing of a run"),
    "track": (records.track, records.track_options, "copy a training folder's metrics and pictures into MLflow"),
    "report": (records.report, records.report_options, "make a run's page again, or one of several runs"),
    "verify": (models.verify, models.verify_options, "prove that the networks compute the released functions"),
    "convert": (models.convert, models.convert_options, "turn the authors' vis_model.pth into a weights folder"),
    "export": (models.export, models.export_options, "write a released model for diffusers' community pipeline"),
    "deploy": (pipeline.deploy, None, "create the work pool and deploy the flows to the server at PREFECT_API_URL"),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mdm", description="Matryoshka Diffusion Models, reproduced end to end.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, (function, add_options, summary) in VERBS.items():
        sub = verbs.add_parser(name, help=summary, description=summary)
        sub.set_defaults(verb=function)
        if add_options is not None:
            add_options(sub)
    arguments = parser.parse_args(argv)
    from flows.home import Trouble
    from mdm.run.watch import stops_as_ctrl_c
    from preprocessing.items import printable

    stops_as_ctrl_c()  # a trainer and a flow, which save first, take them over
    try:
        return arguments.verb(arguments)
    except BrokenPipeError:  # `mdm models | head`: nobody reads on; nor may the interpreter complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Trouble, ValueError, OSError) as error:  # of the file system: names the file that it is about
        if isinstance(error, OSError) and error.filename is None and not isinstance(error, FileNotFoundError):
            raise  # a connection, say: whose, only the traceback tells
        print(*map(printable, f"mdm: {error}".split("\n")), sep="\n", file=sys.stderr)  # names of files are anyone's
        return 1
    except KeyboardInterrupt:
        print("mdm: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
