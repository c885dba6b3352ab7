"""Command line: one verb a function (`synboost VERB`, or `python -m synboost_monai VERB`).

A mistake of the user and what the system refuses come out as one line on stderr and exit code 2; any other error keeps its traceback.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from synboost_monai.errors import in_one_line
from synboost_monai.hospital.options import BatchOptions, ListenOptions

Verb = Callable[..., None]


def flags_of(options: type[Any]) -> Callable[[Verb], Verb]:
    """Make each field of a dataclass of options a flag of a verb that takes them as its parameter `options`.

    The text of a flag is that of the field in the docstring of its class.
    """

    def decorate(function: Verb) -> Verb:
        fields = dataclasses.fields(options)

        @functools.wraps(function)
        def verb(*words: Any, **values: Any) -> None:
            given = {field.name: values.pop(field.name) for field in fields if field.name in values}
            function(*words, options=options(**given), **values)

        flags = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for f in fields
        ]
        signature = inspect.signature(function)
        parameters = [[p] if p.name != "options" else flags for p in signature.parameters.values()]
        verb.__signature__ = signature.replace(parameters=[p for some in parameters for p in some])  # type: ignore[attr-defined]
        texts = [line for c in reversed(options.__mro__[:-1]) for line in _argument_lines(c)]
        own = f"        options: of {options.__name__}."
        verb.__doc__ = (function.__doc__ or "").replace(own, "\n".join(f"        {line}" for line in texts))
        return verb

    return decorate


def _argument_lines(documented: type[Any]) -> list[str]:
    """The lines of a docstring's `Args`, without their indentation."""
    arguments = inspect.cleandoc(documented.__doc__ or "").partition("Args:\n")[2].partition("\nRaises:")[0]
    return [line.removeprefix("    ") for line in arguments.splitlines() if line]


def phantom(output_dir: str, *, num_patients: int = 10, seed: int = 0, **options: Any) -> None:
    """Make a phantom data set in CAMUS's layout: varied anatomy, physical speckle, known ejection fraction.

    Args:
        output_dir: folder to make.
        num_patients: how many; each has two views with their end-diastole, end-systole and half sequence.
        seed: the same seed gives the same files.
        options: further arguments of synboost_monai.simulation.phantom.write_phantom, such as --image_height.
    """
    from synboost_monai.bundle_run import literal
    from synboost_monai.simulation import phantom as module

    known = [n for n in inspect.signature(module.write_phantom).parameters if n != "output_dir"]
    for name in options:
        if name not in known:
            raise ValueError(f"phantom: unknown flag --{name}{_nearest(name, known)}; it takes {', '.join(known)}")
    values = {name: literal(value) for name, value in options.items()}
    path = module.write_phantom(output_dir, num_patients=num_patients, seed=seed, **values)
    print(f"phantom data set: {path}")


def simulate(
    output_dir: str,
    *,
    num_images: int = 1000,
    sequences: int = 0,
    seed: int = 0,
    image_size: int = 320,
    num_frames: int = 20,
    workers: int | None = None,
) -> None:
    """Make a data set of simulated hearts: wide anatomy, wide acoustics, exact label maps, no person's image.

    Args:
        output_dir: folder to make; an interrupted run goes on with what is missing.
        num_images: images, each of a heart of its own; in datalist.json with view, phase, sex, age, quality, shape.
        sequences: beating hearts with the truth of each frame, in sequences/ and sequences.csv.
        seed: the same seed gives the same files.
        image_size: pixels of the longer side.
        num_frames: of a sequence, one heart beat.
        workers: processes; one per processor by default.
    """
    from synboost_monai.simulation.write import SimulatedSettings, write_simulated

    settings = SimulatedSettings(num_images, sequences, seed, image_size, num_frames)
    print(f"simulated hearts: {write_simulated(output_dir, settings, workers=workers)}")


