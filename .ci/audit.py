"""Ask pip-audit for known weaknesses of the versions in requirements.lock that fit this Python."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

# What pip-audit says where there is no way to the database.
UNREACHABLE = re.compile(
    r"ConnectionError|ConnectTimeout|ReadTimeout|ProxyError|Max retries exceeded|SSLError"
    r"|Failed to resolve|Name or service not known|Network is unreachable"
)


def main() -> None:
    """Print what is known; exit with 1 where that is a weakness, or nobody could look."""
    command = [Path(sys.executable).with_name("pip-audit"), "--requirement", "requirements.lock"]
    command += ["--disable-pip", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        if UNREACHABLE.search(done.stderr):
            print("The dependencies were not audited: the database cannot be reached.")
            return
        sys.exit(f"{done.stdout}{done.stderr}\nerror: pip-audit did not do its work.")
    skipped = [entry["name"] for entry in found if "skip_reason" in entry]
    weak = [entry for entry in found if entry.get("vulns")]
    if len(skipped) == len(found):  # a mirror that has the packages, but not what is known of them
        print("The dependencies were not audited: the database knows none of them.")
        return
    for entry in weak:
        for known in entry["vulns"]:
            mended = ", ".join(known["fix_versions"]) or "no version yet"
            print(f"{entry['name']} {entry['version']}: {known['id']}, mended in {mended}")
    if skipped:
        print(f"Not audited, as the database does not know them: {', '.join(skipped)}.")
    if weak:
        sys.exit(
            "error: a dependency has a known weakness. Take another version: "
            "make lock ARGS='--upgrade-package <its name>'"
        )
    print(f"No known weakness in {len(found) - len(skipped)} dependencies.")


if __name__ == "__main__":
    main()
