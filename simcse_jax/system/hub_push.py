"""Upload a folder to a repository of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simcse_jax.system.errors import UserError, short
from simcse_jax.system.hub import require_hub


def require_pushable(repo: str) -> None:
    """Raise UserError for what is no OWNER/NAME, without a token, and where the Hub is out of reach."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push={repo} is no name of the Hub: {short(error)}") from error
    if "/" not in repo:
        raise UserError(f"--push={repo} has no owner. Give OWNER/NAME, such as --push=my-name/{repo}.")
    if get_token() is None:
        raise UserError(
            f"--push={repo} needs a token of the Hub that may write.\nMake one on its page of access tokens, and set "
            "HF_TOKEN, or run `hf auth login`."
        )
    require_hub()


def push_folder(folder: Path, names: Sequence[str], repo: str, private: bool, message: str) -> str:
    """Upload these files and folders of a folder as one commit, to a repository that is made if need be.

    Return its address. private: whether a new repository is. Raises UserError where the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub_errors

    api = HfApi()
    wanted = [*names, *(f"{name}/**" for name in names)]
    try:
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=wanted, commit_message=message)
    except hub_errors.HfHubHTTPError as error:
        denied = error.response is not None and error.response.status_code in (401, 403)
        way_out = "Give a token of its owner that may write: HF_TOKEN, or `hf auth login`." if denied else "Try again."
        raise UserError(
            f"{repo} was not uploaded: {short(error)}\n{way_out} The exported folder {folder} is whole."
        ) from error
    except Exception as error:  # among them those of the HTTP client, which are no OSError
        raise UserError(
            f"{repo} was not uploaded: {short(error)}\nTry again. The exported folder {folder} is whole."
        ) from error
    return address
