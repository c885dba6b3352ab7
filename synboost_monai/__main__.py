"""Run a verb of the command line, which is the function of its name (`synboost VERB`, or `python -m synboost_monai VERB`).

The docstrings of the verbs are the text of `--help` and of the reference page.

A mistake of the user and what the system refuses come out as one line on stderr and exit code 2; any other error keeps its traceback.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from synboost_monai.adaptation.options import AdaptOptions
from synboost_monai.command_line import Verb, checked_arguments, written_to
from synboost_monai.errors import did_you_mean, in_one_line
from synboost_monai.hospital.options import BatchOptions, ListenOptions
from synboost_monai.options import SegmenterOptions, flags_of
from synboost_monai.processes import let_threads_wait
from synboost_monai.serving.options import DemoOptions, LabelOptions
from synboost_monai.synthesis.options import LabelMapOptions
from synboost_monai.weights.options import ConvertOptions


def phantom(output_dir: str, *, num_patients: int = 10, seed: int = 0, **options: Any) -> None:
    """Make a phantom data set in CAMUS's layout: varied anatomy, physical speckle, known ejection fraction.

    Args:
        output_dir: folder to make.
        num_patients: number of patients; each has two views with end-diastole, end-systole and half sequence.
        seed: the same seed gives the same files.
        options: further arguments of synboost_monai.simulation.phantom.write_phantom, such as --image_height.
    """
    from synboost_monai.bundle_run import literal
    from synboost_monai.simulation import phantom as module

    known = [n for n in inspect.signature(module.write_phantom).parameters if n != "output_dir"]
    for name in options:
        if name not in known:
            raise ValueError(f"phantom: unknown flag --{name}{did_you_mean(name, known)}; it takes {', '.join(known)}")
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
        num_images: number of images, each of another heart; datalist.json lists them with view, phase, sex, age, quality, shape.
        sequences: number of beating hearts, with the truth of each frame, in sequences/ and sequences.csv.
        seed: the same seed gives the same files.
        image_size: length of the longer side in pixels.
        num_frames: frames of a sequence, which is one heart beat.
        workers: number of processes; one per processor by default.
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
        output_dir: folder for datalist.json and summary.txt; with EchoNet-Dynamic for images and label maps too.
        split: official, or paper (the first 50 of CAMUS's 450 as validation).
        strict: treat anything missing or unreadable as an error.
        shape_source: where the shape word of each structure comes from: rule, none, or the folder of a visual question
            answering model.
        max_training_patients: largest number of training patients.
        training_fraction: the same as a share of the training patients.
        seed: seed of every draw of patients.
    """
    from synboost_monai.data.prepare import prepare_dataset

    summary = prepare_dataset(
        dataset,
        output_dir,
        split=split,
        strict=strict,
        shape_source=shape_source,
        max_training_patients=max_training_patients,
        training_fraction=training_fraction,
        seed=seed,
    )
    print(summary)


def subset(
    dataset: str,
    output_dir: str,
    *,
    patients: float | None = None,
    fold: int | None = None,
    num_folds: int = 5,
    seed: int = 0,
) -> None:
    """Make a data set of part of another, fewer patients or a fold of a cross-validation, without copying images.

    Args:
        dataset: folder with datalist.json.
        output_dir: folder for datalist.json and summary.txt.
        patients: number of patients for training and validation together, or a share of them below 1; all by default.
        fold: index of the fold for validation, from 0; the others are for training. By default the data set's own validation.
        num_folds: number of folds into which the patients are divided.
        seed: seed of every draw of patients.
    """
    from synboost_monai.data import write_subset

    print(write_subset(dataset, output_dir, patients=patients, fold=fold, num_folds=num_folds, seed=seed))


