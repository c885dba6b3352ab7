"""Hold what `synboost label` and `synboost demo` can be asked for: each field is a flag of the command line."""

from __future__ import annotations

from dataclasses import dataclass

from synboost_monai.options import ServerOptions


@dataclass(frozen=True)
class LabelOptions(ServerOptions):
    """Options of the server for annotators.

    Args:
        bundle: echo_cris, echo_clipseg, or both with a comma.
        checkpoint_path: their weights, with commas between; by default the bundles' own. They are copied, so a training leaves them alone.
        token: token that viewers need, part of the address that is printed; without a value a new one is made. SYNBOOST_LABEL_TOKEN
            of the environment hides it from lists of processes.
        port: port of the server.
        app_dir: folder for the app; runs/label/BUNDLE by default. Called again, the weights that were trained in it are served.
        dry_run: only make and check the app folder.
    """

    port: int = 8000
    app_dir: str | None = None
    dry_run: bool = False

    @property
    def bundles(self) -> list[str]:
        """Return the names or folders of the bundles."""
        return [word for word in self.bundle.split(",") if word]

    @property
    def checkpoint_paths(self) -> list[str] | None:
        """Return the weights of each bundle; None if each has its own."""
        return self.checkpoint_path.split(",") if self.checkpoint_path else None


@dataclass(frozen=True)
class DemoOptions(ServerOptions):
    """Options of the page.

    Args:
        token: token that the page asks for, part of the address that is printed; without a value a new one is made. SYNBOOST_DEMO_TOKEN
            of the environment hides it from lists of processes.
        port: port of the page.
        synthesis_checkpoint_path: weights of echo_semantic_diffusion; without any, the page only segments.
        folders: folders, with commas between, whose files may be opened by their paths; other files have to be uploaded.
    """

    port: int = 7860
    synthesis_checkpoint_path: str | None = None
    folders: str = ""