def prepare(
    dataset: str,
    output_dir: str,
    *,
    split: str = "official",
    strict: bool = False,
    shape_source: str = "rule",
    max_training_patients: int | None = None,
    training_fraction: float | None = None,
    seed: int = 0,
) -> None:
    """Read a folder of CAMUS or EchoNet-Dynamic, say what it lacks, and write datalist.json for every later stage.

    Args:
        dataset: folder of CAMUS (NIfTI or MetaImage release, whole or partial), of EchoNet-Dynamic, or of a phantom.
        output_dir: folder for datalist.json and summary.txt; of EchoNet-Dynamic for images and label maps too.
        split: official, or paper (the first 50 of CAMUS's 450 as validation).
        strict: anything missing or unreadable is an error.
        shape_source: where the shape word of each structure comes from: rule, none, or the folder of a visual question
            answering model.
        max_training_patients: take at most so many training patients.
        training_fraction: the same as a share of them.
        seed: of every drawing of patients.
    """
    from synboost_monai.data.prepare import prepare_dataset

    print(
        prepare_dataset(
            dataset,
            output_dir,
            split=split,
            strict=strict,
            shape_source=shape_source,
            max_training_patients=max_training_patients,
            training_fraction=training_fraction,
            seed=seed,
        )
    )


def subset(
    dataset: str,
    output_dir: str,
    *,
    patients: float | None = None,
    fold: int | None = None,
    num_folds: int = 5,
    seed: int = 0,
) -> None:
    """Make a part of a data set, fewer patients or a fold of a cross-validation, as a data set of its own; no image is copied.

    Args:
        dataset: folder with datalist.json.
        output_dir: folder for datalist.json and summary.txt.
        patients: how many for training and validation together, or a share of them below 1; all by default.
        fold: which fold is for validation, from 0; the others are for training. By default the data set's own validation.
        num_folds: into how many folds the patients are divided.
        seed: of every drawing of patients.
    """
    from synboost_monai.data import write_subset

    print(write_subset(dataset, output_dir, patients=patients, fold=fold, num_folds=num_folds, seed=seed))


def label_maps(
    dataset: str,
    output_dir: str,
    *,
    num_maps: int = 200,
    seed: int = 0,
    method: str = "shape_model",
    section: str = "training",
    view: str | None = None,
    phase: str | None = None,
    variance_scale: float = 1.0,
    explained_variance: float = 0.995,
) -> None:
    """Draw new label maps from those of a data set, without annotation; every one passes checks of anatomy.

    Their folder is a data set for `synboost synthesise --dataset_dir`; it also has a summary and a contact sheet.

    Args:
        dataset: folder with datalist.json (or of label maps) to learn from.
        output_dir: folder to make; a run that was interrupted goes on.
        num_maps: how many; a larger set begins with a smaller one of the same seed.
        seed: the same seed gives the same label maps.
        method: shape_model (statistical shape model), or interpolate (between two label maps of the data set).
        section: section of the datalist to learn from; several joined by +.
        view: learn from apical_two_chamber or apical_four_chamber alone; both by default.
        phase: learn from end_diastole or end_systole alone; both by default.
        variance_scale: factor of the shapes' variance; below 1 is closer to the mean.
        explained_variance: share of the shapes' variance that the model keeps; more is finer detail.
    """
    from synboost_monai.synthesis.label_maps import sample_label_maps

    path = sample_label_maps(
        dataset,
        output_dir,
        num_maps=num_maps,
        seed=seed,
        method=method,
        section=section,
        view=view,
        phase=phase,
        variance_scale=variance_scale,
        explained_variance=explained_variance,
    )
    print(f"label maps: {path}")


def run(bundle: str, config: str, **overrides: Any) -> None:
    """Run a config of a bundle with MONAI, after checking that every override is a key of the config.

    Args:
        bundle: echo_semantic_diffusion, echo_clipseg, echo_cris, or the folder of a bundle.
        config: train, inference, evaluate, multi_gpu_train, or config files, several with commas.
        overrides: --key value for each key of the config, nested with `::` (--train::trainer::max_epochs 3).
    """
    from synboost_monai.bundle_run import run_bundle

    run_bundle(bundle, config, overrides)