@flags_of(LabelMapOptions)
def label_maps(dataset: str, output_dir: str, *, options: LabelMapOptions) -> None:
    """Draw new label maps from those of a data set, without annotation; every one passes checks of anatomy.

    Their folder is a data set for `synboost synthesise --dataset_dir`; it also has a summary and a contact sheet.

    Args:
        dataset: folder with datalist.json (or of label maps) to learn from.
        output_dir: folder to make; an interrupted run goes on with what is missing.
        options: LabelMapOptions.
    """
    from synboost_monai.synthesis.label_maps import sample_label_maps

    print(f"label maps: {sample_label_maps(dataset, output_dir, options)}")


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
        bundle: bundle that synthesises.
        overrides: --dataset_dir, --output_dir, --checkpoint_path, --num_variations and every other key of its config.
    """
    run(bundle, "inference", **overrides)


@flags_of(AdaptOptions)
def adapt(images: str, output_dir: str, *, options: AdaptOptions) -> None:
    """Adapt a segmenter to images that nobody labelled, such as those of one scanner; a result that is worse is refused.

    Writes OUT/model.pt with model.json and calibration.json, and adapt.json: what was measured before and after.

    Args:
        images: folder of images and clips, or of a data set, whose label maps are not looked at.
        output_dir: folder to write to; an interrupted run goes on.
        options: AdaptOptions.
    """
    from synboost_monai.adaptation.adapt import adapt as adapt_to

    _say_weights(options)
    result = adapt_to(images, output_dir, options)
    before, after = result["before"], result["after"]
    print(
        f"adapted weights: {output_dir}/model.pt, learnt from {result['num_learnt_from']} of {result['num_images']} images"
    )
    for title, key in (
        ("simulated hearts, mean Dice", "simulated_dice"),
        (f"{result['num_held_out']} held-out images, share with a finding", "problem_share"),
        ("on these, disagreement of seven views", "mean_spread"),
    ):
        print(f"{title}: {before[key]:.3f} before, {after[key]:.3f} after")


def pseudo_label(bundle: str, *, dataset_dir: str, output_dir: str, **overrides: Any) -> None:
    """Label images that nobody labelled, for a training to learn from: `run BUNDLE pseudo_label`, with frames of clips.

    Writes a data set; give it to a training as --pseudo_labelled_dir. Eight frames are taken from each clip.

    Args:
        bundle: echo_clipseg or echo_cris.
        dataset_dir: folder of images and clips, or of a data set, whose label maps are not looked at.
        output_dir: folder to write to.
        overrides: --checkpoint_path, --labelled_dir (a data set whose patients are left out, since experts labelled them), --drop_share
            and every other key of its config.
    """
    from synboost_monai.adaptation.frames import take_frames
    from synboost_monai.processes import private_files

    section = overrides.pop("section", "training+validation")
    with private_files():  # frames of clips are patients' images
        folder, section = take_frames(dataset_dir, section, f"{output_dir}/frames")
        run(bundle, "pseudo_label", dataset_dir=folder, section=section, output_dir=output_dir, **overrides)


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

    Every frame of an AVI or MP4 file is segmented; in a folder, such clips are included with --sequences true.

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
        bundle: echo_clipseg or echo_cris segments the testing section and measures it; echo_semantic_diffusion compares a
            synthetic data set with a real one.
        overrides: --dataset_dir, --output_dir, --checkpoint_path (a segmenter's; --real_dir and --segmenter_checkpoint for
            synthetic images) and every other key of its config.
    """
    run(bundle, "evaluate", **overrides)


