"""An OpenAI-compatible server whose answers carry the effort of each token."""

from hyperlens.serving.app import make_app
from hyperlens.serving.refusals import describe_refusal
from hyperlens.serving.service import Service
from hyperlens.serving.spans import open_tracer

__all__ = ["Service", "describe_refusal", "make_app", "open_tracer"]