def train(bundle: str, **overrides: Any) -> None:
    """Train a bundle: short for `run BUNDLE train`.

    Args:
        bundle: echo_semantic_diffusion, echo_clipseg or echo_cris.
        overrides: --dataset_dir, --output_dir, --preset, --max_epochs and every other key of configs/train.yaml.
    """
    run(bundle, "train", **overrides)


def synthesise(bundle: str = "echo_semantic_diffusion", **overrides: Any) -> None:
    """Make synthetic echocardiograms from label maps: short for `run echo_semantic_diffusion inference`.

    Args:
        bundle: a bundle that synthesises.
        overrides: --dataset_dir, --output_dir, --checkpoint_path, --num_variations and every other key of its config.
    """
    run(bundle, "inference", **overrides)


def merge(output_dir: str, *dataset_dirs: str) -> None:
    """Join finished synthetic data sets into one, such as those of a model for each view and phase; no image is copied.

    Args:
        output_dir: folder for the joint datalist.json, provenance.json and contact sheet.
        dataset_dirs: folders that `synthesise` made.
    """
    from synboost_monai.synthesis import merge_synthetic

    print(f"data set: {merge_synthetic(output_dir, *dataset_dirs)}")


def segment(bundle: str, **overrides: Any) -> None:
    """Segment a folder of images, one image or clip, or a datalist: short for `run BUNDLE inference`.

    Of an AVI or MP4 file every frame is segmented; in a folder such clips are taken with --sequences true.

    Args:
        bundle: echo_clipseg or echo_cris.
        overrides: --dataset_dir, --output_dir, --checkpoint_path, --prompt "heart muscle" and every other key of its config.
    """
    from synboost_monai.files import CLIP_SUFFIXES, image_suffix

    if image_suffix(str(overrides.get("dataset_dir", ""))) in CLIP_SUFFIXES:
        overrides.setdefault("sequences", True)
    run(bundle, "inference", **overrides)


def evaluate(bundle: str, **overrides: Any) -> None:
    """Measure a segmenter on a datalist, or the quality of synthetic images: short for `run BUNDLE evaluate`.

    Args:
        bundle: echo_clipseg or echo_cris: segments the testing section and measures it. echo_semantic_diffusion: judges a
            synthetic data set beside a real one.
        overrides: --dataset_dir, --output_dir, --checkpoint_path (of a segmenter; --real_dir and --segmenter_checkpoint for
            synthetic images) and every other key of its config.
    """
    run(bundle, "evaluate", **overrides)


