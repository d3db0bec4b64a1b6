"""The page: from heat map to edit to before/after and back, in a browser. Needs the extra `web`."""

from engram.web.app import Running, build, serve
from engram.web.limits import Limits
from engram.web.workbench import Workbench

__all__ = ["Limits", "Running", "Workbench", "build", "serve"]