def experiment(
    study: str,
    *,
    dataset: str | None = None,
    unlabelled: str | None = None,
    output: str | None = None,
    cores: int | None = None,
    profile: str | None = None,
    jobs: int | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> None:
    """Run a whole study: prepare, train the diffusion model, synthesise, train and evaluate the segmenters, report.

    Finished stages are not done again; an interrupted stage continues from where it stopped.

    Args:
        study: quickstart, camus_small, or your own YAML file.
        dataset: a CAMUS folder, instead of the study's data.
        unlabelled: folder of images and clips without label maps, for the strategies that learn from such images.
        output: folder of the run; runs/STUDY by default.
        cores: processor cores to use; all by default.
        profile: where the stages run: slurm, or the folder of your own Snakemake profile; this machine by default.
        jobs: with a profile: number of stages that are submitted at a time.
        dry_run: only count and list the stages that would run.
        settings: any settings of the study, such as --seed 1 or --diffusion.train.max_epochs 5.
    """
    from synboost_monai.study.run import run_study

    report_path = run_study(
        study,
        dataset=dataset,
        unlabelled=unlabelled,
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
    """Write the report of a study's run again, finished or not.

    It consists of report.html, tables/ (CSV and LaTeX), results.csv, results.json and cases.csv.gz.

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
        names: names of the runs, with commas; by default the parts in which their paths differ.
        metrics: dice, iou, hd_mm, hd95_mm, asd_mm, with commas; by default those that every file has.
        alternative: whether the first run is better (greater), worse (less) or just different (two-sided).
        num_resamples: number of samples of the bootstrap by patients.
        seed: seed of the bootstrap.
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
        dataset_dir: data set that was evaluated; by default that of the evaluation's summary.json.
        section: section of the data set; by default that of the evaluation's summary.json.
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

    Trained folds are not trained again; an interrupted one continues from where it stopped.

    Args:
        input_path: AutoRunner's input.yaml: modality, datalist, dataroot.
        output: folder of the run; runs/auto3dseg by default.
        algos: echoclipseg, echocris, or both with a comma; both by default.
        num_fold: number of folds, which hold whole patients; those of the datalist, or 5, by default.
        ensemble: best_n, best_by_fold, both or none.
        n_best: number of networks in best_n; as many as folds by default.
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
        output_dir: folder for the patients' folders and truth.json.
        num_studies: number of patients.
        seed: seed of all patients; the same seed gives the same files.
        image_height: height of the sector in pixels.
        num_frames: frames of a clip, which is two heart beats long.
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
        in_dir: folder with any tree of files; it is only read. With --from, a folder that studies are fetched into.
        out_dir: folder for ledger.csv, report.html, measurements.csv and studies/.
        options: BatchOptions.
        overrides: keys of the bundle's inference.yaml, such as prompt_level, calibration_path, device.
    """
    from synboost_monai.hospital.batch import run_dicom

    _say_weights(options)
    if code := run_dicom(in_dir, out_dir, options, overrides=overrides):
        raise SystemExit(code)


@flags_of(ListenOptions)
def listen(out_dir: str, *, options: ListenOptions, **overrides: Any) -> None:
    """Receive studies as a DICOM node, or fetch them, segment and measure each once it is complete, and send the results on.

    Args:
        out_dir: folder of the node, for received images, results and what is still to be sent; it holds patients' data.
        options: ListenOptions.
        overrides: keys of the bundle's inference.yaml, such as prompt_level, device.
    """
    from synboost_monai.hospital.listen import run_listen

    _say_weights(options)
    if code := run_listen(out_dir, options, overrides=overrides):
        raise SystemExit(code)


@flags_of(LabelOptions)
def label(studies: str, *, options: LabelOptions, **overrides: Any) -> None:
    """Serve segmenters with MONAI Label on this machine, for annotating in 3D Slicer; from the environment of scripts/setup_label.sh.

    Args:
        studies: folder of images (NIfTI, MetaImage, PNG, DICOM); labels are kept in it.
        options: LabelOptions.
        overrides: keys of the bundles' inference.yaml and train.yaml, such as threshold, learning_rate; for one bundle of several
            --echo_cris.learning_rate 1e-4.
    """
    from synboost_monai.serving.label.serve import run_label

    _say_weights(options, *options.bundles)
    run_label(studies, options, overrides=overrides)


@flags_of(ConvertOptions)
def weights(
    action: str,
    source: str | None = None,
    output: str | None = None,
    *,
    sha256: str | None = None,
    options: ConvertOptions,
) -> None:
    """List public weights, get them (checked by their hash), or convert them to a bundle's model.pt with its model.json.

    Args:
        action: list; get NAME FOLDER (the only use of the network in this software); convert FILE MODEL.PT.
        source: get: a name of the list. convert: a checkpoint, an archive, or a folder of transformers.
        output: get: where to put the file. convert: the model.pt to write, such as bundles/echo_clipseg/models/model.pt.
        sha256: get: the hash to expect, for weights whose hash the list does not have.
        options: ConvertOptions.
    """
    from synboost_monai.weights import run_action

    print(run_action(action, source, output, sha256=sha256, options=options))


def package(bundle: str, *, checkpoint_path: str | None = None, output: str | None = None, **overrides: Any) -> None:
    """Write a bundle with its weights as one zip, which runs wherever synboost-monai is installed.

    Args:
        bundle: echo_semantic_diffusion, echo_clipseg, echo_cris, or the folder of a bundle.
        checkpoint_path: its weights, a model.pt; by default the bundle's own.
        output: the zip; BUNDLE.zip by default.
        overrides: keys of its inference.yaml, such as --threshold 0.4; they become defaults of the package, in addition to the facts of
            the weights' model.json. --calibration_path packs a calibration.
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


@flags_of(DemoOptions)
def demo(*, options: DemoOptions, **overrides: Any) -> None:
    """Open a page on this machine to segment images by words and to synthesise them from label maps, step by step.

    By default it serves this machine alone; it fetches nothing from elsewhere, and uploads are removed when it ends.

    Args:
        options: DemoOptions.
        overrides: keys of the segmenter's inference.yaml, such as --threshold 0.4; and, with `synthesis.` before them, keys of that of
            echo_semantic_diffusion, such as --synthesis.num_inference_steps 50.
    """
    from synboost_monai.serving.demo.serve import run_demo

    _say_weights(options)
    run_demo(options, overrides=overrides)


def version() -> None:
    """Print the version of the package."""
    from synboost_monai import __version__

    print(__version__)


_DATA = (phantom, phantom_studies, simulate, prepare, subset, label_maps)
_BUNDLES = (run, train, synthesise, merge, segment, evaluate, adapt, pseudo_label)
_STUDIES = (experiment, report, compare, clinical, auto3dseg)
_SERVING = (dicom, listen, label, demo, weights, package, export, version)

VERBS: dict[str, Verb] = {
    verb.__name__.replace("_", "-"): verb for room in (_DATA, _BUNDLES, _STUDIES, _SERVING) for verb in room
}
"""Verb -> function."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `synboost`; it ends the process with code 0, 1 (our fault) or 2 (a mistake of the user)."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    with in_one_line(f"synboost {argv[0]}", written_to(argv, VERBS)):
        words = checked_arguments(argv, VERBS)
        _load_matplotlib_elsewhere()
        os.environ["PAGER"] = "cat"  # `synboost VERB --help` prints, it does not page
        let_threads_wait()
        import fire

        fire.Fire(VERBS, command=words, name="synboost")


def _say_weights(options: SegmenterOptions, *bundles: str) -> None:
    """Print which weights of the bundles are used if the command names none, and hide warnings that no user can act on."""
    from synboost_monai.bundle_run import quiet_warnings, say_shipped_weights

    quiet_warnings()
    for bundle in [] if options.checkpoint_path else bundles or (options.bundle,):
        say_shipped_weights(bundle)


def _load_matplotlib_elsewhere() -> None:
    """Load matplotlib in another directory than the current one, whose matplotlibrc, perhaps somebody else's, it would obey."""
    if not os.path.exists("matplotlibrc") or find_spec("matplotlib") is None:
        return
    here = os.getcwd()
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    try:
        importlib.import_module("matplotlib")
    finally:
        os.chdir(here)


def _overview() -> str:
    """Return the verbs, one line each."""
    width = max(map(len, VERBS)) + 2
    lines = [f"  {name:<{width}}{(f.__doc__ or '').splitlines()[0]}" for name, f in VERBS.items()]
    head = "synboost VERB [arguments]: synthetic echocardiograms and prompted segmentation\n\nVerbs:"
    return "\n".join([head, *lines, "\nsynboost VERB --help explains the arguments of a verb."])


if __name__ == "__main__":
    main()
