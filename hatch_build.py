"""What a package index shows of this project: its addresses, and the README with absolute links.

Both follow from one setting, the repository's address, in `[tool.hatch.metadata.hooks.custom]` of pyproject.toml.
"""

import re
import sys
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PLACEHOLDER = "/OWNER/"


def absolute(text: str, repository: str, ref: str) -> str:
    """The Markdown `text` with its relative links and pictures leading to `ref` of the repository."""
    text = re.sub(r"(!\[[^\]]*\]\()(?![a-z]+:|#)", rf"\1{repository}/raw/{ref}/", text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?![a-z]+:|#)", rf"\1{repository}/blob/{ref}/", text)


class AddressHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        repository = self.config["repository"]
        if PLACEHOLDER in repository:
            print(  # noqa: T201
                f"The repository's address is still a placeholder, {repository}: "
                "its links lead nowhere. Set it with ./run address URL before a release.",
                file=sys.stderr,
            )
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(text, repository, f"v{metadata['version']}"),
        }
        metadata["urls"] = {
            # The plugin catalog reads docs/intro.md and docs/further.md from there.
            "Repository": repository,
            "Documentation": f"{repository}/tree/main/docs",
            "Changelog": f"{repository}/blob/main/CHANGELOG.md",
            "Issues": f"{repository}/issues",
        }
