"""Uploads a folder to the Hugging Face Hub."""

from collections.abc import Sequence
from pathlib import Path

from jaxseg.base.errors import UserError

PREFIX = "hf:"


def repository(push: str) -> str:
    """Returns OWNER/NAME of `hf:OWNER/NAME`. Raises UserError for anything else."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name = push.removeprefix(PREFIX)
    try:
        validate_repo_id(name)
        fits = push.startswith(PREFIX) and name.count("/") == 1
    except HFValidationError:
        fits = False
    if not fits:
        raise UserError(f"--push is {push}; expected hf:OWNER/NAME, a repository on the Hugging Face Hub")
    return name


def upload(folder: Path, files: Sequence[str], push: str, *, private: bool) -> str:
    """Uploads `files` of `folder` as one commit, and returns the address of the repository.

    - `push`: hf:OWNER/NAME, made if there is none
    - `private`: of a new repository

    Raises UserError when the Hub cannot be reached or refuses; the files in `folder` stay.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    unreachable = HfHubHTTPError.__bases__[0], OSError  # the HTTP library's own, which differs among versions
    name, kept = repository(push), f"The files are in {folder}; --push --overwrite tries again."
    api = HfApi(library_name="jaxseg")
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=list(files), commit_message="Export from jaxseg"
        )
    except OfflineModeIsEnabled:
        raise UserError(f"--push {push}: HF_HUB_OFFLINE is set; unset it. {kept}") from None
    except LocalTokenNotFoundError:
        raise UserError(f"--push {push}: nobody is logged in; run `hf auth login`, or set HF_TOKEN. {kept}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        advice = {401: "Log in with `hf auth login`, or set HF_TOKEN", 403: "This token may not write there"}
        what = advice.get(status, "Try again later")
        raise UserError(f"--push {push}: the Hub refused ({first_line(error)}). {what}. {kept}") from None
    except unreachable as error:
        raise UserError(f"--push {push}: the Hub cannot be reached ({first_line(error)}). {kept}") from None
    return address


def first_line(error: Exception) -> str:
    """First line of an error's message, or its kind."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
