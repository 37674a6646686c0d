"""The API process never imports torch, nor the core's image readers, nor the trainer."""

import subprocess
import sys

CODE = """
import sys
import services.api.main
import services.api.__main__
from services.site.settings import load_settings
app = services.api.main.create_app(load_settings(embedded=True, home=sys.argv[1]))
app.openapi()
loaded = [name for name in ("torch", "SimpleITK", "matplotlib", "PIL", "celery", "services.trainer") if name in sys.modules]
sys.exit(f"loaded: {loaded}" if loaded else 0)
"""


def test_a_fresh_process_loads_no_torch(tmp_path):
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
