"""Folders for what nobody else may see."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from relay_core.bundle.private import private_folder

HOLD = """
import sys, time
from pathlib import Path
from relay_core.bundle.private import private_folder
with private_folder(Path(sys.argv[1])) as folder:
    (folder / "plain").write_text("secret")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_goes_with_the_next_one_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in "ab"
    ]
    try:
        killed, living = (Path(holder.stdout.readline().strip()) for holder in holders)
        os.kill(holders[0].pid, signal.SIGKILL)
        holders[0].wait()
        assert (killed / "plain").exists()
        with private_folder(tmp_path) as mine:
            assert mine.stat().st_mode & 0o777 == 0o700
            assert not killed.exists()
            assert (living / "plain").read_text() == "secret"
        assert sorted(tmp_path.iterdir()) == [living]
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()