def experiment(
    study: str,
    *,
    dataset: str | None = None,
    output: str | None = None,
    cores: int | None = None,
    profile: str | None = None,
    jobs: int | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> None:
    """Run a whole study: prepare, train the diffusion model, synthesise, train and evaluate the segmenters, report.

    Finished stages are not done again; an interrupted stage goes on where it was.

    Args:
        study: quickstart, camus_small, or a YAML file of yours.
        dataset: a CAMUS folder, instead of the study's data.
        output: folder of the run; runs/STUDY by default.
        cores: processor cores to use; all by default.
        profile: where the stages run: slurm, or the folder of a Snakemake profile of yours; this machine by default.
        jobs: with a profile: how many stages are submitted at a time.
        dry_run: only count and list the stages that would run.
        settings: any setting of the study, such as --seed 1 or --diffusion.train.max_epochs 5.
    """
    from synboost_monai.study.run import run_study

    report_path = run_study(
        study,
        dataset=dataset,
        output=output,
        cores=cores,
        profile=profile,
        jobs=jobs,
        dry_run=dry_run,
        settings=settings,
    )
    if report_path is not None:
        print(f"report: {report_path}")


def report(run_dir: str) -> None:
    """Write report.html, tables/ (CSV and LaTeX), results.csv, results.json and cases.csv.gz of a study's run again, finished or not.

    Args:
        run_dir: folder of the run, such as runs/quickstart.
    """
    from synboost_monai.study.report import write_report

    print(f"report: {write_report(run_dir)}")


def compare(
    *runs: str,
    output: str | None = None,
    names: str | None = None,
    metrics: str | None = None,
    alternative: str = "greater",
    num_resamples: int = 10000,
    seed: int = 0,
) -> None:
    """Compare evaluations of the same images, each later one with the first: paired tests, by image and by patient.

    Args:
        runs: metrics.csv of each, or the folder of an evaluation; two or more.
        output: folder for comparison.json and each table as CSV and LaTeX.
        names: of the runs, with commas; by default the parts in which their paths differ.
        metrics: dice, iou, hd_mm, hd95_mm, asd_mm, with commas; by default those that every file has.
        alternative: whether the first is better (greater), worse (less) or just different (two-sided).
        num_resamples: of the bootstrap by patients.
        seed: of the bootstrap.
    """
    from synboost_monai.evaluation.compare import compare as compare_runs
    from synboost_monai.pages.tables import to_text

    if len(runs) < 2:
        raise ValueError(f"give at least two evaluations to compare, got {len(runs)}")
    tables = compare_runs(
        *runs,
        names=names.split(",") if names else None,
        metrics=metrics.split(",") if metrics else None,
        alternative=alternative,
        output_dir=output,
        seed=seed,
        num_resamples=num_resamples,
    )
    print("\n\n".join(to_text(table) for table in tables))


def clinical(evaluation_dir: str, *, dataset_dir: str | None = None, section: str | None = None) -> None:
    """Measure volumes and ejection fraction in an evaluation's label maps, and how they agree with the experts'.

    Writes clinical.csv, clinical.json, the tables (CSV and LaTeX) and Bland-Altman plots into the evaluation's folder.

    Args:
        evaluation_dir: folder that `synboost evaluate` wrote.
        dataset_dir: the data set that was evaluated; by default that of its summary.json.
        section: of the data set; by default that of its summary.json.
    """
    from synboost_monai.evaluation.clinical import clinical_measures
    from synboost_monai.pages.tables import to_text, write_table

    result = clinical_measures(evaluation_dir, dataset_dir, section=section)
    for table in result.tables:
        write_table(table, evaluation_dir)
        print(to_text(table) + "\n")
    print(f"every patient: {result.csv_path}")


def auto3dseg(
    input_path: str,
    *,
    output: str | None = None,
    algos: str | None = None,
    num_fold: int | None = None,
    ensemble: str = "both",
    n_best: int | None = None,
    **training: Any,
) -> None:
    """Train both segmenters on every fold with MONAI's Auto3DSeg, ensemble them, and measure all on the testing section.

    Trained folds are not trained again; an interrupted one goes on where it was.

    Args:
        input_path: AutoRunner's input.yaml: modality, datalist, dataroot.
        output: folder of the run; runs/auto3dseg by default.
        algos: echoclipseg, echocris, or both with a comma; both by default.
        num_fold: folds of whole patients; those of the datalist, or 5, by default.
        ensemble: best_n, best_by_fold, both or none.
        n_best: networks in best_n; as many as folds by default.
        training: --num_epochs, --num_images_per_batch, --image_size, --preset and every other key of the bundles' configs/train.yaml.
    """
    from synboost_monai.auto3dseg.run import run_auto3dseg

    folder = run_auto3dseg(
        input_path, output=output, algos=algos, num_fold=num_fold, ensemble=ensemble, n_best=n_best, **training
    )
    print((folder / "auto3dseg.txt").read_text(encoding="utf-8"), end="")
    print(f"results: {folder}")


def phantom_studies(
    output_dir: str, *, num_studies: int = 3, seed: int = 0, image_height: int = 320, num_frames: int = 60
) -> None:
    """Make phantom patients as DICOM studies with known volumes: a four- and a two-chamber clip each.

    Args:
        output_dir: a folder for each patient, and truth.json.
        num_studies: patients.
        seed: of all patients; the same seed gives the same files.
        image_height: pixels of the sector.
        num_frames: of a clip, two heart beats long.
    """
    from synboost_monai.hospital.phantom_studies import write_phantom_studies

    write_phantom_studies(
        output_dir, num_studies=num_studies, seed=seed, image_height=image_height, num_frames=num_frames
    )
    print(f"phantom studies: {output_dir}")


@flags_of(BatchOptions)
def dicom(in_dir: str, out_dir: str, *, options: BatchOptions, **overrides: Any) -> None:
    """Segment and measure a folder of DICOM studies: DICOM SEG and SR, volumes, ejection fraction, and a line for every file.

    Ends with code 0 if every file was processed or is not for us, 1 if some were refused, 2 if the run itself failed.

    Args:
        in_dir: any tree of files; it is only read.
        out_dir: for ledger.csv, report.html, measurements.csv and studies/.
        options: of BatchOptions.
        **overrides: keys of the bundle's inference.yaml, such as prompt_level, calibration_path, device.
    """
    from synboost_monai.bundle_run import quiet_warnings, say_shipped_weights
    from synboost_monai.hospital.batch import run_dicom

    quiet_warnings()
    if options.checkpoint_path is None:
        say_shipped_weights(options.bundle)
    if code := run_dicom(in_dir, out_dir, options, overrides=overrides):
        raise SystemExit(code)


@flags_of(ListenOptions)
def listen(out_dir: str, *, options: ListenOptions, **overrides: Any) -> None:
    """Receive studies as a DICOM node, segment and measure each when it has come whole, and send the results on.

    Args:
        out_dir: of the node: inbox, results and what is still to be sent; it holds patients' images.
        options: of ListenOptions.
        **overrides: keys of the bundle's inference.yaml, such as prompt_level, device.
    """
    from synboost_monai.bundle_run import quiet_warnings, say_shipped_weights
    from synboost_monai.hospital.listen import run_listen

    quiet_warnings()
    if options.checkpoint_path is None:
        say_shipped_weights(options.bundle)
    if code := run_listen(out_dir, options, overrides=overrides):
        raise SystemExit(code)


def label(
    studies: str,
    *,
    bundle: str = "echo_cris",
    checkpoint_path: str | None = None,
    app_dir: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | bool | None = None,
    dry_run: bool = False,
    **overrides: Any,
) -> None:
    """Serve segmenters with MONAI Label on this machine, for annotating in 3D Slicer; from the environment of scripts/setup_label.sh.

    Args:
        studies: folder of images (NIfTI, MetaImage, PNG, DICOM); labels are kept in it.
        bundle: echo_cris, echo_clipseg, or both with a comma.
        checkpoint_path: their weights, with commas between; by default the bundles' own. They are copied, so a training leaves them alone.
        app_dir: folder for the app; runs/label/BUNDLE by default. Called again, weights that were trained in it are served.
        host: address to listen at; by default this machine alone is served. Any other needs a token.
        port: of the server.
        token: what viewers have to know, part of the address that is printed; without a value a new one is made. SYNBOOST_LABEL_TOKEN
            of the environment hides it from lists of processes.
        dry_run: only make and check the app folder.
        **overrides: keys of the bundles' inference.yaml and train.yaml, such as threshold, learning_rate; for one bundle of several
            --echo_cris.learning_rate 1e-4.
    """
    from synboost_monai.bundle_run import quiet_warnings, say_shipped_weights
    from synboost_monai.serving.label.serve import run_label

    quiet_warnings()
    for name in [] if checkpoint_path else filter(None, bundle.split(",")):
        say_shipped_weights(name)
    run_label(
        studies,
        bundles=[word for word in bundle.split(",") if word],
        checkpoint_paths=checkpoint_path.split(",") if checkpoint_path else None,
        app_dir=app_dir,
        host=host,
        port=port,
        token=token,
        dry_run=dry_run,
        overrides=overrides,
    )


def weights(
    action: str,
    source: str | None = None,
    output: str | None = None,
    *,
    architecture: str | None = None,
    preset: str | None = None,
    partial: bool = False,
    sha256: str | None = None,
    dtype: str = "float32",
    licence: str | None = None,
) -> None:
    """List public weights, get them (checked by their hash), or convert them to a bundle's model.pt with its model.json.

    Args:
        action: list; get NAME FOLDER (the only use of the network in this software); convert FILE MODEL.PT.
        source: get: a name of the list. convert: a checkpoint, an archive, or a folder of transformers.
        output: get: where to put the file. convert: the model.pt to write, such as bundles/echo_clipseg/models/model.pt.
        architecture: convert: clipseg, cris or semantic_diffusion; told from the keys by default.
        preset: convert: the size that the checkpoint was made with; by default what the model.json beside it says, else published.
        partial: convert: also take CLIP alone for CRIS; the rest is then random, good to start a training from.
        sha256: get: the hash to expect, for weights of which the list has none.
        dtype: convert: float32, or float16 or bfloat16 for a file of half the size.
        licence: convert: of the weights, for model.json.
    """
    from synboost_monai.weights import run_action

    print(
        run_action(
            action,
            source,
            output,
            architecture=architecture,
            preset=preset,
            partial=partial,
            sha256=sha256,
            dtype=dtype,
            licence=licence,
        )
    )


def package(bundle: str, *, checkpoint_path: str | None = None, output: str | None = None, **overrides: Any) -> None:
    """Write a bundle with its weights as one zip, which runs wherever synboost-monai is installed.

    Args:
        bundle: echo_semantic_diffusion, echo_clipseg, echo_cris, or the folder of a bundle.
        checkpoint_path: its weights, a model.pt; by default the bundle's own.
        output: the zip; BUNDLE.zip by default.
        overrides: keys of its inference.yaml, such as --threshold 0.4; they become defaults of the package, beside what the weights'
            model.json says. --calibration_path packs a calibration.
    """
    from synboost_monai.bundle_run import say_shipped_weights
    from synboost_monai.serving.package import package_bundle

    if checkpoint_path is None:
        say_shipped_weights(bundle)
    path = package_bundle(bundle, output, checkpoint_path=checkpoint_path, overrides=overrides)
    print(f"package: {path}")


def export(
    bundle: str,
    *,
    format: str = "onnx",
    checkpoint_path: str | None = None,
    output: str | None = None,
    **overrides: Any,
) -> None:
    """Write a segmenter with its weights as ONNX or TorchScript, and compare the file with the network.

    Args:
        bundle: echo_clipseg, echo_cris, or the folder of one.
        format: onnx, or torchscript.
        checkpoint_path: its weights, a model.pt; by default the bundle's own.
        output: the file; BUNDLE.onnx or BUNDLE.ts by default.
        overrides: keys of its inference.yaml, such as --threshold 0.4; for weights without model.json --preset and --image_size.
    """
    from synboost_monai.bundle_run import say_shipped_weights
    from synboost_monai.serving.export import export_bundle

    if checkpoint_path is None:
        say_shipped_weights(bundle)
    path, difference = export_bundle(
        bundle, output, format=format, checkpoint_path=checkpoint_path, overrides=overrides
    )
    print(f"{format}: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if difference is None:
        print("not compared with the network: onnxruntime is not installed (pip install 'synboost-monai[export]')")
    else:
        print(
            f"largest difference from the network: {difference.absolute:.1e}, {difference.relative:.1e} of the largest logit; "
            f"of a probability {difference.probability:.1e}"
        )


def demo(
    *,
    bundle: str = "echo_cris",
    checkpoint_path: str | None = None,
    synthesis_checkpoint_path: str | None = None,
    folders: str = "",
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | bool | None = None,
    **overrides: Any,
) -> None:
    """Open a page on this machine to segment images by words and to synthesise them from label maps, step by step.

    By default it listens to this machine alone; it asks for nothing from elsewhere, and what is uploaded is removed when it ends.

    Args:
        bundle: of a segmenter.
        checkpoint_path: its weights; by default the bundle's own.
        synthesis_checkpoint_path: weights of echo_semantic_diffusion; without any, the page only segments.
        folders: with commas between, those whose files may be opened by their paths; others have to be uploaded.
        host: address to listen at. Any other than this machine's own needs a token.
        port: of the page.
        token: what the page asks for, part of the address that is printed; without a value a new one is made. SYNBOOST_DEMO_TOKEN of
            the environment hides it from lists of processes.
        **overrides: keys of the segmenter's inference.yaml, such as --threshold 0.4; with `synthesis.` before them of
            echo_semantic_diffusion's: --synthesis.num_inference_steps 50.
    """
    from synboost_monai.bundle_run import quiet_warnings, say_shipped_weights
    from synboost_monai.serving.demo.serve import run_demo

    quiet_warnings()
    if checkpoint_path is None:
        say_shipped_weights(bundle)
    run_demo(
        bundle,
        checkpoint_path,
        synthesis_checkpoint_path,
        port,
        overrides,
        host=host,
        token=token,
        folders=[word for word in folders.split(",") if word],
    )


def version() -> None:
    """Print the version of the package."""
    from synboost_monai import __version__

    print(__version__)


VERBS: dict[str, Verb] = {
    f.__name__.replace("_", "-"): f
    for f in (
        phantom,
        phantom_studies,
        simulate,
        prepare,
        subset,
        label_maps,
        run,
        train,
        synthesise,
        merge,
        segment,
        evaluate,
        experiment,
        report,
        compare,
        clinical,
        auto3dseg,
        dicom,
        listen,
        label,
        demo,
        weights,
        package,
        export,
        version,
    )
}
"""Verb -> function."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `synboost`; ends the process with code 0, 1 (a fault of ours) or 2 (a mistake of the user)."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    with in_one_line(f"synboost {argv[0]}", _written_to(argv)):
        words = checked_arguments(argv)
        _load_matplotlib_elsewhere()
        os.environ["PAGER"] = "cat"  # `synboost VERB --help` prints, it does not page
        import fire

        fire.Fire(VERBS, command=words, name="synboost")


def _load_matplotlib_elsewhere() -> None:
    """Load matplotlib where no matplotlibrc lies: it takes the working directory's first, which may be somebody else's."""
    if not os.path.exists("matplotlibrc") or find_spec("matplotlib") is None:
        return
    here = os.getcwd()
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    try:
        importlib.import_module("matplotlib")
    finally:
        os.chdir(here)


_BARE = ("bool", "str | bool | None")  # parameters whose flag may stand without a value


def checked_arguments(argv: Sequence[str]) -> list[str]:
    """The command line as fire will read it: flags known, every value a Python literal of the parameter's type.

    fire alone finds an unknown flag only after the verb has done its work, reads `a,b` or `00012` as something else than
    text, and takes `--strict false` as true.

    Raises:
        ValueError: in one line, with the nearest word that exists.
    """
    name, words = argv[0].replace("_", "-"), list(argv[1:])
    if name not in VERBS:
        raise ValueError(f"no such verb{_nearest(name, list(VERBS))}; verbs: {', '.join(VERBS)}")
    if {"-h", "--help"} & set(words):
        return [name, "--", "--help"]
    parameters = inspect.signature(VERBS[name]).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    takes_more = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    kinds = {p: str(v.annotation) for p, v in parameters.items() if v.kind not in (v.VAR_KEYWORD, v.VAR_POSITIONAL)}
    values: dict[str, str] = {}
    positional: list[str] = []
    while words:
        word = words.pop(0)
        if not _is_flag(word):
            positional.append(word)
            continue
        flag, equals, value = word.lstrip("-").partition("=")
        flag = flag.replace("-", "_")
        if (
            not equals
            and words
            and not _is_flag(words[0])
            and not (kinds.get(flag) == "bool" and not _is_bool(words[0]))
        ):
            value = words.pop(0)
        elif not equals and flag.startswith("no") and kinds.get(flag[2:]) == "bool":
            flag, value = flag[2:], "false"
        elif not equals and (kinds.get(flag) in _BARE or flag not in kinds and takes_any):
            value = "true"
        elif not equals and flag in kinds:
            raise ValueError(f"--{flag} needs a value")
        if flag not in kinds and not takes_any:
            takes = f"it takes {', '.join(f'--{k}' for k in kinds)}" if kinds else "it takes none"
            raise ValueError(f"unknown flag --{flag}{_nearest(flag, list(kinds))}; {takes}")
        values[flag] = value
    places = [k for k in kinds if parameters[k].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    open_names = [k for k in places if k not in values]
    if len(positional) > len(open_names) and not takes_more:
        takes = " ".join(k.upper() for k in places) or "none"
        raise ValueError(f"unexpected word {positional[len(open_names)]!r}; the words it takes: {takes}")
    values = dict(zip(open_names, positional)) | values
    missing = [k for k in kinds if k not in values and parameters[k].default is inspect.Parameter.empty]
    if missing:
        raise ValueError(f"{', '.join(k.upper() for k in missing)} is missing; see `synboost {name} --help`")
    flags = [f"--{k}={_read(k, v, kinds.get(k, 'text'))!r}" for k, v in values.items()]
    return [name, *flags, *(repr(word) for word in positional[len(open_names) :])]


def _read(flag: str, text: str, kind: str) -> Any:
    """The value of a flag in the type of its parameter; text stays text, `00012` and `1,2` included."""
    if kind in _BARE and _is_bool(text):
        return text.lower() == "true"
    if kind.startswith(("str", "text")):
        return text
    from synboost_monai.bundle_run import literal

    value = literal(text)
    kinds: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float)}
    is_right = isinstance(value, kinds[kind.split(" ")[0]]) and isinstance(value, bool) == (kind == "bool")
    if not is_right and not (value is None and kind.endswith("None")):
        raise ValueError(f"--{flag} must be {kind.replace(' | None', '')}, got {text!r}")
    return value


def _written_to(argv: Sequence[str]) -> str | None:
    """The folder or file that a command writes to, as its words say; None if they do not."""
    names = ("output_dir", "out_dir", "output", "app_dir")
    try:
        flags = {word.lstrip("-").split("=")[0].replace("-", "_"): word for word in checked_arguments(argv)[1:]}
    except ValueError:
        return None
    values = [flags[name].partition("=")[2] for name in names if name in flags]
    return str(ast.literal_eval(values[0])) if values else None


def _is_bool(word: str) -> bool:
    """Whether a word is true or false."""
    return word.lower() in ("true", "false")


def _is_flag(word: str) -> bool:
    """Whether a word of the command line is `--flag` or `-f`, not a value such as -3."""
    return word.startswith("--") and len(word) > 2 or (word.startswith("-") and word[1:2].isalpha())


def _nearest(word: str, words: Sequence[str]) -> str:
    """`; did you mean X?` or nothing."""
    match = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean {match[0]}?" if match else ""


def _overview() -> str:
    """The verbs, a line each."""
    width = max(map(len, VERBS)) + 2
    lines = [f"  {name:<{width}}{(f.__doc__ or '').splitlines()[0]}" for name, f in VERBS.items()]
    head = "synboost VERB [arguments]: synthetic echocardiograms and prompted segmentation\n\nVerbs:"
    return "\n".join([head, *lines, "\nsynboost VERB --help tells a verb's arguments."])


if __name__ == "__main__":
    main()
