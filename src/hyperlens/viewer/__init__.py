"""The viewer: runs in a local web page. Torch stays asleep."""

from hyperlens.viewer.app import make_app
from hyperlens.viewer.library import find_errors
from hyperlens.viewer.live import Live
from hyperlens.viewer.places import Place, find_places

__all__ = ["Live", "Place", "find_errors", "find_places", "make_app"]
