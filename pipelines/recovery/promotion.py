"""Making another bundle the one that scores: at once where a stream runs, else from its next start.

A stream that runs prepares the bundle before it decides for it (`pipelines.stream_run.promoting`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tidemill.features.errors import BundleError, InputError, StateMismatch
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.promotion_record import PromotionRecord, mailbox
from tidemill.serving.bundles.bundle import Bundle
from tidemill.serving.bundles.current import BUNDLES, current_bundle, make_current
from tidemill.serving.bundles.serving_layout import serve
from tidemill.serving.files.locks import is_locked

WITHIN_S: Final = 120.0


def promote(config: Configuration, version: str) -> PromotionRecord | None:
    """Let a bundle score.

    Args:
        config: The configuration.
        version: The version of the bundle.

    Returns:
        What the stream that runs has done; None if none runs, or one of files, which goes on with
        the bundle that it has.

    Raises:
        InputError: The project has no model.
        BundleError: There is no such bundle, or it is damaged, or of other definitions.
        StateMismatch: The stream has refused it, or has not answered.
    """
    config = config.pin()
    if config.project.model is None:
        raise InputError(
            f"project {config.project.name!r} has no model: there is nothing to promote"
        )
    folder = config.root / BUNDLES / version
    if folder.name != version or not folder.is_dir():
        made = sorted(path.parent.name for path in (config.root / BUNDLES).glob("*/manifest.json"))
        raise BundleError(
            f"there is no bundle {version!r} below {config.root / BUNDLES}; there are: "
            f"{', '.join(made) or 'none'}"
        )
    bundle = Bundle.load(folder, config.project)
    current, done = config.current, None
    if config.is_live and is_locked(current.stream_lock):
        done = _asked(current.stream_folder, current.stream_lock, version)
    else:
        make_current(config.root, version)
    serve(config.root, bundle)
    return done


def before_that(config: Configuration) -> str:
    """Return the bundle that scored before the live one.

    Raises:
        BundleError: Nothing says which one that was.
    """
    config = config.pin()
    live = current_bundle(config.root).name
    run = StreamRun.read(config.current.stream_folder)
    made = [str(one["bundle"]) for one in (run.models or () if run else ()) if one["bundle"]]
    others = [version for version in made if version != live]
    if not others:
        raise BundleError(
            f"no other bundle than {live} has scored in the stream of {config.root}: name the one "
            "to go back to, with `tidemill promote VERSION`"
        )
    return others[-1]


def _asked(stream: Path, lock: Path, version: str) -> PromotionRecord:
    box = mailbox(stream)
    number = box.ask(bundle=version)
    answer = box.wait(number, lambda: is_locked(lock), WITHIN_S)
    if answer is None:
        raise StateMismatch(
            f"the stream in {stream} has not answered within {WITHIN_S:g} s, or has ended: run "
            "`tidemill promote` again once it runs"
        )
    found = PromotionRecord(**answer)
    if found.number > number:
        raise StateMismatch(
            f"another `tidemill promote` has asked for bundle {found.bundle} meanwhile: run this "
            "one again"
        )
    if found.error:
        raise StateMismatch(f"the stream goes on with the bundle that it has: {found.error}")
    return found
